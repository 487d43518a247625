"""Opening a history file of many tiny tasks: time and memory, for a few of its tasks and for all of them.

python benchmarks/bench_open.py            # about 5 minutes; 0.3 GB of disk
python benchmarks/bench_open.py --tiny     # seconds; the numbers mean nothing
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from common import peak_memory, ratio, report, result_file, row

import env
from config.loading import Config, load_config
from dataset import ADDataset
from history.format import history_path
from history.markers import mark_regions
from history.reader import HistoryFile
from history.writer import HDF5_FORMAT, join_files, write_history
from scripts import family_paths

STEPS, STREAMS, FEW = 20, 2, 8


def config_of(n_tasks: int) -> Config:
    settings = [f"n_tasks={n_tasks}", f"n_steps={STEPS // 2}", f"n_stream={STREAMS}", "in_memory=never"]
    config = load_config(family_paths("bandit", standard=True), settings)
    facts = {"with_dones": True, "blank_starts": False, "rollout_length": STEPS // 2, "compress_interval": STEPS // 2}
    return Config(config | {"histories": "every"} | env.describe_spaces(config) | facts)


def write_tasks(folder: Path, n_tasks: int, n_shards: int = 0) -> Config:
    """A history file of so many equal tasks; with `n_shards` an index of that many shards, all the same file on the disk."""
    config, one = config_of(n_tasks), folder / "one.hdf5"
    shape, half = (STEPS, STREAMS), STEPS // 2
    history = {
        "states": np.zeros((*shape, 1), np.uint8), "actions": np.zeros(shape, np.uint8),
        "rewards": np.zeros(shape, np.float32), "dones": np.zeros(shape, bool),
        "action_probs": np.full((*shape, 5), 0.2, np.float16),
        "compress_markers": mark_regions([(0, half), (half, STEPS)], STEPS),
    }  # fmt: skip
    write_history(one, "0", history, {"seed": 0}, chunk_steps=half)
    path = history_path(config, folder)
    join_files(path, {0: one}, config)
    in_file = n_tasks // max(1, n_shards)
    with h5py.File(one) as part, h5py.File(path, "r+", libver=HDF5_FORMAT) as file:
        for task in range(1, in_file):
            part.copy("0", file, name=str(task))
    if n_shards:
        shards = [folder / f"shard-{number}.hdf5" for number in range(n_shards)]
        path.rename(shards[0])
        for shard in shards[1:]:
            os.link(shards[0], shard)
        join_files(path, {0: shards[0]}, config, copy=False)
        with h5py.File(path, "r+", libver=HDF5_FORMAT) as file:
            file.attrs["shards"] = [shard.name for shard in shards]
            for task in range(1, n_tasks):
                file[str(task)] = h5py.ExternalLink(shards[task // in_file].name, f"/{task % in_file}")
    return config


def open_few(begin, folder: Path, config: Config, space: tuple) -> HistoryFile:
    """Open the file for a few tasks, as for the source's curve, and read a step of each."""
    begin()
    history = HistoryFile(history_path(config, folder), config, list(range(FEW)), spaces=space)
    history.arrays["rewards"][history.task_offset[:-1] * history.n_streams]
    return history


def open_all(begin, folder: Path, config: Config, space: tuple) -> ADDataset:
    """Open it for training on nearly all tasks, and cut a batch."""
    begin()
    dataset = ADDataset(config, folder, "train")
    dataset.sample_batch(64, np.random.default_rng(0))
    return dataset


def seconds(function, *arguments) -> list[float]:
    """CPU seconds of three calls."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function(lambda: None, *arguments)
        times.append(time.process_time() - start)
    return times


def measure(sizes: list[tuple[int, int]]) -> list[dict]:
    rows, medians = [], {}
    for n_tasks, n_shards in sizes:
        with tempfile.TemporaryDirectory() as folder:
            config = write_tasks(Path(folder), n_tasks, n_shards)
            space = env.spaces(config)
            for name, function in ((f"{FEW} tasks", open_few), ("all tasks", open_all)):
                arguments = (Path(folder), config, space)
                what = f"opening {name} of {n_tasks:,}" + (f" in {n_shards:,} shards" if n_shards else "")
                rows.append(row(what, seconds(function, *arguments), "openings/s of CPU time", 1))
                medians[name, n_tasks] = 1 / rows[-1]["median"]
                memory = peak_memory(function, *arguments)
                rows.append({"name": f"memory of {what}", "median": memory, "unit": "MB"})
    least, most = sizes[0][0], sizes[-1][0]
    for name in (f"{FEW} tasks", "all tasks"):
        value = medians[name, most] / medians[name, least]
        rows.append(ratio(f"time of opening {name}, {most:,} over {least:,}", value))
    return rows


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="check that it runs; the numbers mean nothing")
    parser.add_argument("--out", type=result_file, help="write the table as JSON (default: only print it)")
    args = parser.parse_args(argv)
    sizes = [(1000, 0), (10_000, 0), (100_000, 0), (100_000, 100), (1_000_000, 1000)]
    if args.tiny:
        sizes = [(16, 0), (16, 2)]
    return report("opening a history file", measure(sizes), {"sizes": sizes, "few": FEW}, args.out)


if __name__ == "__main__":
    main()
