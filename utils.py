"""Configs, seeds, devices and checkpoints. Imports no sibling module.

A config is a flat dict: the keys of one env, one algorithm and one model YAML file together. `KEYS`
names every key once, with its type, default and range; the YAML files explain them.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parent
REQUIRED = object()
HIGHEST_SEED = 2**31 - 1
BAR_SECONDS = 0.5 if sys.stderr.isatty() else 30  # between updates of a progress bar; a log file wants few
DEFAULT_CONFIG = {
    "env": "config/env/darkroom.yaml",
    "algorithm": "config/algorithm/ppo_darkroom.yaml",
    "model": "config/model/ad_dr_compressed.yaml",
}


class InputError(Exception):
    """Something the user gave is wrong: told in one message, without a traceback, exit code 2."""


class WriteError(Exception):
    """A file could not be written: told in one message, exit code 1; what was there before is intact."""


@dataclass(frozen=True)
class Key:
    """What a config key may hold.

    `low` and `high` are inclusive; `above` is exclusive. A nullable key also takes null.
    `alg` names the only algorithm that reads the key; with another one it is null.
    """

    kind: type
    default: Any = REQUIRED
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple | None = None
    nullable: bool = False
    alg: str | None = None

    def is_read(self, config: dict) -> bool:
        return self.alg is None or config.get("alg") == self.alg

    def problem(self, value: Any) -> str | None:
        """Why `value` does not fit, as 'expected ...', or None."""
        if value is None and self.nullable:
            return None
        wrong_type = not isinstance(value, self.kind) or (self.kind is not bool and isinstance(value, bool))
        if wrong_type:
            return f"expected {self.kind.__name__}{' or null' if self.nullable else ''}, got {type(value).__name__}"
        if self.choices and value not in self.choices:
            return f"expected one of {', '.join(map(str, self.choices))}"
        if self.kind is float and not np.isfinite(value):
            return "expected a finite number"
        if self.low is not None and value < self.low:
            return f"expected at least {self.low}"
        if self.high is not None and value > self.high:
            return f"expected at most {self.high}"
        if self.above is not None and value <= self.above:
            return f"expected more than {self.above}"
        return None


KEYS: dict[str, dict[str, Key]] = {
    "env": {
        "env": Key(str),
        "grid_size": Key(int, 9, low=2),
        "horizon": Key(int, 20, low=1),
        "env_kwargs": Key(dict, {}),
        "task_kwargs": Key(list, []),
        "task_ranges": Key(dict, {}),
        "n_tasks": Key(int, None, low=1, nullable=True),
        "task_seed": Key(int, 0, low=0, high=HIGHEST_SEED),
        "source_sees_progress": Key(bool, False),
        "env_split_seed": Key(int, 0, low=0, high=HIGHEST_SEED),
        "train_env_ratio": Key(float, 0.9, above=0, high=1),
    },
    "algorithm": {
        "alg": Key(str),
        "alg_seed": Key(int, 42, low=0, high=HIGHEST_SEED),
        "n_stream": Key(int, low=1),
        "n_steps": Key(int, low=2),
        "total_source_timesteps": Key(int, low=1),
        "batch_size": Key(int, low=2, alg="PPO"),
        "n_epochs": Key(int, low=1, alg="PPO"),
        "source_lr": Key(float, above=0),
        "net_arch": Key(list, [64, 64]),
        "gamma": Key(float, 0.99, low=0, high=1),
        "gae_lambda": Key(float, 0.95, low=0, high=1),
        "clip_range": Key(float, 0.2, above=0, alg="PPO"),
        "ent_coef": Key(float, 0.0, low=0),
        "exploration_bonus": Key(float, 0.0, low=0),
        "vf_coef": Key(float, 0.5, low=0),
        "max_grad_norm": Key(float, 0.5, above=0),
        "n_process": Key(int, None, low=1, nullable=True),
    },
    "model": {
        "model": Key(str, "AD", choices=("AD",)),
        "use_compressed_context": Key(bool, False),
        "compress_interval": Key(int, 80, low=2),
        "context_regions": Key(int, 2, low=1),
        "n_transit": Key(int, low=2),
        "kept_fraction": Key(float, 0.5, above=0, high=0.999),
        "region_stride": Key(int, 1, low=1),
        "mix_streams": Key(bool, False),
        "in_memory": Key(str, "auto", choices=("auto", "always", "never")),
        "soft_targets": Key(bool, True),
        "dense_supervision": Key(bool, True),
        "token_type_loss_weight": Key(float, 0.1, low=0),
        "n_embd": Key(int, 64, low=1),
        "n_layer": Key(int, 4, low=1),
        "n_head": Key(int, 4, low=1),
        "dropout": Key(float, 0.0, low=0, high=0.999),
        "train_seed": Key(int, 0, low=0, high=HIGHEST_SEED),
        "train_timesteps": Key(int, low=1),
        "train_source_timesteps": Key(int, None, low=1, nullable=True),
        "train_batch_size": Key(int, 64, low=1),
        "lr": Key(float, 1e-3, above=0),
        "warmup_timesteps": Key(int, 100, low=0),
        "weight_decay": Key(float, 0.01, low=0),
        "grad_clip": Key(float, 1.0, above=0),
        "compile": Key(bool, False),
        "autocast": Key(bool, True),
        "log_interval": Key(int, 50, low=1),
        "test_interval": Key(int, 500, low=1),
        "eval_interval": Key(int, 1000, low=1),
        "eval_episodes": Key(int, 40, low=1),
        "eval_repeats": Key(int, 4, low=1),
        "ckpt_interval": Key(int, 500, low=1),
        "keep_checkpoints": Key(int, 3, low=1),
        "temperature": Key(float, 1.0, low=0),
        "exploring_temperature": Key(float, None, low=0, nullable=True),
        "exploring_patience": Key(float, None, above=0, nullable=True),
        "boundaries": Key(str, "fixed", choices=("fixed", "predicted")),
    },
}

ALL_KEYS = {name: key for section in KEYS.values() for name, key in section.items()}
SPLIT_KEYS = ("env_split_seed", "train_env_ratio")  # say how a history file is used, not what is in it


# Configs ------------------------------------------------------------------------------------------


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
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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


def load_config(
    paths: dict[str, str | Path],
    overrides: list[str] = (),
    checks: tuple[Callable[[dict], list[str]], ...] = (),
) -> dict:
    """Read, merge, complete with defaults and check the config files of a script.

    Args:
        paths: file per section ("env", "algorithm", "model"), those the script needs.
        overrides: `key=value` strings; values are typed like the YAML value they replace.
        checks: further rules, each giving a list of problems for the complete config.

    Raises:
        InputError: listing every problem found, in all files and overrides.
    """
    config, problems = {}, []
    for section, path in paths.items():
        try:
            own = get_config(path)
        except InputError as error:
            problems.append(str(error))
            continue
        merged = {name: key.default for name, key in KEYS[section].items()}
        for name, value in own.items():
            if name not in KEYS[section]:
                problems.append(f"{path}: unknown key '{name}'{_did_you_mean(name, KEYS[section])}")
            else:
                merged[name] = value
        _apply_overrides(merged, KEYS[section], overrides)
        given = set(own) | {override.partition("=")[0] for override in overrides}
        for name, value in merged.items():
            if not KEYS[section][name].is_read(merged) and (name not in given or value is None):
                merged[name] = None
                continue
            merged[name] = value = _as_kind(value, KEYS[section][name])
            if value is REQUIRED:
                problems.append(f"{path}: key '{name}' is missing")
            elif found := KEYS[section][name].problem(value):
                problems.append(f"{path}: {name}: {value!r}: {found}")
        config |= merged
    problems += _unknown_overrides(overrides, {name: key for section in paths for name, key in KEYS[section].items()})
    return _checked(config, problems, (relation_problems, *checks))


def differences(before: dict, now: dict, names: Iterable[str], where_now: str = "now") -> str:
    """Which of the keys `names` differ between two configs, in words; empty if none does."""
    return "; ".join(
        f"{name}: {before.get(name)!r} there, {now.get(name)!r} {where_now}"
        for name in names
        if before.get(name) != now.get(name)
    )


def _apply_overrides(merged: dict, keys: dict[str, Key], overrides: list[str]) -> None:
    for override in overrides:
        name, equals, text = override.partition("=")
        if equals and name in keys:
            try:
                merged[name] = text if keys[name].kind is str else yaml.safe_load(text)
            except yaml.YAMLError:
                merged[name] = text  # its type is then reported


def override_config(
    config: dict, overrides: list[str], changeable: tuple[str, ...], checks: tuple[Callable[[dict], list[str]], ...]
) -> dict:
    """A checkpoint's config with some of its `changeable` keys overridden.

    Raises:
        InputError: listing every problem found.
    """
    known = {name: key for name, key in ALL_KEYS.items() if name in config}
    problems = _unknown_overrides(overrides, known)
    names = [override.partition("=")[0] for override in overrides]
    fixed = [name for name in names if name in known and name not in changeable]
    problems += [
        f"--set {name}: fixed by the checkpoint; only {', '.join(changeable)} can be changed" for name in fixed
    ]
    config = dict(config)
    _apply_overrides(config, known, overrides)
    for name in set(names) & set(known):
        config[name] = _as_kind(config[name], known[name])
        if found := known[name].problem(config[name]):
            problems.append(f"--set {name}: {config[name]!r}: {found}")
    return _checked(config, problems, (relation_problems, *checks))


def _unknown_overrides(overrides: list[str], known: dict[str, Key]) -> list[str]:
    problems = []
    for override in overrides:
        name, equals, _ = override.partition("=")
        if not equals:
            problems.append(f"--set {override}: expected key=value")
        elif name not in known:
            problems.append(f"--set {override}: unknown key '{name}'{_did_you_mean(name, known)}")
    return problems


def _checked(config: dict, problems: list[str], checks: tuple[Callable[[dict], list[str]], ...]) -> dict:
    for check in checks:
        try:
            problems += check(config)
        except Exception:  # it may well stumble over the values already found wrong
            if not problems:
                raise
    if problems:
        raise InputError("the configuration has problems:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return config


def _as_kind(value: Any, key: Key) -> Any:
    """Integers are fine where floats are expected, and so is 3e-4, which YAML 1.1 reads as text."""
    if key.kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if key.kind is float and isinstance(value, str) and re.fullmatch(r"[+-]?[0-9.]+[eE][+-]?[0-9]+", value):
        return float(value)
    return value


def _did_you_mean(name: str, known: dict) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def relation_problems(config: dict) -> list[str]:
    """Contradictions between keys, over all sections that are present."""
    problems = []
    if "n_embd" in config and config["n_embd"] % config["n_head"]:
        problems.append(f"n_embd {config['n_embd']} must be a multiple of n_head {config['n_head']}")
    if config.get("use_compressed_context"):
        interval = config["compress_interval"]
        if config.get("n_steps", interval) != interval:
            problems.append(f"compress_interval {interval} must equal the algorithm's n_steps {config['n_steps']}")
        needed = config["context_regions"] * interval
        if config["n_transit"] < needed:
            problems.append(
                f"n_transit {config['n_transit']} is too small: it must hold {config['context_regions']} regions of "
                f"compress_interval {interval} steps, at least {needed}"
            )
    if config.get("exploring_patience") is not None and config.get("exploring_temperature") is None:
        problems.append(
            f"exploring_patience {config['exploring_patience']} says when exploring_temperature applies, which is null; "
            "set both, or both to null"
        )
    return problems


# Scripts ------------------------------------------------------------------------------------------


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's `main`; what the user can mend becomes one message on stderr, without a traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (InputError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


def add_config_arguments(parser, sections: tuple[str, ...]) -> None:
    """`--env-config`, `--alg-config`, `--model-config` (those of `sections`) and `--set`."""
    flags = {"env": "--env-config", "algorithm": "--alg-config", "model": "--model-config"}
    for section in sections:
        parser.add_argument(
            flags[section],
            default=DEFAULT_CONFIG[section],
            metavar="YAML",
            help=f"{section} config (default: %(default)s)",
        )
    add_set_argument(parser)


def add_set_argument(parser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override one config key; repeatable (default: none)",
    )  # fmt: skip


def config_paths(args) -> dict[str, str]:
    """The config files chosen on the command line, by section."""
    names = {"env": "env_config", "algorithm": "alg_config", "model": "model_config"}
    return {section: getattr(args, name) for section, name in names.items() if hasattr(args, name)}


def set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, each rank of a machine its own, else the CPU."""
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


