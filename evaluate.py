"""Evaluate a trained AD in context, with frozen weights, on the tasks it never saw.

Prints a table, and writes the returns with their settings (.npz) and a figure (.png).
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys

from config.schema import ALL_KEYS
from scripts import BAR_SECONDS, add_device_argument, add_set_argument, positive, result_name, run_script, seed_number

EPISODES, REPEATS, ENVS_AT_ONCE = 100, 16, 1024
LONGEST_NAME = 120  # of result files; systems allow about 255 characters


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ckpt", help="checkpoint file (default: the newest one of the newest run in --runs-dir)")
    add("--runs-dir", default="runs", help="folder of the training runs (default: %(default)s)")
    add(
        "--best",
        action="store_true",
        help="the checkpoint with the lowest held-out loss, of the newest run or of the run of --ckpt (default: no)",
    )
    add(
        "--traj-dir",
        default="datasets",
        help="folder of the history file, for the source's curve (default: %(default)s)",
    )
    add(
        "--out",
        type=result_name,
        help="result files without their endings (default: eval-MODE-UPDATE-CHANGES beside the checkpoint)",
    )
    add(
        "--mode",
        choices=("test", "train", "all"),
        default="test",
        help="which tasks; test: held out (default: %(default)s)",
    )
    add("--episodes", type=positive, default=EPISODES, help="episodes per task and repeat (default: %(default)s)")
    add("--repeats", type=positive, default=REPEATS, help="independent repeats per task (default: %(default)s)")
    add("--span", type=positive, help="count returns per so many steps of long episodes (default: per episode)")
    add(
        "--success", action="store_true",
        help="count episodes with a step whose info tells `success` or `is_success`, instead of returns (default: no)",
    )  # fmt: skip
    add("--temperature", type=float, help="of the actions; 0 takes the most probable (default: the checkpoint's)")
    add("--boundaries", choices=ALL_KEYS["boundaries"].choices, help="where regions end (default: the checkpoint's)")
    add("--seed", type=seed_number, default=0, help="of action sampling and environments (default: %(default)s)")
    add(
        "--envs-at-once", type=positive, default=ENVS_AT_ONCE,
        help="environments stepped together: more is faster and takes more memory; the scores stay (default: %(default)s)",
    )  # fmt: skip
    add_device_argument(parser)
    add("--render", action="store_true", help="also write a film (.gif) of one repeat of the first tasks (default: no)")
    add_set_argument(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the long imports ends it without a traceback
    parse_arguments(None)  # --help and mistakes are answered before them

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from tqdm import tqdm

import env
from checkpoints import EVALUATION_KEYS, checkpoint_paths, load_checkpoint, newest_readable_checkpoint
from config.loading import complete_config, free_in_evaluation, override_config
from files import InputError, make_folder, write_atomically
from history.format import history_path
from history.returns import episode_returns, source_curve
from model import load_model
from model.acting import RandomActor, run_actor
from plots.frames import check_renders, film_tasks, save_film
from plots.intervals import interval
from plots.returns import plot_returns
from plots.style import save_figure
from ranks import Ranks
from utils import choose_device

NOT_TOLD = "no step's info held `success` or `is_success`"
N_RANDOM_EPISODES = 100
N_RANDOM_STEPS = 2000  # at least, where returns are counted per span


@dataclass
class Results:
    """An evaluation: (tasks, repeats, episodes) returns of `tasks`, whose numbers are `indices`.

    Where returns are counted per span of steps, a span takes an episode's place; where successes are counted, 1 or 0 takes
    a return's.
    """

    indices: list[int]
    tasks: list[dict]
    returns: np.ndarray
    optimal: np.ndarray  # (tasks,) NaN where not known
    random_returns: np.ndarray  # (tasks, episodes) of a policy that acts at random
    settings: dict


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    path, checkpoint = find_checkpoint(args)
    trained_config = complete_config(checkpoint["config"], path)
    overrides = chosen_overrides(args)
    config = override_config(trained_config, overrides, free_in_evaluation(), checks=(env.config_problems,))
    env.check_horizon(config, overrides)
    check_spaces(path, trained_config, config)
    model = load_model(checkpoint, config, path).to(choose_device(args.device))
    indices, family = env.split_tasks(config)[args.mode], env.list_tasks(config)
    if not indices:
        raise InputError(f"--mode {args.mode}: {env.why_no_tasks(config)}")
    tasks = [family[i] for i in indices]
    if args.render:
        check_renders(config, tasks[0])
    longest = env.max_episode_steps(config)
    if args.span and args.span > longest:
        raise InputError(f"--span {args.span}: expected at most {longest}, the steps of a whole episode")
    if args.span and args.success:
        raise InputError("--span and --success: expected one of them; a success is counted per episode")
    out = args.out or path.parent / default_name(args, checkpoint["update"], overrides)
    ranks = Ranks(model.device)
    ranks.first_does(lambda: make_folder(out.parent))
    # The random policy first: in seconds it tells whether the env counts what is asked for
    random_returns = ranks.first_does(lambda: evaluate_random(config, tasks, args.seed, args.span, args.success))
    if ranks.is_first and args.success and np.isnan(random_returns).all():
        print(f"note: by the random policy {NOT_TOLD}", file=sys.stderr)
    returns = evaluate_shared(model, tasks, args, ranks)
    if not ranks.is_first:
        return 0
    if not returns.shape[-1]:
        raise InputError(env.no_episode_ended(config))
    if args.success:
        if np.isnan(returns).all() and np.isnan(random_returns).all():
            raise InputError(f"--success: {NOT_TOLD}; leave it out")
        returns, random_returns = np.nan_to_num(returns), np.nan_to_num(random_returns)
    settings = {
        "checkpoint": str(path), "update": checkpoint["update"], "mode": args.mode, "repeats": args.repeats,
        "seed": args.seed, "span": args.span, "success": args.success, "config": config,
    }  # fmt: skip
    optimal = np.ones(len(tasks)) if args.success else env.optimal_returns(config, tasks, args.span)
    results = Results(indices, tasks, returns, optimal, random_returns, settings)
    print_results(results, path, args.episodes, trained_config)
    write_results(results, out, args.traj_dir)
    if args.render:
        recorder = film_tasks(model, config, tasks, args.episodes, args.seed)
        save_film(recorder, env.task_labels(tasks, family), out.with_name(out.name + ".gif"))
        print(f"wrote {out}.gif: episodes {', '.join(map(str, recorder.episodes))}")
    return 0


def chosen_overrides(args: argparse.Namespace) -> list[str]:
    """--set, and the flags that stand for a key."""
    flags = [f"{name}={value}" for name in ("temperature", "boundaries") if (value := getattr(args, name)) is not None]
    return [*args.overrides, *flags]


def default_name(args: argparse.Namespace, update: int, overrides: list[str]) -> str:
    """A name for the result files that tells this evaluation from others of the run."""
    usual = {"episodes": EPISODES, "repeats": REPEATS, "seed": 0, "span": None, "success": False}
    changes = [f"{name}={getattr(args, name)}" for name, default in usual.items() if getattr(args, name) != default]
    parts = [f"eval-{args.mode}-{update}", *overrides, *changes]
    name = "_".join("".join(c if c.isalnum() or c in "-._" else "-" for c in part) for part in parts)
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"


def find_checkpoint(args: argparse.Namespace) -> tuple[Path, dict]:
    """The checkpoint of --ckpt, or the newest (by update) readable one of the run that saved last; --best: its best."""
    if args.ckpt:
        found = Path(args.ckpt), load_checkpoint(args.ckpt)
    else:
        saved = {}  # run folder: when it last saved
        for path in Path(args.runs_dir).rglob("ckpt-*.pt"):
            saved[path.parent] = max(saved.get(path.parent, 0), path.stat().st_mtime_ns)
        if not saved:
            raise InputError(
                f"{args.runs_dir}: no checkpoint in it; train one with: python train.py, or name one with --ckpt"
            )
        run_dir = max(saved, key=saved.get)
        if (found := newest_readable_checkpoint(run_dir, EVALUATION_KEYS)) is None:
            raise InputError(f"{run_dir}: none of its checkpoints can be read; name another one with --ckpt")
    if not args.best:
        return found
    run_dir = found[0].parent
    newest = newest_readable_checkpoint(run_dir, (*EVALUATION_KEYS, "best")) if checkpoint_paths(run_dir) else None
    best = run_dir / f"ckpt-{newest[1]['best']['update']}.pt" if newest else None
    if best is None or not best.is_file():
        raise InputError(f"--best: {run_dir} holds no checkpoint with a lowest held-out loss; leave --best out")
    return best, load_checkpoint(best)


# Running ------------------------------------------------------------------------------------------


def evaluate_shared(model, tasks: list[dict], args: argparse.Namespace, ranks: Ranks) -> np.ndarray:
    """(tasks, repeats, episodes) returns, on the first rank; every rank runs some of the tasks."""
    bounds = [len(tasks) * rank // ranks.size for rank in range(ranks.size + 1)]
    first, stop = bounds[ranks.rank : ranks.rank + 2]
    share = evaluate_tasks(
        model, tasks[first:stop], args.repeats, args.episodes, args.seed, first * args.repeats, args.envs_at_once,
        show_progress=ranks.is_first, span=args.span, success=args.success,
    )  # fmt: skip
    shares = [share for share in ranks.gather(share) if len(share)]
    ranks.leave()
    n_episodes = min(share.shape[-1] for share in shares)
    return np.concatenate([share[..., :n_episodes] for share in shares])


def evaluate_tasks(
    model,
    tasks: list[dict],
    repeats: int,
    episodes: int,
    seed: int,
    first_env: int = 0,
    envs_at_once: int = ENVS_AT_ONCE,
    stop: Callable[[], bool] | None = None,
    show_progress: bool = True,
    span: int | None = None,
    success: bool = False,
) -> np.ndarray:
    """Returns of in-context episodes; the same ones, whatever `envs_at_once` is.

    Args:
        model: its config says which env the tasks belong to and how actions are sampled.
        first_env: number of the first environment; each has random numbers of its own.
        envs_at_once: how many are stepped together.
        stop: asked after every step; True ends the evaluation at once.
        span: count per so many steps, of as many as `episodes` of the longest episodes have.
        success: see `counted_returns`.

    Returns:
        (tasks, repeats, episodes or spans), of as many as all have finished.
    """
    config, runs = model.config, [task for task in tasks for _ in range(repeats)]
    if not runs:
        return np.zeros((0, repeats, 0))
    most_steps, returns = episodes * env.max_episode_steps(config), []
    n_chunks = -(-len(runs) // envs_at_once)
    with tqdm(
        total=n_chunks * most_steps, desc="evaluate", unit="step", mininterval=BAR_SECONDS, leave=False,
        disable=not show_progress,
    ) as bar:  # fmt: skip
        for start in range(0, len(runs), envs_at_once):
            vec_env = env.make_vec_env(config, runs[start : start + envs_at_once])
            vec_env.seed(seed + first_env + start)  # environment i gets seed + i
            record = model.evaluate_in_context(
                vec_env, most_steps, seed=seed, n_episodes=None if span else episodes, first_env=first_env + start, stop=stop,
                on_step=bar.update,
            )  # fmt: skip
            vec_env.close()
            returns.append(counted_returns(record, episodes, span, success))
            if stop and stop():
                break
    n_episodes = min(part.shape[1] for part in returns)
    together = np.concatenate([part[:, :n_episodes] for part in returns])
    n_tasks = len(together) // repeats  # fewer than asked for where it was stopped
    return together[: n_tasks * repeats].reshape(n_tasks, repeats, n_episodes)


def counted_returns(
    record: dict[str, np.ndarray], episodes: int, span: int | None, success: bool = False
) -> np.ndarray:
    """(N, at most `episodes`) returns of what `run_actor` gives, or (N, spans); with `success`, 1 where an episode had one.

    Successes are NaN where no step tells of one: an environment may do so only in the step that succeeds.
    """
    rewards = record["rewards"]
    if span is not None:
        n_spans = len(rewards) // span
        return rewards[: n_spans * span].reshape(n_spans, span, -1).sum(axis=1).T
    if not success:
        return record["returns"][:, :episodes]
    counted = (episode_returns(np.nan_to_num(record["successes"]), record["dones"])[:, :episodes] > 0).astype(float)
    return np.full_like(counted, np.nan) if np.isnan(record["successes"]).all() else counted


def evaluate_random(
    config: dict, tasks: list[dict], seed: int, span: int | None = None, success: bool = False
) -> np.ndarray:
    """(tasks, episodes or spans) returns of a policy that acts at random, or its successes."""
    episodes = -(-N_RANDOM_STEPS // env.max_episode_steps(config)) if span else N_RANDOM_EPISODES
    vec_env = env.make_vec_env(config, tasks)
    vec_env.seed(seed)
    actor = RandomActor(vec_env.action_space, len(tasks), seed)
    n_steps = episodes * env.max_episode_steps(config)
    record = run_actor(actor, vec_env, n_steps, None if span else episodes)
    vec_env.close()
    return counted_returns(record, episodes, span, success)


# Reporting ----------------------------------------------------------------------------------------


def print_results(results: Results, path: Path, episodes: int, trained_config: dict) -> None:
    """What was evaluated, notes on it, and the table."""
    config, returns, span = results.settings["config"], results.returns, results.settings["span"]
    if results.settings["success"]:
        print("returns are successes: 1 or 0 per episode")
    if span:
        print(f"returns are per span of {span} steps")
    elif returns.shape[-1] < episodes:
        print(
            f"note: {returns.shape[-1]} of {episodes} episodes ended within the longest time that the env or "
            "`horizon` allows; --set horizon=N allows more"
        )
    boundaries = f", {config['boundaries']} boundaries" if config["use_compressed_context"] else ""
    print(f"{path}: {mode_name(config)} context, temperature {config['temperature']}{boundaries}")
    n_seen = count_trained(results.tasks, trained_config)
    if n_seen and results.settings["mode"] == "test":
        print(f"note: the model was trained on {n_seen} of these {len(results.tasks)} tasks")
    print_table(results, env.task_labels(results.tasks, env.list_tasks(config)))


def check_spaces(path: Path, trained_config: dict, config: dict) -> None:
    """Raise InputError where an evaluation's env has not the spaces that the model of checkpoint `path` was made for."""
    if any(trained_config.get(name) != space for name, space in env.describe_spaces(config).items()):
        raise InputError(f"{path}: was trained on other observations or actions than the env of this evaluation has")


