"""Train AD on collected histories, with compressed context or with the standard window.

Checkpoints, TensorBoard logs and the effective config go to one run folder. The same command goes on
from the newest checkpoint there, and does nothing when the run is complete.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the long imports ends it without a traceback

import argparse
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

import env
from dataset import ADDataset
from evaluate import evaluate_tasks
from model import MODEL
from model.tokens import IGNORE, layout_tokens
from ranks import Ranks
from training_log import TrainingLog
from utils import (
    BAR_SECONDS,
    InputError,
    WriteError,
    add_config_arguments,
    checkpoint_paths,
    checkpoint_update,
    choose_device,
    config_paths,
    differences,
    env_file_name,
    load_config,
    lock,
    make_folder,
    newest_readable_checkpoint,
    one_line,
    remove_temporaries,
    run_script,
    save_checkpoint,
    set_seed,
    write_atomically,
)

N_TEST_BATCHES = 8  # enough windows for a loss that is steady to about 1 %
N_STANDARDISE = 1000  # windows from which the mean and deviation of continuous observations are taken
# Keys that change how often something is logged or kept, but not what is learned
FREE_TO_CHANGE = {
    "log_interval",
    "test_interval",
    "eval_interval",
    "eval_episodes",
    "eval_repeats",
    "ckpt_interval",
    "keep_checkpoints",
    "temperature",
    "exploring_temperature",
    "exploring_patience",
    "boundaries",
    "n_process",
    "in_memory",
    "compile",
}
RESUME_KEYS = ("config", "model", "optimizer", "update", "best", "torch_rng")  # what going on needs of a checkpoint


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser, ("env", "algorithm", "model"))
    parser.add_argument("--traj-dir", default="datasets", help="folder of the history file (default: %(default)s)")
    parser.add_argument(
        "--run-dir", help="folder of this run (default: runs/ENV_ALG_MODEL-CONFIG_split-SEED_seed-SEED)"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda or cuda:N (default: %(default)s, CUDA where there is one)"
    )
    parser.add_argument("--overwrite", action="store_true", help="start the run anew (default: go on with it)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    config = load_config(config_paths(args), args.overrides, checks=(env.config_problems,))
    device = choose_device(args.device)
    ranks = Ranks(device)
    if config["train_batch_size"] % ranks.size:
        raise InputError(f"train_batch_size {config['train_batch_size']} must be a multiple of the {ranks.size} ranks")
    run_dir = Path(args.run_dir) if args.run_dir else default_run_dir(config, args.model_config)
    datasets = load_datasets(config, args.traj_dir)
    config |= env.describe_spaces(config) | {
        "use_compressed_context": datasets["train"].use_compressed_context,  # the mode in force
        "with_dones": datasets["train"].with_dones,
    }
    held = ranks.first_does(lambda: prepare_run_dir(run_dir, args.overwrite))
    with held or nullcontext():
        return go_on(config, datasets, run_dir, device, ranks)


def go_on(config: dict, datasets: dict[str, ADDataset], run_dir: Path, device: torch.device, ranks: Ranks) -> int:
    """Build what is trained, as the newest checkpoint has it if there is one, and train to the end."""
    checkpoint = newest_checkpoint(run_dir, config)
    if checkpoint and checkpoint["update"] >= config["train_timesteps"]:
        if ranks.is_first:
            print(f"{run_dir} is already complete; use --overwrite to train it again")
        ranks.leave()
        return 0
    if ranks.is_first:
        effective = yaml.safe_dump(config, sort_keys=False)
        write_atomically(run_dir / "config.yaml", lambda path: path.write_text(effective))

    set_seed(config["train_seed"])
    model = MODEL[config["model"]](config)
    standardise_inputs(model, datasets["train"])
    run = Run(model.to(device), datasets, config, run_dir, ranks)
    if checkpoint:
        run.restore(checkpoint)
    mode = "compressed" if config["use_compressed_context"] else "standard"
    n_parameters = sum(p.numel() for p in model.parameters())
    if ranks.is_first:
        print(
            f"{run_dir}: {mode} context, {n_parameters:,} parameters, on {device}, {ranks.size} rank(s), "
            f"from update {run.update}"
        )
    try:
        return train(run)
    except RuntimeError as error:
        if ranks.size == 1 or not isinstance(error, dist.DistBackendError) and "peer" not in str(error):
            raise
        raise WriteError(f"another rank has ended ({one_line(error)[:200]}); the same command goes on") from None


def load_datasets(config: dict, traj_dir: str) -> dict[str, ADDataset]:
    """The training tasks' histories and, where tasks are held out, theirs.

    Raises:
        InputError: besides what ADDataset raises, if the two do not hold the same kind of data.
    """
    modes = [mode for mode in ("train", "test") if env.split_tasks(config)[mode]]
    use = (config["n_stream"], config["train_source_timesteps"])
    datasets = {mode: ADDataset(config, traj_dir, mode, *use) for mode in modes}
    kinds = {(d.use_compressed_context, d.with_dones, d.soft_targets) for d in datasets.values()}
    if len(kinds) > 1:
        raise InputError(
            f"{datasets['train'].history.path}: compress_markers, dones or the source policy's distributions "
            "(action_probs, or action_means and action_stds) are in some of its groups only, "
            "so that training and held-out tasks differ; collect it again"
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


class Run:
    """A training run: what is trained, on what, and how far it has come."""

    def __init__(self, model: nn.Module, datasets: dict[str, ADDataset], config: dict, run_dir: Path, ranks: Ranks):
        self.model, self.datasets, self.config, self.run_dir, self.ranks = model, datasets, config, run_dir, ranks
        self.optimizer = build_optimizer(model, config)
        self.update = 0
        self.best = {"update": 0, "loss_total": math.inf}  # among the checkpoints, on the held-out tasks
        if config["compile"]:
            model.transformer.compile()
        self.forward = model
        if ranks.size > 1:  # standard mode has a head without a loss
            unused = not config["use_compressed_context"]
            self.forward = DistributedDataParallel(model, find_unused_parameters=unused)

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
            losses: on the held-out tasks; empty if there are none.
        """
        if losses and losses["loss_total"] < self.best["loss_total"]:
            self.best = {"update": self.update, "loss_total": losses["loss_total"]}
        checkpoint = {
            "config": self.config,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "update": self.update,
            "best": self.best,
            "torch_rng": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state()
        save_checkpoint(self.run_dir / f"ckpt-{self.update}.pt", checkpoint)
        paths = {checkpoint_update(path): path for path in checkpoint_paths(self.run_dir)}
        readable = [update for update in paths if update <= self.update]
        kept = {self.best["update"], *readable[-self.config["keep_checkpoints"] :]}
        for update in paths.keys() - kept.intersection(readable):
            paths[update].unlink()


def train(run: Run) -> int:
    """Run the updates that are left; save at the end, at intervals, and when told to stop."""
    config, ranks = run.config, run.ranks
    stop_signal = []
    handlers = {
        number: signal.signal(number, lambda received, _: stop_signal.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    run.model.train()
    log = TrainingLog(run.run_dir, config, run.update) if ranks.is_first else None
    bar = tqdm(
        total=config["train_timesteps"], initial=run.update, desc="train", unit="update", mininterval=BAR_SECONDS,
        disable=not ranks.is_first,
    )  # fmt: skip
    stopping = False
    while run.update < config["train_timesteps"] and not stopping:
        losses = train_step(run)
        bar.update()
        stopping = ranks.any(bool(stop_signal))  # all ranks stop after the same update
        is_last = run.update == config["train_timesteps"]

        def due(interval: str, is_last: bool = is_last) -> bool:
            return run.update % config[interval] == 0 or is_last

        if due("log_interval"):
            losses = ranks.mean(losses)
            if log:
                log.scalars("train", losses | {"lr": run.optimizer.param_groups[0]["lr"]}, run.update)
                bar.set_postfix({n: f"{float(v):.3f}" for n, v in losses.items() if n.startswith("loss")})
        if not log:
            continue
        if due("test_interval") or due("ckpt_interval") or stopping:
            on_test = test_losses(run.model, run.datasets["test"], config) if "test" in run.datasets else {}
            log.scalars("test", on_test, run.update)
            if due("ckpt_interval") or stopping:
                run.save(on_test)
        if due("eval_interval") and "test" in run.datasets:
            held_out = env.split_tasks(config)["test"]
            family = env.list_tasks(config)
            tasks = [family[i] for i in held_out]
            returns = evaluate_tasks(
                run.model, config, tasks, config["eval_repeats"], config["eval_episodes"], config["train_seed"]
            )
            log.in_context(returns, held_out, run.update)
    bar.close()
    if log:
        if run.update == config["train_timesteps"]:
            log.hyperparameters(run.update)
        log.close()
    ranks.leave()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if run.update < config["train_timesteps"]:
        name = signal.Signals(stop_signal[0]).name if stop_signal else "another rank"
        print(f"stopped by {name} after update {run.update}, which is saved; the same command goes on", file=sys.stderr)
        return 128 + (stop_signal[0] if stop_signal else signal.SIGTERM)
    return 0


def train_step(run: Run) -> dict[str, Tensor]:
    """One update of the optimizer; the batch depends on the seed and the update's number alone."""
    config = run.config
    rng = np.random.default_rng([config["train_seed"], run.update])
    batch = run.datasets["train"].sample_batch(config["train_batch_size"], rng)
    if run.ranks.size > 1:
        batch = share_of_batch(batch, config, run.ranks)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.update, config)
    device = run.model.compress_start_token.device
    with torch.autocast(device.type, torch.bfloat16, enabled=config["autocast"] and device.type == "cuda"):
        losses = run.forward(to_device(batch, device))
    run.optimizer.zero_grad()
    losses["loss_total"].backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), config["grad_clip"])
    run.optimizer.step()
    run.update += 1
    return {name: value.detach() for name, value in losses.items()}


