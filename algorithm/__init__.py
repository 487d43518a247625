"""Source algorithms, by the name used in `alg` of config/algorithm/*.yaml."""

from algorithm.ppo import PPOWrapper

ALGORITHM = {"PPO": PPOWrapper}


def config_problems(config: dict) -> list[str]:
    """What is wrong with the algorithm part of a config, beyond types and ranges."""
    if config["alg"] not in ALGORITHM:
        return [f"alg: unknown algorithm '{config['alg']}', expected one of {', '.join(ALGORITHM)}"]
    return []
