"""Train AD on collected histories, with compressed context or with the standard window.

Checkpoints, TensorBoard logs and the effective config go to one run folder. The same command goes on
from the newest checkpoint there, and does nothing when the run is complete.
"""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import algorithm
import env
from dataset import ADDataset
from model import MODEL
from plots import plot_returns
from utils import (
    BAR_SECONDS,
    InputError,
    add_config_arguments,
    checkpoint_paths,
    choose_device,
    config_paths,
    load_checkpoint,
    load_config,
    run_script,
    save_checkpoint,
    set_seed,
    write_atomically,
)

N_TEST_BATCHES = 8  # enough windows for a loss that is steady to about 1 %
# Keys that change how often something is logged or kept, but not what is learned
FREE_TO_CHANGE = {
    "log_interval",
    "test_interval",
    "eval_interval",
    "eval_episodes",
    "eval_repeats",
    "ckpt_interval",
    "keep_checkpoints",
}
FREE_TO_CHANGE |= {"temperature", "boundaries", "n_process"}


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
    config = load_config(config_paths(args), args.overrides, checks=(env.config_problems, algorithm.config_problems))
    device = choose_device(args.device)
    run_dir = Path(args.run_dir) if args.run_dir else default_run_dir(config, args.model_config)
    datasets = {
        mode: ADDataset(config, args.traj_dir, mode, config["n_stream"], config["train_source_timesteps"])
        for mode in ("train", "test")
    }
    config |= env.describe_spaces(config) | {
        "use_compressed_context": datasets["train"].use_compressed_context,  # the mode in force
        "with_dones": datasets["train"].with_dones,
    }
    if args.overwrite:
        shutil.rmtree(run_dir, ignore_errors=True)
    checkpoint = newest_checkpoint(run_dir, config)
    if checkpoint and checkpoint["update"] >= config["train_timesteps"]:
        print(f"{run_dir} is already complete; use --overwrite to train it again")
        return 0
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / "config.yaml", lambda path: path.write_text(yaml.safe_dump(config, sort_keys=False)))

    set_seed(config["train_seed"])
    model = MODEL[config["model"]](config)
    standardise_observations(model, datasets["train"])
    model.to(device)
    optimizer = build_optimizer(model, config)
    update = restore(checkpoint, model, optimizer) if checkpoint else 0
    mode = "compressed" if config["use_compressed_context"] else "standard"
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{run_dir}: {mode} context, {n_parameters:,} parameters, on {device}, from update {update}")
    with SummaryWriter(run_dir, purge_step=update + 1) as writer:
        return train(model, optimizer, datasets, config, run_dir, writer, update)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    datasets: dict[str, ADDataset],
    config: dict,
    run_dir: Path,
    writer: SummaryWriter,
    update: int,
) -> int:
    """Run the updates that are left; save at the end, at intervals, and when told to stop."""
    stop_signal = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stop_signal.append(received))
    model.train()
    with tqdm(
        total=config["train_timesteps"], initial=update, desc="train", unit="update", mininterval=BAR_SECONDS
    ) as bar:
        while update < config["train_timesteps"] and not stop_signal:
            losses = train_step(model, optimizer, datasets["train"], config, update)
            update += 1
            bar.update()
            is_last = update == config["train_timesteps"]
            if update % config["log_interval"] == 0 or is_last:
                log_scalars(writer, "train", losses, update)
                writer.add_scalar("train/lr", optimizer.param_groups[0]["lr"], update)
                bar.set_postfix(
                    {name: f"{float(value):.3f}" for name, value in losses.items() if name.startswith("loss")}
                )
            if update % config["test_interval"] == 0 or is_last:
                log_scalars(writer, "test", test_losses(model, datasets["test"], config), update)
            if update % config["eval_interval"] == 0 or is_last:
                log_in_context_returns(model, config, writer, update)
            if update % config["ckpt_interval"] == 0 or is_last:
                save(model, optimizer, config, run_dir, update)
    if stop_signal and update < config["train_timesteps"]:
        save(model, optimizer, config, run_dir, update)
        print(
            f"stopped by {signal.Signals(stop_signal[0]).name} after update {update}; the same command goes on",
            file=sys.stderr,
        )
        return 128 + stop_signal[0]
    return 0


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, dataset: ADDataset, config: dict, update: int
) -> dict[str, Tensor]:
    """One update of the optimizer; the batch depends on the seed and the update's number alone."""
    rng = np.random.default_rng([config["train_seed"], update])
    batch = to_device(dataset.sample_batch(config["train_batch_size"], rng), model.compress_start_token.device)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(update, config)
    losses = model(batch)
    optimizer.zero_grad()
    losses["loss_total"].backward()
    nn.utils.clip_grad_norm_(model.parameters(), config["grad_clip"])
    optimizer.step()
    return {name: value.detach() for name, value in losses.items()}


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


