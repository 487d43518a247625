"""What the past is worth: act with a memory that is cleared, or with that of another task, or with episodes that are random.

    python results/controls.py --ckpt CKPT --memory cleared --out runs/cleared    # or other-task
    python results/controls.py --ckpt CKPT --lapses 20 40 60 --out runs/lapsed    # with any context; or with --memory too
    python results/controls.py --ckpt CKPT --lapses 20 40 60 --span 50 --episodes 1 --set horizon=5000 --out runs/lapsed

The scores have the form of evaluate.py's.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

import env
from checkpoints import load_checkpoint
from config.loading import complete_config, free_in_evaluation, override_config
from evaluate import Results, check_spaces, evaluate_random, evaluate_tasks, save_scores
from files import InputError, make_folder
from model import load_model
from model.acting import ContextActor
from model.context.memory_acting import MemoryContext
from scripts import add_set_argument, positive, result_name, run_script


class Cleared(MemoryContext):
    """All summaries are dropped at every region's end."""

    def _keep_summaries(self, envs: torch.Tensor) -> None:
        pass

    def _finish_regions(self, envs: torch.Tensor) -> None:
        super()._finish_regions(envs)
        self.longest_wait[envs, 0] = 0  # what tells when to explore is forgotten too


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


class Lapsing(ContextActor):
    """Takes random actions throughout some episodes, or stretches of `span` steps; the model's actions must be Discrete.

    lapses: their numbers, from 1.
    """

    def __init__(self, model: torch.nn.Module, n_envs: int, *arguments, lapses: list[int], span: int | None = None):
        super().__init__(model, n_envs, *arguments)
        self.lapses, self.span, self.n_steps = lapses, span, 0
        self.number, self.rng = np.ones(n_envs, dtype=int), np.random.default_rng(0)  # of the episode or stretch

    def act(self, observations: np.ndarray) -> np.ndarray:
        super().act(observations)
        lapsed = torch.as_tensor(np.isin(self.number, self.lapses))
        at_random = torch.as_tensor(self.rng.integers(self.model.actions.n_outputs, size=len(lapsed)))
        self.actions = torch.where(lapsed, at_random, self.actions)
        return self.actions.numpy()

    def record(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict]) -> np.ndarray:
        self.n_steps += 1
        self.number += self.n_steps % self.span == 0 if self.span else dones
        return super().record(rewards, dones, infos)


CONTROLS = {"cleared": Cleared, "other-task": OtherTask}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of a model")
    parser.add_argument("--memory", choices=CONTROLS, help="what becomes of the summaries")
    parser.add_argument("--lapses", type=positive, nargs="+", metavar="N", help="which episodes are random")
    parser.add_argument("--span", type=positive, help="count stretches of so many steps, not episodes")
    parser.add_argument("--out", type=result_name, required=True, help="scores, without .npz")
    parser.add_argument("--episodes", type=positive, default=100, help="per task and repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=16, help="per task (default: %(default)s)")
    add_set_argument(parser)
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.ckpt)
    trained_config = complete_config(checkpoint["config"], args.ckpt)
    config = override_config(trained_config, args.overrides, free_in_evaluation(), checks=(env.config_problems,))
    env.check_horizon(config, args.overrides)
    tasks, held_out = env.list_tasks(config), env.split_tasks(config)["test"]
    check_spaces(args.ckpt, trained_config, config)
    check(args, config, len(held_out))
    make_folder(args.out.parent)
    model = load_model(checkpoint, config, args.ckpt)
    change(model, args)
    runs = len(held_out) * args.repeats  # all at once: another task's memory has to be there
    chosen = [tasks[i] for i in held_out]
    returns = evaluate_tasks(model, chosen, args.repeats, args.episodes, seed=0, envs_at_once=runs, span=args.span)
    if not returns.shape[-1]:
        raise InputError(env.no_episode_ended(config))
    settings = {
        "checkpoint": str(args.ckpt), "update": checkpoint["update"], "repeats": args.repeats, "span": args.span,
        "memory": args.memory, "lapses": args.lapses, "config": config,
    }  # fmt: skip
    optimal, at_random = env.optimal_returns(config, chosen, args.span), evaluate_random(config, chosen, 0, args.span)
    save_scores(Results(held_out, chosen, returns, optimal, at_random, settings), args.out)
    n, unit = min(10, returns.shape[-1]), "stretches" if args.span else "episodes"
    print(f"mean return over the last {n} {unit}: {returns[..., -n:].mean():.2f}")


def check(args: argparse.Namespace, config: dict, n_held_out: int) -> None:
    """Raise InputError where a control would control nothing."""
    n_steps = args.episodes * env.max_episode_steps(config)
    counted = n_steps // args.span if args.span else args.episodes
    problems = {
        "expected --memory, --lapses or both: without them nothing is controlled": not (args.memory or args.lapses),
        f"{args.ckpt}: holds out no task": not n_held_out,
        f"--span {args.span}: expected at most {n_steps}, the steps of all episodes": args.span and not counted,
        f"{args.ckpt}: --lapses takes random ones of Discrete actions; its actions are others": (
            args.lapses and config["action_space"]["kind"] != "discrete"
        ),
        f"{args.ckpt}: its model is {config['model']}, expected AD": config["model"] != "AD",
        f"--lapses {max(args.lapses or [0])}: expected at most {counted}, as many as are counted": (
            args.lapses and max(args.lapses) > counted
        ),
        f"{args.ckpt}: its context is {config['context']}, expected memory": args.memory and config["context"] != "memory",
        f"{args.ckpt}: memory_regions is 0, so there are no summaries to control": (
            args.memory and config["context"] == "memory" and not config["memory_regions"]
        ),
        "--memory other-task: expected two held-out tasks at least": args.memory == "other-task" and n_held_out < 2,
        f"--memory other-task: boundaries are {config['boundaries']}, expected fixed: all regions have to end together": (
            args.memory == "other-task" and config["boundaries"] != "fixed"
        ),
        f"--memory other-task: restart_after is {config['restart_after']}, expected null, as with --set restart_after=null: "
        "all regions have to end together": args.memory == "other-task" and config["restart_after"] is not None,
    }  # fmt: skip
    if wrong := [problem for problem, is_so in problems.items() if is_so]:
        raise InputError("; ".join(wrong))


def change(model: torch.nn.Module, args: argparse.Namespace) -> None:
    """Let the model act as the arguments ask for."""
    if args.lapses:
        model.actor = partial(Lapsing, model, lapses=args.lapses, span=args.span)
    if args.memory:
        control, OtherTask.shift = CONTROLS[args.memory], args.repeats
        model.context.rolling = lambda *arguments, **more: control(arguments[0], model.context, *arguments[1:], **more)


if __name__ == "__main__":
    run_script(main)
