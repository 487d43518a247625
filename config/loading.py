"""Reading, merging and checking of configs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from config.schema import ALL_KEYS, DEFAULTS, KEYS, REQUIRED, Decides, Key, names
from files import InputError, describe_foreign_error
from utils import find_class, get_config

Check = Callable[[dict], list[str]]  # problems of a complete config
CLASS_KEYS = {"env": (), "algorithm": ("alg",), "model": ("model", "context")}  # may name a class of the user's


class Config(dict):
    """The effective config: what training, acting and checkpoints go by. It can only be read.

    To change a copy, use `dict(config)` or `config | changes`.
    """

    def _refuse(self, *_, **__):
        raise TypeError("the effective config can only be read; make a changed copy with: config | {...}")

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = setdefault = clear = _refuse

    def __reduce__(self):
        return Config, (dict(self),)


yaml.SafeDumper.add_representer(Config, yaml.SafeDumper.represent_dict)


@dataclass
class Section:
    """One config file with the overrides of its keys, completed with defaults."""

    name: str
    path: str | Path
    values: dict[str, Any] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)  # keys that the file and the overrides name themselves
    keys: dict[str, Key] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def load_config(
    paths: dict[str, str | Path],
    overrides: Iterable[str] = (),
    checks: tuple[Check, ...] = (),
    recorded: Callable[[dict], dict] | None = None,
) -> dict[str, Any]:
    """Read, merge, complete with defaults and check the config files of a script.

    Args:
        paths: file per section ("env", "algorithm", "model"), those the script needs.
        overrides: `key=value` strings; values are typed like the YAML value they replace.
        checks: further rules, each giving a list of problems for the complete config.
        recorded: gives settings that take the place of the config's before these checks, such as a history file's.

    Raises:
        InputError: listing every problem found, in all files and overrides.
    """
    sections = [_read_section(name, path, list(overrides)) for name, path in paths.items()]
    problems = [problem for section in sections for problem in section.problems]
    known = {name: key for section in sections for name, key in section.keys.items()}
    problems += _unknown_overrides(overrides, known)
    config = {name: value for section in sections for name, value in section.values.items()}
    if any(value is REQUIRED for value in config.values()) or len(config) < len(known):
        raise _problems_error(problems)
    if recorded:
        try:
            config |= recorded(config)
        except Exception:  # it may well stumble over the values already found wrong
            if not problems:
                raise
    return _checked(config, problems, (relation_problems, *checks))


def given_settings(paths: dict[str, str | Path], overrides: Iterable[str], named: set[str]) -> dict[str, Any]:
    """Settings that a command line names: those of the sections whose file is `named` there, and the overrides."""
    overridden, found = {override.partition("=")[0] for override in overrides}, {}
    for name, path in paths.items():
        section = _read_section(name, path, list(overrides))
        keys = section.given if name in named else section.given & overridden
        found |= {key: section.values[key] for key in keys}
    return found


def override_config(config: dict, overrides: list[str], changeable: tuple[str, ...], checks: tuple[Check, ...]) -> dict:
    """A checkpoint's config with some of its `changeable` keys overridden.

    Raises:
        InputError: listing every problem found.
    """
    known = {name: key for name, key in _known_keys(config).items() if name in config}
    problems = _unknown_overrides(overrides, known)
    given = [override.partition("=")[0] for override in overrides]
    problems += [
        f"--set {name}: fixed by the checkpoint; only {', '.join(changeable)} can be changed"
        for name in given
        if name in known and name not in changeable
    ]
    config = dict(config)
    _apply_overrides(config, known, overrides)
    for name in set(given) & set(known):
        config[name] = _as_kind(config[name], known[name])
        if found := known[name].problem(config[name]):
            problems.append(f"--set {name}: {config[name]!r}: {found}")
        elif not known[name].is_read(config):
            problems.append(_unread(name, known[name], config))
    return _checked(config, problems, (relation_problems, *checks))


def complete_config(config: dict, path: str | Path) -> Config:
    """A checkpoint's config, with the keys that came after it was written.

    Raises:
        InputError: a key is missing or has an impossible value.
    """
    config = (
        {name: absent_value(name, config) for name in DEFAULTS} | {"with_dones": True, "blank_starts": False} | config
    )
    config["context"] = context_name(config)
    for name, key in ALL_KEYS.items():
        if name in config:
            config[name] = _as_kind(config[name], key)
        if key.is_read(config) and (name not in config or key.problem(config[name])):
            raise InputError(f"{path}: its config has no usable '{name}'; use another checkpoint")
    return Config(config)


# What the keys' decisions allow ---------------------------------------------------------------------


def recorded_settings(config: dict) -> dict[str, Any]:
    """The part of a config that decides what a history file holds; keys an older one lacks get their defaults."""
    decisions = [Decides.SOURCE, Decides.TASKS]
    if config.get("learns_from"):  # a source that knows the training tasks: other ones are not held out any more
        decisions.append(Decides.SPLIT)
    held = {name: config.get(name, absent_value(name, config)) for name in names(*decisions)}
    known = {name: _as_kind(value, ALL_KEYS[name]) for name, value in held.items()}
    own = {name: config[name] for name in foreign_keys("algorithm", config) if name in config}
    return known | own


def absent_value(name: str, config: dict) -> Any:
    """What a config that was written before there was this key would hold: null where its source does not read it."""
    unread = name in KEYS["algorithm"] and not ALL_KEYS[name].is_read(config)
    return None if unread else ALL_KEYS[name].default


def free_when_resuming(config: dict) -> set[str]:
    """Keys that a resumed training run may have other values of: they change nothing that is learned, or nothing reads them."""
    unread = {name for name, key in _known_keys(config).items() if not key.is_read(config)}
    return unread | set(names(Decides.EVALUATION, Decides.LOGGING, Decides.RUNNING))


def free_in_evaluation() -> tuple[str, ...]:
    """Keys that may differ from the checkpoint's when it is evaluated: the rest is built into the weights."""
    return names(Decides.EVALUATION, Decides.TASKS, Decides.SPLIT)


