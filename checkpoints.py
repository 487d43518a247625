"""Checkpoints of training runs: finding, writing and reading them."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch

from files import InputError, one_line, write_atomically

EVALUATION_KEYS = ("config", "model", "update")  # what evaluation needs of a checkpoint
RESUME_KEYS = (*EVALUATION_KEYS, "optimizer", "best", "torch_rng")  # what going on with training needs
# What torch and zipfile raise for a damaged file. MemoryError is not among them: it says nothing of the file
DAMAGE = (OSError, RuntimeError, ValueError, KeyError, EOFError, LookupError, AttributeError, TypeError,
          UnicodeError, OverflowError, NotImplementedError, AssertionError, zipfile.BadZipFile, UnpicklingError)  # fmt: skip


def checkpoint_paths(run_dir: str | Path) -> list[Path]:
    """The checkpoints of one run, oldest first, by their update number."""
    paths = [path for path in Path(run_dir).glob("ckpt-*.pt") if re.fullmatch(r"ckpt-\d+\.pt", path.name)]
    return sorted(paths, key=checkpoint_update)


def checkpoint_update(path: Path) -> int:
    return int(path.stem.removeprefix("ckpt-"))


def newest_readable_checkpoint(run_dir: str | Path, keys: tuple[str, ...]) -> tuple[Path, dict] | None:
    """The newest checkpoint of a run that is not damaged, each damaged one told; None if there is none."""
    for path in reversed(checkpoint_paths(run_dir)):
        try:
            return path, load_checkpoint(path, keys)
        except InputError as error:
            print(f"{error}; trying the one before it", file=sys.stderr)
    return None


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    write_atomically(path, lambda temporary: torch.save(checkpoint, temporary))


def read_saved(path: str | Path) -> object:
    """What torch saved, on the CPU; raises one of DAMAGE where it is damaged."""
    with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} does not match")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_checkpoint(path: str | Path, keys: tuple[str, ...] = EVALUATION_KEYS) -> dict:
    """Read a checkpoint onto the CPU, without running any code a stranger may have put in it.

    Its config is as it was written; `config.loading.complete_config` adds keys that came later.

    Raises:
        InputError: missing or damaged file, or one that lacks some of `keys`.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint; train one with: python train.py")
    try:
        checkpoint = read_saved(path)
    except DAMAGE as error:
        raise InputError(f"{path}: not readable as a checkpoint ({one_line(error, 200)}); use another one") from error
    missing = [key for key in keys if not isinstance(checkpoint, dict) or key not in checkpoint]
    if not missing and not isinstance(checkpoint["config"], dict):
        missing = ["a config"]
    if missing:
        raise InputError(f"{path}: no checkpoint of this project: it lacks {', '.join(missing)}")
    return checkpoint
