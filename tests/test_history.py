"""Recorded histories: markers, terminal observations and action probabilities, in real PPO runs; and their files."""

from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_ENV, TINY_SOURCE, set_flags, tiny_config, write_file
from stable_baselines3 import A2C, DQN, PPO

import algorithm
import collect
import env
from algorithm.exploration import ExplorationBonus
from algorithm.source import Recorder, check_history
from algorithm.utils import HistoryLoggerCallback, find_regions, mark_regions
from config.loading import load_config
from files import InputError, WriteError
from history import checks
from history.format import argument_name, as_attribute, attribute_name, from_attribute, history_path
from history.markers import region_bounds
from history.origin import collect_command, env_differences, read_origin
from history.reader import HistoryFile
from history.returns import mean_return_per_rollout
from history.writer import join_files
from ranks import Ranks
from scripts import DEFAULT_CONFIG
from utils import git_commit, library_versions


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


def test_a_history_is_not_normalized_though_its_source_is():
    """Pendulum's own numbers, and the distributions that its policy acted from."""
    settings = ["n_stream=2", "n_steps=150", "total_source_timesteps=600", "batch_size=100", "normalize=true"]
    source, history, config = record_shipped("pendulum", "ppo_pendulum", *settings)
    states, dones = history["states"], history["dones"]
    for name in ("states", "next_states"):  # cosine, sine, velocity
        np.testing.assert_allclose((history[name][..., :2] ** 2).sum(-1), 1, rtol=1e-5)
    assert dones.sum() == 6 and np.array_equal(states[1:][~dones[:-1]], history["next_states"][:-1][~dones[:-1]])
    angle = np.arctan2(states[..., 1], states[..., 0])  # as in Gymnasium's source
    torque = history["actions"][..., 0]
    np.testing.assert_allclose(
        history["rewards"], -(angle**2 + 0.1 * states[..., 2] ** 2 + 0.001 * torque**2), rtol=1e-3, atol=1e-4
    )
    means = mean_return_per_rollout(history["rewards"], dones, [(0, 150), (150, 300)])
    assert means.max() < -100 and np.abs(source.rollout_buffer.rewards).max() <= 10
    seen, buffer = source.rollout_buffer.observations, source.rollout_buffer
    assert np.abs(seen.reshape(-1, 3)[:, 2]).max() < 4 < np.abs(states[150:, :, 2]).max()  # velocities
    policy = torch.distributions.Normal(*(torch.tensor(history[f"action_{name}"][150:]) for name in ("means", "stds")))
    taken = buffer.actions.reshape(2, 150, 1).swapaxes(0, 1)
    expected = buffer.log_probs.reshape(2, 150).T
    np.testing.assert_allclose(policy.log_prob(torch.tensor(taken)).sum(-1), expected, atol=1e-4)


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
        ([1, 0, 1, 2], "from step 0 on has no end .2. before the next one starts at 2"),
        ([1, 0, 0, 1, 0, 0], "from step 0 on has no end .2. before the next one starts at 3"),
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

    def watch(config, tasks, parts, *more, collect_tasks=collect.collect_tasks):
        collected.extend(tasks)
        assert {path.name: path.stat().st_mtime_ns for path in parts.glob("*.hdf5")} == stamps
        return collect_tasks(config, tasks, parts, *more)

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
            file.attrs[str(i)] = as_attribute(value)
        assert file.attrs["4"].tolist() == [1, 2] and file.attrs["6"] == "- 1\n- null\n"


def test_collection_needs_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit() == ""


def test_a_failing_task_is_reported_and_the_others_finish(tmp_path, capsys):
    """Task 3 cannot write its part: a folder stands in its place."""
    config = tiny_config()
    parts = tmp_path / "parts"
    (parts / "3.hdf5").mkdir(parents=True)
    failures = collect.collect_tasks(config, [2, 3, 4], parts, tmp_path / "logs", Ranks())
    assert list(failures) == [3] and "3.hdf5: could not be written" in failures[3]
    assert (parts / "2.hdf5").is_file() and (parts / "4.hdf5").is_file()