def history_path(config: dict, traj_dir: str | Path) -> Path:
    """Where the source histories of this env, algorithm and seed are kept."""
    return Path(traj_dir) / f"history_{env_file_name(config)}_{config['alg']}_alg-seed{config['alg_seed']}.hdf5"


def env_file_name(config: dict) -> str:
    """The env's name as a part of file names."""
    return re.sub("[/:]", "-", config["env"])


# Checkpoints --------------------------------------------------------------------------------------

EVALUATION_KEYS = ("config", "model", "update")  # what evaluation needs of a checkpoint


def checkpoint_paths(run_dir: str | Path) -> list[Path]:
    """The checkpoints of one run, oldest first, by their update number."""
    paths = [path for path in Path(run_dir).glob("ckpt-*.pt") if re.fullmatch(r"ckpt-\d+\.pt", path.name)]
    return sorted(paths, key=checkpoint_update)


def checkpoint_update(path: Path) -> int:
    return int(path.stem.removeprefix("ckpt-"))


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then give it its name in one step.

    Raises:
        WriteError: it could not be written, as on a full disk; a file that was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # h5py and torch report a full disk as either
        kept = "the file that was there is intact" if path.exists() else "nothing half-written is left"
        raise WriteError(f"{path}: could not be written ({one_line(error)}); {kept}") from error
    finally:
        temporary.unlink(missing_ok=True)


