"""Recorded histories: markers, terminal observations and action probabilities, in real PPO runs."""

import h5py
import numpy as np
import pytest
import torch
from conftest import TINY_ENV, TINY_SOURCE, set_flags, tiny_config
from stable_baselines3 import A2C, DQN, PPO

import algorithm
import collect
import env
from algorithm.exploration import ExplorationBonus
from algorithm.utils import HistoryLoggerCallback, find_regions, mark_regions
from ranks import Ranks
from utils import InputError, load_config


def record(n_steps: int, total: int, n_streams: int = 3, grid_size: int = 9):
    vec_env = env.darkroom.DarkroomVecEnv([{"goal": (1, 1), "grid_size": grid_size}] * n_streams)
    source = PPO("MlpPolicy", vec_env, n_steps=n_steps, batch_size=n_steps, learning_rate=0.01, seed=0, device="cpu")
    logger = HistoryLoggerCallback(compress_interval=n_steps)
    source.learn(total, callback=logger)
    return source, logger.history()


def record_shipped(name: str, alg: str, *settings: str):
    """A short history of the first task of a shipped env and algorithm config."""
    paths = {"env": f"config/env/{name}.yaml", "algorithm": f"config/algorithm/{alg}.yaml"}
    config = load_config(paths, list(settings), (env.config_problems, algorithm.config_problems))
    vec_env = env.make_source_env(config, env.list_tasks(config)[:1] * config["n_stream"])
    source = algorithm.ALGORITHM[config["alg"]](config, vec_env, seed=0)
    logger = HistoryLoggerCallback(compress_interval=config["n_steps"])
    source.learn(config["total_source_timesteps"], callback=logger)
    return source, logger.history(), config


def test_a2c_rollouts_are_regions():
    settings = ["n_stream=4", "n_steps=10", "total_source_timesteps=120"]
    source, history, config = record_shipped("darkroom", "a2c_darkroom", *settings)
    assert isinstance(source, A2C) and find_regions(history["compress_markers"], 10) == [(0, 10), (10, 20), (20, 30)]
    assert history["action_probs"].shape == (30, 4, 5)
    assert (config["batch_size"], config["n_epochs"], config["clip_range"]) == (None, None, None)
    assert np.abs(history["action_probs"][:10].mean(0) - history["action_probs"][20:].mean(0)).max() > 1e-3  # it learns


def test_exploration_bonus_counts_visits_of_all_streams():
    """Bonus over the root of the visits so far; the last step of an episode counts the cell it reached."""
    tasks = [{"goal": (0, 1), "grid_size": 3, "horizon": 2}] * 2
    bonus = ExplorationBonus(env.DarkroomVecEnv(tasks), 0.3)
    bonus.reset()
    down, up, stay = 0, 1, 4
    np.testing.assert_allclose(bonus.step([up, up])[1], 1 + 0.3 / np.sqrt([2, 2]), rtol=1e-6)  # (0, 1), the goal
    np.testing.assert_allclose(bonus.step([down, stay])[1], [0.3, 1 + 0.3 / np.sqrt(3)], rtol=1e-6)  # ends here
    np.testing.assert_allclose(bonus.step([stay, stay])[1], 0.3 / np.sqrt([3, 3]), rtol=1e-6)  # the centre again
    np.testing.assert_array_equal(bonus.earned, [0, 0])


def test_a_history_holds_rewards_without_the_exploration_bonus():
    settings = ["n_stream=4", "n_steps=40", "total_source_timesteps=320", "batch_size=160", "exploration_bonus=5"]
    source, history, _ = record_shipped("darkroom_hard", "ppo_darkroom_hard", *settings, "grid_size=3")
    reached = (history["next_states"] == 0).all(axis=-1)  # task 0 has its goal in the corner
    assert reached.any() and (history["rewards"] == reached).all()
    assert source.rollout_buffer.rewards.min() > 0  # the algorithm itself sees the bonus
    seen = source.get_env().visits
    assert sum(seen.values()) == 320 and len(seen) <= 9


