"""Source algorithms, by the name used in `alg` of config/algorithm/*.yaml."""

import stable_baselines3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from algorithm.a2c import A2CWrapper
from algorithm.ppo import PPOWrapper
from utils import KEYS

ALGORITHM = {"PPO": PPOWrapper, "A2C": A2CWrapper}


def config_problems(config: dict) -> list[str]:
    """What is wrong with the algorithm part of a config, beyond types and ranges."""
    alg = config["alg"]
    if alg not in ALGORITHM:
        return [_unknown_algorithm(alg)]
    problems = [
        f"{name}: {alg} does not read it, only {key.alg} does; leave it out, or use a config of {alg} under config/algorithm/"
        for name, key in KEYS["algorithm"].items()
        if not key.is_read(config) and config[name] is not None
    ]
    rollout = config["n_steps"] * config["n_stream"]
    if alg == "PPO" and config["batch_size"] > rollout:
        problems.append(
            f"batch_size {config['batch_size']} is larger than one rollout, n_steps * n_stream = "
            f"{config['n_steps']} * {config['n_stream']} = {rollout}"
        )
    if not all(isinstance(width, int) and width > 0 for width in config["net_arch"]):
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
    return f"alg: unknown algorithm '{alg}', expected one of {names}"
