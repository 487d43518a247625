"""What the summaries are worth: act with a memory that is cleared, or with that of another task.

    python results/controls.py --ckpt CKPT --memory cleared --out runs/cleared    # or other-task

The scores have the form of evaluate.py's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

import env
from checkpoints import load_checkpoint
from config.loading import complete_config
from evaluate import evaluate_tasks
from files import InputError
from model import load_model
from model.context.memory_acting import MemoryContext
from scripts import positive, run_script


class Cleared(MemoryContext):
    """All summaries are dropped at every region's end."""

    def _keep_summaries(self, envs: torch.Tensor) -> None:
        pass


class OtherTask(MemoryContext):
    """Each environment reads the summaries of one that acts on another task. All regions have to end together."""

    shift = 1

    def _keep_summaries(self, envs: torch.Tensor) -> None:
        self._move(-self.shift)  # back to whom they belong to
        super()._keep_summaries(envs)
        self._move(self.shift)

    def _move(self, shift: int) -> None:
        held = self.cache[:, :, :, :, : self.first_previous]
        held.copy_(held.roll(shift, dims=2))


CONTROLS = {"cleared": Cleared, "other-task": OtherTask}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of a model with memory")
    parser.add_argument("--memory", choices=CONTROLS, required=True, help="what becomes of the summaries")
    parser.add_argument("--out", type=Path, required=True, help="scores, without .npz")
    parser.add_argument("--episodes", type=positive, default=100, help="per task and repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=16, help="per task (default: %(default)s)")
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.ckpt)
    config = complete_config(checkpoint["config"], args.ckpt)
    if config["context"] != "memory":
        raise InputError(f"{args.ckpt}: its context is {config['context']}, expected memory")
    model = load_model(checkpoint, config, args.ckpt)
    tasks, held_out = env.list_tasks(config), env.split_tasks(config)["test"]
    control = CONTROLS[args.memory]
    OtherTask.shift = args.repeats
    model.context.rolling = lambda *arguments, **more: control(arguments[0], model.context, *arguments[1:], **more)
    runs = len(held_out) * args.repeats  # all at once: another task's memory has to be there
    chosen = [tasks[i] for i in held_out]
    returns = evaluate_tasks(model, chosen, args.repeats, args.episodes, seed=0, envs_at_once=runs)
    optimal = [env.optimal_return(config, task) for task in chosen]
    scores = {"returns": returns, "tasks": held_out, "optimal": np.array(optimal, dtype=float)}
    np.savez_compressed(f"{args.out}.npz", **scores, random_returns=np.zeros(1))
    print(f"{args.memory}: mean return over the last 10 episodes {returns[..., -10:].mean():.2f}")


if __name__ == "__main__":
    run_script(main)
