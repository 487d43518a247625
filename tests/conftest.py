"""Shared fixtures: a tiny family of tasks, its real histories, and hand-made history files."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import collect
import env
from config.loading import load_config
from effective import blanks_starts
from scripts import DEFAULT_CONFIG

torch.set_num_threads(1)  # tiny tensors; also keeps results independent of the machine

# 3x3 grid, episodes of 6 steps, regions of 12 steps, 8 tasks to train on and 1 held out
TINY_ENV = ["grid_size=3", "horizon=6", "train_env_ratio=0.9"]
TINY_SOURCE = [
    "n_stream=16", "n_steps=12", "total_source_timesteps=1920", "batch_size=192", "net_arch=[16]", "source_lr=0.02",
]  # fmt: skip
TINY_MODEL = [
    "compress_interval=12", "n_transit=24", "n_embd=32", "n_layer=2", "n_head=2", "train_batch_size=32",
    "train_timesteps=20", "warmup_timesteps=5", "test_interval=10", "eval_interval=20", "eval_episodes=6",
    "ckpt_interval=10", "log_interval=5",
]  # fmt: skip


def set_flags(*settings: str) -> list[str]:
    return [flag for setting in settings for flag in ("--set", setting)]


def tiny_config(*overrides: str) -> dict:
    """A complete config of the tiny family, as train.py hands it to the model."""
    config = load_config(DEFAULT_CONFIG, [*TINY_ENV, *TINY_SOURCE, *TINY_MODEL, *overrides])
    config |= env.describe_spaces(config) | {"with_dones": True, "rollout_length": config["n_steps"]}
    return config | {"blank_starts": blanks_starts(config)}


@pytest.fixture(scope="session")
def tiny_histories(tmp_path_factory) -> Path:
    """Folder with PPO histories of the tiny family, collected as a user would."""
    folder = tmp_path_factory.mktemp("histories")
    arguments = ["--traj-dir", str(folder), "--log-dir", str(folder / "logs"), *set_flags(*TINY_ENV, *TINY_SOURCE)]
    assert collect.main(arguments) == 0
    return folder


def write_file(path: Path, config: dict, n_steps: int, n_streams: int, **changes) -> Path:
    """A history file whose rewards tell where each step comes from: task * 10,000 + step * 10 + stream.

    `changes` replaces a dataset of every group, or drops it where the value is None.
    """
    rng = np.random.default_rng(0)
    interval = config["compress_interval"]
    place = np.arange(n_steps)[:, None] * 10 + np.arange(n_streams)
    markers = np.zeros(n_steps, dtype=np.int8)
    markers[::interval], markers[interval - 1 :: interval] = 1, 2
    with h5py.File(path, "w") as file:
        for task in range(len(env.list_tasks(config))):
            probs = rng.dirichlet(np.ones(5), size=(n_steps, n_streams))
            arrays = {
                "states": rng.integers(config["grid_size"], size=(n_steps, n_streams, 2), dtype=np.uint8),
                "actions": rng.integers(5, size=(n_steps, n_streams), dtype=np.uint8),
                "rewards": (task * 10_000 + place).astype(np.float32),
                "next_states": rng.integers(config["grid_size"], size=(n_steps, n_streams, 2), dtype=np.uint8),
                "dones": np.broadcast_to((np.arange(n_steps) % 6 == 5)[:, None], (n_steps, n_streams)),
                "action_probs": probs.astype(np.float16),
                "compress_markers": markers,
            } | changes
            for name, values in arrays.items():
                if values is not None:
                    file.create_dataset(f"{task}/{name}", data=values)
    return path