def test_the_sources_gaussian_is_recorded():
    """Unclipped means and deviations of the policy that acted; the actions are those that were executed."""
    settings = ["n_stream=4", "n_steps=20", "total_source_timesteps=160", "batch_size=80"]
    source, history, config = record_shipped("pendulum", "ppo_pendulum", *settings)
    means, stds, actions = history["action_means"], history["action_stds"], history["actions"]
    assert means.shape == stds.shape == actions.shape == (40, 4, 1) and means.dtype == stds.dtype == np.float32
    assert "action_probs" not in history and np.abs(actions).max() <= 2
    np.testing.assert_array_equal(stds[:20], 1)  # what SB3 starts with
    assert (stds[20:] != 1).all()
    fresh = algorithm.ALGORITHM["PPO"](config, source.env, seed=0)
    with torch.no_grad():
        states = torch.as_tensor(history["states"][:20].reshape(-1, 3))
        expected = fresh.policy.get_distribution(states).distribution.mean.numpy()
    np.testing.assert_allclose(means[:20].reshape(-1, 1), expected, atol=1e-6)
    z = ((actions - means) / stds)[np.abs(actions) < 2]  # not clipped
    assert 0.6 < z.std() < 1.1 and (np.abs(actions) == 2).any()


def test_what_only_the_source_sees_is_not_recorded():
    settings = ["n_stream=8", "n_steps=50", "total_source_timesteps=800", "batch_size=400", "grid_size=3", "n_tasks=9"]
    source, history, config = record_shipped("dark_key_to_door", "ppo_dark_key_to_door", *settings)
    assert history["states"].max() == history["next_states"].max() == 2 and history["rewards"].sum() > 0
    task = env.list_tasks(config)[0]
    key_found = (history["next_states"] == task["key"]).all(-1) & (history["rewards"] > 0)
    assert key_found.any() and source.observation_space.nvec.tolist() == [9, 9]


def test_episodes_of_different_lengths_are_recorded():
    """Ends where they were, returns as they were, and the terminal observation before each reset."""
    settings = ["n_stream=6", "n_steps=30", "total_source_timesteps=360", "batch_size=60", "grid_size=5"]
    _, history, config = record_shipped("darkroom_hard", "ppo_darkroom_hard", *settings)
    dones, rewards = history["dones"], history["rewards"]
    goal, n_early = env.list_tasks(config)[0]["goal"], 0
    for stream in range(6):
        ends = np.flatnonzero(dones[:, stream])
        for start, end in zip([0, *(ends + 1)], ends):
            reached = (history["next_states"][end, stream] == goal).all()
            assert rewards[start:end, stream].sum() == 0 and rewards[end, stream] == reached
            assert history["states"][start, stream].tolist() == [2, 2] and (reached or end - start == 19)
            n_early += end - start < 19
    assert n_early > 0


@pytest.mark.parametrize(
    ("n_steps", "total", "n_rollouts"), [(80, 80 * 13 * 3, 13), (5, 5 * 4 * 3, 4), (80, 1000 * 3, 13)]
)
def test_markers_follow_the_rollouts(n_steps, total, n_rollouts):
    _, history = record(n_steps, total)
    markers = history["compress_markers"]
    assert markers.shape == (n_steps * n_rollouts,) and markers.dtype == np.int8
    np.testing.assert_array_equal(np.where(markers == 1)[0], np.arange(n_rollouts) * n_steps)
    np.testing.assert_array_equal(np.where(markers == 2)[0], np.arange(1, n_rollouts + 1) * n_steps - 1)
    assert set(np.unique(markers)) == {0, 1, 2}


def test_states_actions_and_ends_fit_together():
    _, history = record(n_steps=30, total=30 * 3 * 3)
    states, next_states, dones = history["states"], history["next_states"], history["dones"]
    same_episode = ~dones[:-1]
    np.testing.assert_array_equal(next_states[:-1][same_episode], states[1:][same_episode])
    np.testing.assert_array_equal(np.where(dones[:, 0])[0], np.arange(19, len(dones), 20))
    # Replaying the actions gives the terminal observation, not the reset one
    task = env.darkroom.Darkroom((1, 1))
    for stream in range(3):
        for t in range(len(dones)):
            if t % 20 == 0:
                task.reset()
            np.testing.assert_array_equal(task.cell, states[t, stream])
            cell, reward, *_ = task.step(history["actions"][t, stream])
            np.testing.assert_array_equal(cell, next_states[t, stream])
            assert reward == history["rewards"][t, stream]