# Sources ------------------------------------------------------------------------------------------

SCRIPTED = """
import numpy as np
from algorithm.source import Recorder, reached_observations
from config.schema import SOURCE, Key

class Walk:
    \"\"\"Steps down, and from its second region on stays; each action has the probability that `certainty` says.\"\"\"

    keys = {"certainty": Key(float, SOURCE, 0.5, low=0, high=1)}

    def __init__(self, config, vec_env, seed, log_dir=None):
        self.config, self.env, self.recorder = config, vec_env, Recorder(vec_env, config["n_steps"])

    def run(self):
        n_streams, n_steps, certainty = self.env.num_envs, self.config["n_steps"], self.config["certainty"]
        states = self.env.reset()
        for t in range(self.config["total_source_timesteps"] // n_streams):
            if t % n_steps == 0:
                self.recorder.start_region()
            actions = np.full(n_streams, 0 if t < n_steps else 4)
            probs = np.full((n_streams, 5), (1 - certainty) / 4)
            probs[:, actions[0]] = certainty
            after, rewards, dones, infos = self.env.step(actions)
            reached = reached_observations(after, dones, infos)
            self.recorder.step(states, actions, rewards, reached, dones, {"action_probs": probs})
            states = after
        return self.recorder.history()

class Fails(Walk):
    def run(self):
        raise ZeroDivisionError("of the user's own")

class Clashes(Walk):
    keys = {"temperature": Key(float, SOURCE, 5.0)}

class Numbers(Walk):
    keys = {"certainty": 0.5}

class NoSource:
    pass
"""


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Writes an algorithm config that names a class of the module above."""
    (tmp_path / "scripted.py").write_text(SCRIPTED)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, *lines: str) -> list[str]:
        source = [f"alg: scripted:{name}", "n_stream: 2", "n_steps: 12", "total_source_timesteps: 48", *lines]
        (tmp_path / "source.yaml").write_text("\n".join(source))
        folders = ["--traj-dir", str(tmp_path), "--log-dir", str(tmp_path / "logs")]
        return [*folders, "--alg-config", str(tmp_path / "source.yaml"), *set_flags(*TINY_ENV)]

    return write


def test_a_scripted_source_is_collected(scripted, tmp_path):
    """3x3 grid, goal of task 7 in the middle of the bottom row: 5 of the first episodes' 6 steps end there."""
    assert collect.main(scripted("Walk", "certainty: 0.75")) == 0
    path = tmp_path / "history_darkroom_scripted-Walk_alg-seed42.hdf5"
    with h5py.File(path) as file:
        task = next(i for i in file if tuple(file[i].attrs["goal"]) == (2, 1))
        group = {name: data[()] for name, data in file[task].items()}
        assert file[task].attrs["mean_return_per_rollout"].tolist() == [6, 0]
    assert group["states"][:7, 0].tolist() == [[1, 1], *[[2, 1]] * 5, [1, 1]]
    assert (group["next_states"][5] == [2, 1]).all() and np.flatnonzero(group["dones"][:, 1]).tolist() == [
        5,
        11,
        17,
        23,
    ]
    assert (group["actions"][:12] == 0).all() and (group["actions"][12:] == 4).all()
    assert group["action_probs"][0, 0].tolist() == [0.75, *[0.0625] * 4]
    assert find_regions(group["compress_markers"], 12) == [(0, 12), (12, 24)]
    assert read_origin(path).recorded["certainty"] == 0.75
    _, reports, problems = checks.check_file(path)
    assert not problems and not any(report.problems for report in reports)


def test_a_sources_own_keys_have_names_of_their_own(scripted):
    """A source's `temperature` had become the model's."""
    for name, message in (
        ("Clashes", "its key 'temperature' is one of the shipped keys"),
        ("Numbers", "its key 'certainty' is 0.5, expected a Key"),
    ):
        with pytest.raises(InputError, match=message):
            collect.main(scripted(name))


