"""inspect_history.py: a sound file passes, and every kind of damage is named."""

import re
import shutil

import h5py
import numpy as np
import pytest
from conftest import tiny_config, write_file
from torch.distributions import Normal

import inspect_history
from files import InputError
from history import checks

NAME = "history_darkroom_PPO_alg-seed42.hdf5"


@pytest.fixture
def path(tiny_histories, tmp_path):
    return shutil.copy(tiny_histories / NAME, tmp_path / NAME)


def test_a_collected_file_is_sound(path, capsys):
    assert inspect_history.main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert "9 tasks" in printed and "sound" in printed and "env darkroom, alg PPO" in printed
    line = next(line for line in printed.splitlines() if line.startswith("    4"))
    assert "[1, 1]" in line and " 120 " in line and "10" in line and "6.00" in line


def change(name, index, value):
    def apply(file):
        file["3"][name][index] = value

    return apply


def drop(place):
    def apply(file):
        del file[place]

    return apply


def attribute(name, value):
    def apply(file):
        file["3"].attrs[name] = value

    return apply


def shorten(file):
    for name in list(file["3"]):
        values = file["3"][name][:60]
        del file["3"][name]
        file["3"][name] = values
    file["3"].attrs["mean_return_per_rollout"] = file["3"].attrs["mean_return_per_rollout"][:5]


def markers_of_two_streams(file):
    markers = file["3/compress_markers"][()]
    del file["3/compress_markers"]
    file["3/compress_markers"] = np.stack([markers, markers], axis=1)


def not_a_group(file):
    del file["3"]
    file["3"] = np.zeros(4)


