"""Evaluate a trained AD in context, with frozen weights, on the tasks it never saw.

Prints a table, and writes the returns with their settings (.npz) and a figure (.png).
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the long imports ends it without a traceback

import argparse
from pathlib import Path

import h5py
import numpy as np
import yaml

import env
from history_file import env_differences
from model import load_model
from plots.frames import check_renders, film_tasks, save_film
from plots.returns import plot_returns
from plots.style import save_figure
from ranks import Ranks
from utils import (
    EVALUATION_KEYS,
    HIGHEST_SEED,
    InputError,
    add_set_argument,
    choose_device,
    history_path,
    load_checkpoint,
    make_folder,
    newest_readable_checkpoint,
    override_config,
    run_script,
    write_atomically,
)

# What may differ from the checkpoint's config: the rest is built into the weights
CHANGEABLE = (
    "temperature",
    "exploring_temperature",
    "exploring_patience",
    "boundaries",
    "alg_seed",
    "env_split_seed",
    "train_env_ratio",
    "grid_size",
    "horizon",
    "env_kwargs",
    "task_kwargs",
    "task_ranges",
    "n_tasks",
    "task_seed",
)
N_RANDOM_EPISODES = 100


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", help="checkpoint file (default: the newest one of the newest run in --runs-dir)")
    parser.add_argument("--runs-dir", default="runs", help="folder of the training runs (default: %(default)s)")
    parser.add_argument(
        "--traj-dir",
        default="datasets",
        help="folder of the history file, for the source's curve (default: %(default)s)",
    )
    parser.add_argument("--out", help="result files without their endings (default: eval-MODE beside the checkpoint)")
    parser.add_argument(
        "--mode",
        choices=("test", "train", "all"),
        default="test",
        help="which tasks; test: held out (default: %(default)s)",
    )
    parser.add_argument(
        "--episodes", type=positive, default=100, help="episodes per task and repeat (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=positive, default=16, help="independent repeats per task (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, help="of the actions; 0 takes the most probable (default: the checkpoint's)"
    )
    parser.add_argument(
        "--boundaries", choices=("fixed", "predicted"), help="where regions end (default: the checkpoint's)"
    )
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="of action sampling and environments (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda or cuda:N (default: %(default)s, CUDA where there is one)"
    )
    parser.add_argument(
        "--render", action="store_true", help="also write a film (.gif) of one repeat of the first tasks (default: no)"
    )
    add_set_argument(parser)
    return parser.parse_args(argv)


def seed_number(text: str) -> int:
    value = int(text)
    if not 0 <= value <= HIGHEST_SEED:
        raise argparse.ArgumentTypeError(f"expected 0 to {HIGHEST_SEED}")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return value


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    path, checkpoint = find_checkpoint(args)
    overrides = args.overrides + [
        f"{n}={getattr(args, n)}" for n in ("temperature", "boundaries") if getattr(args, n) is not None
    ]
    config = override_config(checkpoint["config"], overrides, CHANGEABLE, checks=(env.config_problems,))
    if any(checkpoint["config"].get(name) != space for name, space in env.describe_spaces(config).items()):
        raise InputError(f"{path}: was trained on other observations or actions than the env of this evaluation has")
    device = choose_device(args.device)
    model = load_model(checkpoint, config, path).to(device)
    ranks = Ranks(device)

    indices = env.split_tasks(config)[args.mode]
    if not indices:
        raise InputError(f"--mode {args.mode}: has no tasks, since train_env_ratio is {config['train_env_ratio']}")
    family = env.list_tasks(config)
    tasks = [family[i] for i in indices]
    if args.render:
        check_renders(config, tasks[0])
    seed = args.seed + ranks.rank  # ranks act independently
    shares = ranks.gather(evaluate_tasks(model, config, ranks.share(tasks), args.repeats, args.episodes, seed))
    ranks.leave()
    if not ranks.is_first:
        return 0
    returns = interleave([share for share in shares if len(share)])
    random_returns = evaluate_random(config, tasks, args.seed)
    if not returns.shape[-1]:
        raise InputError(
            f"no episode ended within {env.max_episode_steps(config)} steps, the longest one by the env or `horizon`; "
            "raise it with --set horizon=N"
        )
    optimal = np.array([np.nan if (best := env.optimal_return(config, task)) is None else best for task in tasks])
    settings = {
        "checkpoint": str(path), "update": checkpoint["update"], "mode": args.mode, "repeats": args.repeats, "seed": args.seed,
        "config": config,
    }  # fmt: skip

    if returns.shape[-1] < args.episodes:
        print(
            f"note: {returns.shape[-1]} of {args.episodes} episodes ended within the longest time that the env or "
            "`horizon` allows; --set horizon=N allows more"
        )
    mode = "compressed" if config["use_compressed_context"] else "standard"
    boundaries = f", {config['boundaries']} boundaries" if mode == "compressed" else ""
    print(f"{path}: {mode} context, temperature {config['temperature']}{boundaries}")
    all_trained = env.list_tasks(checkpoint["config"])
    trained = [all_trained[i] for i in env.split_tasks(checkpoint["config"])["train"]]
    n_seen = sum(task in trained for task in tasks)
    if n_seen and args.mode == "test":
        print(f"note: the model was trained on {n_seen} of these {len(indices)} tasks")
    labels = env.task_labels(tasks, family)
    print_table(indices, labels, returns, optimal, float(random_returns.mean()))
    out = Path(args.out) if args.out else path.parent / f"eval-{args.mode}"
    write_results(out, indices, returns, optimal, random_returns, settings)
    curves = {f"AD, {mode}": returns.reshape(-1, returns.shape[-1])}
    levels = {"random policy": float(random_returns.mean())} | (
        {} if np.isnan(optimal).any() else {"optimum": float(optimal.mean())}
    )
    save_figure(
        plot_returns(curves, levels, source_curve(config, args.traj_dir, indices)), out.with_name(out.name + ".png")
    )
    print(f"wrote {out}.npz and {out}.png")
    if args.render:
        recorder = film_tasks(model, config, tasks, args.episodes, args.seed)
        save_film(recorder, labels[1:], out.with_name(out.name + ".gif"))
        print(f"wrote {out}.gif: episodes {', '.join(map(str, recorder.episodes))}")
    return 0


def find_checkpoint(args: argparse.Namespace) -> tuple[Path, dict]:
    """The checkpoint of --ckpt, or the newest (by update) readable one of the run that saved last."""
    if args.ckpt:
        return Path(args.ckpt), load_checkpoint(args.ckpt)
    saved = {}  # run folder: when it last saved
    for path in Path(args.runs_dir).rglob("ckpt-*.pt"):
        saved[path.parent] = max(saved.get(path.parent, 0), path.stat().st_mtime_ns)
    for run_dir in sorted(saved, key=saved.get, reverse=True)[:1]:
        if found := newest_readable_checkpoint(run_dir, EVALUATION_KEYS):
            return found
        raise InputError(f"{run_dir}: none of its checkpoints can be read; name another one with --ckpt")
    raise InputError(f"{args.runs_dir}: no checkpoint in it; train one with: python train.py, or name one with --ckpt")


# Running ------------------------------------------------------------------------------------------


def evaluate_tasks(model, config: dict, tasks: list[dict], repeats: int, episodes: int, seed: int) -> np.ndarray:
    """(tasks, repeats, episodes) returns of in-context episodes; all run at once."""
    if not tasks:
        return np.zeros((0, repeats, 0))
    vec_env = env.make_vec_env(config, [task for task in tasks for _ in range(repeats)])
    vec_env.seed(seed)
    most_steps = episodes * env.max_episode_steps(config)
    returns = model.evaluate_in_context(vec_env, most_steps, seed=seed, n_episodes=episodes)["returns"]
    vec_env.close()
    return returns[:, :episodes].reshape(len(tasks), repeats, -1)


def interleave(shares: list[np.ndarray]) -> np.ndarray:
    """Undo `Ranks.share` for results of `evaluate_tasks`; cut to the episodes that all have."""
    n_episodes = min(share.shape[-1] for share in shares)
    returns = np.empty((sum(map(len, shares)), shares[0].shape[1], n_episodes))
    for rank, share in enumerate(shares):
        returns[rank :: len(shares)] = share[..., :n_episodes]
    return returns


def evaluate_random(config: dict, tasks: list[dict], seed: int) -> np.ndarray:
    """(tasks, episodes) returns of a policy that acts at random."""
    from model.ad import episode_returns

    vec_env = env.make_vec_env(config, tasks)
    vec_env.seed(seed)
    vec_env.action_space.seed(seed)
    n_steps = N_RANDOM_EPISODES * env.max_episode_steps(config)
    rewards, dones = np.zeros((n_steps, len(tasks))), np.zeros((n_steps, len(tasks)), dtype=bool)
    n_finished = np.zeros(len(tasks), dtype=np.int64)  # episodes
    vec_env.reset()
    for t in range(n_steps):
        _, rewards[t], dones[t], _ = vec_env.step(np.array([vec_env.action_space.sample() for _ in tasks]))
        n_finished += dones[t]
        if n_finished.min() >= N_RANDOM_EPISODES:
            break
    vec_env.close()
    return episode_returns(rewards, dones)[:, :N_RANDOM_EPISODES]


def source_curve(config: dict, traj_dir: str, indices: list[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Episodes per stream after each source rollout, and the mean return in it; None if no file tells."""
    path = history_path(config, traj_dir)
    try:
        with h5py.File(path) as file:
            if differing := env_differences(file, config):
                print(f"note: no curve of the source: {path} holds other tasks ({differing})")
                return None
            means = np.array([file[str(i)].attrs["mean_return_per_rollout"] for i in indices])  # (tasks, rollouts)
            n_ended = np.mean([episodes_per_rollout(file[str(i)], config) for i in indices], axis=0)  # (rollouts,)
            ended = np.isfinite(means).any(axis=0)  # rollouts in which some episode ended
            return n_ended.cumsum()[ended], np.nanmean(means[:, ended], axis=0)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError):  # no file, or another program's
        return None


