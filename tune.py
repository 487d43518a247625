"""Search how strongly to compress: the memory's settings with the best return in context, on training tasks.

Tried are the length of a region, its summary tokens, the number of summaries kept, and the progress from a region to
the next. Every trial trains for a few updates with as many tokens per update. The same command goes on with a search
that was stopped; the best settings become a model config for train.py.
"""

from __future__ import annotations

import argparse
import signal

from scripts import add_config_arguments, add_device_argument, config_paths, positive, run_script


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser, ("env", "algorithm", "model"))
    add = parser.add_argument
    add("--traj-dir", default="datasets", help="folder of the history file (default: %(default)s)")
    add("--updates", type=positive, default=200, help="length of each trial's training (default: %(default)s)")
    add("--trials", type=positive, default=20, help="in all, with those of earlier commands (default: %(default)s)")
    add("--out", help="folder of this search (default: runs/tune-UPDATES_ENV_ALG_MODEL-CONFIG_split-SEED_seed-SEED)")
    add_device_argument(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the long imports ends it without a traceback
    parse_arguments(None)  # --help and mistakes are answered before them

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

import env
from config.loading import Config, differences
from config.schema import KEYS, Decides, names
from dataset import ADDataset
from effective import allowed_intervals, automatic_interval, read_for_pace
from evaluate import evaluate_tasks
from files import InputError, WriteError, lock, make_folder, one_line, write_atomically
from history.format import history_path
from history.origin import read_origin, when_made
from model.context import make_context
from ranks import Ranks
from train import default_run_dir, new_run, read_config, train_step
from utils import ROOT, choose_device

CHOICES = {"n_summary": (1, 2, 4, 8), "memory_regions": (0, 2, 4, 8, 16)}  # and what the config itself says
MOST_STRIDE = 4  # rollouts, or regions where these are longer
LEAST_REGIONS = 4  # of a training history: two before the previous one
N_FIRST = 5  # trials that are neither pruned nor modelled
N_REPORTS = 4  # of a trial's returns, spread over its updates; after each the pruner may end it
MOST_TASKS = 16  # training tasks whose returns are measured
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
MEANINGS = {
    "use_compressed_context": "the context is made of regions",
    "context": "previous and current region in full, older ones as summary tokens",
    "histories": "how training histories go on",
    "compress_interval": "steps per region",
    "n_summary": "summary tokens per older region",
    "memory_regions": "summaries kept",
    "region_stride": "rollouts from a region of a training history to the next",
    "history_regions": "regions of a training history",
    "train_batch_size": "histories per update",
}


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.standard:
        raise InputError("--standard: a plain window does not compress; leave it out")
    if args.updates < N_REPORTS:
        raise InputError(f"--updates {args.updates}: expected {N_REPORTS} at least, as often as returns are measured")
    args.command = shlex.join(["python", "tune.py", *(sys.argv[1:] if argv is None else argv)])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = prepare_search(args)
    make_folder(search.folder)
    with lock(search.folder / "trials.journal"):
        study = open_study(search)
        try:
            while len(tried := [trial.params for trial in study.get_trials(states=FINISHED)]) < args.trials:
                for start in [params for params in search.starts.values() if params not in tried][:1]:
                    study.enqueue_trial(start)
                # A sampler of its own, so that a search that was stopped goes on as if it had not been
                seed = search.config["train_seed"] + len(tried)
                study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=N_FIRST)
                study.optimize(lambda trial: run_trial(trial, search), n_trials=1)
                tell_trial(len(tried), study.trials[-1])
        except OSError as error:  # a full disk; what was written before is kept
            raise WriteError(f"{search.folder}: trials cannot be kept there ({one_line(error, 200)})") from error
        finally:
            report(study, search)
    return 0