def lock(path: Path) -> TextIO:
    """Keep a second process from writing `path` too, until the returned file is closed."""
    try:
        file = open(path.with_name(f".{path.name}.lock"), "w")  # noqa: SIM115, the caller keeps it open
    except OSError as error:
        raise WriteError(f"{path.parent}: nothing can be written there ({one_line(error)})") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"{path}: another process is at work on it; wait for it, or stop it first") from None
    return file


def remove_temporaries(folder: Path, name: str = "*") -> None:
    """Remove what `write_atomically` left behind when it was killed; only while holding the `lock`."""
    for path in folder.glob(f".{name}.tmp*"):
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: this folder could not be made ({one_line(error)})") from error


def one_line(error: Exception) -> str:
    """An exception's message, or its type, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


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


def load_checkpoint(path: str | Path, keys: tuple[str, ...] = EVALUATION_KEYS) -> dict:
    """Read a checkpoint onto the CPU, without running any code a stranger may have put in it.

    Raises:
        InputError: missing or damaged file, or one that lacks some of `keys`.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint; train one with: python train.py")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} does not match")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and zipfile raise many types for damaged files
        raise InputError(f"{path}: not readable as a checkpoint ({one_line(error)[:200]}); use another one") from None
    missing = [key for key in keys if not isinstance(checkpoint, dict) or key not in checkpoint]
    if not missing and not isinstance(checkpoint["config"], dict):
        missing = ["a config"]
    if missing:
        raise InputError(f"{path}: no checkpoint of this project: it lacks {', '.join(missing)}")
    defaults = {name: key.default for name, key in ALL_KEYS.items() if key.default is not REQUIRED}
    checkpoint["config"] = config = defaults | checkpoint["config"]  # with keys that came after it was written
    for name, key in ALL_KEYS.items():
        if name not in config or (key.is_read(config) and key.problem(config[name])):
            raise InputError(f"{path}: its config has no usable '{name}'; use another checkpoint")
    return checkpoint
