"""Sources of learning histories, by the name used in `alg` of config/algorithm/*.yaml; `module:Class` is one of the user's."""

import stable_baselines3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from algorithm.a2c import A2CSource
from algorithm.conditioned import Conditioned
from algorithm.explorer import Explorer
from algorithm.ppo import PPOSource
from algorithm.psrl import PSRL
from algorithm.source import Source
from algorithm.ucb import UCB
from utils import find_class

ALGORITHM: dict[str, type[Source]] = {
    "PPO": PPOSource,
    "A2C": A2CSource,
    "Explorer": Explorer,
    "PSRL": PSRL,
    "Conditioned": Conditioned,
    "UCB": UCB,
}


def source_class(config: dict) -> type[Source]:
    """The class of the config's source.

    Raises:
        KeyError: there is none of that name. Whatever the user's module raises is let through.
    """
    return find_class(config["alg"], ALGORITHM)


def source_problems(config: dict) -> list[str]:
    """Whether the config names a source."""
    alg = config["alg"]
    try:
        source = source_class(config)
    except KeyError:
        return [_unknown_algorithm(alg)]
    if not callable(getattr(source, "run", None)):
        return [f"alg: {alg} has no method run, which every source has; algorithm/source.py says what a source is"]
    return []


def mixed_learners(config: dict) -> str | None:
    """What to say where training windows join regions of different learners; None where they do not.

    Raises what `source_class` raises.
    """
    mixes = config["mix_streams"] and config["histories"] != "whole"
    if not mixes or getattr(source_class(config), "streams_share_policy", True):
        return None
    return (
        f"mix_streams: true joins regions of different streams, and with alg: {config['alg']} each stream is a learner of its "
        "own; better train with --set histories=whole --set mix_streams=false"
    )


def config_problems(config: dict) -> list[str]:
    """What is wrong with the algorithm part of a config, beyond types and ranges."""
    if problems := source_problems(config):
        return problems
    rollout = config["n_steps"] * config["n_stream"]
    if issubclass(source_class(config), PPOSource) and config["batch_size"] > rollout:
        problems.append(
            f"batch_size {config['batch_size']} is larger than one rollout, n_steps * n_stream = "
            f"{config['n_steps']} * {config['n_stream']} = {rollout}"
        )
    if not all(isinstance(width, int) and width > 0 for width in config["net_arch"] or ()):
        problems.append(f"net_arch {config['net_arch']}: expected a list of positive layer widths")
    return problems


def _unknown_algorithm(alg: str) -> str:
    names = ", ".join(ALGORITHM)
    known = getattr(stable_baselines3, alg, None)
    if isinstance(known, type) and issubclass(known, OffPolicyAlgorithm):
        return (
            f"alg: {alg} is off-policy: it learns from a replay buffer of all its past, so it has no rollouts that "
            f"could be regions; use one of {names}, or train standard AD on a history file without compress_markers"
        )
    return f"alg: unknown algorithm '{alg}', expected one of {names}, or module:Class"