def test_a_sources_own_settings_are_checked_and_compared(scripted):
    with pytest.raises(InputError, match="certainty: 2: expected at most 1|certainty: 2.0: expected at most 1"):
        collect.main(scripted("Walk", "certainty: 2"))
    with pytest.raises(InputError, match="gamma: scripted:Walk does not read it, only PPO, A2C and Conditioned do"):
        collect.main(scripted("Walk", "gamma: 0.5"))
    with pytest.raises(InputError, match="NoSource has no method run"):
        collect.main(scripted("NoSource"))
    assert collect.main(scripted("Walk")) == 0
    with pytest.raises(InputError, match=r"certainty: 0.5 there, 0.25 now"):
        collect.main(scripted("Walk", "certainty: 0.25"))


def test_what_a_source_raises_keeps_its_traceback(scripted, tmp_path, capsys):
    assert collect.main(scripted("Fails")) == 1
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("task 3 failed"))
    assert "ZeroDivisionError: of the user's own" in line
    traceback = Path(line.split("traceback in ")[1].rstrip(")"))
    assert traceback.is_relative_to(tmp_path / "logs") and "scripted.py" in traceback.read_text()


def make_recorder(n_steps: int = 2) -> Recorder:
    return Recorder(env.DarkroomVecEnv([{"goal": (0, 0)}] * 3), n_steps)


def record_step(recorder: Recorder, **policy) -> None:
    zeros = np.zeros(3, dtype=np.int64)
    recorder.step(np.zeros((3, 2)), zeros, zeros, np.zeros((3, 2)), zeros, policy)


def test_a_recorder_refuses_steps_outside_regions_and_regions_of_another_length():
    recorder = make_recorder()
    with pytest.raises(ValueError, match="step 0 lies in no region"):
        record_step(recorder)
    recorder.start_region()
    record_step(recorder)
    with pytest.raises(ValueError, match="a region starts at step 1, expected at 2: all have n_steps = 2 steps"):
        recorder.start_region()
    record_step(recorder)
    with pytest.raises(ValueError, match="step 2 lies in no region"):
        record_step(recorder)
    recorder.start_region()
    record_step(recorder)
    assert recorder.history()["compress_markers"].tolist() == [1, 2, 1]
    with pytest.raises(ValueError, match="n_steps must be at least 2"):
        make_recorder(1)


def test_a_history_that_could_not_be_trained_on_is_refused():
    recorder, spaces = make_recorder(), (gym.spaces.MultiDiscrete([9, 9]), gym.spaces.Discrete(5))
    recorder.start_region()
    record_step(recorder, action_probs=np.full((3, 5), 0.2))
    record_step(recorder)
    with pytest.raises(ValueError, match=r"action_probs have shape \(1, 3, 5\), expected \(2, 3\) first"):
        check_history(recorder.history(), spaces, 2, 3)
    whole = recorder.history() | {"action_probs": np.full((2, 3, 5), 0.2)}
    check_history(whole, spaces, 2, 3)
    with pytest.raises(ValueError, match="lacks dones"):
        check_history({name: array for name, array in whole.items() if name != "dones"}, spaces, 2, 3)
    with pytest.raises(ValueError, match="policy has action_probs, expected action_means and action_stds"):
        check_history(whole, (spaces[0], gym.spaces.Box(-1, 1, (1,))), 2, 3)
    with pytest.raises(ValueError, match="has 2 steps, expected compress_interval = 3"):
        check_history(whole, spaces, 3, 3)
    wide, outside = np.full((2, 3, 4), 0.25), np.array([[0, 0, 9], [0, 0, 0]])
    for changes, message in (
        ({"action_probs": wide}, r"action_probs have shape \(2, 3, 4\), expected \(2, 3, 5\), by the env's spaces"),
        ({"action_probs": np.full((2, 3, 5), 0.3)}, r"action_probs: at \(0, 0\) they sum to 1.500"),
        ({"actions": outside}, r"actions: value 9 at \(0, 2\), expected whole numbers 0 to 4"),
        ({"rewards": np.full((2, 3), np.nan)}, r"rewards: value nan at \(0, 0\), expected finite numbers"),
        ({name: array[:, :2] for name, array in whole.items() if array.ndim > 1}, "expected some steps of 3 streams"),
    ):
        with pytest.raises(ValueError, match=message):
            check_history(whole | changes, spaces, 2, 3)
    with pytest.raises(ValueError, match="gave NoneType, expected a dict"):
        check_history(None, spaces, 2, 3)