def count_trained(tasks: list[dict], trained_config: dict) -> int:
    """How many of `tasks` are among a model's training tasks, by the arguments that tell these apart."""
    family = env.list_tasks(trained_config)
    of_one_task = [] if len(family) > 1 else tasks  # a single task differs from none in its family
    names = env.differing_arguments(family + of_one_task)

    def told(task: dict) -> list:
        return [task.get(name) for name in names]

    trained = [told(family[i]) for i in env.split_tasks(trained_config)["train"]]
    return sum(told(task) in trained for task in tasks)


def mode_name(config: dict) -> str:
    return "compressed" if config["use_compressed_context"] else "standard"


def print_table(results: Results, labels: list[str]) -> None:
    """One line per task and one for the mean; first and last stand for a tenth of the episodes or spans, at most 10.

    Args:
        labels: a heading, then one per task, as `env.task_labels` gives them.
    """
    returns, optimal, unit = results.returns, results.optimal, "spans" if results.settings["span"] else "episodes"
    width, (heading, *labels) = max(10, *map(len, labels)), labels
    n = min(10, max(1, returns.shape[-1] // 10))
    first, last = returns[..., :n].mean(axis=-1), returns[..., -n:].mean(axis=-1)  # (tasks, repeats)
    heads = f"{unit} 1-{n}", f"{unit} {returns.shape[-1] - n + 1}-{returns.shape[-1]}"
    print(f"{'task':>6} {heading:>{width}} {heads[0]:>16} {heads[1]:>18} {'optimal':>8} {'share':>6}")

    def line(task: object, label: str, first: float, last: float, best: float) -> None:
        share = f"{last / best:.2f}" if best > 0 else "-"
        best = "-" if np.isnan(best) else f"{best:.2f}"
        print(f"{task:>6} {label:>{width}} {first:>16.2f} {last:>18.2f} {best:>8} {share:>6}")

    for row, (index, label) in enumerate(zip(results.indices, labels)):
        line(index, label, first[row].mean(), last[row].mean(), optimal[row])
    line("mean", "", first.mean(), last.mean(), optimal.mean())
    tell_mean(f"mean return over the last {n} {unit}", last, 2)
    if (optimal > 0).all():
        tell_mean("mean share of each task's optimum", last / optimal[:, None], 3)
    print(f"random policy: {results.random_returns.mean():.2f}")


def tell_mean(name: str, values: np.ndarray, digits: int) -> None:
    """The mean of (tasks, repeats) values, with its interval over tasks; over repeats where there is one task."""
    over = "tasks" if len(values) > 1 else "the repeats of one task"
    low, high = interval(values.mean(axis=1)[None] if len(values) > 1 else values)
    known = f", 95 % interval {low:.{digits}f} to {high:.{digits}f} (bootstrap over {over})" if values.size > 1 else ""
    print(f"{name}: {values.mean():.{digits}f}{known}")


def save_scores(results: Results, out: Path) -> None:
    """Write OUT.npz: returns (task, repeat, episode or span), task indices, optima, random returns, and settings as YAML."""
    arrays = {
        "returns": results.returns.astype(np.float32), "tasks": np.array(results.indices), "optimal": results.optimal,
        "random_returns": results.random_returns, "settings": yaml.safe_dump(results.settings, sort_keys=False),
    }  # fmt: skip

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)

    write_atomically(out.with_name(out.name + ".npz"), write)


def write_results(results: Results, out: Path, traj_dir: str) -> None:
    """Write OUT.npz, as `save_scores` does, and OUT.png."""
    save_scores(results, out)
    config, optimal = results.settings["config"], results.optimal
    levels = {"random policy": float(results.random_returns.mean())}
    if not np.isnan(optimal).any():
        levels["optimum"] = float(optimal.mean())
    source, histories, span = None, history_path(config, traj_dir), results.settings["span"]
    if histories.is_file() and not span and not results.settings["success"]:
        try:
            source = source_curve(histories, results.indices, config)
        except InputError as error:
            print(f"note: no curve of the source: {error}")
    title = f"{config['env']}, {len(results.indices)} tasks ({results.settings['mode']}), update {results.settings['update']}"
    figure = plot_returns({f"AD, {mode_name(config)} context": results.returns}, levels, source, title)
    if span:
        figure.axes[0].set_xlabel(f"span of {span} steps in context")
    save_figure(figure, out.with_name(out.name + ".png"))
    print(f"wrote {out}.npz and {out}.png")


if __name__ == "__main__":
    run_script(main)
