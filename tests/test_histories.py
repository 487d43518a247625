"""What of a file training histories show, at settings that a file only just allows, and what is told of the rest."""

import re
import warnings

import h5py
import numpy as np
import pytest
from conftest import TINY_ENV, TINY_MODEL, TINY_SOURCE, set_flags, tiny_config, write_file

import tune
from dataset import ADDataset
from effective import effective_config
from evaluate import count_trained, evaluate_random
from files import InputError
from history.format import history_path
from history.paths import Histories

WINDOW = ["use_compressed_context=false", "histories=causal", "history_regions=6", "region_stride=1"]
MEMORY = ["use_compressed_context=true", "context=memory", "n_summary=2", "histories=whole", "mix_streams=false"]


def open_file(folder, *settings, n_steps=120, n_streams=4, **changes) -> ADDataset:
    config = tiny_config(*settings)
    write_file(history_path(config, folder), config | {"compress_interval": 12}, n_steps, n_streams, **changes)
    return ADDataset(config, folder, "train")


def told(folder, *settings, **more) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_file(folder, *settings, **more)
    return " ".join(str(warning.message) for warning in caught)


@pytest.mark.parametrize("per_region", [1, 2])
def test_a_history_of_one_stream_begins_in_a_rollout_that_exists(per_region):
    histories = Histories(np.array([2, 9]), 12, 12 * per_region, n_streams=1, stride=5, mix_streams=False)
    starts, lengths, _ = histories.draw(np.array([0, 1] * 50), 4, np.random.default_rng(0))
    assert (lengths[:, 0] == 12 * per_region).all()
    last = np.array([2, 9] * 50)[:, None] * 12
    assert (starts + lengths <= last).all() and set(starts[::2, 0]) == set(range(0, 12 * (3 - per_region), 12))
    assert histories.most_regions(4) == (lengths > 0).sum(axis=1).max() == 2


@pytest.mark.parametrize("more", [["context=window"], ["context=memory"], ["context=memory", "region_ends=news"]])
def test_a_streams_last_region_stands_for_those_it_lacks_where_that_is_asked_for(tmp_path, more):
    is_window = more == ["context=window"]
    settings = [f"use_compressed_context={not is_window}", "n_transit=24", "histories=whole", "mix_streams=false"]
    dataset = open_file(tmp_path, *settings, "history_regions=24", "repeat_last_region=true", *more)
    starts, lengths, _ = dataset.timeline.histories.draw(np.zeros(8, dtype=int), 24, np.random.default_rng(0))
    assert (starts + lengths).max() >= 115 and (lengths > 0).all()  # a last one without news is not whole
    for values in (starts, lengths):
        assert (values[:, -3:] == values[:, -1:]).all()
    if "region_ends=news" not in more:
        assert (starts == np.minimum(np.arange(24), 9) * 12).all() and (lengths == 12).all()
    rewards = dataset.sample_batch(64, np.random.default_rng(0))["rewards"].numpy().astype(int) % 10_000 // 10
    assert (np.diff(rewards, axis=1) < 0).any()  # a region once more


@pytest.mark.parametrize("n_transit", [5, 16, 24, 30])
def test_every_step_of_a_rollout_is_a_target_of_a_plain_window(tmp_path, n_transit):
    dataset = open_file(tmp_path, *WINDOW, f"n_transit={n_transit}")
    n_targets = np.zeros(12, dtype=int)
    for seed in range(20):
        batch = dataset.sample_batch(32, np.random.default_rng(seed))
        places = batch["rewards"].numpy().astype(int) % 10_000 // 10 % 12
        at = np.arange(places.shape[1])
        is_target = (at >= batch["target_from"].numpy()[:, None]) & (at < batch["region_lengths"].numpy())
        n_targets += np.bincount(places[is_target], minlength=12)
        follows = np.diff(places, axis=1)[:, : n_transit - 1]
        assert np.isin(follows, (1, -11)).all()  # one step after the other, rollout after rollout
    assert n_targets.min() > n_targets.max() / 4


@pytest.mark.parametrize("n_transit", [15, 24, 30])
def test_plain_windows_reach_the_end_of_a_history(tmp_path, n_transit):
    """The last steps were left out where `n_transit` is no multiple of a region's length."""
    settings = ["context=window", "use_compressed_context=false", "histories=whole", "mix_streams=false"]
    dataset = open_file(tmp_path, *settings, f"n_transit={n_transit}", "history_regions=10")
    shown = set()
    for seed in range(20):
        batch = dataset.sample_batch(32, np.random.default_rng(seed))
        steps, n_shown = batch["rewards"].numpy().astype(int) % 10_000 // 10, batch["region_lengths"].numpy()
        shown |= set(steps[np.arange(steps.shape[1]) < n_shown])
    assert shown == set(range(120))


@pytest.mark.parametrize(
    "settings, words",
    [
        (["history_regions=10", "memory_regions=8", "varied_room=1.0"], ""),
        (["history_regions=9", "memory_regions=6", "varied_room=0.0"], ""),
        (["history_regions=10", "memory_regions=8", "varied_room=0.0"], "10 regions at most.* up to 8 summaries"),
        (["history_regions=30", "memory_regions=12", "varied_room=1.0"], "10 regions at most.* up to 8 summaries"),
        (["history_regions=3", "memory_regions=1", "varied_room=1.0"], "3 regions at most.* up to 1 summaries"),
        (["history_regions=2"], "2 regions at most.* up to 0 summaries"),
        (["history_regions=2", "memory_regions=0"], ""),
    ],
)
def test_what_of_a_memory_is_not_trained_is_told(tmp_path, settings, words):
    text = told(tmp_path, *MEMORY, *settings)
    assert not text if not words else re.search(words, text)


