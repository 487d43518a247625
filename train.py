"""Train AD on collected histories, with compressed context or with the standard window.

Checkpoints, TensorBoard logs and the effective config go to one run folder. The same command goes on
from the newest checkpoint there, and does nothing when the run is complete.
"""

from __future__ import annotations

import argparse
import signal

from scripts import BAR_SECONDS, add_config_arguments, add_device_argument, config_paths, given_paths, run_script


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser, ("env", "algorithm", "model"))
    parser.add_argument("--traj-dir", default="datasets", help="folder of the history file (default: %(default)s)")
    parser.add_argument(
        "--run-dir", help="folder of this run (default: runs/ENV_ALG_MODEL-CONFIG_split-SEED_seed-SEED)"
    )
    add_device_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="start the run anew (default: go on with it)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the long imports ends it without a traceback
    parse_arguments(None)  # --help and mistakes are answered before them

import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import algorithm
import env
from checkpoints import (
    RESUME_KEYS,
    checkpoint_paths,
    checkpoint_update,
    newest_readable_checkpoint,
    save_checkpoint,
)
from config.loading import Config, complete_config, differences, free_when_resuming, given_settings, load_config
from dataset import ADDataset
from effective import effective_config, reads_interval, settings_of_file
from evaluate import evaluate_tasks, mode_name
from files import InputError, WriteError, lock, make_folder, one_line, remove_temporaries, write_atomically
from history.format import file_name, history_path
from history.origin import when_made
from model import config_problems as model_problems
from model import make_model
from model.context import make_context
from ranks import Ranks
from training_log import TrainingLog
from utils import choose_device, git_commit, library_versions, set_seed

N_TEST_BATCHES = 8  # enough windows for a loss that is steady to about 1 %
N_STANDARDISE = 1000  # windows from which the scale of real-valued inputs is taken


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    config = read_config(args, args.overrides)
    device = choose_device(args.device)
    ranks = Ranks(device)
    check_shares(config, ranks)
    run_dir = Path(args.run_dir) if args.run_dir else default_run_dir(config, config_paths(args)["model"])
    datasets = load_datasets(config, args.traj_dir)
    held = ranks.first_does(lambda: prepare_run_dir(run_dir, args.overwrite))
    with held or nullcontext():
        run = prepare_run(config, datasets, run_dir, args.traj_dir, device, ranks)
        return train_to_the_end(run) if run else 0


def check_shares(config: Config, ranks: Ranks) -> None:
    """Raise InputError where ranks cannot have equal shares of a batch; windows that share a region stay together."""
    n_windows, n_sharing = config["train_batch_size"], make_context(config).n_currents
    if n_windows % (ranks.size * n_sharing):
        of_windows = f", {n_sharing} windows each" if n_sharing > 1 else ""
        raise InputError(f"train_batch_size {n_windows} must be a multiple of the {ranks.size} ranks{of_windows}")


def read_config(args: argparse.Namespace, overrides: list[str]) -> Config:
    """The effective config of a command line's config files, `--set`s and history file.

    What `compress_interval: auto` stands for is printed.
    """
    paths, checks = config_paths(args), (env.config_problems, algorithm.source_problems, model_problems)
    config = load_config(paths, overrides, checks, lambda config: settings_of_file(config, args.traj_dir))
    env.check_horizon(config, overrides)
    source = {section: path for section, path in paths.items() if section != "model"}
    given = given_settings(source, overrides, named=set(given_paths(args)))
    is_foreign = "alg" not in settings_of_file(config, args.traj_dir)
    if is_foreign:  # a source's YAML does not tell of another program's file
        for name in {"n_stream", "n_steps"} - {override.partition("=")[0] for override in overrides}:
            given.pop(name, None)
    effective = effective_config(config, args.traj_dir, given)
    if config["compress_interval"] == "auto" and reads_interval(effective):
        print(f"compress_interval: auto is {effective['compress_interval']} steps")
    return effective


def default_run_dir(config: dict, model_config: str) -> Path:
    source, seeds = f"{file_name(config['env'])}_{file_name(config['alg'])}", f"seed-{config['train_seed']}"
    return Path("runs") / f"{source}_{Path(model_config).stem}_split-{config['env_split_seed']}_{seeds}"


def load_datasets(config: Config, traj_dir: str) -> dict[str, ADDataset]:
    """The training tasks' histories and, where tasks are held out, theirs.

    Raises:
        InputError: besides what ADDataset raises, if only one of them has the source's distributions.
    """
    modes = [mode for mode in ("train", "test") if env.split_tasks(config)[mode]]
    use = (config["n_stream"], config["train_source_timesteps"])
    datasets = {mode: ADDataset(config, traj_dir, mode, *use) for mode in modes}
    if len({dataset.soft_targets for dataset in datasets.values()}) > 1:
        raise InputError(
            f"{datasets['train'].history.path}: the source policy's distributions (action_probs, or action_means and "
            "action_stds) are in some of its groups only, so that training and held-out tasks differ; collect it again"
        )
    return datasets


