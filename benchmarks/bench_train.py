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
from common import alternate, default_config, peak_memory, ratio, report, result_file, row, write_random_histories

from dataset import ADDataset
from history.format import history_path
from model import make_model
from ranks import Ranks
from scripts import DEFAULT_CONFIG
from train import Run, train_step
from utils import choose_device

SHARE = "train_env_ratio=0.3"  # 24 tasks of random histories, 55 MB
TINY_SHARE = "train_env_ratio=0.05"  # 4 tasks
COMPRESSED = "use_compressed_context=true"
MEMORY = DEFAULT_CONFIG | {"model": "config/model/ad_dr_explorer.yaml"}
N_VARIED = 4  # updates of memory per measurement: its room varies from batch to batch
SHARING = (2, 4, 8)  # windows that share a previous region
MEDIUM = 320  # steps of a window between a compressed one and a full history


def window(n_transit: int) -> tuple[str, ...]:
    return ("use_compressed_context=false", "region_stride=1", f"n_transit={n_transit}")


def prepare(folder: Path, overrides: tuple[str, ...], device: str, paths: dict[str, str] = DEFAULT_CONFIG) -> Run:
    """A run that `train_step` can take updates of, in memory only."""
    config = default_config(*overrides, paths=paths)
    datasets = {"train": ADDataset(config, folder, "train")}
    return Run(make_model(config).to(choose_device(device)), datasets, config, Path(), Ranks())


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
    shared = (share, f"train_batch_size={batch}", *size)
    settings = {
        "compressed, 160 steps": (COMPRESSED, *shared),
        **{f"standard, {n} steps": (*window(n), *shared) for n in sorted({*lengths, MEDIUM})},
    }
    runs = {name: prepare(folder, overrides, device) for name, overrides in settings.items()}
    rows, compressed = measure_windows(runs, batch, repeats, lengths)
    rows += measure_batch_sizes(folder, shared, batch, repeats, device)
    rows += measure_memory(folder, settings, lengths[-1], device)
    dense = runs["compressed, 160 steps"]
    rows += measure_supervision(
        dense, prepare(folder, (COMPRESSED, "dense_supervision=false", *shared), device), repeats
    )
    if batch % max(SHARING) == 0:
        sharing = {n: prepare(folder, (COMPRESSED, *shared, f"currents_per_previous={n}"), device) for n in SHARING}
        rows += measure_sharing(dense, sharing, repeats)
    rows += measure_memory_context(dense, prepare(folder, (share, *size), device, MEMORY), repeats)
    stored = prepare(folder, (COMPRESSED, "in_memory=never", *shared), device)
    rows += measure_loading(dense, stored, compressed, repeats)
    rows.append(memory_of_dataset(folder, dense.datasets["train"], share))
    return rows


def measure_windows(runs: dict[str, Run], batch: int, repeats: int, lengths: list[int]) -> tuple[list[dict], float]:
    """Updates with windows of several lengths; also the seconds of a compressed one."""
    full = lengths[-1]
    seconds = alternate({name: lambda run=run: train_step(run) for name, run in runs.items()}, repeats)
    rows = [row(f"updates, {name}, batch {batch}", s, "updates/s", 1) for name, s in seconds.items()]
    median = {name: float(np.median(s)) for name, s in seconds.items()}
    compressed = median["compressed, 160 steps"]
    of_full, of_medium = median[f"standard, {full} steps"], median[f"standard, {MEDIUM} steps"]
    rows.append(ratio(f"time per update, full history ({full}) over compressed", of_full / compressed, 6))
    rows.append(ratio(f"time per update, {MEDIUM} over compressed", of_medium / compressed, 1.9))
    for n in lengths:
        rows.append(per_token(f"standard, {n} steps", median[f"standard, {n} steps"] / (n * batch)))
    return rows, compressed


def per_token(name: str, seconds: float) -> dict:
    return {"name": f"time per token, {name}", "median": seconds * 1e6, "unit": "microseconds"}