def test_action_probs_are_the_acting_policys():
    """The last rollout's, before its update: compared with a twin that has had one rollout less."""
    n_steps, n_streams = 40, 3
    _, history = record(n_steps, total=3 * n_steps * n_streams)
    twin, shorter = record(n_steps, total=2 * n_steps * n_streams)
    np.testing.assert_array_equal(history["states"][:80], shorter["states"])  # same seed, same history
    states = torch.as_tensor(history["states"][80:].reshape(-1, 2).astype(np.int64))
    with torch.no_grad():
        probs = twin.policy.get_distribution(states).distribution.probs.numpy().reshape(n_steps, n_streams, 5)
    np.testing.assert_allclose(history["action_probs"][80:], probs, atol=1e-3)
    assert history["action_probs"].dtype == np.float16
    assert np.abs(probs - history["action_probs"][:40]).max() > 0.05  # the policy did change


def test_types_are_the_smallest_that_hold_the_values():
    _, history = record(n_steps=5, total=15)
    assert history["states"].dtype == history["actions"].dtype == np.uint8
    _, history = record(n_steps=5, total=15, grid_size=300)
    assert history["states"].dtype == np.uint16 and history["states"].max() <= 155


def test_wrong_interval_and_off_policy_algorithms_are_refused():
    vec_env = env.darkroom.DarkroomVecEnv([{"goal": (1, 1)}])
    with pytest.raises(ValueError, match="compress_interval is 7, but the algorithm's n_steps is 8"):
        PPO("MlpPolicy", vec_env, n_steps=8, batch_size=8).learn(8, callback=HistoryLoggerCallback(7))
    flat = env.make_vec_env({"env": "CartPole-v1"}, [{}])
    with pytest.raises(ValueError, match="DQN is not an on-policy algorithm"):
        DQN("MlpPolicy", flat, buffer_size=10).learn(8, callback=HistoryLoggerCallback(8))


def test_find_regions_inverts_mark_regions():
    for regions, n_steps in (([(0, 4), (4, 8)], 8), ([(0, 4), (4, 8)], 6), ([(0, 4), (4, 8), (8, 12)], 9)):
        expected = [(start, min(stop, n_steps)) for start, stop in regions]
        assert find_regions(mark_regions(regions, n_steps), 4) == expected


@pytest.mark.parametrize(
    ("markers", "message"),
    [
        ([1, 0, 2, 0, 1, 2], "expected a region start .1. at step 3, found the next one at step 4"),
        ([1, 0, 1, 2], "from step 0 to 3|expected a region start"),
        ([0, 0, 0, 0], "steps from 0 on lie in no region"),
        ([1, 0, 0, 2], "has 4 steps, expected compress_interval = 3"),
        ([1, 0, 0, 0], "has 4 steps, expected compress_interval = 3"),
        ([1, 0, 2, 2], "lie in no region"),
        ([1, 0, 5], "step 2 has marker 5"),
        ([1, 2, 1, 0, 2], "has 2 steps"),
    ],
)
def test_contradicting_markers_are_told(markers, message):
    with pytest.raises(ValueError, match=message):
        find_regions(np.array(markers), 3)


