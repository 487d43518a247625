"""Source algorithms, by the name used in `alg` of config/algorithm/*.yaml."""

from algorithm.ppo import PPOWrapper

ALGORITHM = {"PPO": PPOWrapper}


def config_problems(config: dict) -> list[str]:
    """What is wrong with the algorithm part of a config, beyond types and ranges."""
    if config["alg"] not in ALGORITHM:
        return [f"alg: unknown algorithm '{config['alg']}', expected one of {', '.join(ALGORITHM)}"]
    problems = []
    rollout = config["n_steps"] * config["n_stream"]
    if config["batch_size"] > rollout:
        problems.append(
            f"batch_size {config['batch_size']} is larger than one rollout, n_steps * n_stream = "
            f"{config['n_steps']} * {config['n_stream']} = {rollout}"
        )
    if not all(isinstance(width, int) and width > 0 for width in config["net_arch"]):
        problems.append(f"net_arch {config['net_arch']}: expected a list of positive layer widths")
    return problems
