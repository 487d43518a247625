"""Floating-point operations per action in context, attention included.

python benchmarks/bench_flops.py            # a minute
python benchmarks/bench_flops.py --tiny     # seconds; the numbers mean nothing

Counted by torch's FlopCounterMode, a multiplication and an addition as two operations, in one environment over whole
cycles of a full context: every action and all that is encoded anew where the context rolls. Without a cache it is the
last action before it rolls: all of the window is encoded for one action. The counter does not know
PyTorch's fused attention on CPUs, so attention runs as plain matrix products; hidden entries count too. Nor does it know
products that add in place; it is told.
"""

from __future__ import annotations

import argparse

import torch
from bench_evaluate import Recomputing
from common import default_config, report, result_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import env
from model import AD, make_model
from model.acting import ContextActor, Sampling, run_actor
from scripts import family_paths

PUBLISHED = {"AD": 144.8, "RAD": 27.8}  # millions per action on Darkroom, Recurrent Algorithm Distillation, table 1
LENGTHS = (160, 320, 1000)  # steps of standard AD's window


def add_in_place(added: tuple, a: tuple[int, int], b: tuple[int, int], **_) -> int:
    """Operations of `addmm_`, from the shapes of its arguments."""
    return 2 * a[0] * a[1] * b[1]


def settings(tiny: tuple[str, ...]) -> dict[str, tuple[AD, int, int]]:
    """Models; steps until their context is full; and steps of a cycle, after which it is as full as before."""
    two = make_model(default_config(*tiny))
    memory_paths = family_paths(source="explorer")
    memory = make_model(default_config(*tiny, paths=memory_paths))
    region, older = memory.context.region_capacity, memory.context.memory_regions
    found = {
        "two regions of 80 steps": (two, 160, 80),
        f"memory: two regions of {region} steps, {older} summaries": (memory, 4 * older * region, 4 * older * region),
    }
    for n in LENGTHS:
        plain = make_model(default_config(*tiny, "use_compressed_context=false", f"n_transit={n}"))
        found[f"standard AD, {n} steps"] = (plain, n, n - plain.context.n_kept)
    return found


@torch.no_grad()
def millions_per_action(model: AD, n_full: int, n_cycle: int, recompute: bool = False) -> float:
    model.eval()
    vec_env = env.make_vec_env(model.config, env.list_tasks(model.config)[:1])
    actor = ContextActor(model, 1, Sampling())
    if recompute:
        n_full, n_cycle, actor.context = n_full - 1, 1, Recomputing(model, model.context, 1)
    run_actor(actor, vec_env, n_full)
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: add_in_place}) as counter,
    ):
        run_actor(actor, vec_env, n_cycle)
    return counter.get_total_flops() / n_cycle / 1e6


def measure(tiny: tuple[str, ...]) -> list[dict]:
    rows = []
    for name, (model, n_full, n_cycle) in settings(tiny).items():
        rows.append({"name": name, "median": millions_per_action(model, n_full, n_cycle), "unit": "M per action"})
        if not name.startswith("memory"):  # it has no cache to do without
            value = millions_per_action(model, n_full, n_cycle, recompute=True)
            rows.append({"name": f"{name}, without a cache", "median": value, "unit": "M per action"})
    return rows + [{"name": f"published: {name}", "median": m, "unit": "M per action"} for name, m in PUBLISHED.items()]


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="check that it runs; the numbers mean nothing")
    parser.add_argument("--out", type=result_file, help="write the table as JSON (default: only print it)")
    args = parser.parse_args(argv)
    tiny = ("n_embd=8", "n_layer=1", "n_head=1") if args.tiny else ()
    return report("floating-point operations", measure(tiny), {"size": tiny or "shipped"}, args.out)


if __name__ == "__main__":
    main()
