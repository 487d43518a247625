"""Evaluation: episodes of different lengths, early stopping, and the source's curve."""

import shutil
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import tiny_config
from stable_baselines3.common.vec_env import DummyVecEnv
from test_context import random_model

import collect
import env
import evaluate
from config.loading import load_config
from files import InputError
from history.format import history_path
from history.returns import source_curve
from model import AD
from model.acting import told_success
from scripts import family_paths
from train import N_STANDARDISE


class Count(gym.Env):
    """Episodes of `length` steps, each with a reward of 1: terminated there, unless a time limit comes first."""

    observation_space = gym.spaces.Box(0, 100, (1,))
    action_space = gym.spaces.Box(-400, 400, (1,))

    def __init__(self, length: int):
        self.length = length

    def reset(self, seed=None, options=None):
        self.n_steps = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.n_steps += 1
        return np.full(1, self.n_steps, dtype=np.float32), 1.0, self.n_steps >= self.length, False, {}


gym.register("Count-v0", entry_point=Count, max_episode_steps=9)  # cuts the longest task's episodes
LENGTHS = [3, 5, 20]
COUNT = ["env=Count-v0", "task_kwargs=[{length: 3}, {length: 5}, {length: 20}]", "train_env_ratio=1.0"]


@pytest.fixture(scope="module")
def count_histories(tmp_path_factory):
    """A history file of all three tasks, whose episodes have 3, 5 and 9 steps; 4 rollouts of 12 steps."""
    folder = tmp_path_factory.mktemp("count")
    config = tiny_config(*COUNT, "n_stream=2", "total_source_timesteps=96", "batch_size=24", "n_epochs=1")
    collect.prepare_parts(folder / "parts", config)
    for task in range(3):
        collect.collect_task(config, task, folder / "parts" / f"{task}.hdf5", log_dir=None)
    collect.join_parts(history_path(config, folder), folder / "parts", 3, config)
    return folder, config


def test_the_record_has_each_tasks_own_ends(count_histories):
    folder, config = count_histories
    with h5py.File(history_path(config, folder)) as file:
        for task, length in enumerate((3, 5, 9)):
            ends = np.flatnonzero(file[f"{task}/dones"][:, 0]) + 1
            assert ends.tolist() == list(range(length, 49, length))
            terminal = file[f"{task}/next_states"][ends - 1, 0, 0]
            assert (terminal == length).all() and file[f"{task}/states"][ends[0], 0, 0] == 0
            assert np.nanmean(file[str(task)].attrs["mean_return_per_rollout"]) == length


def test_the_sources_curve_counts_the_episodes_that_ended(count_histories):
    """Not those that would have, were all as long as the longest: 9 steps."""
    folder, config = count_histories
    path = history_path(config, folder)
    for task, length in enumerate((3, 5, 9)):
        episodes, means = source_curve(path, [task], config)
        assert episodes.tolist() == [12 * rollout // length for rollout in (1, 2, 3, 4)] and set(means) == {length}
    episodes, _ = source_curve(path, [0, 1], config)
    assert episodes.tolist() == [3, 6, 9.5, 12.5]
    with pytest.raises(InputError, match="no such history file"):
        source_curve(history_path(config, folder / "nowhere"), [0], config)


def test_the_sources_curve_of_a_file_without_ends(tmp_path):
    """From the rollouts, all episodes being the longest; a rollout in which none ended is left out."""
    config = tiny_config()  # episodes of 6 steps, rollouts of 12
    with h5py.File(history_path(config, tmp_path), "w") as file:
        file.create_group("0").attrs["mean_return_per_rollout"] = np.array([np.nan, 1, 2])
    episodes, means = source_curve(history_path(config, tmp_path), [0], config)
    assert episodes.tolist() == [4, 6] and means.tolist() == [1, 2]


def test_the_sources_curve_goes_by_the_files_own_rollouts(count_histories, tmp_path):
    """The checkpoint's `n_steps` may be another one: it is of the file that the model was trained on."""
    folder, config = count_histories
    other, copy = config | {"n_steps": 24}, shutil.copy(history_path(config, folder), tmp_path / "copy.hdf5")
    for what in ("markers", "the recorded n_steps", "returns from the arrays"):
        episodes, means = source_curve(Path(copy), [0], other)
        assert episodes.tolist() == [4, 8, 12, 16] and means.tolist() == [3, 3, 3, 3], what
        with h5py.File(copy, "r+") as file:
            if what == "markers":
                del file["0/compress_markers"]
            elif what == "the recorded n_steps":
                del file["0"].attrs["mean_return_per_rollout"]


def replace(file, name, change):
    values = file.pop(name)[()]
    file[name] = change(values)


def test_rewards_may_have_an_axis_more(count_histories, tmp_path):
    folder, config = count_histories
    copy = shutil.copy(history_path(config, folder), tmp_path / "copy.hdf5")
    with h5py.File(copy, "r+") as file:
        del file["0"].attrs["mean_return_per_rollout"]
        replace(file, "0/rewards", lambda rewards: rewards[..., None])
    assert source_curve(Path(copy), [0], config)[1].tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda file: file["0"].attrs.update({"mean_return_per_rollout": [1.0]}), "not that of its 4 regions"),
        (lambda file: file["0"].attrs.update({"mean_return_per_rollout": "none"}), "mean_return_per_rollout"),
        (lambda file: [file["0"].attrs.pop("mean_return_per_rollout"), file.pop("0/dones")], "has neither"),
        (lambda file: file.pop("0"), "damaged"),
        (lambda file: replace(file, "0/dones", lambda dones: dones[:, 0]), "dones and rewards have different shapes"),
        (
            lambda file: replace(file, "0/rewards", lambda rewards: rewards.astype("S3")),
            "rewards: has shape .*expected numbers",
        ),
    ],
)
def test_why_there_is_no_curve_is_told(count_histories, tmp_path, break_it, message):
    folder, config = count_histories
    copy = shutil.copy(history_path(config, folder), tmp_path / "copy.hdf5")
    with h5py.File(copy, "r+") as file:
        break_it(file)
    with pytest.raises(InputError, match=message):
        source_curve(Path(copy), [0, 1], config)


