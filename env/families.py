"""The families of tasks that come with this code, one record each, and their Gymnasium ids.

A new family is one file with its classes, and one line in `FAMILIES`.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from env.darkroom import (
    Darkroom,
    DarkroomHard,
    DarkroomHardVecEnv,
    DarkroomPermuted,
    DarkroomPermutedVecEnv,
    DarkroomVecEnv,
)
from env.key_to_door import DarkKeyToDoor, DarkKeyToDoorVecEnv, ShowFound


@dataclass(frozen=True)
class Family:
    """What there is to know of a family.

    Attributes:
        scalar: one task. Its static `tasks(config)` lists the keyword arguments of every task, and its
            attribute `horizon`, the most steps of an episode, is the same for all of them.
        env_id: the Gymnasium id of the scalar class.
        defaults: arguments that the id alone stands for.
        batched: many tasks stepped at once, with the results of a DummyVecEnv of them; None if there is no such class.
        source_sees: a wrapper that shows the source, not the model, how far an episode has come; None if
            there is nothing to show.
        keys: config keys that `tasks(config)` reads.
    """

    scalar: type[gym.Env]
    env_id: str
    defaults: dict
    batched: type[VecEnv] | None = None
    source_sees: type[VecEnvWrapper] | None = None
    keys: tuple[str, ...] = ("grid_size", "horizon")


FAMILIES = {
    "darkroom": Family(Darkroom, "Darkroom-v0", {"goal": (0, 0)}, DarkroomVecEnv),
    "darkroom_large": Family(  # a name, and so files, of its own
        Darkroom, "DarkroomLarge-v0", {"goal": (0, 0), "grid_size": 15, "horizon": 50}, DarkroomVecEnv
    ),
    "darkroom_permuted": Family(DarkroomPermuted, "DarkroomPermuted-v0", {}, DarkroomPermutedVecEnv),
    "darkroom_hard": Family(DarkroomHard, "DarkroomHard-v0", {"goal": (0, 0)}, DarkroomHardVecEnv),
    "dark_key_to_door": Family(
        DarkKeyToDoor, "DarkKeyToDoor-v0", {"key": (0, 0), "door": (8, 8)}, DarkKeyToDoorVecEnv, ShowFound
    ),
}
for _family in FAMILIES.values():
    _entry_point = f"{_family.scalar.__module__}:{_family.scalar.__qualname__}"
    gym.register(_family.env_id, entry_point=_entry_point, kwargs=_family.defaults)
gym.register("CartPoleTask-v0", entry_point="env.cartpole:CartPoleTask", max_episode_steps=200)