def standardise_observations(model: nn.Module, dataset: ADDataset) -> None:
    """Give the model the mean and standard deviation of continuous observations."""
    embedding = model.observation_embedding
    if not embedding.discrete:
        states = dataset.arrays["states"]
        embedding.mean.copy_(torch.from_numpy(states.mean(axis=0, dtype=np.float64)))
        embedding.std.copy_(torch.from_numpy(states.std(axis=0, dtype=np.float64)).clamp(min=1e-6))


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


def log_in_context_returns(model: nn.Module, config: dict, writer: SummaryWriter, update: int) -> None:
    """Evaluate on the held-out tasks and log the mean return over in-context episodes as a figure."""
    tasks = [env.list_tasks(config)[task] for task in env.split_tasks(config)["test"]]
    vec_env = env.make_vec_env(config, [task for task in tasks for _ in range(config["eval_repeats"])])
    returns = model.evaluate_in_context(
        vec_env, config["eval_episodes"] * env.max_episode_steps(config), seed=config["train_seed"]
    )["returns"]
    vec_env.close()
    if returns.shape[1]:
        n_last = max(1, returns.shape[1] // 10)
        writer.add_scalar("test/return_last_episodes", returns[:, -n_last:].mean(), update)
        writer.add_figure("test/return_over_episodes", plot_returns({"AD": returns}), update)


def log_scalars(writer: SummaryWriter, prefix: str, losses: dict, update: int) -> None:
    for name, value in losses.items():
        if not math.isnan(value):  # a batch without the event measured
            writer.add_scalar(f"{prefix}/{name}", float(value), update)


# Runs and checkpoints -----------------------------------------------------------------------------


def default_run_dir(config: dict, model_config: str) -> Path:
    env_name = config["env"].replace("/", "-")
    return Path("runs") / (
        f"{env_name}_{config['alg']}_{Path(model_config).stem}_split-{config['env_split_seed']}_seed-{config['train_seed']}"
    )


def newest_checkpoint(run_dir: Path, config: dict) -> dict | None:
    """The checkpoint to go on from, or None for a new run.

    Raises:
        InputError: the run was made with other settings.
    """
    paths = checkpoint_paths(run_dir)
    if not paths:
        return None
    checkpoint = load_checkpoint(paths[-1], keys=("config", "model", "optimizer", "update", "torch_rng"))
    before = checkpoint["config"]
    names = sorted((set(config) | set(before)) - FREE_TO_CHANGE)
    differing = [
        f"{name}: {before.get(name)!r} there, {config.get(name)!r} now"
        for name in names
        if before.get(name) != config.get(name)
    ]
    if differing:
        raise InputError(
            f"{run_dir}: holds a run with other settings ({'; '.join(differing)}); use --overwrite to replace it or --run-dir to keep both"
        )
    return checkpoint


def restore(checkpoint: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    torch.set_rng_state(checkpoint["torch_rng"])
    return checkpoint["update"]


def save(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict, run_dir: Path, update: int) -> None:
    """Save all that a resumed run needs, then drop all but the newest `keep_checkpoints`."""
    checkpoint = {
        "config": config,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "update": update,
        "torch_rng": torch.get_rng_state(),
    }
    save_checkpoint(run_dir / f"ckpt-{update}.pt", checkpoint)
    for path in checkpoint_paths(run_dir)[: -config["keep_checkpoints"]]:
        path.unlink()


if __name__ == "__main__":
    run_script(main)