def test_mean_returns_follow_the_regions_whatever_their_length():
    rewards = np.array([[1.0, 0], [2, 0], [4, 1], [8, 1], [16, 1]])
    dones = np.array([[0, 0], [1, 0], [0, 1], [1, 0], [0, 1]], dtype=bool)
    bounds = region_bounds(np.array([1, 2, 1, 0, 1]))
    assert bounds == [(0, 2), (2, 4), (4, 5)]
    np.testing.assert_array_equal(mean_return_per_rollout(rewards, dones, bounds), [3, 6.5, 2])
    np.testing.assert_array_equal(mean_return_per_rollout(rewards, dones, [(0, 1)]), [np.nan])


# Files --------------------------------------------------------------------------------------------


def test_arguments_with_reserved_names_are_kept():
    """`seed` and the like are attributes of the group itself."""
    names = ["goal", "seed", "task_seed", "optimal_return", "mean_return_per_rollout", "task_goal"]
    stored = [attribute_name(name) for name in names]
    assert stored[:3] == ["goal", "task_seed", "task_task_seed"] and len(set(stored)) == len(names)
    assert [argument_name(name) for name in stored] == names and argument_name("seed") is None
    values = [1, 0.5, "text", True, [0.5, 1], [1, None], ["SFFF", "FHFH"], {"a": 1}, None]
    assert [from_attribute(as_attribute(value)) for value in values] == values


def test_a_tasks_own_seed_does_not_overwrite_the_groups(tmp_path, capsys):
    gym.register("Seeded-v0", entry_point=Seeded, max_episode_steps=3)
    tasks = "task_kwargs=[{seed: 5, rows: [SF, FG]}, {seed: 6, rows: [SF, FG]}]"
    settings = ["env=Seeded-v0", tasks, "n_stream=2", "n_steps=6", "total_source_timesteps=24", "batch_size=12"]
    path = collect_here(tmp_path, *settings)
    with h5py.File(path) as file:
        assert [file[task].attrs["seed"] for task in "01"] == [42, 43]
        assert [file[task].attrs["task_seed"] for task in "01"] == [5, 6]
    _, reports, problems = checks.check_file(path)
    assert not problems and [report.problems for report in reports] == [[], []]  # lists of strings are no problem
    assert [report.arguments for report in reports] == [{"seed": n, "rows": ["SF", "FG"]} for n in (5, 6)]


class Seeded(gym.Env):
    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

    def __init__(self, seed: int, rows: list[str]):
        assert rows == ["SF", "FG"]

    def reset(self, seed=None, options=None):
        return 0, {}

    def step(self, action):
        return 1, 1.0, False, False, {}


def collect_here(folder: Path, *settings: str) -> Path:
    """A history file, collected in this process."""
    config = tiny_config(*settings)
    n_tasks = len(env.list_tasks(config))
    collect.prepare_parts(folder / "parts", config)
    for task in range(n_tasks):
        collect.collect_task(config, task, folder / "parts" / f"{task}.hdf5", log_dir=None)
    collect.join_parts(history_path(config, folder), folder / "parts", n_tasks, config)
    return history_path(config, folder)


def test_joining_tells_the_commits_and_versions_of_all_parts(tiny_histories, tmp_path):
    config, parts = tiny_config(), {}
    for task, changes in enumerate([{}, {"git_commit": "abc", "versions": "python: 2.7.1\n"}, {}, None]):
        parts[task] = tmp_path / f"{task}.hdf5"
        collect.collect_task(config, task, parts[task], log_dir=None)
        with h5py.File(parts[task], "r+") as part:
            assert part.attrs["git_commit"] == git_commit()
            part.attrs.update(changes or {})
            for name in () if changes is not None else list(part.attrs):  # as older code left them
                del part.attrs[name]
    join_files(tmp_path / "joined.hdf5", parts, config)
    origin, own = read_origin(tmp_path / "joined.hdf5"), library_versions()
    assert origin.git_commit == f"{git_commit()}, abc, not recorded"
    versions = yaml.safe_load(origin.versions)
    assert versions["python"] == f"{own['python']}, 2.7.1, not recorded"
    assert versions["torch"] == f"{own['torch']}, not recorded"
    whole = read_origin(tiny_histories / "history_darkroom_PPO_alg-seed42.hdf5")
    assert whole.git_commit == git_commit() and yaml.safe_load(whole.versions) == own and whole.rollout_length == 12