# The search ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        overrides: --set, and what makes a config one of memory.
        config: the effective config that the search starts from.
        choices: of each setting but `region_stride`.
        starts: settings that are tried first, by their names in the table: the config's own, and the rule's.
        n_steps: of the shortest stream.
        tokens: per update, of the config.
    """

    args: argparse.Namespace
    overrides: list[str]
    config: Config
    folder: Path
    choices: dict[str, list[int]]
    starts: dict[str, dict[str, int]]
    n_steps: int
    tokens: int


def prepare_search(args: argparse.Namespace) -> Search:
    """Check everything that can be wrong, before any work."""
    overrides, config = list(args.overrides), read_config(args, args.overrides)
    if config["model"] != "AD":
        raise InputError(f"model: {config['model']} has no memory whose settings could be searched; expected AD")
    path = history_path(config, args.traj_dir)
    origin = read_origin(path, config)
    if "compress_markers" not in origin.fields:
        raise InputError(f"{path}: has no compress_markers, so nothing to compress")
    if config["context"] != "memory":
        is_given = any(override.partition("=")[0] == "histories" for override in args.overrides)
        mixes = config["mix_streams"] and (origin.n_streams or 0) > 1
        histories = "causal" if config["histories"] == "every" and mixes and not is_given else config["histories"]
        forced = ["use_compressed_context=true", "context=memory", f"histories={histories}"]
        print(f"{config_paths(args)['model']} has context {config['context']}: searched is {', '.join(forced)}")
        overrides += forced
        config = read_config(args, overrides)
    history = read_for_pace(path, config, origin.rollout_length)
    own = {name: config[name] for name in ("compress_interval", *CHOICES)}
    free = {"history_regions": LEAST_REGIONS, "region_stride": MOST_STRIDE * config["total_source_timesteps"]}
    allowed = allowed_intervals(history, config | free)  # `settings_of` chooses these two after the length
    choices = {"compress_interval": allowed} | CHOICES
    choices = {name: sorted({*values, own[name]}) for name, values in choices.items()}
    if config["histories"] != "whole":
        own["region_stride"] = config["region_stride"] // rollouts_per_region(config, config["compress_interval"])
    ruled = automatic_interval(path, config, origin, history) or config["rollout_length"]
    starts = {"config's own": own}
    if ruled in choices["compress_interval"]:
        starts["compress_interval: auto"] = own | {"compress_interval": ruled}
    folder = Path(args.out) if args.out else default_folder(config, args)
    tokens = config["train_batch_size"] * history_tokens(config)
    return Search(args, overrides, config, folder, choices, starts, int(history.task_steps.min()), tokens)


def default_folder(config: Config, args: argparse.Namespace) -> Path:
    usual = default_run_dir(config, config_paths(args)["model"])
    return usual.with_name(f"tune-{args.updates}_{usual.name}")


def history_tokens(config: Config) -> int:
    """Tokens of one training history, those of merged summaries included."""
    context = make_context(config).eval()
    lengths = torch.full((1, config["history_regions"]), config["compress_interval"])
    return context.layout(lengths).types.shape[1]


def rollouts_per_region(config: Config, interval: int) -> int:
    """At least 1, where a region is a part of a rollout."""
    return max(1, interval // config["rollout_length"])


def settings_of(params: dict[str, int], search: Search) -> dict[str, int]:
    """Config keys of a trial: a history spans as many steps as the config's, an update has as many tokens.

    Args:
        params: the settings searched; `region_stride` counts regions where these are longer than rollouts. The config's own
            are taken as they are.
    """
    config, interval = search.config, params["compress_interval"]
    if params == search.starts["config's own"]:
        return {name: config[name] for name in (*params, "history_regions", "region_stride", "train_batch_size")}
    span = config["history_regions"] * config["compress_interval"]
    n_regions = max(LEAST_REGIONS, round(span / interval))
    if config["histories"] == "whole":
        n_regions = min(n_regions, search.n_steps // interval)
    stride = params.get("region_stride", config["region_stride"]) * rollouts_per_region(config, interval)
    settings = params | {"history_regions": n_regions, "region_stride": stride}
    tokens = history_tokens(Config(config | settings))
    return settings | {"train_batch_size": max(1, round(search.tokens / tokens))}


def run_trial(trial: optuna.Trial, search: Search) -> float:
    """Train with settings that the study suggests; the mean return in context on training tasks."""
    args = search.args
    params = {name: trial.suggest_categorical(name, values) for name, values in search.choices.items()}
    if search.config["histories"] != "whole":
        most = max(MOST_STRIDE, search.starts["config's own"]["region_stride"])
        params["region_stride"] = trial.suggest_int("region_stride", 1, most)
    settings = settings_of(params, search)
    trial.set_user_attr("settings", settings)
    finished = trial.study.get_trials(states=(TrialState.COMPLETE,))
    if known := [same.value for same in finished if same.params == trial.params]:
        return known[0]  # all that is random follows `train_seed`, so it would be the same once more
    warmup = search.config["warmup_timesteps"] * args.updates // search.config["train_timesteps"]
    settings = settings | {"train_timesteps": args.updates, "warmup_timesteps": warmup}
    config = read_config(args, [*search.overrides, *as_overrides(settings)])
    device = choose_device(args.device)
    dataset = ADDataset(config, args.traj_dir, "train", config["n_stream"], config["train_source_timesteps"])
    run = new_run(config, {"train": dataset}, search.folder, device, Ranks(device))
    family, tasks = env.list_tasks(config), env.split_tasks(config)["train"]
    measured = [family[i] for i in tasks[:: -(-len(tasks) // MOST_TASKS)]]
    run.model.train()
    for number in range(1, N_REPORTS + 1):
        while run.update < args.updates * number // N_REPORTS:
            train_step(run)
        returns = evaluate_tasks(
            run.model, measured, config["eval_repeats"], config["eval_episodes"], config["train_seed"],
            show_progress=False,
        )  # fmt: skip
        if not returns.size:
            raise InputError(env.no_episode_ended(config))
        trial.report(float(returns.mean()), run.update)
        if number < N_REPORTS and trial.should_prune():
            raise optuna.TrialPruned
    return float(returns.mean())


def as_overrides(settings: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


# The study ----------------------------------------------------------------------------------------


def open_study(search: Search) -> optuna.Study:
    """The study of the folder, new or as it was left.

    Raises:
        InputError: it was begun with other settings or histories.
    """
    path = search.folder / "trials.journal"
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no file; remove it, or name another --out")
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])  # a line that a killed command did not finish
    # After a quarter of the updates returns are chance still
    pruner = optuna.pruners.MedianPruner(n_startup_trials=N_FIRST, n_warmup_steps=search.args.updates // 2)
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(
            storage=storage, study_name="compression", direction="maximize", load_if_exists=True, pruner=pruner
        )
    except (ValueError, KeyError, AssertionError) as error:  # a line that is no JSON, no text, or none of Optuna's
        raise InputError(f"{path}: damaged ({one_line(error, 200)}); remove it, or name another --out") from error
    made = when_made(history_path(search.config, search.args.traj_dir), search.config)
    now = dict(search.config) | {"updates": search.args.updates, "histories of": made}
    then = yaml.safe_load(study.user_attrs.get("settings", "null")) or now
    if differing := differences(then, now, sorted((set(now) | set(then)) - set(names(Decides.RUNNING)))):
        raise InputError(f"{search.folder}: holds a search with other settings ({differing}); name another --out")
    study.set_user_attr("settings", yaml.safe_dump(now))
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # of a command that was killed
        study.tell(trial.number, state=TrialState.FAIL)
    return study


# Reporting ----------------------------------------------------------------------------------------


def tell_trial(number: int, trial: FrozenTrial) -> None:
    """One line; `number` counts the trials that were finished."""
    settings = ", ".join(f"{name} {value}" for name, value in trial.user_attrs["settings"].items())
    print(f"trial {number}: {outcome(trial)} with {settings}", flush=True)


def outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return f"return {trial.value:.3f}"
    last = max(trial.intermediate_values, default=0)
    return f"ended after {last} updates at {trial.intermediate_values.get(last, float('nan')):.3f}"


def report(study: optuna.Study, search: Search) -> None:
    """Print the table of trials, and write the best one's settings as a model config."""
    finished = study.get_trials(states=FINISHED)
    if not finished:
        return
    columns = list(finished[0].user_attrs["settings"])
    print(f"\n{'trial':>5} {'outcome':<34} {' '.join(columns)} {'tokens':>7}")
    for number, trial in enumerate(finished):
        settings = trial.user_attrs["settings"]
        tokens = settings["train_batch_size"] * history_tokens(Config(search.config | settings))
        notes = [name for name, params in search.starts.items() if params == trial.params]
        cells = " ".join(f"{settings[name]:>{len(name)}}" for name in columns)
        print(f"{number:>5} {outcome(trial):<34} {cells} {tokens:>7} {', '.join(notes)}".rstrip())
    complete = [number for number, trial in enumerate(finished) if trial.state == TrialState.COMPLETE]
    if complete:
        best, path = max(complete, key=lambda number: finished[number].value), search.folder / "model.yaml"
        write_atomically(path, lambda temporary: temporary.write_text(model_yaml(best, finished, search, path)))
        print(f"wrote {path}, trial {best}; train it with: {train_command(search, path)}")