def share_of_batch(batch: dict[str, Tensor], config: dict, ranks: Ranks) -> dict[str, Tensor]:
    """This rank's windows of a batch, with the numbers that make the mean over ranks the whole batch's loss."""
    n_action_targets = (batch["region_lengths"].sum(1) - batch["target_from"]).sum()
    if "target_until" in batch:
        n_action_targets = (batch["target_until"] - batch["target_from"]).sum()
    n_type_targets = (layout_tokens(batch["region_lengths"], config).next_types != IGNORE).sum()
    share = {name: values[ranks.rank :: ranks.size] for name, values in batch.items()}
    counts = {"n_action_targets": n_action_targets, "n_type_targets": n_type_targets}
    return share | {name: count / ranks.size for name, count in counts.items()}


def learning_rate(update: int, config: dict) -> float:
    """Linear warm-up to `lr`, then a cosine to a tenth of it."""
    warmup = config["warmup_timesteps"]
    if update < warmup:
        return config["lr"] * (update + 1) / warmup
    progress = (update - warmup) / max(1, config["train_timesteps"] - warmup)
    return config["lr"] * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def build_optimizer(model: nn.Module, config: dict) -> torch.optim.Optimizer:
    """AdamW that decays weight matrices only, not biases, norms or single vectors."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config["lr"], betas=(0.9, 0.99), fused=True)


def standardise_inputs(model: nn.Module, dataset: ADDataset) -> None:
    """Give the model the mean and standard deviation of its real-valued inputs, to keep with its weights.

    Rewards that are all 0 or 1 need none, and are left as they are.
    """
    windows = dataset.sample_batch(N_STANDARDISE, np.random.default_rng(0))
    held = torch.arange(windows["rewards"].shape[1]) < windows["region_lengths"].sum(1, keepdim=True)
    rewards = windows["rewards"][held]
    if not ((rewards == 0) | (rewards == 1)).all():
        model.reward_mean.copy_(rewards.double().mean())
        model.reward_std.copy_(deviation(rewards))
    parts = {"observations": model.observation_embedding, "actions": model.actions}
    for name, part in parts.items():
        if hasattr(part, "mean"):  # continuous
            values = windows[name][held]
            part.mean.copy_(values.double().mean(0))
            part.std.copy_(deviation(values))


def deviation(values: Tensor) -> Tensor:
    """Standard deviation over the first axis; 1 for an entry that never changes, which leaves it as it is."""
    std = values.double().std(0)
    return torch.where(std > 1e-6, std, 1.0)


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    if device.type == "cuda":
        return {name: values.pin_memory().to(device, non_blocking=True) for name, values in batch.items()}
    return batch


# Validation ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_losses(model: nn.Module, dataset: ADDataset, config: dict) -> dict[str, float]:
    """Mean losses over the same windows of the held-out tasks at every call."""
    model.eval()
    device = model.compress_start_token.device
    rng = np.random.default_rng(0)
    batches = [to_device(dataset.sample_batch(config["train_batch_size"], rng), device) for _ in range(N_TEST_BATCHES)]
    losses = [model(batch) for batch in batches]
    model.train()
    return {name: float(np.nanmean([float(loss[name]) for loss in losses])) for name in losses[0]}


# Runs and checkpoints -----------------------------------------------------------------------------


def default_run_dir(config: dict, model_config: str) -> Path:
    return Path("runs") / (
        f"{env_file_name(config)}_{config['alg']}_{Path(model_config).stem}_split-{config['env_split_seed']}_seed-{config['train_seed']}"
    )


def newest_checkpoint(run_dir: Path, config: dict) -> dict | None:
    """The checkpoint to go on from, or None for a new run.

    Raises:
        InputError: the run was made with other settings, or has checkpoints of which none can be read.
    """
    found = newest_readable_checkpoint(run_dir, RESUME_KEYS)
    if found is None:
        if checkpoint_paths(run_dir):
            raise InputError(f"{run_dir}: none of its checkpoints can be read; use --overwrite to start the run anew")
        return None
    checkpoint = found[1]
    before = checkpoint["config"]
    names = sorted((set(config) | set(before)) - FREE_TO_CHANGE)
    if differing := differences(before, config, names):
        raise InputError(
            f"{run_dir}: holds a run with other settings ({differing}); "
            "use --overwrite to replace it or --run-dir to keep both"
        )
    return checkpoint


if __name__ == "__main__":
    run_script(main)
