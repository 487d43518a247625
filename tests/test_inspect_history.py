"""inspect_history.py: a sound file passes, and every kind of damage is named."""

import re
import shutil

import h5py
import numpy as np
import pytest
from conftest import tiny_config, write_file

import inspect_history
from utils import InputError

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


def set_attribute(file):
    file["3"].attrs["mean_return_per_rollout"] = np.full(10, 0.25, dtype=np.float32)


DAMAGE = {
    "a marker is missing": (change("compress_markers", 12, 0), "/3/compress_markers: .*step 12"),
    "a region is too long": (change("compress_markers", 11, 0), "/3/compress_markers"),
    "no marker value": (change("compress_markers", 5, 7), "marker 7, expected 0, 1 or 2"),
    "not a number": (change("rewards", (7, 2), np.nan), r"/3/rewards: value nan at \(7, 2\)"),
    "no probability distribution": (change("action_probs", (4, 1), 0.5), r"/3/action_probs: at \(4, 1\) they sum to 2.5"),
    "a state outside the grid": (change("states", (30, 0), 9), "/3/states: value 9"),
    "a gap": (change("next_states", (8, 3), (2, 2)), "/3: 1 gap.*step 8 of stream 3"),
    "rewards that do not add up": (set_attribute, "/3: mean_return_per_rollout"),
    "a task is missing": (drop("3"), r"tasks \[3\] are missing"),
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


def test_an_unfinished_last_region_is_a_note(tmp_path, capsys):
    markers = np.zeros(20, dtype=np.int8)
    markers[[0, 12]], markers[11] = 1, 2
    path = write_file(tmp_path / "tail.hdf5", tiny_config(), 20, 3, compress_markers=markers, next_states=None)
    assert inspect_history.main([str(path)]) == 0
    assert "unfinished: 8 of 12 steps" in capsys.readouterr().out


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
    regions = [(0, 2), (2, 4), (4, 6)]
    returns = inspect_history.returns_per_rollout(rewards, dones, regions)
    np.testing.assert_array_equal(returns, [3.0, np.nan, 28.0])
    probs = np.array([[[0.5, 0.5]], [[1.0, 0.0]], [[0.5, 0.5]], [[0.5, 0.5]], [[1.0, 0.0]], [[1.0, 0.0]]])
    np.testing.assert_allclose(
        inspect_history.entropy_per_rollout(probs, regions), [np.log(2) / 2, np.log(2), 0.0], atol=1e-9
    )
