"""Windows from history files: what is in them, what is refused, and what older files may lack."""

import warnings

import h5py
import numpy as np
import pytest
import torch
from conftest import tiny_config, write_file

from dataset import ADDataset
from effective import effective_config
from files import InputError
from history.format import history_path
from history.reader import StoredArray
from model import AD
from train import N_STANDARDISE

N_STEPS, N_STREAMS, INTERVAL = 60, 4, 12  # five regions


@pytest.fixture
def make(tmp_path):
    """Write a file and open it: make(settings, n_steps=..., dataset=replacement or None)."""

    def build(*settings, n_steps=N_STEPS, mode="train", n_stream=None, source_timesteps=None, **changes):
        config = tiny_config("use_compressed_context=true", "mix_streams=false", "region_stride=1", *settings)
        write_file(history_path(config, tmp_path), config, n_steps, N_STREAMS, **changes)
        return ADDataset(config, tmp_path, mode, n_stream, source_timesteps)

    return build


def origins(sample: dict) -> list[tuple[int, int, int]]:
    """(task, step, stream) of every step in a sample, from its rewards."""
    rewards = sample["rewards"][: int(sample["region_lengths"].sum())].long()
    return [(int(r) // 10_000, int(r) % 10_000 // 10, int(r) % 10) for r in rewards]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_window_is_the_current_region_and_the_one_stride_rollouts_before(make, stride):
    dataset = make(f"region_stride={stride}")
    seen = set()
    for i in range(len(dataset)):
        sample = dataset._get_compressed_context_sample(i)
        previous, current = sample["region_lengths"].tolist()
        tasks, steps, streams = zip(*origins(sample))
        assert len(set(tasks)) == len(set(streams)) == 1
        start = steps[previous]
        assert list(steps[previous:]) == list(range(start, start + current)) and start % INTERVAL == 0
        if previous:
            assert list(steps[:previous]) == list(range(start - stride * INTERVAL, start - (stride - 1) * INTERVAL))
        else:
            assert start == 0  # only a history's first region stands alone
        assert sample["target_from"] == previous
        seen.add((tasks[0], start // INTERVAL, streams[0]))
    current_regions = [0, *range(stride, 5)]
    assert seen == {(task, r, s) for task in dataset.tasks for r in current_regions for s in range(N_STREAMS)}
    assert len(seen) == len(dataset)


def test_a_file_without_next_states_goes_without_reached_observations(make):
    with pytest.warns(UserWarning, match="no next_states: reached_observations is off"):
        dataset = make("reached_observations=true", next_states=None)
    assert "reached" not in dataset[0] and not dataset.config["reached_observations"]


def test_unfinished_tail_is_used_and_padded(make):
    dataset = make(source_timesteps=41, mode="test")  # three regions and 5 steps
    batch = dataset.batch(np.arange(len(dataset)))
    assert set(map(tuple, batch["region_lengths"].tolist())) == {(0, 12), (12, 12), (12, 5)}
    assert batch["rewards"].shape == (4 * N_STREAMS, 24)
    tail = dataset[len(dataset) - 1]
    assert [step for _, step, _ in origins(tail)] == list(range(24, 41))


def test_file_with_an_unfinished_tail(make):
    dataset = make(n_steps=41, mode="test")
    assert [step for _, step, _ in origins(dataset[len(dataset) - 1])] == list(range(24, 41))


def test_batched_samples_equal_single_ones(make):
    dataset = make(source_timesteps=41)
    samples = np.array([0, 5, len(dataset) - 1, 17])
    batch = dataset.batch(samples)
    for row, i in enumerate(samples):
        single = dataset[i]
        for name, values in single.items():
            assert torch.equal(values, batch[name][row][: len(values)] if values.dim() else batch[name][row])


@pytest.mark.parametrize("mode", ["use_compressed_context=true", "use_compressed_context=false"])
def test_windows_read_from_the_file_equal_those_from_memory(make, mode, monkeypatch):
    monkeypatch.setattr("history.reader.CACHE_BYTES", 1)  # one piece of each field is kept: the others are read again
    held, stored = make(mode, "in_memory=always"), make(mode, "in_memory=never")
    assert isinstance(held.arrays["states"], np.ndarray) and isinstance(stored.arrays["states"], StoredArray)
    for dataset_batches in zip(
        *([d.sample_batch(20, np.random.default_rng(i)) for i in range(5)] for d in (held, stored))
    ):
        for name, values in dataset_batches[0].items():
            assert torch.equal(values, dataset_batches[1][name]), name
    assert len(stored.arrays["states"].pieces) == 1


def test_damage_that_is_met_while_reading_windows_is_told(make):
    dataset = make("in_memory=never", rewards=damaged((N_STEPS, N_STREAMS), np.inf, (50, 1)), mode="test")
    with pytest.raises(InputError, match="/rewards: value inf at .50, 1."):
        dataset.batch(np.arange(len(dataset)))


def test_memory_of_a_loaded_dataset_is_that_of_its_arrays(make):
    dataset = make(mode="all")
    with h5py.File(dataset.history.path) as file:
        stored = sum(file[f"{task}/{name}"].nbytes for task in range(9) for name in dataset.arrays)
    assert sum(array.nbytes for array in dataset.arrays.values()) == stored


def test_mixed_streams_stay_in_the_task_and_in_their_rollout(make):
    dataset = make("mix_streams=true")
    batch = dataset.sample_batch(300, np.random.default_rng(0))
    n_mixed = 0
    for row in range(300):
        sample = {name: values[row] for name, values in batch.items()}
        previous, _ = sample["region_lengths"].tolist()
        places = origins(sample)
        assert len({task for task, _, _ in places}) == 1
        assert len({stream for _, _, stream in places[:previous]}) <= 1
        assert len({stream for _, _, stream in places[previous:]}) == 1
        n_mixed += len({stream for _, _, stream in places}) == 2
    assert n_mixed > 100


def test_four_regions(make):
    dataset = make("context_regions=4", "n_transit=48")
    sample = dataset[4 * N_STREAMS]  # region 4, the last of the first task
    assert sample["region_lengths"].tolist() == [12, 12, 12, 12]
    assert [step for _, step, _ in origins(sample)] == list(range(12, 60))
    assert dataset[N_STREAMS]["region_lengths"].tolist() == [0, 0, 12, 12]


@pytest.mark.parametrize(("n_transit", "stride"), [(24, 1), (10, 1), (30, 2), (500, 1), (500, 3)])
def test_standard_windows(make, n_transit, stride):
    dataset = make("use_compressed_context=false", f"n_transit={n_transit}", f"region_stride={stride}", mode="test")
    assert len(dataset) == (N_STEPS - (stride - 1) * INTERVAL) * N_STREAMS
    covered = set()
    for i in range(0, len(dataset), N_STREAMS):
        sample = dataset[i]
        steps = [step for _, step, _ in origins(sample)]
        assert len(steps) <= n_transit and len({s for _, _, s in origins(sample)}) == 1
        rollouts = [step // INTERVAL for step in steps]
        # every stride-th rollout, each step once and in order
        assert all(
            b - a == (1 if a // INTERVAL == b // INTERVAL else 1 + (stride - 1) * INTERVAL)
            for a, b in zip(steps, steps[1:])
        )
        assert len({r % stride for r in rollouts}) == 1
        first, target_from = steps[0], int(sample["target_from"])
        if first == 0:
            assert target_from == 0
        elif len(steps) == n_transit:
            assert target_from == n_transit // 2
        covered |= {(step, steps[0]) for step in steps[target_from:]}
    assert {step for step, _ in covered} == {
        s for s in range(N_STEPS) if s < INTERVAL or stride == 1 or s >= INTERVAL * stride
    }


def test_a_stride_that_is_too_large_is_told_and_lowered(make):
    with pytest.warns(UserWarning, match="too few for region_stride 9: 4 is used"):
        dataset = make("region_stride=9")
    assert any(dataset[i]["region_lengths"].tolist() == [12, 12] for i in range(len(dataset)))


def test_regions_that_would_overlap_are_refused(make):
    with pytest.raises(
        InputError, match="too few rollouts for windows of 2 regions of 4 each; lower compress_interval"
    ):
        make("compress_interval=48", "region_stride=4", "n_transit=96", compress_markers=intervals_of(12))


def test_arrays_of_different_types_are_read_as_their_common_one(make):
    dataset = make(mode="all")
    with h5py.File(dataset.history.path, "a") as file:
        del file["0/rewards"], file["1/actions"]
        file["0/rewards"] = np.zeros((N_STEPS, N_STREAMS), dtype=np.int8)
        file["1/actions"] = np.full((N_STEPS, N_STREAMS), 3, dtype=">u2")
    again = ADDataset(dataset.config, dataset.history.path.parent, "all")
    assert (
        again.arrays["rewards"].dtype.kind == "f" and again.arrays["rewards"].max() == dataset.arrays["rewards"].max()
    )
    assert again.batch(np.array([len(again) // 9 + 1]))["actions"].eq(3).all()


def test_a_file_of_another_environment_is_refused(make):
    dataset = make()
    with h5py.File(dataset.history.path, "a") as file:
        file.attrs["config"] = "env: darkroom\nhorizon: 50\nenv_split_seed: 7\n"
    with pytest.raises(InputError, match="another environment .horizon: 50 there, 6 in the config."):
        ADDataset(dataset.config, dataset.history.path.parent, "train")


def test_soft_targets_follow_the_config_and_the_file(make):
    assert "action_probs" in make()[0]
    assert "action_probs" not in make("soft_targets=false")[0]
    with pytest.warns(UserWarning, match="no action_probs"):
        assert "action_probs" not in make(action_probs=None)[0]


def gaussian_arrays(**changes) -> dict:
    """Datasets of a Pendulum history that replace those of the grid's."""
    rng = np.random.default_rng(0)
    return {
        "states": rng.normal(size=(N_STEPS, N_STREAMS, 3)).astype(np.float32),
        "next_states": None,
        "actions": rng.uniform(-2, 2, size=(N_STEPS, N_STREAMS, 1)).astype(np.float32),
        "action_probs": None,
        "action_means": rng.normal(size=(N_STEPS, N_STREAMS, 1)).astype(np.float32),
        "action_stds": rng.random((N_STEPS, N_STREAMS, 1), dtype=np.float32) + 0.1,
    } | changes


PENDULUM = ("env=Pendulum-v1", "task_kwargs=[{}, {}]", "train_env_ratio=0.5")


@pytest.mark.parametrize("memory", ["in_memory=always", "in_memory=never"])
def test_soft_targets_of_real_valued_actions(make, memory):
    arrays = gaussian_arrays()
    dataset = make(*PENDULUM, memory, **arrays)
    assert dataset.soft_targets
    batch = dataset.batch(np.array([N_STREAMS + 1]))  # regions 0 and 1 of stream 1
    for name in ("action_means", "action_stds", "actions"):
        np.testing.assert_array_equal(batch[name][0].numpy(), arrays[name][:24, 1])


def test_soft_targets_of_real_valued_actions_follow_the_config(make):
    dataset = make(*PENDULUM, "soft_targets=false", **gaussian_arrays())
    assert not dataset.soft_targets and not {"action_means", "action_stds"} & set(dataset[0])


def test_real_valued_actions_without_soft_targets_are_told(make):
    for missing in ({"action_means": None}, {"action_means": None, "action_stds": None}):
        with pytest.warns(UserWarning, match="has no action_means and action_stds: the actions themselves"):
            dataset = make(*PENDULUM, **gaussian_arrays(**missing))
        assert not dataset.soft_targets and not {"action_means", "action_stds"} & set(dataset[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_stds": np.zeros((N_STEPS, N_STREAMS, 1))}, "/action_stds: value 0.0 .*expected standard deviations"),
        ({"action_means": np.full((N_STEPS, N_STREAMS, 1), np.inf)}, "/action_means: value inf .*finite"),
        ({"action_means": np.zeros((N_STEPS, N_STREAMS, 2))}, "/action_means: has shape"),
    ],
)
def test_impossible_distributions_are_refused(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(*PENDULUM, **gaussian_arrays(**changes))


def test_inputs_are_standardised_by_the_training_data(make):
    rewards = np.random.default_rng(1).normal(-800, 300, size=(N_STEPS, N_STREAMS)).astype(np.float32)
    actions = np.random.default_rng(2).uniform(-2, 1, size=(N_STEPS, N_STREAMS, 1)).astype(np.float32)
    dataset = make(*PENDULUM, **gaussian_arrays(rewards=rewards, actions=actions))
    model = AD(dataset.config)
    model.fit_inputs(dataset.sample_batch(N_STANDARDISE, np.random.default_rng(0)))
    found = (model.reward_mean, model.reward_std, model.actions.mean, model.actions.std)
    expected = (rewards.mean(), rewards.std(), actions.mean(), actions.std())
    assert [float(value) for value in found] == pytest.approx(expected, rel=0.05)
    np.testing.assert_allclose(model.observation_embedding.std, 1, atol=0.1)


@pytest.mark.parametrize(
    ("reward", "mean"),
    [(lambda t: t % 20 == 19, 0), (lambda t: t < 0, 0), (lambda t: t >= 0, 0), (lambda t: 0 * t + 3, 3)],
)
def test_rewards_of_0_and_1_are_left_as_they_are(make, reward, mean):
    """So is the size of one that never changes."""
    steps = np.broadcast_to(np.arange(N_STEPS)[:, None], (N_STEPS, N_STREAMS))
    dataset = make(rewards=reward(steps).astype(np.float32))
    model = AD(dataset.config)
    model.fit_inputs(dataset.sample_batch(N_STANDARDISE, np.random.default_rng(0)))
    assert (model.reward_mean.item(), model.reward_std.item()) == (mean, 1)


def test_sparse_supervision_has_one_target_per_window(make):
    dataset = make("dense_supervision=false")
    batch = dataset.sample_batch(500, np.random.default_rng(0))
    target, n_steps = batch["target_from"], batch["region_lengths"].sum(1)
    assert torch.equal(batch["target_until"], target + 1) and (target < n_steps).all()
    place = target - (n_steps - batch["region_lengths"][:, -1])  # within the current region
    assert set(place.tolist()) == set(range(INTERVAL))


def test_file_without_markers_falls_back_to_standard_mode_with_one_warning(make):
    with pytest.warns(UserWarning) as caught:
        dataset = make(compress_markers=None)
    assert [str(w.message) for w in caught if "compress_markers" in str(w.message)] and len(caught) == 1
    assert not dataset.context.marks_regions and dataset[30]["region_lengths"].tolist() == [24]


def test_without_regions_streams_are_not_mixed(make):
    """Mixing is by rollouts; cut anywhere else it would join steps that never followed each other."""
    for settings, changes in ((["mix_streams=true"], {"compress_markers": None}),
                              (["mix_streams=true", "use_compressed_context=false", "compress_interval=7"], {"compress_markers": intervals_of(12)})):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = make(*settings, **changes).sample_batch(100, np.random.default_rng(0))
        for row in range(100):
            places = origins({name: values[row] for name, values in batch.items()})
            assert len({stream for _, _, stream in places}) == 1


def test_older_file_loads(make):
    """(T, E) int32 markers, int32 arrays, (T, E, 1) actions, no attributes, no action_probs, no dones."""
    markers = np.zeros((N_STEPS, N_STREAMS), dtype=np.int32)
    markers[::INTERVAL], markers[INTERVAL - 1 :: INTERVAL] = 1, 2
    actions = np.ones((N_STEPS, N_STREAMS, 1), dtype=np.int32)
    states = np.ones((N_STEPS, N_STREAMS, 2), dtype=np.int32)
    old = {"compress_markers": markers, "states": states, "actions": actions, "dones": None, "next_states": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = make("soft_targets=false", action_probs=None, **old)
    assert dataset.context.marks_regions and not dataset.config["with_dones"] and dataset.n_streams == N_STREAMS
    sample = dataset[5]
    assert sample["actions"].shape == (24,) and not sample["dones"].any()


def test_of_a_file_that_does_not_say_all_streams_are_used(tmp_path):
    config = tiny_config("n_stream=50", "batch_size=96")
    write_file(history_path(config, tmp_path), config, N_STEPS, N_STREAMS)
    for given, n_streams in (({}, N_STREAMS), ({"n_stream": 50}, 50), (None, 50)):
        assert effective_config(config, tmp_path, given)["n_stream"] == n_streams


def damaged(shape, value, at, dtype=float):
    array = np.zeros(shape, dtype=dtype)
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, r"/4: lacks the dataset rewards|lacks the dataset rewards"),
        (
            {"rewards": damaged((N_STEPS, N_STREAMS), np.nan, (7, 1))},
            r"/rewards: value nan at \(7, 1\), expected finite",
        ),
        (
            {"actions": damaged((N_STEPS, N_STREAMS), 5, (3, 2), int)},
            r"/actions: value 5 at \(3, 2\), expected whole numbers 0 to 4",
        ),
        (
            {"states": damaged((N_STEPS, N_STREAMS, 2), 3, (0, 0, 1), int)},
            r"/states: value 3 at \(0, 0, 1\), expected whole numbers 0 to 2",
        ),
        ({"states": np.zeros((0, N_STREAMS, 2), int)}, r"/states: has shape \(0, 4, 2\)"),
        ({"states": np.zeros(5, int)}, r"/states: has shape \(5,\)"),
        ({"states": np.zeros((N_STEPS, N_STREAMS, 3), int)}, r"/states: has shape"),
        ({"rewards": np.zeros((N_STEPS - 1, N_STREAMS))}, r"/rewards: has shape \(59, 4\)"),
        ({"action_probs": np.ones((N_STEPS, N_STREAMS, 4))}, r"/action_probs: has shape"),
        ({"action_probs": np.full((N_STEPS, N_STREAMS, 5), 2.0)}, r"/action_probs: value 2.0"),
        (
            {"action_probs": np.full((N_STEPS, N_STREAMS, 5), 0.5)},
            r"/action_probs: .* expected probabilities that sum to 1",
        ),
        (
            {"rewards": damaged((N_STEPS, N_STREAMS), 1e39, (7, 1))},
            r"/rewards: value 1e\+39 at \(7, 1\), expected finite",
        ),
        ({"rewards": np.zeros((N_STEPS, N_STREAMS), complex)}, r"/rewards: is no dataset of numbers"),
        ({"compress_markers": np.zeros(N_STEPS, int)}, r"/compress_markers: steps from 0 on lie in no region"),
        ({"compress_markers": np.zeros(9, int)}, r"/compress_markers: has shape .9,., states has 60 steps"),
        ({"compress_markers": damaged((N_STEPS, N_STREAMS), 1, (0, 1), int)}, "differs between streams"),
    ],
)
def test_damaged_content_is_refused(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_interval_that_contradicts_the_markers_is_refused(make):
    with pytest.raises(InputError, match="expected compress_interval = 6.*compress_interval has to be"):
        make("n_steps=6", "compress_interval=6", "batch_size=96", compress_markers=intervals_of(12))


def intervals_of(interval: int) -> np.ndarray:
    markers = np.zeros(N_STEPS, dtype=np.int8)
    markers[::interval], markers[interval - 1 :: interval] = 1, 2
    return markers


def test_files_that_are_none(tmp_path):
    config = tiny_config()
    h5py.File(history_path(config, tmp_path), "w").create_group("00")
    with warnings.catch_warnings(), pytest.raises(InputError, match="has no groups named 0, 1"):
        warnings.simplefilter("error")
        ADDataset(config, tmp_path, "train")
    history_path(config, tmp_path).unlink()
    with pytest.raises(InputError, match="no such history file; collect it with"):
        ADDataset(config, tmp_path, "train")
    path = history_path(config, tmp_path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="damaged or no HDF5 file"):
        ADDataset(config, tmp_path, "train")
    write_file(path, config, N_STEPS, N_STREAMS)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match="damaged or no HDF5 file"):
        ADDataset(config, tmp_path, "train")
    write_file(path, config, N_STEPS, N_STREAMS)
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(InputError, match="format_version 99 is newer"):
        ADDataset(config, tmp_path, "train")


def test_asking_for_more_than_the_file_has_is_refused(make):
    with pytest.raises(InputError, match="holds 60 steps per stream, train_source_timesteps asks for 61"):
        make(source_timesteps=61)
    with pytest.raises(InputError, match="holds 4 streams, n_stream asks for 5"):
        make(n_stream=5)
    assert make(n_stream=2).n_streams == 2
    with pytest.raises(InputError, match="has no group '9'"):
        make("grid_size=3", "train_env_ratio=1.0")  # 9 groups are written for 9 tasks ...
        ADDataset(tiny_config("grid_size=4"), make.__closure__[0].cell_contents, "all")  # ... and 16 are asked for


def test_modes_are_the_split(make):
    train, test = make(), make(mode="test")
    assert len(train.tasks) == 8 and len(test.tasks) == 1 and set(train.tasks).isdisjoint(test.tasks)
    assert make(mode="all").tasks == list(range(9))