def prepare_run_dir(run_dir: Path, overwrite: bool) -> TextIO:
    """Make and lock the run's folder; with `overwrite` remove an earlier run's files, and nothing else."""
    make_folder(run_dir)
    held = lock(run_dir / "config.yaml")
    remove_temporaries(run_dir)
    if overwrite:
        for path in [*checkpoint_paths(run_dir), *run_dir.glob("events.out.tfevents.*")]:
            path.unlink()
    return held


def prepare_run(
    config: Config, datasets: dict[str, ADDataset], run_dir: Path, traj_dir: str, device: torch.device, ranks: Ranks
) -> Run | None:
    """What is trained, as the newest checkpoint has it if there is one; None for a run that is complete."""
    origin = describe_origin(config, traj_dir)
    checkpoint = newest_checkpoint(run_dir, config, origin)
    if checkpoint and checkpoint["update"] >= config["train_timesteps"]:
        if ranks.is_first:
            print(
                f"{run_dir} is already complete; --overwrite trains it again, a larger train_timesteps trains it longer"
            )
        ranks.leave()
        return None
    if ranks.is_first:
        effective = yaml.safe_dump(config, sort_keys=False)
        write_atomically(run_dir / "config.yaml", lambda path: path.write_text(effective))
    run = new_run(config, datasets, run_dir, device, ranks, origin)
    if checkpoint:
        try:
            run.restore(checkpoint)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:  # of weights or an optimizer of another shape
            raise InputError(
                f"{run_dir}: its newest checkpoint does not fit the model of its config ({one_line(error, 200)}); "
                "--overwrite trains anew, --run-dir keeps both"
            ) from error
    if ranks.is_first:
        tell_start(run, checkpoint)
    return run


def new_run(
    config: Config,
    datasets: dict[str, ADDataset],
    run_dir: Path,
    device: torch.device,
    ranks: Ranks,
    origin: dict | None = None,
) -> Run:
    """A run before its first update, with the weights of the config's `train_seed`."""
    set_seed(config["train_seed"])
    model = make_model(config)
    model.fit_inputs(datasets["train"].sample_batch(N_STANDARDISE, np.random.default_rng(0)))
    return Run(model.to(device), datasets, config, run_dir, ranks, origin)


def describe_origin(config: Config, traj_dir: str) -> dict:
    """Where a run's weights come from: history file, code and libraries."""
    path = history_path(config, traj_dir)
    history = {"path": str(path), "created_utc": when_made(path, config)}
    return {"history": history, "git_commit": git_commit(), "versions": library_versions()}


def tell_start(run: Run, checkpoint: dict | None) -> None:
    config, mode = run.config, mode_name(run.config)
    n_parameters = sum(p.numel() for p in run.model.parameters())
    print(
        f"{run.run_dir}: {mode} context, {n_parameters:,} parameters, on {run.model.device}, {run.ranks.size} rank(s), "
        f"from update {run.update}"
    )
    if note := algorithm.mixed_learners(config):
        print(f"note: {note}")
    if config["warmup_timesteps"] >= config["train_timesteps"]:
        print(
            f"note: warmup_timesteps {config['warmup_timesteps']} is not below train_timesteps "
            f"{config['train_timesteps']}: the learning rate does not reach its peak"
        )
    if checkpoint and checkpoint["config"]["train_timesteps"] != config["train_timesteps"]:
        print(
            f"note: it was to end after update {checkpoint['config']['train_timesteps']}; now the learning rate takes "
            f"up the longer schedule, at {learning_rate(run.update, config):.2g}"
        )


def newest_checkpoint(run_dir: Path, config: Config, origin: dict) -> dict | None:
    """The checkpoint to go on from, or None for a new run.

    Raises:
        InputError: the run was made with other settings or histories, or none of its checkpoints can be read.
    """
    found = newest_readable_checkpoint(run_dir, RESUME_KEYS)
    if found is None:
        if checkpoint_paths(run_dir):
            raise InputError(f"{run_dir}: none of its checkpoints can be read; use --overwrite to start the run anew")
        return None
    path, checkpoint = found
    before = complete_config(checkpoint["config"], path)
    free = free_when_resuming(config)
    if config["train_timesteps"] > before["train_timesteps"]:
        free.add("train_timesteps")
    if differing := differences(before, config, sorted((set(config) | set(before)) - free)):
        raise InputError(
            f"{run_dir}: holds a run with other settings ({differing}); "
            "use --overwrite to replace it or --run-dir to keep both"
        )
    then, now = (o["history"]["created_utc"] if o else None for o in (checkpoint.get("origin"), origin))
    if then and then != now:
        raise InputError(
            f"{run_dir}: its histories were collected again since (created {then} there, {now or 'at no known time'} "
            f"now, in {origin['history']['path']}); use --overwrite to replace the run or --run-dir to keep both"
        )
    return checkpoint