def episodes_per_rollout(group: h5py.Group, config: dict) -> np.ndarray:
    """(rollouts,) episodes that ended in each, per stream; where the file does not say, all are the longest."""
    n_rollouts, n_steps = len(group.attrs["mean_return_per_rollout"]), config["n_steps"]
    if "dones" not in group:
        return np.full(n_rollouts, n_steps / env.max_episode_steps(config))
    dones = group["dones"][: n_rollouts * n_steps]  # (T, E)
    return dones.reshape(n_rollouts, -1).sum(axis=1) / dones.shape[1]


# Reporting ----------------------------------------------------------------------------------------


def bootstrap_interval(per_repeat: np.ndarray, n_samples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of (tasks, repeats) values, over both tasks and repeats."""
    rng = np.random.default_rng(0)
    n_tasks, n_repeats = per_repeat.shape
    tasks = rng.integers(n_tasks, size=(n_samples, n_tasks, 1))
    repeats = rng.integers(n_repeats, size=(n_samples, n_tasks, n_repeats))
    low, high = np.quantile(per_repeat[tasks, repeats].mean(axis=(1, 2)), (0.025, 0.975))
    return float(low), float(high)


def print_table(
    indices: list[int], labels: list[str], returns: np.ndarray, optimal: np.ndarray, random_return: float
) -> None:
    """One line per task and one for the mean; first and last stand for a tenth of the episodes, at most 10.

    Args:
        labels: a heading, then one per task, as `env.task_labels` gives them.
    """
    width, (heading, *labels) = max(10, *map(len, labels)), labels
    n = min(10, max(1, returns.shape[-1] // 10))
    first, last = returns[..., :n].mean(axis=-1), returns[..., -n:].mean(axis=-1)  # (tasks, repeats)
    spans = f"episodes 1-{n}", f"episodes {returns.shape[-1] - n + 1}-{returns.shape[-1]}"
    print(f"{'task':>6} {heading:>{width}} {spans[0]:>16} {spans[1]:>18} {'optimal':>8} {'share':>6}")

    def line(task: object, label: str, first: float, last: float, best: float) -> None:
        best, share = (f"{best:.2f}", f"{last / best:.2f}") if best > 0 else ("-", "-")
        print(f"{task:>6} {label:>{width}} {first:>16.2f} {last:>18.2f} {best:>8} {share:>6}")

    for row, (index, label) in enumerate(zip(indices, labels)):
        line(index, label, first[row].mean(), last[row].mean(), optimal[row])
    line("mean", "", first.mean(), last.mean(), optimal.mean())
    low, high = bootstrap_interval(last)
    print(
        f"mean return over the last {n} episodes: {last.mean():.2f}, 95 % interval {low:.2f} to {high:.2f} (bootstrap over tasks and repeats)"
    )
    if (optimal > 0).all():
        low, high = bootstrap_interval(last / optimal[:, None])
        print(
            f"mean share of each task's optimum: {(last / optimal[:, None]).mean():.3f}, 95 % interval {low:.3f} to {high:.3f}"
        )
    print(f"random policy: {random_return:.2f}")


def write_results(
    out: Path, indices: list[int], returns: np.ndarray, optimal: np.ndarray, random_returns: np.ndarray, settings: dict
) -> None:
    """Write OUT.npz: returns (task, repeat, episode), task indices, optima, random returns, and settings as YAML."""
    make_folder(out.parent)
    arrays = {
        "returns": returns.astype(np.float32),
        "tasks": np.array(indices),
        "optimal": optimal,
        "random_returns": random_returns,
    }

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays, settings=yaml.safe_dump(settings, sort_keys=False))

    write_atomically(out.with_name(out.name + ".npz"), write)


if __name__ == "__main__":
    run_script(main)
