"""History files that other programs wrote: what they hold is told by all of their tasks, not by the first."""

import warnings

import h5py
import numpy as np
import pytest
from conftest import tiny_config, write_file

import inspect_history
from dataset import ADDataset
from effective import effective_config
from files import InputError
from history.format import history_path
from history.origin import read_origin, when_made


@pytest.fixture
def foreign(tmp_path):
    """Make a file of 36 steps of 4 streams, let a function change it, and give its config and path."""

    def build(change=lambda file: None, *settings: str, **changes):
        config = tiny_config("use_compressed_context=true", "context=regions", *settings)
        path = write_file(history_path(config, tmp_path), config, 36, 4, **changes)
        with h5py.File(path, "r+") as file:
            change(file)
        return config, path

    return build


def shorten(file: h5py.File, task: str, steps=slice(None), streams=slice(None)) -> None:
    for name in list(file[task]):
        here = (steps,) if name == "compress_markers" else (steps, streams)
        values = file[task][name][here]
        del file[task][name]
        file[task][name] = values


@pytest.mark.parametrize("name", ["dones", "next_states", "compress_markers"])
@pytest.mark.parametrize("task", ["0", "3"])
def test_what_one_task_lacks_is_not_taken_from_all(foreign, name, task):
    config, path = foreign(lambda file: file[task].pop(name), "reached_observations=true")
    with pytest.raises(InputError, match=f"{name}: in some of its groups only"):
        for mode in ("train", "test"):
            ADDataset(effective_config(config, path.parent), path.parent, mode)


def test_the_rollout_is_that_of_the_first_task_that_has_finished_one(foreign):
    config, path = foreign(lambda file: shorten(file, "0", steps=slice(7)), next_states=None)
    assert read_origin(path, config).rollout_length == 12
    assert inspect_history.main([str(path)]) == 0
    assert effective_config(config, path.parent)["n_steps"] == 12


@pytest.mark.parametrize("markers", [np.zeros((36, 0)), np.zeros(()), np.zeros(0), np.array([b"a"] * 36)])
def test_markers_that_are_none_are_blamed_on_the_task_that_has_them(foreign, markers):
    def change(file):
        del file["0/compress_markers"]
        file["0/compress_markers"] = markers

    config, path = foreign(change)
    assert read_origin(path, config).rollout_length == 12
    with pytest.raises(InputError, match="/0/compress_markers: "):
        for mode in ("train", "test"):
            ADDataset(effective_config(config, path.parent), path.parent, mode)


def test_groups_that_the_env_does_not_have_are_not_asked(foreign):
    def change(file):
        file["57/states"] = np.zeros((4, 1, 2))

    config, path = foreign(change)
    assert effective_config(config, path.parent, {})["n_stream"] == 4


def test_streams_that_are_left_out_are_told(foreign):
    config, path = foreign(lambda file: shorten(file, "5", streams=slice(3)))
    with pytest.warns(UserWarning, match="has tasks of 3 to 4 streams: 3 of each are used"):
        assert effective_config(config, path.parent, {})["n_stream"] == 3


def test_a_given_rollout_that_contradicts_the_markers_is_refused(foreign):
    config, path = foreign()
    with pytest.raises(InputError, match="n_steps: 12 there, 18 given now"):
        effective_config(config | {"n_steps": 18}, path.parent, {"n_steps": 18})
    assert effective_config(config, path.parent, {"n_steps": 12})["n_steps"] == 12


def test_an_array_without_an_axis_of_streams_is_explained(foreign, capsys):
    def change(file):
        del file["3/states"]
        file["3/states"] = np.zeros(36)

    config, path = foreign(change)
    assert inspect_history.main([str(path)]) == 1
    assert "write each array with an axis of length 1" in capsys.readouterr().out
    with pytest.raises(InputError, match="write each array with an axis of length 1"):
        ADDataset(effective_config(config, path.parent), path.parent, "all")


@pytest.mark.parametrize("name", ["states", "rewards", "dones"])
def test_an_empty_dataset_is_told(foreign, name):
    def change(file):
        del file[f"3/{name}"]
        file.create_dataset(f"3/{name}", data=h5py.Empty("f4"))

    config, path = foreign(change)
    with pytest.raises(InputError, match=f"/3/{name}: is no dataset of numbers"):
        ADDataset(effective_config(config, path.parent), path.parent, "all")


def test_other_contents_are_another_file(foreign):
    """A run goes on with the histories that it was begun with; such a file does not say when it was made."""
    config, path = foreign()
    before = when_made(path, config)
    assert when_made(path, config) == before and "no known time" in before
    with h5py.File(path, "r+") as file:
        file["5/rewards"][3, 1] += 1
    assert when_made(path, config) != before
    with h5py.File(path, "r+") as file:
        file.attrs["created_utc"] = "2030-01-01T00:00:00+00:00"
    assert when_made(path, config) == "2030-01-01T00:00:00+00:00"


def test_a_stream_that_is_too_short_is_named(foreign):
    config, path = foreign(lambda file: shorten(file, "3", steps=slice(7)), "context=memory")
    with pytest.raises(InputError, match="/3: has 0 steps of whole rollouts, expected 12 at least"):
        ADDataset(effective_config(config, path.parent), path.parent, "all")


def sound(capsys, path) -> str:
    code = inspect_history.main([str(path)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    return printed


def test_numbers_that_two_types_hold_differently_are_no_gap(foreign, capsys):
    states = np.random.default_rng(0).normal(size=(36, 4, 2))
    after = np.concatenate([states[1:], states[:1]]).astype(np.float32)
    sound(capsys, foreign(states=states, next_states=after)[1])


def test_whole_numbers_may_be_real_valued_actions(foreign, capsys):
    actions = np.random.default_rng(0).integers(-1, 2, size=(36, 4, 1))
    sound(capsys, foreign(actions=actions, action_probs=None, next_states=None)[1])


def test_an_action_that_the_source_did_not_know_is_blamed(foreign, capsys):
    actions = np.zeros((36, 4), dtype=np.uint8)
    actions[5, 2] = 7
    assert inspect_history.main([str(foreign(actions=actions, next_states=None)[1])]) == 1
    printed = capsys.readouterr().out
    assert "/0/actions: value 7 at (5, 2), expected whole numbers 0 to 4" in printed and "action_probs:" not in printed


def test_a_sound_file_gives_no_warning(foreign):
    config, path = foreign(lambda file: None, "region_stride=1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ADDataset(effective_config(config, path.parent, {}), path.parent, "train")


@pytest.mark.parametrize("histories", ["every", "causal", "whole"])
def test_without_markers_a_window_is_of_one_stream(foreign, histories):
    """Streams were joined where the model config draws histories, though the rollouts are not known."""
    config, path = foreign(lambda file: None, f"histories={histories}", "n_transit=24", compress_markers=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = ADDataset(effective_config(config, path.parent), path.parent, "train")
    rewards = dataset.sample_batch(50, np.random.default_rng(0))["rewards"].numpy()
    assert ((rewards % 10) == (rewards[:, :1] % 10)).all()