def test_only_what_hdf5_raises_is_called_damage(tiny_histories, tmp_path, monkeypatch):
    """The advice there is --overwrite, which would destroy a good file."""
    path, config = tiny_histories / "history_darkroom_PPO_alg-seed42.hdf5", tiny_config()

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    with pytest.raises(MemoryError):
        HistoryFile(path, config, [0])
    part = tmp_path / "0.hdf5"
    part.write_bytes(path.read_bytes())
    with pytest.raises(MemoryError):
        collect.finished_tasks(part)
    monkeypatch.setattr(h5py, "File", fail)
    with pytest.raises(MemoryError):
        collect.main(["--traj-dir", str(tiny_histories), *set_flags(*TINY_ENV, *TINY_SOURCE)])

    def locked(*_, **__):
        raise BlockingIOError(11, "Unable to lock file")

    monkeypatch.setattr(h5py, "File", locked)
    with pytest.raises(InputError, match="cannot be read .*Unable to lock file") as caught:
        collect.finished_tasks(part)
    assert "--overwrite" not in str(caught.value) and part.exists()


def test_a_log_folder_that_cannot_be_written_is_told_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(collect, "collect_tasks", None)
    arguments = ["--traj-dir", str(tmp_path), "--log-dir", str(tmp_path / "file" / "logs")]
    with pytest.raises(WriteError, match="file/logs.*nothing can be written there"):
        collect.main([*arguments, *set_flags(*TINY_ENV, *TINY_SOURCE)])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_file_names_the_command_that_collects_it():
    a2c = {"env": "config/env/darkroom.yaml", "algorithm": "config/algorithm/a2c_darkroom.yaml"}
    pendulum = {"env": "config/env/pendulum.yaml", "algorithm": "config/algorithm/ppo_pendulum.yaml"}
    path = Path("datasets/x.hdf5")
    assert collect_command(load_config(DEFAULT_CONFIG), path) == "python collect.py darkroom"
    assert collect_command(tiny_config(), Path("a/x.hdf5")) == (
        "python collect.py darkroom --traj-dir a and the same --set as here"
    )
    assert collect_command(load_config(pendulum), path) == "python collect.py pendulum"
    same = "python collect.py with the same --env-config, --alg-config and --set as here"
    assert collect_command(load_config(a2c), path) == "python collect.py darkroom --source a2c"
    own = load_config(a2c) | {"alg": "mine:Own"}
    assert collect_command(own, path) == same
    with pytest.raises(InputError, match=f"no such history file; collect it with: {same}"):
        read_origin(path, own)


def test_env_keys_that_the_env_does_not_read_are_not_compared():
    config = tiny_config("env=CartPole-v1")
    assert env_differences(config | {"horizon": 20, "grid_size": 4}, config) == ""
    assert "env_kwargs" in env_differences(config | {"env_kwargs": {"sutton_barto_reward": True}}, config)
    assert "grid_size: 3 there, 5 in the config" in env_differences(tiny_config(), tiny_config("grid_size=5"))


def test_a_file_without_a_config_tells_its_rollouts_by_its_markers(tmp_path):
    config = tiny_config()
    assert read_origin(write_file(tmp_path / "a.hdf5", config, 36, 2)).rollout_length == 12
    bare = read_origin(write_file(tmp_path / "b.hdf5", config, 36, 2, compress_markers=None))
    assert bare.rollout_length is None and bare.recorded == {} and bare.git_commit == ""
