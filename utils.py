"""What has no better home: reading a YAML file, seeds, devices, versions."""

from __future__ import annotations

import importlib
import os
import platform
import random
import subprocess
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from files import InputError, one_line

ROOT = Path(__file__).resolve().parent
HIGHEST_SEED = 2**31 - 1
LIBRARIES = ("torch", "stable_baselines3", "gymnasium", "numpy", "h5py")


class UniqueKeys(yaml.SafeLoader):
    """YAML in which no mapping has a key twice; PyYAML itself takes the last one and says nothing."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is there twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def get_config(path: str | Path, _including: tuple[Path, ...] = ()) -> dict:
    """Read a YAML file. Its own keys override those of the files it names under `include:`.

    An include is a path or a list of paths, resolved from the repository root.

    Raises:
        InputError: missing or empty file, broken YAML, no mapping, or an include that ends in itself.
    """
    path = Path(path)
    if not path.is_file() and not path.is_absolute():
        path = ROOT / path
    if not path.is_file():
        raise InputError(f"{path}: no such config file; see config/ for the shipped ones")
    path = path.resolve()
    if path in _including:
        raise InputError(f"{path}: includes itself, by way of {' -> '.join(str(p) for p in _including)}")
    try:
        own = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not readable as YAML: {one_line(error)}") from None
    if not isinstance(own, dict) or not all(isinstance(key, str) for key in own):
        raise InputError(
            f"{path}: expected 'key: value' lines, found {'nothing' if own is None else type(own).__name__}"
        )
    includes = own.pop("include", [])
    includes = [includes] if isinstance(includes, str) else includes
    if not isinstance(includes, list) or not all(isinstance(include, str) for include in includes):
        raise InputError(f"{path}: include: {includes!r}: expected the path of a YAML file, or a list of paths")
    config: dict = {}
    for include in includes:
        config |= get_config(ROOT / include, (*_including, path))
    return config | own


def import_module(name: str) -> ModuleType:
    """A module of the user's; one that ends the script with sys.exit could not be imported.

    Raises:
        ImportError: it called sys.exit. Whatever else it raises is let through.
    """
    try:
        return importlib.import_module(name)
    except SystemExit as error:
        raise ImportError(f"{name} called sys.exit({error.code!r})") from error


def find_class(name: str, table: dict[str, type]) -> type:
    """What `name` stands for: an entry of `table`, or `module:Class`, a class of the user's own.

    Raises:
        KeyError: neither. Whatever the user's module raises is let through.
    """
    if name in table:
        return table[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise KeyError(name)
    return getattr(import_module(module), attribute)


def set_seed(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def choose_device(name: str) -> Any:
    """The torch.device of a name; `auto` is CUDA where there is one, each rank of a machine its own, else the CPU."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not usable here: {str(error).splitlines()[0]}") from None


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results may depend on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}


def git_commit() -> str:
    """The commit of this code, with "-dirty" where files were changed since; empty where git cannot tell."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if commit and changed else commit or ""