def recorded_problem(config: dict) -> str | None:
    """The first value of a recorded config that decides something and is impossible, or None."""
    complete, deciding = DEFAULTS | config, recorded_settings(config)
    for name, value in config.items():
        key = ALL_KEYS.get(name) if name in deciding else None
        if key and key.is_read(complete) and (found := key.problem(_as_kind(value, key))):
            return f"{name}: {value!r}: {found}"
    return None


def differences(before: dict, now: dict, keys: Iterable[str], where_now: str = "now") -> str:
    """Which of the `keys` differ between two configs, in words; empty if none does."""
    return "; ".join(
        f"{name}: {before.get(name)!r} there, {now.get(name)!r} {where_now}"
        for name in keys
        if before.get(name) != now.get(name)
    )


# Steps of loading -----------------------------------------------------------------------------------


def context_name(config: dict) -> str:
    """The context strategy in force: `context`, or where that is null, what `use_compressed_context` says."""
    return config.get("context") or ("regions" if config.get("use_compressed_context") else "window")


def foreign_keys(section: str, values: dict) -> dict[str, Key]:
    """Keys that classes of the user's bring along: `keys` of each class that a value `module:Class` names.

    Raises:
        ValueError: one is no Key, or has the name of a shipped key that others read. Whatever the user's module
            raises is let through.
    """
    classes = [values.get(chooser) for chooser in CLASS_KEYS[section]]
    found = [getattr(find_class(name, {}), "keys", {}) for name in classes if isinstance(name, str) and ":" in name]
    own = {name: key for keys in found for name, key in keys.items()}
    for name, key in own.items():
        if not isinstance(key, Key):
            raise ValueError(f"its key {name!r} is {key!r}, expected a Key, of config/schema.py")
        shipped = ALL_KEYS.get(name)
        if shipped and (name not in KEYS[section] or (shipped.only is None and key != shipped)):
            raise ValueError(
                f"its key {name!r} is one of the shipped keys, which others read too; give it another name"
            )
    return own


def _known_keys(config: dict) -> dict[str, Key]:
    """All keys, those of a config's own classes too; a class that cannot be imported is told by whoever makes it."""
    known = dict(ALL_KEYS)
    for section in ("algorithm", "model"):
        with suppress(Exception):
            known |= foreign_keys(section, config)
    return known


def _read_section(name: str, path: str | Path, overrides: list[str]) -> Section:
    section = Section(name, path, keys=dict(KEYS[name]))
    try:
        own = get_config(path)
    except InputError as error:
        section.problems.append(str(error))
        return section
    chosen = dict(own)
    _apply_overrides(chosen, KEYS[name], overrides)
    try:
        section.keys |= foreign_keys(name, chosen)
    except Exception as error:  # whatever a user's module raises
        section.problems.append(f"{path}: a class that it names cannot be used: {describe_foreign_error(error)}")
    if own and not set(own) & set(section.keys):
        belongs = [other for other, keys in KEYS.items() if set(own) & set(keys)]
        section.problems.append(f"{path}: is no {name} config{f', but one of: {belongs[0]}' if belongs else ''}")
        return section
    unknown = [key for key in own if key not in section.keys]
    section.problems += [f"{path}: unknown key '{key}'{_did_you_mean(key, section.keys)}" for key in unknown]
    merged = {key: own.get(key, entry.default) for key, entry in section.keys.items()}
    _apply_overrides(merged, section.keys, overrides)
    section.given = (set(own) | {override.partition("=")[0] for override in overrides}) & set(merged)
    if name == "model":
        merged["context"] = context_name(merged)
    section.values = merged
    _check_section(section)
    return section


