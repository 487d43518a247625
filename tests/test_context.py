"""The rolling context: equal to a full forward, equal to what the dataset builds, never too long."""

import h5py
import numpy as np
import pytest
import torch
from conftest import tiny_config, write_file

import env
from dataset import ADDataset
from history.format import history_path
from history.returns import episode_returns
from model import AD
from model.acting import Sampling
from model.context.rolling import RollingContext

N_ENVS = 6


def random_model(*settings) -> AD:
    torch.manual_seed(1)
    model = AD(tiny_config(*settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def random_steps(n_steps: int, seed: int = 0, episode: int = 6, with_reached: bool = False):
    """(observations, actions, rewards, dones) per step, and where asked for what it reached, for N_ENVS environments."""
    rng = np.random.default_rng(seed)
    for t in range(n_steps):
        observations = torch.from_numpy(rng.integers(3, size=(N_ENVS, 2)))
        actions = torch.from_numpy(rng.integers(5, size=N_ENVS))
        rewards = torch.from_numpy(rng.random(N_ENVS, dtype=np.float32))
        dones = torch.full((N_ENVS,), t % episode == episode - 1)
        reached = [torch.from_numpy(rng.integers(3, size=(N_ENVS, 2)))] if with_reached else []
        yield observations, actions, rewards, dones, *reached


def full_forward(model: AD, context: RollingContext) -> torch.Tensor:
    """Features of every environment's newest token, without a cache."""
    x, layout = model.embed_window(context.window(torch.arange(N_ENVS)))
    return model.transformer(x)[torch.arange(N_ENVS), layout.valid.sum(1) - 1]


@torch.no_grad()
@pytest.mark.parametrize("settings", [["use_compressed_context=true"], ["use_compressed_context=false", "n_transit=20"],
                                      ["use_compressed_context=true", "reached_observations=true"],
                                      ["use_compressed_context=true", "context_regions=1"],
                                      ["use_compressed_context=true", "context_regions=3", "n_transit=36"]])  # fmt: skip
@pytest.mark.parametrize("ends_differ", [False, True])
def test_cached_equals_uncached(settings, ends_differ):
    """Through many boundaries; with `ends_differ`, each environment ends regions at places of its own."""
    model = random_model(*settings)
    context = model.context.rolling(model, N_ENVS)
    rng = np.random.default_rng(5)
    with_reached = "reached_observations=true" in settings
    for t, (observations, *results) in enumerate(random_steps(70, with_reached=with_reached)):
        features = context.observe(observations)
        if t == 0:
            context.record(*results)
            continue
        torch.testing.assert_close(features, full_forward(model, context), atol=1e-5, rtol=1e-5)
        if ends_differ and context.context.marks_regions:
            context.ended |= torch.from_numpy(rng.random(N_ENVS) < 0.1)
        assert int(context.n_steps.max()) <= context.capacity
        context.record(*results)
    if ends_differ and context.context.marks_regions:
        assert len(set(context.region_lengths[:, -1].tolist())) > 1  # they were in different places


@torch.no_grad()
@pytest.mark.parametrize("episode", [5, 6])  # regions begin within episodes, or with them
@pytest.mark.parametrize("mixed", ["mix_streams=true", "mix_streams=false"])
@pytest.mark.parametrize("reached", [False, True])
def test_context_equals_what_the_dataset_builds(tmp_path, episode, mixed, reached):
    """The same history, stepped through by the context and read from a file."""
    settings = ["use_compressed_context=true", "region_stride=1", "soft_targets=false", mixed]
    model = random_model(*settings, f"reached_observations={reached}")
    steps = list(random_steps(50, episode=episode, with_reached=reached))
    arrays = [torch.stack(values).numpy() for values in zip(*steps)]
    changes = dict(zip(("states", "actions", "rewards", "dones", "next_states"), arrays))
    path = write_file(history_path(model.config, tmp_path), model.config, 50, N_ENVS, action_probs=None, **changes)
    dataset = ADDataset(model.config, tmp_path, "test")
    assert h5py.is_hdf5(path)

    context = model.context.rolling(model, N_ENVS)
    n_compared = 0
    for t, (observations, *results) in enumerate(steps):
        context.observe(observations)
        context.record(*results)
        if t % 12 == 11 or t == 49:  # a region is complete, or the history ends
            region = t // 12
            batch = dataset.batch(region * N_ENVS + np.arange(N_ENVS))
            window = context.window(torch.arange(N_ENVS))
            assert torch.equal(window["region_lengths"], batch["region_lengths"])
            (ours, our_layout), (theirs, their_layout) = model.embed_window(window), model.embed_window(batch)
            assert torch.equal(our_layout.types, their_layout.types)
            assert torch.equal(our_layout.positions, their_layout.positions)
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
            n_compared += 1
    assert n_compared == 5


def test_evaluation_keeps_at_most_two_regions_and_sees_nothing_older(monkeypatch):
    model = random_model("use_compressed_context=true")
    longest = []
    observe = RollingContext.observe

    def watch(context, observations):
        features = observe(context, observations)
        longest.append(int(context.n_steps.max()))
        return features

    monkeypatch.setattr(RollingContext, "observe", watch)
    vec_env = env.make_vec_env(model.config, env.list_tasks(model.config))
    result = model.evaluate_in_context(vec_env, 60)
    assert max(longest) == 24 and longest[24:] == [13 + t % 12 for t in range(36)]
    assert result["rewards"].shape == (60, 9) and result["returns"].shape == (9, 10)
    np.testing.assert_array_equal(np.where(result["region_ends"][:, 0])[0], [11, 23, 35, 47, 59])


@torch.no_grad()
def test_what_was_dropped_has_no_influence():
    model = random_model("use_compressed_context=true")
    one, other = model.context.rolling(model, N_ENVS), model.context.rolling(model, N_ENVS)
    for t, (first, second) in enumerate(zip(random_steps(40, seed=0), random_steps(40, seed=1))):
        if t >= 12:
            second = first  # histories that differ in their first region only
        a, b = one.observe(first[0]), other.observe(second[0])
        one.record(*first[1:])
        other.record(*second[1:])
        assert torch.equal(a, b) == (t >= 24)


class EndsAnywhere(torch.nn.Module):
    """Stands in for the token-type head: ends a region after about every tenth step, by the features' digits."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        ends = (features.sum(-1) * 1e4).frac().abs() < 0.1
        return torch.stack([~ends, torch.zeros_like(ends), ends], dim=-1).float()


def test_predicted_boundaries_are_per_environment_and_capped():
    model = random_model("use_compressed_context=true")
    vec_env = env.make_vec_env(model.config, env.list_tasks(model.config))
    model.pred_token_type = EndsAnywhere()
    ends = model.evaluate_in_context(vec_env, 120, boundaries="predicted")["region_ends"]
    lengths = [np.diff(np.flatnonzero(ends[:, n]), prepend=-1) for n in range(9)]
    assert all(length.max() <= 12 for length in lengths)
    assert len({tuple(length) for length in lengths}) > 1


def test_sampling_is_reproducible_and_argmax_is_temperature_zero():
    model = random_model("use_compressed_context=true")
    tasks = env.list_tasks(model.config)

    def run(**settings):
        return model.evaluate_in_context(env.make_vec_env(model.config, tasks), 40, **settings)["rewards"]

    assert np.array_equal(run(seed=3), run(seed=3)) and not np.array_equal(run(seed=3), run(seed=4))
    assert np.array_equal(run(temperature=0, seed=3), run(temperature=0, seed=4))
    outputs = torch.tensor([[0.0, 1.0, 0.0]]).repeat(4000, 1)
    sharp, flat = (model.actions.sample(outputs, t, torch.rand(4000)) == 1 for t in (0.5, 2.0))
    assert sharp.float().mean().item() == pytest.approx(np.exp(2) / (np.exp(2) + 2), abs=0.03)
    assert flat.float().mean().item() == pytest.approx(np.exp(0.5) / (np.exp(0.5) + 2), abs=0.03)


def test_episode_returns():
    rewards = np.array([[1, 0], [2, 5], [3, 0], [4, 7]], dtype=float)
    dones = np.array([[False, True], [True, False], [False, False], [True, True]])
    np.testing.assert_array_equal(episode_returns(rewards, dones), [[3, 7], [0, 12]])


NO_SUMMARIES = ["context=memory", "memory_regions=0", "history_regions=4"]


@pytest.mark.parametrize("settings", [[], NO_SUMMARIES])
def test_exploring_temperature_holds_until_the_context_shows_a_reward(settings):
    """With both temperatures extreme, actions tell which one was used: 0 always repeats itself."""
    model = random_model("use_compressed_context=true", "exploring_temperature=1000.0", *settings)
    used = []
    sample = model.actions.sample

    def note(outputs, temperature, noise):
        used.append(temperature.clone())
        return sample(outputs, temperature, noise)

    model.actions.sample = note
    tasks = env.list_tasks(model.config)
    record = model.evaluate_in_context(env.make_vec_env(model.config, tasks), 60, temperature=0, seed=1)
    rewards, interval = record["rewards"], model.config["compress_interval"]
    for t in range(60):
        first = max(0, t // interval - 1) * interval  # the previous region and the current one
        rewarded = rewards[first:t].any(axis=0)
        assert used[t].tolist() == np.where(rewarded, 0.0, 1000.0).tolist(), t
    assert set(torch.cat(used).tolist()) == {0.0, 1000.0}


CONTEXTS = [["use_compressed_context=true"], ["use_compressed_context=false", "n_transit=20"],
            ["context=memory", "memory_regions=3", "history_regions=6"]]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("settings", CONTEXTS)
@pytest.mark.parametrize("forgotten_at", [1, 7, 50])
def test_what_was_forgotten_has_no_influence(settings, forgotten_at):
    """Afterwards a context is like a new one, also within a region; the other environments go on as they would."""
    model, steps = random_model(*settings), list(random_steps(90))
    forgetting, unbroken, new = (model.context.rolling(model, N_ENVS) for _ in range(3))
    envs = torch.tensor([1, 4])
    others = torch.tensor([0, 2, 3, 5])
    for t, (observations, *results) in enumerate(steps):
        features, expected = forgetting.observe(observations), unbroken.observe(observations)
        torch.testing.assert_close(features[others], expected[others], atol=1e-5, rtol=1e-5)
        if t >= forgotten_at:
            torch.testing.assert_close(features[envs], new.observe(observations)[envs], atol=1e-5, rtol=1e-5)
            assert torch.equal(forgetting.seeks_reward(1.0)[envs], new.seeks_reward(1.0)[envs])
            new.record(*results)
        forgetting.record(*results)
        unbroken.record(*results)
        if t == forgotten_at - 1:
            forgetting.forget(envs)


@pytest.mark.parametrize("settings", CONTEXTS)
def test_a_search_that_finds_nothing_begins_anew(settings, monkeypatch):
    model = random_model(*settings, "restart_after=15")
    actor, forgotten = model.actor(3, Sampling.of(model.config)), []
    monkeypatch.setattr(actor.context, "forget", lambda envs: forgotten.append((t, envs.tolist())))
    rewards = np.zeros((50, 3), dtype=np.float32)
    rewards[14, 1], rewards[20, 2] = -1.0, 1.0  # at the last moment; after one new beginning
    for t in range(50):
        actor.act(np.zeros((3, 2), dtype=np.int64))
        actor.record(rewards[t], np.full(3, t % 6 == 5), [{} for _ in range(3)])
    assert forgotten == [(14, [0, 2]), (29, [0]), (44, [0])]


@pytest.mark.parametrize("patience", [1.0, 2.5])
@pytest.mark.parametrize(
    "settings", [["use_compressed_context=true"], ["use_compressed_context=false", "n_transit=20"]]
)
def test_patience_ends_when_a_reward_takes_longer_than_any_in_the_context(settings, patience):
    model, rng = random_model(*settings), np.random.default_rng(0)
    context = model.context.rolling(model, N_ENVS)
    history, sought = [[] for _ in range(N_ENVS)], []  # (reward, done) of the steps of each environment
    for observations, actions, _, dones in random_steps(80):
        context.observe(observations)
        found = context.seeks_reward(patience)
        for i, n_steps in enumerate(context.n_steps.tolist()):
            wait, longest = 1, 0  # the next step counts
            for reward, done in history[i][len(history[i]) - n_steps + 1 :]:
                longest = max(longest, wait) if reward else longest
                wait = 1 if reward or done else wait + 1
            assert found[i] == (wait > patience * longest)
        sought.append(found)
        rewards = torch.from_numpy((rng.random(N_ENVS) < 0.15).astype(np.float32))
        context.record(actions, rewards, dones)
        for i in range(N_ENVS):
            history[i].append((bool(rewards[i]), bool(dones[i])))
    assert 0.05 < torch.stack(sought).float().mean() < 0.95


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_each_environment_has_its_own_temperature(kind):
    config = tiny_config()
    space = {"kind": kind, "sizes": [3]} | ({} if kind == "discrete" else {"low": [-9.0] * 3, "high": [9.0] * 3})
    model = AD(config | {"action_space": space})
    outputs = torch.randn(1, model.actions.n_outputs).repeat(200, 1)
    temperatures = torch.tensor([0.0, 2.0]).repeat(100)
    noise = torch.rand(200) if kind == "discrete" else torch.randn(200, 3)
    actions = model.actions.sample(outputs, temperatures, noise)
    assert len(actions[::2].unique(dim=0)) == 1 and len(actions[1::2].unique(dim=0)) > 1