# Training -----------------------------------------------------------------------------------------


class Run:
    """A training run: what is trained, on what, and how far it has come.

    Args:
        origin: kept in the checkpoints; see `describe_origin`.
    """

    def __init__(
        self,
        model: nn.Module,
        datasets: dict[str, ADDataset],
        config: Config,
        run_dir: Path,
        ranks: Ranks,
        origin: dict | None = None,
    ):
        self.model, self.datasets, self.config, self.run_dir, self.ranks = model, datasets, config, run_dir, ranks
        self.origin, self.optimizer, self.update = origin, build_optimizer(model, config), 0
        self.best = {"update": 0, "loss_total": math.inf}  # among the checkpoints, on the held-out tasks
        if config["compile"]:
            model.compile_trunk()
        self.forward = model
        if ranks.size > 1:
            self.forward = DistributedDataParallel(model, find_unused_parameters=model.leaves_weights_unused)

    @property
    def is_complete(self) -> bool:
        return self.update >= self.config["train_timesteps"]

    def restore(self, checkpoint: dict) -> None:
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.update, self.best = checkpoint["update"], checkpoint["best"]
        torch.set_rng_state(checkpoint["torch_rng"])
        if torch.cuda.is_available() and "cuda_rng" in checkpoint:
            torch.cuda.set_rng_state(checkpoint["cuda_rng"])

    def save(self, losses: dict[str, float]) -> None:
        """Save all that a resumed run needs; of the others keep the newest `keep_checkpoints` and the best.

        A later one than this could not be read when the run was resumed; it is removed.

        Args:
            losses: on the held-out tasks; empty where these weights are not to become the best.
        """
        if losses and losses["loss_total"] < self.best["loss_total"]:
            self.best = {"update": self.update, "loss_total": losses["loss_total"]}
        checkpoint = {
            "config": dict(self.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "update": self.update,
            "best": self.best,
            "torch_rng": torch.get_rng_state(),
            "origin": self.origin,
        }
        if torch.cuda.is_available():
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state()
        save_checkpoint(self.run_dir / f"ckpt-{self.update}.pt", checkpoint)
        paths = {checkpoint_update(path): path for path in checkpoint_paths(self.run_dir)}
        readable = [update for update in paths if update <= self.update]
        kept = {self.best["update"], *readable[-self.config["keep_checkpoints"] :]}
        for update in paths.keys() - kept.intersection(readable):
            paths[update].unlink()


class StopSignals:
    """Notes SIGINT and SIGTERM instead of stopping wherever the code happens to be; a context manager."""

    def __enter__(self) -> StopSignals:
        self.received: list[int] = []
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.handlers = {n: signal.signal(n, lambda number, _: self.received.append(number)) for n in numbers}
        return self

    def __bool__(self) -> bool:
        return bool(self.received)

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


def train_to_the_end(run: Run) -> int:
    """Run the updates that are left; the exit code."""
    try:
        with StopSignals() as signals:
            train(run, signals)
    except RuntimeError as error:
        if run.ranks.size == 1 or not isinstance(error, dist.DistBackendError) and "peer" not in str(error):
            raise
        raise WriteError(f"another rank has ended ({one_line(error, 200)}); the same command goes on") from error
    if run.is_complete and not signals:
        return 0
    name = signal.Signals(signals.received[0]).name if signals else "another rank"
    then = "evaluate.py makes the evaluation that may be missing" if run.is_complete else "the same command goes on"
    print(f"stopped by {name} after update {run.update}, which is saved; {then}", file=sys.stderr)
    return 128 + (signals.received[0] if signals else signal.SIGTERM)


def train(run: Run, signals: StopSignals) -> None:
    """Update until the end or a signal; log and save at intervals, and save at the end."""
    config, ranks = run.config, run.ranks
    run.model.train()
    log = TrainingLog(run.run_dir, config, run.update) if ranks.is_first else None
    bar = tqdm(
        total=config["train_timesteps"], initial=run.update, desc="train", unit="update", mininterval=BAR_SECONDS,
        disable=not ranks.is_first,
    )  # fmt: skip
    stopping = False
    while not (run.is_complete or stopping):
        losses = train_step(run)
        bar.update()
        stopping = ranks.any(bool(signals))  # all ranks stop after the same update
        if is_due(run, "log_interval") or is_due(run, "ckpt_interval"):
            check_weights(run)
        if is_due(run, "log_interval"):
            losses = ranks.mean(losses)
            if log:
                log.scalars("train", losses | {"lr": run.optimizer.param_groups[0]["lr"]}, run.update)
                bar.set_postfix({n: f"{float(v):.3f}" for n, v in losses.items() if n.startswith("loss")})
        if log:
            validate(run, log, stopping, signals)
    bar.close()
    if log:
        if run.is_complete:
            log.hyperparameters(run.update)
        log.close()
    run.forward = run.model
    ranks.leave()


def check_weights(run: Run) -> None:
    """Raise InputError where training has diverged; what is saved is from before."""
    for name, weights in run.model.named_parameters():
        if not torch.isfinite(weights).all():
            raise InputError(
                f"{run.run_dir}: training has diverged: after update {run.update} {name} is not finite; lower lr, "
                f"{run.config['lr']}, or look for huge values in the histories with inspect_history.py"
            )


def is_due(run: Run, interval: str) -> bool:
    return run.update % run.config[interval] == 0 or run.is_complete


def validate(run: Run, log: TrainingLog, stopping: bool, signals: StopSignals) -> None:
    """Losses on held-out tasks, checkpoint and evaluation in context, where they are due; on the first rank."""
    config, has_test = run.config, "test" in run.datasets
    must_save = is_due(run, "ckpt_interval") or stopping
    if is_due(run, "test_interval") or must_save:
        losses = held_out_losses(run.model, run.datasets["test"], config) if has_test else {}
        log.scalars("test", losses, run.update)
        if must_save:  # where a stop fell says nothing of the weights, and must not decide which are the best
            run.save(losses if is_due(run, "ckpt_interval") else {})
    if is_due(run, "eval_interval") and has_test and not signals:
        held_out, family = env.split_tasks(config)["test"], env.list_tasks(config)
        returns = evaluate_tasks(
            run.model, [family[i] for i in held_out], config["eval_repeats"], config["eval_episodes"],
            seed=config["train_seed"], stop=lambda: bool(signals),
        )  # fmt: skip
        if not signals:
            log.in_context(returns, held_out, run.update)


def train_step(run: Run) -> dict[str, Tensor]:
    """One update of the optimizer; the batch depends on the seed and the update's number alone."""
    config, device = run.config, run.model.device
    rng = np.random.default_rng([config["train_seed"], run.update])
    batch = run.datasets["train"].sample_batch(config["train_batch_size"], rng)
    if run.ranks.size > 1:
        batch = share_of_batch(run.model, batch, run.ranks)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.update, config)
    with torch.autocast(device.type, torch.bfloat16, enabled=config["autocast"] and device.type == "cuda"):
        losses = run.forward(to_device(batch, device))
    run.optimizer.zero_grad()
    losses["loss_total"].backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), config["grad_clip"])
    run.optimizer.step()
    run.update += 1
    return {name: value.detach() for name, value in losses.items()}