def _check_section(section: Section) -> None:
    """Fill in what stands for keys that nothing reads, and list the problems of all others."""
    values = section.values
    unread = [name for name, key in section.keys.items() if not key.is_read(values)]
    wrong = [name for name in unread if values[name] != section.keys[name].default and name in section.given]
    if section.name == "algorithm" and wrong:  # then name all that belong to another algorithm
        wrong = [name for name in unread if name in section.given and values[name] is not None]
        readers = {reader for key in section.keys.values() for reader in key.only or ()}
        if values["alg"] not in readers and ":" not in str(values["alg"]):
            wrong = []  # an unknown algorithm is enough of a message
    section.problems += [_unread(name, section.keys[name], values) for name in wrong if values[name] is not None]
    for name, key in section.keys.items():
        if name in unread:  # a history file records no setting that its source did not read
            values[name] = None if section.name == "algorithm" else key.default
            continue
        values[name] = value = _as_kind(values[name], key)
        if value is REQUIRED:
            section.problems.append(f"{section.path}: key '{name}' is missing")
        elif found := key.problem(value):
            section.problems.append(f"{section.path}: {name}: {value!r}: {found}")


def _listed(names: list[str], last: str) -> str:
    """Names as in a sentence: a, b and c; `last` is the word before the last one."""
    return f" {last} ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _unread(name: str, key: Key, values: dict) -> str:
    chooser, *wanted = key.only
    return (
        f"{name}: {values.get(chooser)} does not read it, only {_listed(wanted, 'and')} {'do' if wanted[1:] else 'does'}; "
        f"leave it out, or use a config with {chooser}: {_listed(wanted, 'or')}"
    )


def _apply_overrides(merged: dict, keys: dict[str, Key], overrides: Iterable[str]) -> None:
    for override in overrides:
        name, equals, text = override.partition("=")
        if equals and name in keys:
            is_text = keys[name].kind is str and not (keys[name].nullable and text == "null")
            try:
                merged[name] = text if is_text else yaml.safe_load(text)
            except yaml.YAMLError:
                merged[name] = text  # its type is then reported


def _unknown_overrides(overrides: Iterable[str], known: dict[str, Key]) -> list[str]:
    problems = []
    for override in overrides:
        name, equals, _ = override.partition("=")
        if not equals:
            problems.append(f"--set {override}: expected key=value")
        elif name not in known:
            problems.append(f"--set {override}: unknown key '{name}'{_did_you_mean(name, known)}")
    return problems


def _checked(config: dict, problems: list[str], checks: tuple[Check, ...]) -> dict:
    for check in checks:
        try:
            problems += check(config)
        except Exception:  # it may well stumble over the values already found wrong
            if not problems:
                raise
    if problems:
        raise _problems_error(problems)
    return config


def _problems_error(problems: list[str]) -> InputError:
    return InputError("the configuration has problems:\n" + "\n".join(f"  - {problem}" for problem in problems))


def _as_kind(value: Any, key: Key) -> Any:
    """Where a float is expected, an integer is fine too, and 3e-4, which YAML 1.1 reads as text."""
    if key.kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        key.kind is float
        and isinstance(value, str)
        and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]+", value)
    ):
        return float(value)
    return value


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def relation_problems(config: dict) -> list[str]:
    """Contradictions between keys, over all sections that are present."""
    problems = []
    if "n_embd" in config and config["n_embd"] % config["n_head"]:
        problems.append(f"n_embd {config['n_embd']} must be a multiple of n_head {config['n_head']}")
    if config.get("exploring_patience") is not None and config.get("exploring_temperature") is None:
        problems.append(
            f"exploring_patience {config['exploring_patience']} says when exploring_temperature applies, which is null; "
            "set both, or both to null"
        )
    interval = config.get("compress_interval")
    for name in ("shortest_region", *(["mean_region"] if config.get("boundaries") == "random" else [])):
        if isinstance(interval, int) and (config.get(name) or 0) > interval:
            problems.append(f"{name} {config[name]} is longer than a region may be: compress_interval is {interval}")
    shortest, mean = config.get("shortest_region"), config.get("mean_region")
    if config.get("boundaries") == "random" and mean is not None and mean < shortest:
        problems.append(f"mean_region {mean} is below shortest_region {shortest}")
    if config.get("region_ends") == "news" and config["histories"] != "whole":
        problems.append(
            f"region_ends: news cuts a stream's own life, histories: {config['histories']} joins pieces of several; "
            "set histories: whole, or region_ends: fixed"
        )
    return problems
