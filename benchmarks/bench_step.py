"""Does a process per environment pay? Steps per second of SB3's DummyVecEnv, all in one process, and of SubprocVecEnv.

    python benchmarks/bench_step.py

collect.py runs one task per core, each with a DummyVecEnv; that gives close to as many times the steps as there are cores.
"""

from __future__ import annotations

import argparse
import importlib.util
from functools import partial

import numpy as np
from common import alternate, default_config, ratio, report, result_file, row
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import env
from scripts import family_paths

FAMILIES = ("cartpole", "half_cheetah_vel", "hidden_goal", "metaworld_reach")  # from the fastest to the slowest steps


def step(vec_env: VecEnv, n_steps: int) -> None:
    """The same random actions at every step."""
    actions = np.stack([vec_env.action_space.sample() for _ in range(vec_env.num_envs)])
    vec_env.reset()
    for _ in range(n_steps):
        vec_env.step(actions)


def measure(family: str, n_envs: int, n_steps: int, repeats: int) -> list[dict]:
    """Both kinds with `n_envs` environments of the family's first task."""
    config = default_config(paths=family_paths(family))
    task = env.list_tasks(config)[0]
    makers = [partial(env.make_env, config, task)] * n_envs
    kinds = {"all in one process": DummyVecEnv(makers), f"{n_envs} processes": SubprocVecEnv(makers)}
    for vec_env in kinds.values():
        vec_env.action_space.seed(0)
    seconds = alternate({name: partial(step, vec_env, n_steps) for name, vec_env in kinds.items()}, repeats)
    for vec_env in kinds.values():
        vec_env.close()
    rows = [row(f"{family}, {name}", times, "steps/s", n_steps * n_envs) for name, times in seconds.items()]
    one, several = (r["median"] for r in rows)
    return [*rows, ratio(f"{family}, steps/s, a process each over one process", several / one)]


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, default=16, help="environments (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="check that it runs; the numbers mean nothing")
    parser.add_argument("--out", type=result_file, help="write the table as JSON (default: only print it)")
    args = parser.parse_args(argv)
    n_envs, n_steps, repeats = (2, 5, 1) if args.tiny else (args.envs, 500, args.repeats)
    families = FAMILIES[:1] if args.tiny else FAMILIES
    installed = [name for name in families if name != "metaworld_reach" or importlib.util.find_spec("metaworld")]
    rows = [line for family in installed for line in measure(family, n_envs, n_steps, repeats)]
    return report("stepping environments", rows, {"envs": n_envs, "steps": n_steps}, args.out)


if __name__ == "__main__":
    main()