def test_windows_longer_than_the_streams_are_told(tmp_path):
    settings = ["use_compressed_context=false", "histories=whole", "mix_streams=false", "n_transit=200"]
    assert "training windows have 120 steps at most" in told(tmp_path, *settings, "history_regions=50")


@pytest.mark.parametrize(
    "settings, n_steps, words",
    [
        (["region_stride=9"], 120, ""),
        (["context_regions=4", "n_transit=48"], 24, "have 2 regions at most: acting shows 4"),
        ([], 12, "have 1 regions at most: acting shows 2"),
        (["context_regions=1", "n_transit=72", "compress_interval=72", "region_stride=6"], 120, ""),
    ],
)
def test_more_regions_than_any_window_has_are_told(tmp_path, settings, n_steps, words):
    assert words in told(tmp_path, "use_compressed_context=true", *settings, n_steps=n_steps)


def test_a_field_that_some_tasks_lack_is_told_before_training(tmp_path):
    config = tiny_config("reached_observations=true")
    path = write_file(history_path(config, tmp_path), config, 36, 4)
    with h5py.File(path, "a") as file:
        del file["2/next_states"]
    with pytest.raises(InputError, match="next_states: in some of its groups only"):
        ADDataset(effective_config(config, tmp_path), tmp_path, "train")


@pytest.mark.parametrize("fewer", [0, 5])
def test_a_file_of_another_program_may_have_tasks_of_fewer_streams(tmp_path, fewer):
    config = tiny_config("n_stream=9")
    path = write_file(history_path(config, tmp_path), config, 36, 4)
    with h5py.File(path, "a") as file:
        for name in set(file[str(fewer)]) - {"compress_markers"}:
            values = file[str(fewer)][name][:, :3]
            del file[str(fewer)][name]
            file[str(fewer)][name] = values
    assert effective_config(config, tmp_path, {})["n_stream"] == 3


def test_windows_of_one_stream_share_no_region(tmp_path):
    text = told(tmp_path, "use_compressed_context=true", "currents_per_previous=4", n_streams=1)
    assert "currents_per_previous is not used" in text


def test_what_auto_stands_for_holds_for_plain_windows_of_causal_histories(tmp_path):
    config = tiny_config(*WINDOW, "compress_interval=auto", "n_transit=30")
    path = write_file(history_path(config, tmp_path), config | {"compress_interval": 12}, 120, 4)
    half = np.arange(120) // 6 % 2  # the policy changes every half rollout
    probs = np.where(half[:, None, None] == 0, [0.6, 0.1, 0.1, 0.1, 0.1], [0.1, 0.6, 0.1, 0.1, 0.1])
    with h5py.File(path, "a") as file:
        for task in file:
            del file[task]["action_probs"], file[task]["states"]
            file[task]["action_probs"] = np.broadcast_to(probs, (120, 4, 5)).astype(np.float16)
            file[task]["states"] = np.zeros((120, 4, 2), dtype=np.uint8)
    assert effective_config(config, tmp_path)["compress_interval"] == 6


def search_arguments(folder, *more) -> list[str]:
    settings = set_flags(*TINY_ENV, *TINY_SOURCE, *TINY_MODEL[1:], "history_regions=4", "n_layer=1", *more)
    return ["--traj-dir", str(folder), "--out", str(folder / "out"), "--updates", "4", *settings]


@pytest.mark.parametrize("changes, n_streams, histories", [({"dones": None}, 4, "causal"), ({}, 1, "every")])
def test_a_search_takes_what_a_file_allows(tmp_path, changes, n_streams, histories):
    config = tiny_config()
    write_file(history_path(config, tmp_path), config, 120, n_streams, **changes)
    search = tune.prepare_search(tune.parse_arguments(search_arguments(tmp_path)))
    assert search.config["histories"] == histories and search.config["context"] == "memory"
    assert 12 in search.choices["compress_interval"]


def test_a_search_keeps_the_histories_that_were_asked_for(tmp_path):
    config = tiny_config()
    write_file(history_path(config, tmp_path), config, 120, 4)
    search = tune.prepare_search(tune.parse_arguments(search_arguments(tmp_path, "histories=every")))
    assert search.config["histories"] == "every"


def test_training_tasks_are_known_whatever_else_has_changed():
    config = tiny_config()
    tasks = [{"goal": (row, column), "grid_size": 3, "horizon": 99} for row in range(3) for column in range(3)]
    assert count_trained(tasks, config) == 8
    single = config | {"env": "DarkroomLarge-v0", "task_kwargs": [{"goal": [0, 0]}], "train_env_ratio": 1.0}
    assert [count_trained([{"goal": [0, n]}], single) for n in (0, 1)] == [1, 0]


def test_the_random_policy_of_short_episodes_is_counted_over_many_spans():
    config = tiny_config()
    task = {"goal": (1, 2), "grid_size": 3, "horizon": 6}
    returns = evaluate_random(config, [task], 0, span=6)
    assert returns.shape[1] >= 300 and 0 < returns.mean() < 6