def share_of_batch(model: nn.Module, batch: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """This rank's windows of a batch, with the numbers that make the mean over ranks the whole batch's loss."""
    share = {name: values[ranks.rank :: ranks.size] for name, values in batch.items()}
    return share | {name: count / ranks.size for name, count in model.target_counts(batch).items()}


def learning_rate(update: int, config: dict) -> float:
    """Linear warm-up to `lr`, then a cosine to a tenth of it."""
    warmup = config["warmup_timesteps"]
    if update < warmup:
        return config["lr"] * (update + 1) / warmup
    progress = (update - warmup) / max(1, config["train_timesteps"] - warmup)
    return config["lr"] * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def build_optimizer(model: nn.Module, config: dict) -> torch.optim.Optimizer:
    """AdamW that decays weight matrices, and memory's bias of ages, but no other biases, norms or single vectors."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config["lr"], betas=(0.9, 0.99), fused=True)


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    if device.type == "cuda":
        return {name: values.pin_memory().to(device, non_blocking=True) for name, values in batch.items()}
    return batch


@torch.no_grad()
def held_out_losses(model: nn.Module, dataset: ADDataset, config: dict) -> dict[str, float]:
    """Mean losses over the same windows of the held-out tasks at every call."""
    model.eval()
    rng, size = np.random.default_rng(0), config["train_batch_size"]
    batches = [to_device(dataset.sample_batch(size, rng), model.device) for _ in range(N_TEST_BATCHES)]
    losses = [model(batch) for batch in batches]
    model.train()
    return {name: float(np.nanmean([float(loss[name]) for loss in losses])) for name in losses[0]}


if __name__ == "__main__":
    run_script(main)
