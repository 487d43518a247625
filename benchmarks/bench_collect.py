"""Collection: the shipped PPO settings against the usual ones, processes, and number of tasks.

python benchmarks/bench_collect.py            # about 8 minutes on 2 cores
python benchmarks/bench_collect.py --tiny     # seconds; the numbers mean nothing
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import alternate, default_config, ratio, report, result_file, row

import collect
import env
from algorithm import ALGORITHM
from history.markers import region_bounds
from history.returns import mean_return_per_rollout
from ranks import Ranks

USUAL = ("batch_size=40", "n_epochs=20", "source_lr=3e-4", "net_arch=[64, 64]", "ent_coef=0")
TASKS = (0, 31, 70)  # a corner, a goal next to the start, one between


def learn(config: dict, task: int, total: int) -> np.ndarray:
    """Train PPO on a task, as collect.py does; the mean return of each rollout."""
    vec_env = env.make_vec_env(config, [env.list_tasks(config)[task]] * config["n_stream"])
    history = ALGORITHM[config["alg"]](config | {"total_source_timesteps": total}, vec_env, 42 + task).run()
    return mean_return_per_rollout(history["rewards"], history["dones"], region_bounds(history["compress_markers"]))


def measure_settings(repeats: int, total: int, tiny: tuple[str, ...]) -> list[dict]:
    """Transitions per second over whole runs, and the share of the optimum at their end."""
    torch.set_num_threads(1)
    configs = {"shipped": default_config(*tiny), "usual": default_config(*USUAL, *tiny)}
    rows, rates = [], {}
    for name, config in configs.items():
        final, seconds = [], []
        for task in TASKS[:repeats]:
            start = time.perf_counter()
            returns = learn(config, task, total)
            seconds.append(time.perf_counter() - start)
            final.append(returns[-1] / env.optimal_return(config, env.list_tasks(config)[task]))
        rows.append(row(f"transitions, {name} settings", seconds, "transitions/s", total))
        rows.append(
            {
                "name": f"final return over the optimum, {name} settings",
                "median": float(np.mean(final)),
                "unit": "share",
            }
        )
        rates[name] = rows[-2]["median"]
    rows.append(ratio("transitions/s, shipped over usual settings", rates["shipped"] / rates["usual"], 8))
    return rows


def collect_some(config: dict, n_tasks: int, n_process: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder) / "parts"
        collect.prepare_parts(parts, config)
        failures = collect.collect_tasks(
            config | {"n_process": n_process}, list(range(n_tasks)), parts, Path(folder), Ranks()
        )
        assert not failures, failures


def measure_processes(repeats: int, n_tasks: int, numbers: list[int], tiny: tuple[str, ...]) -> list[dict]:
    config = default_config(*tiny)
    collect_some(config, 1, 1)  # starts the fork server
    times = alternate({str(n): lambda n=n: collect_some(config, n_tasks, n) for n in (1, 2)}, repeats)
    rows = [row(f"tasks, {n} process(es)", times[str(n)], "tasks/s", n_tasks) for n in (1, 2)]
    rows.append(ratio("tasks/s, 2 processes over 1", rows[1]["median"] / rows[0]["median"], 1.7))
    times = alternate({str(n): lambda n=n: collect_some(config, n, 2) for n in numbers}, max(1, repeats - 1))
    rows += [row(f"tasks, {n} of them, 2 processes", times[str(n)], "tasks/s", n) for n in numbers]
    return rows


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="check that it runs; the numbers mean nothing")
    parser.add_argument(
        "--repeats", type=int, default=3, help="measurements per line, at most 3 (default: %(default)s)"
    )
    parser.add_argument("--out", type=result_file, help="write the table as JSON (default: only print it)")
    args = parser.parse_args(argv)
    repeats, total, n_tasks, numbers, tiny = args.repeats, 128_000, 4, [2, 4, 6, 8], ()
    if args.tiny:
        repeats, total, n_tasks, numbers = 1, 480, 2, [2]
        tiny = ("n_stream=4", "n_steps=80", "batch_size=80", "n_epochs=1", "total_source_timesteps=320")
    rows = measure_processes(repeats, n_tasks, numbers, tiny) + measure_settings(repeats, total, tiny)
    return report("collection", rows, {"repeats": repeats, "total": total, "usual": USUAL, "tasks": TASKS}, args.out)


if __name__ == "__main__":
    main()
