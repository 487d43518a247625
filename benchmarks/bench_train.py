"""Training: windows, supervision, memory and data loading.

python benchmarks/bench_train.py            # about 8 minutes on 2 cores
python benchmarks/bench_train.py --tiny     # seconds; the numbers mean nothing
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import alternate, default_config, peak_memory, ratio, report, row, write_random_histories

from dataset import ADDataset
from model import MODEL
from ranks import Ranks
from train import Run, train_step
from utils import choose_device, history_path

SHARE = "train_env_ratio=0.3"  # 24 tasks of random histories, 55 MB
TINY_SHARE = "train_env_ratio=0.05"  # 4 tasks
COMPRESSED = "use_compressed_context=true"


def window(n_transit: int) -> tuple[str, ...]:
    return ("use_compressed_context=false", "region_stride=1", f"n_transit={n_transit}")


def prepare(folder: Path, overrides: tuple[str, ...], device: str) -> Run:
    """A run that `train_step` can take updates of, in memory only."""
    config = default_config(*overrides)
    datasets = {"train": ADDataset(config, folder, "train")}
    return Run(MODEL["AD"](config).to(choose_device(device)), datasets, config, Path(), Ranks())


def take_updates(begin, folder: Path, overrides: tuple[str, ...], n_updates: int, device: str) -> None:
    run = prepare(folder, overrides, device)
    begin()
    for _ in range(n_updates):
        train_step(run)


def load_dataset(begin, folder: Path, share: str) -> None:
    config = default_config(share)
    begin()
    ADDataset(config, folder, "train")


def measure(
    folder: Path, batch: int, repeats: int, lengths: list[int], size: tuple[str, ...], device: str
) -> list[dict]:
    share = TINY_SHARE if size else SHARE
    write_random_histories(folder, default_config(share), n_steps=1280, n_tasks=24)
    full, medium = lengths[-1], 320
    shared = (share, f"train_batch_size={batch}", *size)
    settings = {
        "compressed, 160 steps": (COMPRESSED, *shared),
        **{f"standard, {n} steps": (*window(n), *shared) for n in sorted({*lengths, medium})},
    }
    runs = {name: prepare(folder, overrides, device) for name, overrides in settings.items()}
    seconds = alternate({name: lambda run=run: train_step(run) for name, run in runs.items()}, repeats)
    rows = [row(f"updates, {name}, batch {batch}", s, "updates/s", 1) for name, s in seconds.items()]
    median = {name: float(np.median(s)) for name, s in seconds.items()}
    compressed = median["compressed, 160 steps"]
    rows.append(
        ratio(
            f"time per update, full history ({full}) over compressed", median[f"standard, {full} steps"] / compressed, 6
        )
    )
    rows.append(
        ratio(f"time per update, {medium} over compressed", median[f"standard, {medium} steps"] / compressed, 1.9)
    )
    for n in lengths:
        per_token = median[f"standard, {n} steps"] / (n * batch)
        rows.append({"name": f"time per token, standard, {n} steps", "median": per_token * 1e6, "unit": "microseconds"})

    sizes = [max(1, batch * factor // 4) for factor in (1, 2, 4, 8)]
    by_size = {n: prepare(folder, (COMPRESSED, *shared, f"train_batch_size={n}"), device) for n in sizes}
    seconds = alternate({str(n): lambda run=run: train_step(run) for n, run in by_size.items()}, repeats)
    for n in sizes:
        per_token = float(np.median(seconds[str(n)])) / (n * 163)
        rows.append(
            {"name": f"time per token, compressed, batch {n}", "median": per_token * 1e6, "unit": "microseconds"}
        )

    memory = {
        name: peak_memory(take_updates, folder, settings[name], 3, device)
        for name in ("compressed, 160 steps", f"standard, {medium} steps", f"standard, {full} steps")
    }
    rows += [
        {"name": f"peak memory of updates, {name}", "median": value, "unit": "MB"} for name, value in memory.items()
    ]
    least = memory["compressed, 160 steps"]
    rows.append(
        ratio(
            f"memory saved, compressed against full history ({full})",
            1 - least / memory[f"standard, {full} steps"],
            0.8,
        )
    )
    rows.append(
        ratio(f"memory saved, compressed against {medium}", 1 - least / memory[f"standard, {medium} steps"], 0.45)
    )

    dense = runs["compressed, 160 steps"]
    sparse = prepare(folder, (COMPRESSED, "dense_supervision=false", *shared), device)
    seconds = alternate({"dense": lambda: train_step(dense), "last": lambda: train_step(sparse)}, repeats)
    targets = {"dense": n_targets(dense), "last": batch}
    rates = {name: row(f"supervised actions, {name} step(s) only" if name == "last" else "supervised actions, every step",
                       s, "actions/s", targets[name]) for name, s in seconds.items()}  # fmt: skip
    rows += [
        *rates.values(),
        ratio("supervised actions, every step over last step", rates["dense"]["median"] / rates["last"]["median"], 60),
    ]

    data = dense.datasets["train"]
    loading = alternate({"load": lambda: data.sample_batch(batch, np.random.default_rng(0))}, repeats)["load"]
    rows.append(ratio("data loading's share of an update", float(np.median(loading)) / compressed, 0.05, at_most=True))
    stored = prepare(folder, (COMPRESSED, "in_memory=never", *shared), device)
    reading = alternate({"file": lambda: train_step(stored), "memory": lambda: train_step(dense)}, repeats)
    rows.append(
        ratio(
            "time per update, windows read from the file over memory",
            np.median(reading["file"]) / np.median(reading["memory"]),
        )
    )
    rows.append(memory_of_dataset(folder, data, share))
    return rows


def n_targets(run: Run) -> float:
    """Mean number of action targets of a batch."""
    batches = [
        run.datasets["train"].sample_batch(run.config["train_batch_size"], np.random.default_rng(i)) for i in range(20)
    ]
    return float(np.mean([float((b["region_lengths"].sum(1) - b["target_from"]).sum()) for b in batches]))


def memory_of_dataset(folder: Path, dataset: ADDataset, share: str) -> dict:
    import h5py

    with h5py.File(history_path(dataset.config, folder)) as file:
        in_file = sum(data.nbytes for task in dataset.tasks for data in file[str(task)].values())
    return ratio(
        "memory of a loaded dataset over its arrays in the file",
        peak_memory(load_dataset, folder, share) * 2**20 / in_file,
        1.2,
        at_most=True,
    )


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="check that it runs; the numbers mean nothing")
    parser.add_argument("--batch", type=int, default=64, help="windows per update (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements per line (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; one is steadier (default: %(default)s)")
    parser.add_argument("--out", help="write the table as JSON (default: only print it)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    batch, repeats, lengths, size = args.batch, args.repeats, [125, 250, 500, 1000], ()
    if args.tiny:
        batch, repeats, size = 2, 1, ("n_embd=8", "n_layer=1", "n_head=1")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), batch, repeats, lengths, size, args.device)
    settings = {
        "batch": batch,
        "repeats": repeats,
        "lengths": lengths,
        "device": args.device,
        "threads": args.threads,
        "size": size or "shipped",
    }
    return report("training", rows, settings, args.out)


if __name__ == "__main__":
    main()
