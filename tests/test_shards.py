"""Histories in several files behind an index, and opening that reads no more than it needs."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import TINY_ENV, TINY_SOURCE, set_flags, tiny_config

import collect
from dataset import ADDataset
from files import InputError
from history import join
from history.checks import check_file
from history.format import history_path
from history.join import make_shards, shard_maker, write_index
from history.origin import Damaged, read_origin, shards_of
from history.reader import HistoryFile
from history.returns import source_curve
from history.writer import join_files


@pytest.fixture
def shards(tiny_histories, tmp_path) -> Path:
    """An index of the tiny histories, tasks 0 to 3, 4 to 7 and 8 in a shard each, as collect.py --shards 4 leaves it."""
    config, source = tiny_config(), history_path(tiny_config(), tiny_histories)
    parts = tmp_path / "data" / ".parts"
    parts.mkdir(parents=True)
    for task in range(9):
        join_files(parts / f"{task}.hdf5", {task: source}, config)
    finished = shard_maker(parts, list(range(9)), 4, config)
    for task in (1, 0, 4, 3, 2, 5, 6, 7):
        finished(task)
    assert sorted(path.name for path in parts.iterdir()) == ["8.hdf5", "tasks-0-3.hdf5", "tasks-4-7.hdf5"]
    make_shards(parts, range(9), 4, config)
    write_index(history_path(config, parts.parent), parts, config)
    return history_path(config, parts.parent)


def contents(path: Path) -> dict:
    with h5py.File(path) as file:
        return {f"{task}/{name}": data[()].tolist() for task in file for name, data in file[task].items()}


def test_shards_are_read_as_one_file_wherever_they_are_moved(shards, tiny_histories, tmp_path):
    config, whole = tiny_config(), history_path(tiny_config(), tiny_histories)
    assert contents(shards) == contents(whole) and shards.stat().st_size < whole.stat().st_size / 5
    moved = shards.parent.rename(tmp_path / "moved")
    for in_memory in ("always", "never"):
        one, other = (ADDataset(config | {"in_memory": in_memory}, at, "train") for at in (moved, tiny_histories))
        a, b = (dataset.sample_batch(50, np.random.default_rng(0)) for dataset in (one, other))
        assert all(torch.equal(a[name], b[name]) for name in b)
    assert check_file(history_path(config, moved))[2] == [] == check_file(whole)[2]
    curves = [source_curve(history_path(config, at), [3, 8], config) for at in (moved, tiny_histories)]
    np.testing.assert_array_equal(*curves)


def test_an_index_lists_its_shards_and_a_missing_one_matters_only_to_its_tasks(shards):
    folder = next(shards.parent.glob("*.shards-*"))
    with h5py.File(shards, "a") as file:
        assert sorted(shards.parent / name for name in file.attrs["shards"]) == sorted(folder.iterdir())
        assert shards_of(file, [8]) == {folder / "tasks-8-8.hdf5"}
        assert shards_of(file, [0, 1, 2, 3]) == set(folder.iterdir())  # more tasks than shards, and all are there
        (folder / "tasks-8-8.hdf5").unlink()
        assert shards_of(file, [0, 1, 2, 3]) == {folder / "tasks-0-3.hdf5"}
        del file.attrs["shards"]  # as older files
        assert shards_of(file, [0, 1, 2, 3]) == {folder / "tasks-0-3.hdf5"}


def test_shards_can_be_joined(shards, tiny_histories, capsys):
    created = read_origin(shards).created_utc
    join.main([str(shards)])
    assert "9 tasks" in capsys.readouterr().out
    assert contents(shards) == contents(history_path(tiny_config(), tiny_histories))
    assert [path.name for path in shards.parent.iterdir() if not path.name.endswith(".lock")] == [shards.name]
    assert read_origin(shards).created_utc == created
    with pytest.raises(InputError, match="nothing to join"):
        join.main([str(shards)])


def test_a_shard_that_is_missing_or_damaged_is_named(shards):
    config = tiny_config() | {"in_memory": "never"}
    shard = next(shards.parent.glob("*.shards-*")) / "tasks-4-7.hdf5"
    content = bytearray(shard.read_bytes())
    with h5py.File(shard) as file:
        at = file["5/states"].id.get_chunk_info(0).byte_offset
    content[at + 5] ^= 255
    shard.write_bytes(content)
    dataset = ADDataset(config, shards.parent, "all")
    with pytest.raises(Damaged, match=r"tasks-4-7.hdf5: damaged.*--traj-dir \S*data and"):
        dataset.batch(np.arange(len(dataset)))
    shard.unlink()  # the old one is still open
    shard.write_bytes(b"")
    with pytest.raises(Damaged, match="tasks-4-7.hdf5: damaged"):
        join.main([str(shards)])
    assert len([p for p in check_file(shards)[1] if any("tasks-4-7.hdf5: damaged" in x for x in p.problems)]) == 4
    shard.unlink()
    with pytest.raises(InputError, match="its shard .*tasks-4-7.hdf5 is missing; move it back"):
        ADDataset(config, shards.parent, "all")
    with pytest.raises(InputError, match="its shard .*tasks-4-7.hdf5 is missing; move it back"):
        join.main([str(shards)])
    HistoryFile(shards, config, [0, 8])  # what does not need it goes on


def test_collection_goes_on_from_shards(shards, tiny_histories, tmp_path, capsys):
    """One shard is lost, and collect.py was killed before it could write the index; older shards are then removed."""
    config = tiny_config()
    older = shards.parent / f"{shards.stem}.shards-1"
    older.mkdir()
    next(shards.parent.glob("*.shards-2*/tasks-8-8.hdf5")).write_bytes(b"")
    shards.unlink()
    arguments = ["--traj-dir", str(shards.parent), "--log-dir", str(tmp_path), *set_flags(*TINY_ENV, *TINY_SOURCE)]
    assert collect.main([*arguments, "--shards", "4"]) == 0
    said = capsys.readouterr()
    assert "8 of 9 tasks are already finished" in said.out and "tasks-8-8.hdf5: damaged" in said.err
    assert contents(shards) == contents(history_path(config, tiny_histories))
    assert len(list(shards.parent.glob("*.shards-*"))) == 1
    assert collect.main(arguments) == 0 and "already complete" in capsys.readouterr().out


def test_shards_of_an_index_with_another_name_are_left_alone(shards, tmp_path):
    """They were taken for an unfinished collection, and lost with `--overwrite`."""
    kept, before = shards.rename(shards.with_name("kept.hdf5")), contents(shards.with_name("kept.hdf5"))
    arguments = ["--traj-dir", str(shards.parent), "--log-dir", str(tmp_path), *set_flags(*TINY_ENV, *TINY_SOURCE)]
    assert collect.main([*arguments, "--set", "total_source_timesteps=384", "--shards", "5"]) == 0
    assert contents(kept) == before and len(list(shards.parent.glob("*.shards-*"))) == 2


def test_shards_of_other_settings_stay_where_they_are(shards, tmp_path):
    shards.unlink()
    (folder,) = shards.parent.glob("*.shards-*")
    collect.prepare_parts(folder, tiny_config())
    arguments = ["--traj-dir", str(shards.parent), "--log-dir", str(tmp_path), *set_flags(*TINY_ENV, *TINY_SOURCE)]
    with pytest.raises(InputError, match="collected with other settings .total_source_timesteps: 1920 there, 384"):
        collect.main([*arguments, "--set", "total_source_timesteps=384"])
    assert folder.is_dir()


def test_a_file_that_says_its_tasks_are_alike_is_checked_when_they_are_read(tiny_histories, tmp_path):
    """So opening reads one task only; here another one is not as the file says."""
    config, path = tiny_config() | {"in_memory": "never"}, tmp_path / "changed.hdf5"
    shutil.copy(history_path(config, tiny_histories), path)
    with h5py.File(path, "r+") as file:
        markers = file["5/compress_markers"][()]
        del file["5/compress_markers"], file["6/actions"], file["8/compress_markers"]
        file["5/compress_markers"] = np.roll(markers, 1)
    history = HistoryFile(path, config, list(range(9)))
    E, steps = history.n_streams, history.task_offset
    for task, message in (
        (5, "5/compress_markers: .*expected a region start"),
        (6, "6: lacks the dataset actions"),
        (8, "8: lacks the dataset compress_markers"),
    ):
        with pytest.raises(InputError, match=message):
            history.arrays["states"][steps[task : task + 1] * E]
    assert history.arrays["states"][steps[7:8] * E].shape == (1, 2)