def measure_batch_sizes(folder: Path, shared: tuple[str, ...], batch: int, repeats: int, device: str) -> list[dict]:
    sizes = [max(1, batch * factor // 4) for factor in (1, 2, 4, 8)]
    runs = {n: prepare(folder, (COMPRESSED, *shared, f"train_batch_size={n}"), device) for n in sizes}
    seconds = alternate({str(n): lambda run=run: train_step(run) for n, run in runs.items()}, repeats)
    n_tokens = 163
    return [per_token(f"compressed, batch {n}", float(np.median(seconds[str(n)])) / (n * n_tokens)) for n in sizes]


def measure_memory(folder: Path, settings: dict[str, tuple[str, ...]], full: int, device: str) -> list[dict]:
    names = ("compressed, 160 steps", f"standard, {MEDIUM} steps", f"standard, {full} steps")
    least, medium, most = (peak_memory(take_updates, folder, settings[name], 3, device) for name in names)
    rows = [
        {"name": f"peak memory of updates, {name}", "median": value, "unit": "MB"}
        for name, value in zip(names, (least, medium, most))
    ]
    rows.append(ratio(f"memory saved, compressed against full history ({full})", 1 - least / most, 0.8))
    rows.append(ratio(f"memory saved, compressed against {MEDIUM}", 1 - least / medium, 0.45))
    return rows


def measure_supervision(dense: Run, sparse: Run, repeats: int) -> list[dict]:
    """Supervised actions per second, with every step of the current region a target or one of them."""
    seconds = alternate({"dense": lambda: train_step(dense), "sparse": lambda: train_step(sparse)}, repeats)
    every = row("supervised actions, every step", seconds["dense"], "actions/s", n_targets(dense))
    one = row("supervised actions, last step(s) only", seconds["sparse"], "actions/s", dense.config["train_batch_size"])
    return [every, one, ratio("supervised actions, every step over last step", every["median"] / one["median"], 60)]


def measure_sharing(separate: Run, sharing: dict[int, Run], repeats: int) -> list[dict]:
    """Supervised actions per second where n windows share a previous region, which is encoded once."""
    runs = {1: separate, **sharing}
    seconds = alternate({str(n): lambda run=run: train_step(run) for n, run in runs.items()}, repeats)
    name = "supervised actions, {} current(s) per previous"
    rows = [row(name.format(n), seconds[str(n)], "actions/s", n_targets(run)) for n, run in runs.items()]
    rate = dict(zip(runs, (r["median"] for r in rows)))
    targets = {4: 1.5, 8: 1.6}
    return rows + [
        ratio(f"supervised actions, {n} currents per previous over 1", rate[n] / rate[1], targets.get(n))
        for n in sharing
    ]


def measure_memory_context(two: Run, memory: Run, repeats: int) -> list[dict]:
    """Supervised actions per second of memory's histories, and over two-region windows; the same model."""
    runs = {"two regions": two, "memory": memory}

    def take(run: Run) -> None:
        for _ in range(N_VARIED):
            train_step(run)

    seconds = alternate({name: lambda run=run: take(run) for name, run in runs.items()}, repeats)
    rows = [
        row(f"supervised actions, {name}", seconds[name], "actions/s", N_VARIED * n_targets(run))
        for name, run in runs.items()
    ]
    return [*rows, ratio("supervised actions, memory over two regions", rows[1]["median"] / rows[0]["median"], 1.7)]


def measure_loading(dense: Run, stored: Run, update: float, repeats: int) -> list[dict]:
    """Loading of batches, from memory as a share of an update's seconds, and from the file."""
    data, batch = dense.datasets["train"], dense.config["train_batch_size"]
    loading = alternate({"load": lambda: data.sample_batch(batch, np.random.default_rng(0))}, repeats)["load"]
    reading = alternate({"file": lambda: train_step(stored), "memory": lambda: train_step(dense)}, repeats)
    from_file = np.median(reading["file"]) / np.median(reading["memory"])
    return [
        ratio("data loading's share of an update", float(np.median(loading)) / update, 0.05, at_most=True),
        ratio("time per update, windows read from the file over memory", from_file),
    ]


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
    parser.add_argument("--out", type=result_file, help="write the table as JSON (default: only print it)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    batch, repeats, lengths, size = args.batch, args.repeats, [125, 250, 500, 1000], ()
    if args.tiny:
        batch, repeats, size = 8, 1, ("n_embd=8", "n_layer=1", "n_head=1")
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
