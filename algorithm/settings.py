"""What the source algorithms share."""

from __future__ import annotations


def shared_settings(config: dict, seed: int, log_dir: str | None) -> dict:
    """Keyword arguments of an on-policy algorithm of stable-baselines3, from the keys that all of them read."""
    return {
        "learning_rate": config["source_lr"],
        "n_steps": config["n_steps"],
        "gamma": config["gamma"],
        "gae_lambda": config["gae_lambda"],
        "ent_coef": config["ent_coef"],
        "vf_coef": config["vf_coef"],
        "max_grad_norm": config["max_grad_norm"],
        "policy_kwargs": {"net_arch": list(config["net_arch"])},
        "tensorboard_log": log_dir,
        "seed": seed,
        "device": "cpu",  # small networks: a GPU only adds transfers
    }
