"""What the scripts share: their runner, and the arguments that choose a config."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from files import EnvironmentFault, InputError, WriteError
from utils import HIGHEST_SEED, ROOT

BAR_SECONDS = 0.5 if sys.stderr.isatty() else 30  # between updates of a progress bar; a log file wants few
DEFAULT_FAMILY, DEFAULT_SOURCE = "darkroom", "ppo"
FLAGS = {"env": "env_config", "algorithm": "alg_config", "model": "model_config"}  # section: --env-config, ...


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
    except (InputError, WriteError, EnvironmentFault) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


# Arguments ----------------------------------------------------------------------------------------


def families() -> list[str]:
    """The shipped task families: each has a file of its name under config/env."""
    return sorted(path.stem for path in (ROOT / "config" / "env").glob("*.yaml"))


def sources() -> list[str]:
    """The shipped sources of histories: each has files SOURCE_FAMILY.yaml under config/algorithm."""
    return sorted({path.stem.partition("_")[0] for path in (ROOT / "config" / "algorithm").glob("*.yaml")})


def has_settings(source: str, family: str) -> bool:
    """Whether a source has a file of its own for a family."""
    return (ROOT / f"config/algorithm/{source}_{family}.yaml").exists()


def family_paths(name: str = DEFAULT_FAMILY, standard: bool = False, source: str | None = None) -> dict[str, str]:
    """The three config files of a family, by section; Darkroom's where it has none of its own.

    Args:
        standard: the model config of standard AD.
        source: default: PPO, if the family has a file for it, else the one that it has a file for. The model config is the
            one that is named after the source, if there is one.

    Raises:
        InputError: there is no such family.
    """
    if name not in families():
        raise InputError(
            f"NAME {name}: no such task family; there are {', '.join(families())}, and --env-config takes any YAML file"
        )
    if source is None:
        own = (other for other in (DEFAULT_SOURCE, *sources()) if has_settings(other, name))
        source = next(own, DEFAULT_SOURCE)
    short = {DEFAULT_FAMILY: "dr"}.get(name, name)
    of_source = any((ROOT / f"config/model/ad_{family}_{source}.yaml").exists() for family in (short, "dr"))
    kind = "" if standard else f"_{source}" if of_source else "_compressed"
    wanted = {
        "env": (f"config/env/{name}.yaml",) * 2,
        "algorithm": (f"config/algorithm/{source}_{name}.yaml", f"config/algorithm/{source}_{DEFAULT_FAMILY}.yaml"),
        "model": (f"config/model/ad_{short}{kind}.yaml", f"config/model/ad_dr{kind}.yaml"),
    }
    return {section: own if (ROOT / own).exists() else default for section, (own, default) in wanted.items()}


def add_config_arguments(parser: argparse.ArgumentParser, sections: tuple[str, ...]) -> None:
    """NAME, `--source`, `--env-config`, `--alg-config`, `--model-config` and `--standard` (those of `sections`), `--set`."""
    parser.add_argument(
        "name", nargs="?", default=DEFAULT_FAMILY, metavar="NAME",
        help=f"task family, which names the config files: {', '.join(families())} (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--source", choices=sources(), help="source of the histories (default: that of NAME, mostly ppo)"
    )
    for section in sections:
        flag = "--" + FLAGS[section].replace("_", "-")
        parser.add_argument(flag, metavar="YAML", help=f"{section} config (default: that of NAME)")
    if "model" in sections:
        parser.add_argument(
            "--standard", action="store_true", help="the model config of standard AD (default: compressed context)"
        )
    add_set_argument(parser)


def add_set_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override one config key; repeatable (default: none)",
    )  # fmt: skip


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda or cuda:N (default: %(default)s, CUDA where there is one)"
    )


def given_paths(args: argparse.Namespace) -> dict[str, str]:
    """The config files that the command line names itself, by section."""
    found = {section: getattr(args, name, None) for section, name in FLAGS.items()}
    return {section: path for section, path in found.items() if path is not None}


def config_paths(args: argparse.Namespace) -> dict[str, str]:
    """The config files of a command, by section: those of NAME, or those that are given in their place."""
    sections = [section for section, name in FLAGS.items() if hasattr(args, name)]
    paths = family_paths(args.name, getattr(args, "standard", False), args.source)
    if "algorithm" in given_paths(args) and args.source:
        raise InputError("--source and --alg-config both choose the algorithm config; give one of them")
    if args.source and not (ROOT / paths["algorithm"]).exists():
        names = [name for name in families() if has_settings(args.source, name)]
        raise InputError(
            f"--source {args.source}: has no settings for {args.name}, only for {', '.join(names)}; with other envs name a file: "
            f"--alg-config config/algorithm/{args.source}_{names[0]}.yaml"
        )
    if "model" in given_paths(args) and getattr(args, "standard", False):
        raise InputError("--standard and --model-config both choose the model config; give one of them")
    return {section: paths[section] for section in sections} | given_paths(args)


DEFAULT_CONFIG = family_paths()


def result_name(text: str) -> Path:
    """Of result files: a path whose endings are added to its last part."""
    path = Path(text)
    if path.name in ("", "..") or text.endswith("/") or path.is_dir():
        raise argparse.ArgumentTypeError(
            f"expected the name of files without their endings, not a folder; as in {path / 'results'}"
        )
    return path


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return value


def seed_number(text: str) -> int:
    value = int(text)
    if not 0 <= value <= HIGHEST_SEED:
        raise argparse.ArgumentTypeError(f"expected 0 to {HIGHEST_SEED}")
    return value