def test_evaluation_stops_when_every_environment_has_enough_episodes():
    torch.manual_seed(0)
    config = tiny_config(*COUNT)
    model = AD(config | env.describe_spaces(config))
    vec_env = env.make_vec_env(config, env.list_tasks(config))
    result = model.evaluate_in_context(vec_env, 1000, n_episodes=4)
    assert {name: len(result[name]) for name in ("rewards", "dones", "region_ends")} == dict.fromkeys(
        ("rewards", "dones", "region_ends"), 36
    )
    np.testing.assert_array_equal(result["returns"], np.array([[3], [5], [9]]) * np.ones(4))
    assert result["dones"].sum(axis=0).tolist() == [12, 7, 4]
    assert evaluate.evaluate_tasks(model, env.list_tasks(config), 2, 3, seed=0).shape == (3, 2, 3)


def test_returns_per_span_of_steps():
    record = {"rewards": np.arange(14).reshape(7, 2), "returns": np.ones((2, 5))}
    assert evaluate.counted_returns(record, 3, span=3).tolist() == [[6, 24], [9, 27]]  # the seventh step is of no span
    assert evaluate.counted_returns(record, 3, span=None).shape == (2, 3)
    config = tiny_config(*COUNT)
    returns = evaluate.evaluate_random(config, env.list_tasks(config), seed=0, span=4)
    n_steps = -(-evaluate.N_RANDOM_STEPS // 9) * 9  # whole episodes of the longest length
    np.testing.assert_array_equal(returns, np.full((3, n_steps // 4), 4))


def test_spans_do_not_depend_on_who_acts_beside():
    """Episodes of 3, 5 and 9 steps: as many spans as three of the longest have, also for those that end sooner."""
    config = tiny_config(*COUNT)
    model, tasks = AD(config), env.list_tasks(config)
    for envs_at_once in (1, 2, 6):
        returns = evaluate.evaluate_tasks(model, tasks, 2, 3, seed=0, envs_at_once=envs_at_once, span=4)
        np.testing.assert_array_equal(returns, np.full((3, 2, 27 // 4), 4))


def test_the_best_return_of_a_span_is_known_where_it_grows_evenly():
    endless = load_config(family_paths("endless_key_to_door"), ["n_tasks=3"])
    tasks = env.list_tasks(endless)
    whole, half = (env.optimal_returns(endless, tasks, span) for span in (None, 250))
    np.testing.assert_array_equal(half, whole / 2)
    darkroom = tiny_config()
    whole, half = (env.optimal_returns(darkroom, env.list_tasks(darkroom), span) for span in (None, 3))
    assert (whole > 0).all() and np.isnan(half).all()


def test_successes_are_counted_per_episode():
    config = tiny_config("env=toy_envs:Lengths-v0", "task_kwargs=[{first: 0}, {first: 2}]")
    found = evaluate.evaluate_random(config, env.list_tasks(config), seed=0, success=True)
    assert found.shape == (2, 100) and found[:, :5].tolist() == [[1, 0, 1, 0, 1], [1, 0, 1, 1, 0]]
    config = tiny_config(*COUNT)
    assert np.isnan(evaluate.evaluate_random(config, env.list_tasks(config), seed=0, success=True)).all()


def test_an_environment_may_tell_of_a_success_only_where_there_is_one():
    """Then the environments of one chunk may tell of none."""
    dones, rewards = np.array([[0, 1], [1, 0], [1, 1]], dtype=bool), np.zeros((3, 2))
    for successes, expected in (
        ([[np.nan] * 2, [1, np.nan], [np.nan] * 2], [[1, 0], [0, 0]]),
        ([[np.nan] * 2] * 3, [[np.nan] * 2] * 2),
        ([[0, 0]] * 3, [[0, 0]] * 2),
    ):
        record = {"rewards": rewards, "dones": dones, "successes": np.array(successes, dtype=np.float32)}
        np.testing.assert_array_equal(evaluate.counted_returns(record, 5, None, success=True), expected)


def test_only_numbers_are_successes():
    infos = {"success": np.float64(1.0)}, {"is_success": False}, {"success": None}, {"is_success": "yes"}, {}
    np.testing.assert_array_equal([told_success(info) for info in infos], [1, 0, np.nan, np.nan, np.nan])


def test_stopping_early_changes_nothing_before():
    model = random_model()
    vec_env = env.make_vec_env(model.config, env.list_tasks(model.config))
    whole, part = model.evaluate_in_context(vec_env, 60), model.evaluate_in_context(vec_env, 60, n_episodes=5)
    assert len(part["rewards"]) == 30
    np.testing.assert_array_equal(part["rewards"], whole["rewards"][:30])
    np.testing.assert_array_equal(part["returns"], whole["returns"][:, :5])


def test_the_random_policy_stops_early_too(monkeypatch):
    config = tiny_config(*COUNT)
    n_steps = []
    step = DummyVecEnv.step_wait
    monkeypatch.setattr(DummyVecEnv, "step_wait", lambda self: n_steps.append(1) or step(self))
    returns = evaluate.evaluate_random(config, env.list_tasks(config)[:2], seed=0)
    np.testing.assert_array_equal(returns, np.array([[3], [5]]) * np.ones(100))
    assert len(n_steps) == 500


def test_episodes_of_different_lengths_train(count_histories):
    """And actions of a Box of 400 either way are drawn at their scale, within its bounds."""
    from dataset import ADDataset

    folder, config = count_histories
    dataset = ADDataset(config, folder, "all")
    model = AD(config | env.describe_spaces(config))
    model.fit_inputs(dataset.sample_batch(N_STANDARDISE, np.random.default_rng(0)))
    losses = model(dataset.sample_batch(16, np.random.default_rng(0)))
    assert dataset.soft_targets and torch.isfinite(losses["loss_total"])
    assert 0.5 < float(model.actions.std) < 2  # the source's actions have a deviation of 1
    assert losses["loss_action"] < 10


def test_labels_tell_what_differs_between_tasks():
    config = tiny_config(*COUNT)
    assert env.task_labels(env.list_tasks(config)[:2], env.list_tasks(config)) == ["length", "3", "5"]
    config |= {"env": "Pendulum-v1", "task_kwargs": [], "task_ranges": {"g": [4, 12]}, "n_tasks": 3}
    heading, *labels = env.task_labels(env.list_tasks(config), env.list_tasks(config))
    assert heading == "g" and [float(label) for label in labels] == pytest.approx([9.1, 6.16, 4.33], abs=0.01)
    config = tiny_config("env=CartPole-v1")
    assert env.task_labels([{}], env.list_tasks(config)) == ["-", "-"]


def test_result_files_of_long_settings_have_short_names_of_their_own():
    args = evaluate.parse_arguments([])
    names = {evaluate.default_name(args, 30, [f"task_kwargs={[{'goal': [0, i]}] * 40}"]) for i in range(3)}
    assert len(names) == 3 and max(map(len, names)) < 200
    assert evaluate.default_name(args, 30, ["temperature=0.5"]) == "eval-test-30_temperature-0.5"