def model_yaml(number: int, finished: list[FrozenTrial], search: Search, path: Path) -> str:
    """A model config as text: the one that was searched from, with what a finished trial and the command changed."""
    trial, args, base = finished[number], search.args, Path(config_paths(search.args)["model"])
    base = base.resolve() if base.is_file() else ROOT / base
    changed = [name for name in (text.partition("=")[0] for text in search.overrides) if name in KEYS["model"]]
    values = {name: search.config[name] for name in changed} | trial.user_attrs["settings"]
    entries = [(yaml.safe_dump({name: value}).strip(), name) for name, value in values.items()]
    width = max(len(text) for text, _ in entries)
    lines = [
        f"# AD with memory: trial {number} of {len(finished)} of: {args.command}",
        f"# Mean return of the first {search.config['eval_episodes']} episodes in context on training tasks, after "
        f"{args.updates} updates: {trial.value:.3f}",
        f"# Used by: {train_command(search, path)}",
        f"include: {base.relative_to(ROOT) if base.is_relative_to(ROOT) else base}",
        *(f"{text:<{width}}  # {MEANINGS.get(name, 'as the command of the search said')}" for text, name in entries),
    ]
    return "\n".join(lines) + "\n"


def train_command(search: Search, path: Path) -> str:
    """The command that trains with a model config of this search."""
    args, words = search.args, ["python", "train.py", search.args.name]
    for flag in ("source", "env_config", "alg_config"):
        if (value := getattr(args, flag)) is not None:
            words += [f"--{flag.replace('_', '-')}", value]
    words += ["--traj-dir", args.traj_dir] if args.traj_dir != "datasets" else []
    for text in args.overrides:
        words += ["--set", text] if text.partition("=")[0] not in KEYS["model"] else []
    return shlex.join([*words, "--model-config", str(path)])


if __name__ == "__main__":
    run_script(main)