DAMAGE = {
    "a marker is missing": (change("compress_markers", 12, 0), "/3/compress_markers: .*step 12"),
    "a region is too long": (change("compress_markers", 11, 0), "/3/compress_markers"),
    "no marker value": (change("compress_markers", 5, 7), "marker 7, expected 0, 1 or 2"),
    "markers of too few streams": (markers_of_two_streams, r"/3/compress_markers: has shape \(120, 2\)"),
    "not a number": (change("rewards", (7, 2), np.nan), r"/3/rewards: value nan at \(7, 2\)"),
    "one reward": (change("rewards", (7, 2), 3), "/3: mean_return_per_rollout is not what the rewards give"),
    "no probability distribution": (change("action_probs", (4, 1), 0.5), r"/3/action_probs: at \(4, 1\) they sum to 2.5"),
    "a state outside the grid": (change("states", (30, 0), 9), "/3/states: value 9"),
    "a terminal state outside the grid": (change("next_states", (5, 0), 9), "/3/next_states: value 9"),
    "a gap": (change("next_states", (8, 3), (2, 2)), "/3: 1 gap.*step 8 of stream 3"),
    "another goal": (attribute("goal", [2, 2]), r"/3: goal is \[2, 2\], expected \[1, 0\]"),
    "another optimum": (attribute("optimal_return", 1.0), "/3: optimal_return is 1.0, expected 6.0"),
    "an optimum in words": (attribute("optimal_return", "six"), "/3: optimal_return 'six': expected a number"),
    "returns of other rollouts": (attribute("mean_return_per_rollout", [1.0, 2.0]), "has 2 entries, expected 10"),
    "a shorter task": (shorten, "/3: has 60 steps of 16 streams, expected 120 of 16"),
    "a task is missing": (drop("3"), r"tasks \[3\] are missing"),
    "a task is no group": (not_a_group, "/3: is no group"),
    "a dataset is missing": (drop("3/action_probs"), "action_probs: in some tasks only"),
    "no states": (drop("3/states"), "lacks the dataset states"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(path, damage, capsys):
    apply, expected = DAMAGE[damage]
    with h5py.File(path, "r+") as file:
        apply(file)
    assert inspect_history.main([str(path)]) == 1
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert any(re.search(expected, problem) for problem in problems), problems


def test_older_files_are_sound_with_notes(tmp_path, capsys):
    """Without attributes, dones, probabilities, with int32 arrays and a column of markers per stream."""
    rng, markers = np.random.default_rng(0), np.tile([1, 0, 0, 2], 5)
    path = write_file(
        tmp_path / "old.hdf5", tiny_config("train_env_ratio=1.0"), 20, 3, dones=None, action_probs=None,
        states=rng.integers(9, size=(20, 3, 2), dtype=np.int32), compress_markers=np.repeat(markers[:, None], 3, axis=1),
    )  # fmt: skip
    assert inspect_history.main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert "note" in printed and "no dones" in printed and "guessed" in printed
    with h5py.File(path, "r+") as file:
        for task in file:
            del file[task]["compress_markers"]
    assert inspect_history.main([str(path)]) == 0
    assert "standard AD only" in capsys.readouterr().out


def test_an_optimum_that_some_tasks_do_not_know_is_no_fault(tmp_path, capsys):
    path = write_file(tmp_path / "some.hdf5", tiny_config(), 36, 2, next_states=None)
    with h5py.File(path, "r+") as file:
        file["3"].attrs["optimal_return"] = 2.0
    assert inspect_history.main([str(path)]) == 0, capsys.readouterr().out


def test_datasets_that_nothing_reads_are_a_note(path, capsys):
    with h5py.File(path, "r+") as file:
        file["3/notes"] = np.arange(5)
        file["4/names"] = np.array([b"a", b"b"])
    assert inspect_history.main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert "holds notes, which nothing reads" in printed and "holds names" in printed


def test_an_unfinished_last_region_is_a_note(tmp_path, capsys):
    markers = np.zeros(20, dtype=np.int8)
    markers[[0, 12]], markers[11] = 1, 2
    path = write_file(tmp_path / "tail.hdf5", tiny_config(), 20, 3, compress_markers=markers, next_states=None)
    assert inspect_history.main([str(path)]) == 0
    assert "unfinished: 8 of 12 steps" in capsys.readouterr().out


@pytest.mark.parametrize("recorded", ["foo: 1", "env: nowhere:None-v0", "env: [1]", "env: Gone-v3", "n_stream: 0"])
def test_a_file_of_an_env_that_cannot_be_made_here_is_checked_by_its_values(tmp_path, recorded, capsys):
    path = write_file(tmp_path / "stranger.hdf5", tiny_config(), 36, 2, next_states=None)
    with h5py.File(path, "r+") as file:
        file.attrs["config"] = recorded + "\ntotal_source_timesteps: 72"
        file["3/rewards"][7, 1] = np.inf
    assert inspect_history.main([str(path)]) == 1
    printed = capsys.readouterr().out
    assert "note: " in printed and "guessed, since" in printed and "/3/rewards: value inf at (7, 1)" in printed
    assert "1 problem(s)" in printed


def test_what_is_no_history_file_is_told(tmp_path):
    (tmp_path / "text.hdf5").write_text("hello")
    h5py.File(tmp_path / "other.hdf5", "w").create_group("model")
    for name, message in (
        ("text", "damaged or no HDF5"),
        ("other", "no groups named"),
        ("none", "no such history file"),
    ):
        with pytest.raises(InputError, match=message):
            inspect_history.main([str(tmp_path / f"{name}.hdf5")])


def test_summaries_per_rollout():
    rewards = np.array([[1.0], [2.0], [4.0], [8.0], [16.0], [32.0]])
    dones = np.array([[False], [True], [False], [False], [True], [False]])
    probs = np.array([[[0.5, 0.5]], [[1.0, 0.0]], [[0.5, 0.5]], [[0.5, 0.5]], [[1.0, 0.0]], [[1.0, 0.0]]])
    group, regions = {"rewards": rewards, "dones": dones, "action_probs": probs}, [(0, 2), (2, 4), (4, 6)]
    np.testing.assert_array_equal(checks.returns_per_rollout(group, regions), [3.0, np.nan, 28.0])
    entropies = checks.entropy_per_rollout(group, regions)
    np.testing.assert_allclose(entropies, [np.log(2) / 2, np.log(2), 0.0], atol=1e-9)
    gaussian = checks.entropy_per_rollout({"action_stds": np.full((6, 1, 2), 0.5)}, regions)
    expected = 2 * Normal(0.0, 0.5).entropy().item()
    np.testing.assert_allclose(gaussian, [expected] * 3, rtol=1e-6)


def test_flipped_bytes_never_end_in_a_traceback(path, capsys):
    """Any damage is a problem, a message, or hits bytes that hold nothing."""
    raw, rng = np.fromfile(path, np.uint8), np.random.default_rng(0)
    for _ in range(25):
        damaged = raw.copy()
        start = rng.integers(len(raw))
        damaged[start : start + 4] = rng.integers(256, size=len(damaged[start : start + 4]))
        damaged.tofile(path)
        try:
            assert inspect_history.main([str(path)]) in (0, 1)
        except InputError as error:
            assert str(path) in str(error)