def test_file_holds_what_the_format_says(tiny_histories):
    config = tiny_config()
    with h5py.File(tiny_histories / "history_darkroom_PPO_alg-seed42.hdf5") as f:
        assert sorted(f, key=int) == [str(i) for i in range(9)]
        assert {"format_version", "config", "versions", "created_utc", "git_commit"} <= set(f.attrs)
        group = f["0"]
        T, E = 120, 16
        shapes = {name: data.shape for name, data in group.items()}
        assert shapes == {
            "states": (T, E, 2), "actions": (T, E), "rewards": (T, E), "next_states": (T, E, 2), "dones": (T, E),
            "action_probs": (T, E, 5), "compress_markers": (T,),
        }  # fmt: skip
        assert group["dones"].dtype == bool and group["action_probs"].dtype == np.float16
        assert all(data.compression == "gzip" and data.shuffle and data.chunks[0] == 12 for data in group.values())
        assert tuple(group.attrs["goal"]) == (0, 0) and group.attrs["seed"] == 42 and group.attrs["optimal_return"] == 5
        returns = group["rewards"][()].reshape(10, 2, 6, E).sum(axis=2).mean(axis=(1, 2))
        np.testing.assert_allclose(group.attrs["mean_return_per_rollout"], returns, rtol=1e-5)
        markers = f["0"]["compress_markers"][()]
        np.testing.assert_array_equal(np.where(markers == 1)[0], np.arange(0, T, config["n_steps"]))


def test_complete_output_is_found_before_any_work(tiny_histories, capsys):
    path = tiny_histories / "history_darkroom_PPO_alg-seed42.hdf5"
    before = path.stat().st_mtime_ns
    arguments = ["--traj-dir", str(tiny_histories), *set_flags(*TINY_ENV, *TINY_SOURCE)]
    assert collect.main(arguments) == 0
    assert "--overwrite" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"n_epochs: 10 there, 2 now.*--overwrite"):
        collect.main([*arguments, "--set", "n_epochs=2"])
    assert path.stat().st_mtime_ns == before


def test_interrupted_collection_repeats_only_what_is_missing(tiny_histories, tmp_path):
    """All parts but one are there, as after a kill; the joined file equals the uninterrupted one."""
    config = tiny_config()
    parts = tmp_path / ".history_darkroom_PPO_alg-seed42.hdf5.parts"
    collect.prepare_parts(parts, config)
    for task in range(8):
        collect.collect_task(config, task, parts / f"{task}.hdf5", log_dir=None)
    stamps = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.hdf5")}
    collected = []

    def watch(config, tasks, parts, log_dir, ranks, collect_tasks=collect.collect_tasks):
        collected.extend(tasks)
        assert {path.name: path.stat().st_mtime_ns for path in parts.glob("*.hdf5")} == stamps
        return collect_tasks(config, tasks, parts, log_dir, ranks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "collect_tasks", watch)
        logs = ["--log-dir", str(tmp_path / "logs")]
        assert collect.main(["--traj-dir", str(tmp_path), *logs, *set_flags(*TINY_ENV, *TINY_SOURCE)]) == 0
    assert collected == [8] and not parts.exists()
    with (
        h5py.File(tiny_histories / "history_darkroom_PPO_alg-seed42.hdf5") as one,
        h5py.File(tmp_path / "history_darkroom_PPO_alg-seed42.hdf5") as other,
    ):
        for task in one:
            for name in one[task]:
                np.testing.assert_array_equal(one[task][name][()], other[task][name][()])


def test_any_task_parameter_can_be_an_attribute(tmp_path):
    with h5py.File(tmp_path / "file.hdf5", "w") as file:
        for i, value in enumerate(
            [1, 0.5, "text", True, (1, 2), [0.5, 1], [1, None], ["a", 1], [[1], [2, 3]], {"a": 1}, None]
        ):
            file.attrs[str(i)] = collect.as_attribute(value)
        assert file.attrs["4"].tolist() == [1, 2] and file.attrs["6"] == "- 1\n- null\n"


def test_collection_needs_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert collect.git_commit() == ""


def test_a_failing_task_is_reported_and_the_others_finish(tmp_path, capsys):
    """Task 3 cannot write its part: a folder stands in its place."""
    config = tiny_config()
    parts = tmp_path / "parts"
    (parts / "3.hdf5").mkdir(parents=True)
    failures = collect.collect_tasks(config, [2, 3, 4], parts, tmp_path / "logs", Ranks())
    assert list(failures) == [3] and "3.hdf5: could not be written" in failures[3]
    assert (parts / "2.hdf5").is_file() and (parts / "4.hdf5").is_file()
