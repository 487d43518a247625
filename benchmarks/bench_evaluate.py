"""Evaluation in context: the key/value cache against recomputing, number of environments, length.

python benchmarks/bench_evaluate.py            # about 4 minutes on 2 cores
python benchmarks/bench_evaluate.py --tiny     # seconds; the numbers mean nothing
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import alternate, default_config, ratio, report, result_file, row

import env
from model import AD, lay_out_for_acting, make_model
from model.acting import ContextActor, Sampling, run_actor
from model.context.rolling import RollingContext
from scripts import DEFAULT_CONFIG, family_paths
from utils import choose_device

PUBLIC_SIZE = ("n_layer=6", "n_embd=128", "n_head=8")  # of the nearest public implementations


class Recomputing(RollingContext):
    """A rolling context without a cache: every step takes a full forward over the whole window, and keeps nothing."""

    def _append(self, envs: torch.Tensor) -> torch.Tensor:
        x, layout = self.model.embed_window(self.window(envs))
        features = self.model.context.read(self.model.transformer, x, layout)
        return features[torch.arange(len(envs)), layout.valid.sum(1) - 1]


def act(model: AD, kind: type[RollingContext], vec_env, n_steps: int) -> float:
    """Seconds of `n_steps` steps with a context that is already full, as it is most of the time."""
    actor = ContextActor(model, vec_env.num_envs, Sampling())
    actor.context = kind(model, model.context, vec_env.num_envs)
    filling, times = model.context.region_capacity, []
    run_actor(actor, vec_env, filling + n_steps, on_step=lambda: times.append(time.perf_counter()))
    return times[-1] - times[filling - 1]


def measure(repeats: int, n_steps: int, size: tuple[str, ...], device: str) -> list[dict]:
    config = default_config(*size)
    model = lay_out_for_acting(make_model(config)).to(choose_device(device)).eval()
    tasks = env.list_tasks(config)

    def seconds(kind: type[RollingContext], n_envs: int) -> list[float]:
        vec_env = env.make_vec_env(config, (tasks * n_envs)[:n_envs])
        return act(model, kind, vec_env, n_steps)

    times: dict[str, list[float]] = {"recomputing, 8": [], "cache, 8": [], "cache, 64": [], "cache, 256": []}
    for turn in range(repeats + 1):
        for name in times:
            kind = Recomputing if name.startswith("rec") else RollingContext
            took = seconds(kind, int(name.split(", ")[1]))
            if turn:
                times[name].append(took)
    rows = [
        row(f"environment steps, {name} environments", s, "steps/s", n_steps * int(name.split(", ")[1]))
        for name, s in times.items()
    ]
    rate = dict(zip(times, (r["median"] for r in rows)))
    rows.append(ratio("steps/s, cache over recomputing, 8 environments", rate["cache, 8"] / rate["recomputing, 8"], 15))
    rows.append(ratio("steps/s, 64 environments over 8", rate["cache, 64"] / rate["cache, 8"], 3))
    return rows


def measure_length(repeats: int, size: tuple[str, ...], device: str) -> list[dict]:
    """Steps per second of whole evaluations, for four lengths: flat if old episodes cost nothing."""
    config = default_config(*size)
    model = lay_out_for_acting(make_model(config)).to(choose_device(device))
    vec_env = env.make_vec_env(config, env.list_tasks(config)[:8])
    lengths = [400, 800, 1600, 3200] if not size else [80, 160, 240, 320]
    times = alternate({str(n): lambda n=n: model.evaluate_in_context(vec_env, n) for n in lengths}, repeats)
    rows = [row(f"environment steps, evaluation of {n} steps", times[str(n)], "steps/s", n * 8) for n in lengths]
    rows.append(ratio("steps/s, longest over shortest evaluation", rows[-1]["median"] / rows[0]["median"], 0.9))
    return rows


def measure_memory(repeats: int, n_steps: int, size: tuple[str, ...], device: str) -> list[dict]:
    """Lives of `n_steps` steps, 8 environments: with memory, and with two regions as long as its own or as the default's."""
    settings = {"two regions of 80": (), "two regions of 40": ("n_steps=40", "n_transit=80"), "memory": ()}
    models, times, late = {}, {name: [] for name in settings}, []
    for name, changed in settings.items():
        paths = family_paths(source="explorer") if name == "memory" else DEFAULT_CONFIG
        config = default_config(*size, *changed, paths=paths)
        models[name] = lay_out_for_acting(make_model(config)).to(choose_device(device)).eval()
    for turn in range(repeats + 1):
        for name, model in models.items():
            vec_env = env.make_vec_env(model.config, env.list_tasks(model.config)[:8])
            actor, ends = ContextActor(model, 8, Sampling()), [time.perf_counter()]
            run_actor(actor, vec_env, n_steps, on_step=lambda ends=ends: ends.append(time.perf_counter()))
            if turn:
                times[name].append(ends[-1] - ends[0])
            if turn and name == "memory":
                tenth = n_steps // 10
                late.append((ends[tenth] - ends[0]) / (ends[-1] - ends[-1 - tenth]))
    rows = [
        row(f"environment steps, {name}, life of {n_steps:,}", s, "steps/s", n_steps * 8) for name, s in times.items()
    ]
    rate = dict(zip(times, (r["median"] for r in rows)))
    rows += [ratio(f"steps/s, memory over {name}", rate["memory"] / rate[name], 1.0) for name in list(rate)[:2]]
    rows.append(ratio("steps/s of memory, a life's last tenth over its first", statistics.median(late), 0.95))
    return [*rows, *held_bytes(models["memory"])]


def held_bytes(model: AD, n_steps: int = 2000) -> list[dict]:
    """Keys and values that memory holds per environment, and those of all the steps of a life."""
    held = model.context.rolling(model, 1).cache.nbytes
    full = 2 * model.config["n_layer"] * model.config["n_embd"] * 4 * n_steps
    rows = [{"name": "bytes held per environment, memory", "median": held / 1000, "unit": "kB"}]
    rows.append({"name": f"the same, all of {n_steps:,} steps", "median": full / 1000, "unit": "kB"})
    return [*rows, ratio(f"bytes saved after {n_steps:,} steps", 1 - held / full, 0.85)]


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="check that it runs; the numbers mean nothing")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per line (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; one is steadier (default: %(default)s)")
    parser.add_argument("--out", type=result_file, help="write the table as JSON (default: only print it)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    repeats, n_steps, size, shipped = args.repeats, 160, PUBLIC_SIZE, ()
    if args.tiny:
        repeats, n_steps, size, shipped = 1, 10, *(("n_layer=1", "n_embd=8", "n_head=1"),) * 2
    rows = measure(repeats, n_steps, size, args.device)
    rows += [
        r | {"name": f"shipped model: {r['name']}", "target": None}
        for r in measure(repeats, n_steps, shipped, args.device)
    ]
    rows += measure_length(repeats, shipped, args.device)
    rows += measure_memory(repeats, 100 if args.tiny else 10_000, shipped, args.device)
    settings = {"repeats": repeats, "n_steps": n_steps, "device": args.device, "threads": args.threads, "size": size}
    return report("evaluation (6 layers, 128 wide, 8 heads)", rows, settings, args.out)


if __name__ == "__main__":
    main()
