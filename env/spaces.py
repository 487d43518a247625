"""What the environments of a family show and take: their spaces, and which are supported."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from stable_baselines3.common.preprocessing import is_image_space

from env.making import make_env
from env.tasks import list_tasks

SUPPORTED = {"observation": (Discrete, MultiDiscrete, Box), "action": (Discrete, Box)}


def spaces(config: dict) -> tuple[gym.Space, gym.Space]:
    """Observation and action space of the family; all its tasks share them."""
    made = make_env(config, list_tasks(config)[0])
    made.close()
    return made.observation_space, made.action_space


def describe_spaces(config: dict) -> dict:
    """The config's `observation_space` and `action_space`, as plain dicts (see model/spaces.py)."""
    observations, actions = spaces(config)
    return {"observation_space": _describe(observations), "action_space": _describe(actions)}


def _describe(space: gym.Space) -> dict:
    if isinstance(space, Discrete):
        return {"kind": "discrete", "sizes": [int(space.n)]}
    if isinstance(space, MultiDiscrete):
        return {"kind": "discrete", "sizes": [int(n) for n in space.nvec.ravel()]}
    description = {"kind": "continuous", "sizes": [int(np.prod(space.shape))]}
    return description | {"low": space.low.ravel().tolist(), "high": space.high.ravel().tolist()}


def space_problems(role: str, space: gym.Space) -> list[str]:
    """Why a space cannot be used as `role`, "observation" or "action"; empty if it can."""
    if not isinstance(space, SUPPORTED[role]):
        kinds = ", ".join(kind.__name__ for kind in SUPPORTED[role])
        wrapped = "such actions" if role == "action" else "a wrapper such as gymnasium.wrappers.FlattenObservation"
        return [
            f"env: its {role} space is {space}, expected one of {kinds}; let a module of yours register it with "
            f"{wrapped}, and name that as module:id"
        ]
    if role == "action" and len(space.shape) > 1:
        return [f"env: its action space {space} has several axes; wrap it in one that has a single axis"]
    if np.any(getattr(space, "start", 0)):
        return [f"env: its {role} space {space} does not start at 0; wrap it in one that does"]
    if isinstance(space, MultiDiscrete) and space.nvec.ndim > 1:
        return [f"env: its {role} space {space} has several axes; wrap it in one that has a single axis"]
    if role == "action" and isinstance(space, Box) and not (np.isfinite(space.low) & np.isfinite(space.high)).all():
        return [f"env: its action space {space} has no finite bounds, as PPO needs; wrap it in one that has"]
    if is_image_space(space):
        return [f"env: its {role} space {space} is an image; wrap it in one that gives a vector"]
    return []
