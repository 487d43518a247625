"""What the benchmarks share: alternating measurements, peak memory, the machine, and a table."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import stable_baselines3
import torch

import env
from config.loading import Config, load_config
from files import write_atomically
from history.format import history_path
from history.markers import mark_regions
from history.writer import join_files, write_history
from scripts import DEFAULT_CONFIG
from utils import n_cores


def default_config(*overrides: str, paths: dict[str, str] = DEFAULT_CONFIG) -> Config:
    """The shipped Darkroom config, or another family's or source's, as train.py makes it effective."""
    config = load_config(paths, list(overrides))
    facts = {
        "with_dones": True,
        "blank_starts": config["histories"] != "whole",
        "compress_interval": config["compress_interval"] or config["n_steps"],
        "rollout_length": config["n_steps"],
    }
    return Config(config | env.describe_spaces(config) | facts)


def write_random_histories(folder: Path, config: dict, n_steps: int, n_tasks: int) -> None:
    """A history file of the shipped format with random contents, for as many tasks as a benchmark reads."""
    rng, shape, length = np.random.default_rng(0), (n_steps, config["n_stream"]), config["compress_interval"]
    parts = {task: folder / f"{task}.hdf5" for task in env.split_tasks(config)["train"][:n_tasks]}
    for task, part in parts.items():
        history = {
            "states": rng.integers(config["grid_size"], size=(*shape, 2), dtype=np.uint8),
            "actions": rng.integers(5, size=shape, dtype=np.uint8),
            "rewards": rng.integers(2, size=shape).astype(np.float32),
            "dones": np.broadcast_to((np.arange(n_steps) % 20 == 19)[:, None], shape),
            "action_probs": rng.dirichlet(np.ones(5), size=shape).astype(np.float16),
            "compress_markers": mark_regions([(t, t + length) for t in range(0, n_steps, length)], n_steps),
        }
        write_history(part, str(task), history, {}, chunk_steps=length)
    join_files(history_path(config, folder), parts, config)
    for part in parts.values():
        part.unlink()


def alternate(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate, `repeats` times; they take turns, after one run of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(function: Callable, *arguments) -> float:
    """MB by which the resident memory of a fresh process grows at most while it runs `function(*arguments)`.

    `function` gets a callable first; memory counts from when it calls that.
    """
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_watch_memory, args=(sender, function, arguments))
    process.start()
    peak = receiver.recv()
    process.join()
    return peak


def _watch_memory(sender, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(n_cores())
    start = []

    def begin() -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
        start.append(_memory_of("VmRSS"))

    function(begin, *arguments)
    sender.send(max(0.01, _memory_of("VmHWM") - start[0]))


def _memory_of(name: str) -> float:
    """A line of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def row(name: str, seconds: list[float], unit: str, amount: float, **more) -> dict:
    """A line of the table: `amount` units were done in each measurement."""
    rates = [amount / s for s in seconds]
    return {
        "name": name, "median": statistics.median(rates), "low": min(rates), "high": max(rates), "unit": unit,
        "repeats": len(rates), **more,
    }  # fmt: skip


def ratio(name: str, value: float, target: float | None = None, at_most: bool = False) -> dict:
    """A line that compares two others; `target` is what it should at least (or at most) be."""
    reached = None if target is None else (value <= target if at_most else value >= target)
    return {"name": name, "median": value, "unit": "ratio", "target": target, "reached": reached}


def machine() -> dict:
    cpu = next(
        (line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    return {
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"), "cpu": cpu, "cores": n_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None, "python": platform.python_version(),
        "torch": str(torch.__version__), "stable_baselines3": stable_baselines3.__version__, "numpy": np.__version__,
    }  # fmt: skip


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def print_table(title: str, rows: list[dict]) -> None:
    print(f"\n{title}")
    for r in rows:
        spread = f"{r['low']:,.4g} to {r['high']:,.4g}" if "low" in r else ""
        bound = f"target {r['target']:g}: {'reached' if r['reached'] else 'missed'}" if r.get("target") else ""
        print(f"  {r['name']:<66} {r['median']:>12,.4g} {r['unit']:<22} {spread:<24} {bound}")


def report(title: str, rows: list[dict], settings: dict, out: Path | None) -> dict:
    """Print a benchmark's table and, with `out`, write it as JSON with machine and settings; return it."""
    print_table(title, rows)
    results = {"settings": settings, "rows": rows}
    if out:
        write_results(out, results)
    return results


def result_file(text: str) -> Path:
    """The value of --out, asked before anything is measured."""
    path = Path(text)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected a file in a folder that can be written to, got {text}")
    return path


def write_results(out: Path, results: dict) -> None:
    text = json.dumps({"machine": machine()} | results, indent=1) + "\n"
    write_atomically(out, lambda path: path.write_text(text))
    print(f"wrote {out}")
