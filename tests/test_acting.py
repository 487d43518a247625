"""The loop that steps actors: the same scores whatever is stepped together, and it can be stopped."""

import numpy as np
import pytest
import torch
from conftest import tiny_config, write_file
from test_context import random_model

import env
import evaluate
from dataset import ADDataset
from history.format import history_path
from model.acting import NoiseStreams, RandomActor, Sampling, run_actor


@pytest.mark.parametrize("mode", ["use_compressed_context=true", "use_compressed_context=false"])
def test_scores_do_not_depend_on_what_is_stepped_together(mode):
    model = random_model(mode)
    tasks = env.list_tasks(model.config)[:4]
    together = evaluate.evaluate_tasks(model, tasks, repeats=3, episodes=8, seed=7)
    for envs_at_once in (1, 5, 12):
        apart = evaluate.evaluate_tasks(model, tasks, 3, 8, seed=7, envs_at_once=envs_at_once)
        np.testing.assert_array_equal(apart, together)
    rest = evaluate.evaluate_tasks(model, tasks[2:], 3, 8, seed=7, first_env=6)  # a second rank's share
    np.testing.assert_array_equal(rest, together[2:])
    assert (evaluate.evaluate_tasks(model, tasks, 3, 8, seed=8) != together).any()


def test_each_environment_has_its_own_stream_of_noise():
    def draw(rng, n):
        return rng.random((n, 2))

    several, one = NoiseStreams(draw, 3, range(4)), NoiseStreams(draw, 3, range(2, 3))
    for _ in range(600):  # beyond one block
        drawn = several.next()
        np.testing.assert_array_equal(drawn[2], one.next()[0])
    assert len(np.unique(drawn)) == 8


def test_the_loop_stops_when_it_is_told_to():
    model, calls = random_model("use_compressed_context=true"), []
    vec_env = env.make_vec_env(model.config, env.list_tasks(model.config))
    record = model.evaluate_in_context(vec_env, 100, stop=lambda: len(calls) == 9, on_step=lambda: calls.append(None))
    assert len(record["rewards"]) == 9 and record["returns"].shape == (9, 1)  # one episode of 6 steps was over
    stopped = evaluate.evaluate_tasks(model, env.list_tasks(model.config), 2, 5, seed=0, stop=lambda: True)
    assert stopped.shape == (9, 2, 0)


def test_a_random_actor_finds_what_chance_finds():
    vec_env = env.make_vec_env(tiny_config(), [{"goal": (1, 1), "grid_size": 3, "horizon": 6}] * 400)
    record = run_actor(RandomActor(vec_env.action_space, 400, seed=0), vec_env, 6)
    first = record["rewards"][0].mean()  # from the centre only staying earns, one action of five
    assert first == pytest.approx(0.2, abs=0.06) and not record["region_ends"].any()


@pytest.mark.parametrize(
    ("settings", "episode", "expected"),
    [
        (["mix_streams=true", "region_stride=1"], 5, [0, 12]),
        (["mix_streams=false", "region_stride=3"], 5, [0, 12]),
        (["mix_streams=false", "region_stride=1"], 5, [0]),
        (["mix_streams=true", "region_stride=1", "use_compressed_context=false", "n_transit=24"], 5, [0, 12]),
        (["mix_streams=true", "region_stride=1"], 6, [0]),  # regions end with episodes: nothing is wrong then
    ],
)
def test_what_led_to_a_step_is_not_shown_where_the_stream_or_the_rollout_changes(tmp_path, settings, episode, expected):
    """The step before a region is of another stream or of a rollout long before; acting never sees such a one."""
    model = random_model("use_compressed_context=true", *settings)
    dones = np.broadcast_to((np.arange(60) % episode == episode - 1)[:, None], (60, 4))
    write_file(history_path(model.config, tmp_path), model.config, n_steps=60, n_streams=4, dones=dones)
    dataset = ADDataset(model.config, tmp_path, "train")
    batch = dataset.batch(np.array([len(dataset) - 1] if model.context.marks_regions else [0]))
    assert batch["starts"][0].nonzero()[:, 0].tolist() == expected and batch["rewards"].shape == (1, 24)
    other = batch | {"actions": batch["actions"].clone()}
    other["actions"][0, 11] = (batch["actions"][0, 11] + 1) % 5  # the last action before step 12
    assert torch.equal(model.embed_window(batch)[0], model.embed_window(other)[0]) == (len(expected) == 2)


def test_acting_shows_what_training_shows_at_a_regions_start():
    for overrides, dones, expected in (
        (["mix_streams=true"], 0, [0, 12]),
        (["mix_streams=true"], 1, [0]),  # an episode has ended with the previous region
        (["mix_streams=false", "region_stride=1"], 0, [0]),
    ):
        model = random_model("use_compressed_context=true", *overrides)
        context = model.context.rolling(model, 1)
        for _ in range(20):
            context.observe(torch.zeros(1, 2))
            context.record(torch.zeros(1), torch.zeros(1), torch.full((1,), dones))
        assert context.window(torch.tensor([0]))["starts"][0].nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize("context", ["context=regions", "context=memory"])
def test_the_context_is_told_what_an_episode_ended_on(context):
    settings = ["env=darkroom_hard", "use_compressed_context=true", "reached_observations=true", context]
    model = random_model(*settings)
    vec_env = env.make_vec_env(model.config, env.list_tasks(model.config))
    actor, observations, n_ended = model.actor(9, Sampling()), vec_env.reset(), 0
    for _ in range(40):
        observations, rewards, dones, infos = vec_env.step(actor.act(observations))
        actor.record(rewards, dones, infos)
        for i in range(9):
            ended_on = infos[i]["terminal_observation"] if dones[i] else np.zeros(2)
            assert actor.context.newest["reached"][i].tolist() == ended_on.tolist()
        n_ended += int(dones.sum())
    assert n_ended > 50
