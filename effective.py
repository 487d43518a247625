"""The effective config: what a history file and the config files give together."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import env
from config.loading import Config, differences, recorded_problem, recorded_settings, relation_problems
from config.schema import KEYS
from files import InputError
from history.format import history_path, soft_target_names
from history.origin import Origin, collect_command, read_origin
from history.pace import episode_lengths, shortest_change
from history.reader import HistoryFile
from model.context import context_class

MOST_TASKS = 64  # whose histories tell how fast a source learns


def effective_config(config: dict, traj_dir: str | Path, given: dict[str, Any] | None = None) -> Config:
    """The config that a history file and the config files give together; it can only be read.

    The file decides what it was collected with. It also decides the mode: without `compress_markers` it is
    standard AD. A number takes the place of `compress_interval: auto`. Added are `observation_space` and
    `action_space`, `with_dones`, whether histories say where episodes end, and `blank_starts`, whether the regions of
    a training window may be of several streams or of rollouts that do not follow each other; then a region that
    begins within an episode does not show what led to its first step, in training and in acting.

    Args:
        config: a complete config, as `load_config` gives it.
        traj_dir: folder of the history file.
        given: settings that the user named for this command; they must not contradict the file.

    Raises:
        InputError: the file is missing or damaged, or contradicts `given` or itself.
    """
    path = history_path(config, traj_dir)
    origin = read_origin(path, config)
    if not origin.fields:
        raise InputError(f"{path}: has no groups named 0, 1, ... that hold histories of tasks; collect it again")
    recorded = source_settings(origin, path)
    told = recorded or rollouts_of(origin)
    if given:
        _check_given(path, given, told, config)
    config = config | told
    if given is not None and "n_stream" not in recorded | given:  # a file of another program: all that it has
        config |= {"n_stream": origin.n_streams}
        if origin.n_streams != origin.most_streams:
            warnings.warn(
                f"{path} has tasks of {origin.n_streams} to {origin.most_streams} streams: {origin.n_streams} of each are used",
                stacklevel=2,
            )
    config |= standard_mode(config, origin, path)
    missing = [name for name in ("next_states", "dones") if name not in origin.fields]
    if config["reached_observations"] and missing:
        warnings.warn(f"{path} has no {' and no '.join(missing)}: reached_observations is off", stacklevel=2)
        config |= {"reached_observations": False}
    interval = config["compress_interval"]
    if interval == "auto":
        interval = automatic_interval(path, config, origin) if reads_interval(config) else None
    interval = interval or origin.rollout_length or config["n_transit"]
    if interval < 2:
        raise InputError(f"{path}: its rollouts have {interval} step, regions need at least 2; set compress_interval")
    problems = relation_problems(config | {"compress_interval": interval})
    if config["use_compressed_context"] and problems:
        raise InputError(f"{path}: {problems[0]}")
    return Config(
        config
        | env.describe_spaces(config)
        | {
            "compress_interval": interval,
            "rollout_length": origin.rollout_length,
            "with_dones": "dones" in origin.fields,
            "blank_starts": blanks_starts(
                config | {"compress_interval": interval, "rollout_length": origin.rollout_length}
            ),
        }
    )


def reads_interval(config: dict) -> bool:
    """Whether the length of a region matters: with compressed context, or where training histories are put together."""
    return config["use_compressed_context"] or config["histories"] != "every"


def blanks_starts(config: dict) -> bool:
    """Whether the regions of a training window are of several streams, or of pieces of rollouts that do not follow."""
    if config["histories"] == "whole":
        return False
    interval, length = config["compress_interval"], config["rollout_length"]
    are_pieces = context_class(config).windows_are_histories and isinstance(interval, int) and interval < (length or 0)
    return config["region_stride"] > 1 or config["mix_streams"] or are_pieces


def automatic_interval(path: Path, config: dict, origin: Origin, history: HistoryFile | None = None) -> int | None:
    """The steps that `compress_interval: auto` stands for; None, with a warning, where the file cannot tell.

    It is the shortest allowed region after which the source's policy has changed, by the histories of training tasks.

    Args:
        history: what `read_for_pace` gives, where it has been read already.
    """
    distributions = soft_target_names(env.spaces(config)[1])
    reason = None
    if missing := sorted({"compress_markers", "dones", *distributions} - origin.fields):
        reason = f"has no {' and '.join(missing)}"
    else:
        history = history or read_for_pace(path, config, origin.rollout_length)
        if history.n_streams < 2 or not history.has_soft_targets:
            reason = "has not two streams with the policy's distributions in every task"
        elif not (allowed := allowed_intervals(history, config)):
            reason = "allows no region of whole episodes"
        elif (interval := shortest_change(history, allowed)) is None:
            reason = f"shows no change of policy from one region to the next, with regions of {allowed} steps"
    if reason is None:
        return interval
    instead = "the length of its rollouts" if origin.rollout_length else "n_transit"
    warnings.warn(f"{path} {reason}: compress_interval auto is {instead}", stacklevel=3)
    return None


def read_for_pace(path: Path, config: dict, rollout_length: int) -> HistoryFile:
    """Histories of training tasks, `MOST_TASKS` at most, with all that tells how their source learned."""
    tasks = env.split_tasks(config)["train"]
    reading, steps = {"soft_targets": True, "in_memory": "always"}, config["train_source_timesteps"]
    tasks = tasks[:: -(-len(tasks) // MOST_TASKS)]
    return HistoryFile(path, config | reading, tasks, source_timesteps=steps, region_length=rollout_length)


def allowed_intervals(history: HistoryFile, config: dict) -> list[int]:
    """Divisors of a rollout, one, two, four, ... of them: lengths of regions that hold whole episodes and that the
    context strategy takes, shortest first.

    Where episodes are not all of one length, a region holds at least one of the longest. Four regions fit into a
    stream; with `histories: whole`, `history_regions` of them.
    """
    rollout = history.region_length
    episodes = episode_lengths(history) if "dones" in history.arrays else ()
    if not len(episodes):
        return []
    n_regions = config["history_regions"] if config["histories"] == "whole" else 4
    shortest = config["shortest_region"] if config["region_ends"] == "news" else 2
    longest, most = max(episodes.max(), shortest), int(history.task_steps.min()) // max(4, n_regions)
    lengths = [length for length in range(2, rollout) if rollout % length == 0]
    lengths += [rollout * 2**i for i in range(most.bit_length()) if rollout * 2**i <= most]
    fitting = [
        n for n in lengths if longest <= n <= most and (n % episodes.max() == 0 or episodes.min() < episodes.max())
    ]
    return [n for n in fitting if not context_class(config).problems(config | {"compress_interval": n})]


def source_settings(origin: Origin, path: Path) -> dict[str, Any]:
    """What a history file was collected with; {} for one that does not say.

    Raises:
        InputError: a value of it is impossible.
    """
    if problem := recorded_problem(origin.recorded):
        raise InputError(f"{path}: the config that it records: {problem}; write it as it was, or collect it again")
    return {name: value for name, value in origin.recorded.items() if name in recorded_settings(origin.recorded)}


def rollouts_of(origin: Origin) -> dict[str, int]:
    """What a file of another program tells by its markers."""
    return {"n_steps": origin.rollout_length} if origin.rollout_length else {}


def standard_mode(config: dict, origin: Origin, path: Path) -> dict[str, Any]:
    """Settings of a plain window, with a warning, where regions are asked for and the file marks none; else {}."""
    if not config["use_compressed_context"] or "compress_markers" in origin.fields:
        return {}
    warnings.warn(
        f"{path} has no compress_markers: standard mode, with a window of n_transit steps, is used", stacklevel=3
    )
    return {"use_compressed_context": False, "context": "window"}


def settings_of_file(config: dict, traj_dir: str | Path) -> dict[str, Any]:
    """`source_settings` of the history file that a config names, and `standard_mode`; {} while there is none.

    Raises:
        InputError: it is one of another environment or source, under this name.
    """
    path = history_path(config, traj_dir)
    if not path.is_file():
        return {}
    origin = read_origin(path, config)
    settings = source_settings(origin, path) or rollouts_of(origin)
    naming = [name for name in ("env", "alg", "alg_seed") if name in settings]
    if differing := differences(settings, config, naming, "in the config"):
        own = history_path(config | settings, traj_dir).name
        raise InputError(
            f"{path}: was collected with other settings ({differing}); call it {own} again, or collect again"
        )
    return settings | standard_mode(config, origin, path)


def _check_given(path: Path, given: dict[str, Any], recorded: dict[str, Any], config: dict) -> None:
    """Raise InputError where settings that the user gave are not those that a history file was collected with."""
    read = {name for name in given if name in recorded} & (
        set(env.keys_read(config)) | set(recorded) - set(KEYS["env"])
    )
    if differing := differences(recorded, given, sorted(read), "given now"):
        raise InputError(
            f"{path}: was collected with other settings ({differing}); give those of the file, or leave them out, since it "
            f"says them; or collect again with: {collect_command(config, path)} --overwrite"
        )
