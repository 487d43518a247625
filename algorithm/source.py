"""What a source of learning histories is, and how one records what it did.

Letters in shapes: T environment steps per stream, E streams, A actions or action entries.
"""

from __future__ import annotations

from typing import Protocol

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

import env
from config.schema import Key
from history.format import FIELDS, REQUIRED_FIELDS, soft_target_names
from history.markers import find_regions, mark_regions
from history.values import Spaces, entry_shape, value_problem


class Source(Protocol):
    """Learns one task, and hands back all that it did.

    `alg` in a config names one of `algorithm.ALGORITHM`, or `module:Class`, one of the user's own.

    A source may have a static method `prepare(config, traj_dir)`, called once before any task is begun. What it
    returns goes to the constructor, as the keyword `prepared`. One that reads other histories there has a static method
    `first_pass(config)` too, the config of these, so that an interrupted collection never goes on with others.

    Attributes:
        keys: config keys that it reads besides those that every source has. Optional.
        streams_share_policy: whether one policy acts in all streams of a task, so that a training window may join regions of
            different ones. Optional; default True.
    """

    keys: dict[str, Key]
    streams_share_policy: bool

    def __init__(self, config: dict, vec_env: VecEnv, seed: int, log_dir: str | None = None):
        """
        Args:
            config: a complete config, as `load_config` gives it.
            vec_env: one environment per stream, all of one task.
            seed: of all that is random, the environments too: `vec_env.seed(env_seed(seed))`.
            log_dir: TensorBoard folder, or None for no log.
        """

    def run(self) -> dict[str, np.ndarray]:
        """The arrays of one task's group in a history file, as `Recorder.history` gives them."""


class Recorder:
    """Keeps the steps of a source, and marks its regions.

    Args:
        vec_env: the environments; where they have a `recorded`, that is what histories hold of observations.
        region_length: steps per stream in a region, at least 2; the config's `n_steps`.
    """

    def __init__(self, vec_env: VecEnv, region_length: int):
        if region_length < 2:
            raise ValueError("n_steps must be at least 2: a region's first and last step carry different markers")
        self.vec_env, self.region_length = vec_env, region_length
        self.steps: dict[str, list[np.ndarray]] = {  # one (E, ...) array per environment step
            name: [] for name in ("states", "actions", "rewards", "next_states", "dones")
        }
        self.policy: dict[str, list[np.ndarray]] = {}  # its distributions: (n, E, A) arrays of n steps each
        self.regions: list[tuple[int, int]] = []

    @property
    def n_steps(self) -> int:
        """Steps per stream so far."""
        return len(self.steps["dones"])

    def start_region(self) -> None:
        """The next step is the first one of a region, as after every change of the policy.

        Raises:
            ValueError: the region before has not `region_length` steps.
        """
        stop = self.regions[-1][1] if self.regions else 0
        if self.n_steps != stop:
            raise ValueError(
                f"a region starts at step {self.n_steps}, expected at {stop}: all have n_steps = {self.region_length} steps"
            )
        self.regions.append((stop, stop + self.region_length))

    def step(
        self,
        states: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_states: np.ndarray,
        dones: np.ndarray,
        policy: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Record one step of all streams.

        Args:
            states, actions: (E, ...), the observation and the action that was taken from it.
            rewards, dones: (E,), True where an episode ended after the step.
            next_states: (E, ...), what the step led to: `reached_observations`.
            policy: what the actions were drawn from, (E, A) each: `action_means` and `action_stds` for real-valued
                actions, else `action_probs`, of several entries side by side. Given at every step, or at none.

        Raises:
            ValueError: the step lies in no region.
        """
        if not self.regions or self.n_steps >= self.regions[-1][1]:
            raise ValueError(
                f"step {self.n_steps} lies in no region: call start_region every {self.region_length} steps"
            )
        values = (states, actions, rewards, next_states, dones)
        for name, value in zip(self.steps, values):
            self.steps[name].append(np.array(value))  # a copy: environments may reuse theirs
        self.add_policy({name: np.array(value)[None] for name, value in (policy or {}).items()})

    def add_policy(self, arrays: dict[str, np.ndarray]) -> None:
        """Record the distributions of several steps at once, (n, E, A) each."""
        for name, values in arrays.items():
            self.policy.setdefault(name, []).append(values.astype(np.float16 if name == "action_probs" else np.float32))

    def history(self) -> dict[str, np.ndarray]:
        """All that was recorded, as arrays (T, E, ...) with `compress_markers` (T,)."""
        history = {name: np.stack(steps) for name, steps in self.steps.items()}
        for name in ("states", "next_states"):
            history[name] = as_held(self.vec_env, history[name], n_axes=2)
        if history["actions"].ndim > 2:
            history["actions"] = history["actions"].reshape(*history["actions"].shape[:2], -1)
        history["actions"] = history["actions"].astype(smallest_dtype(self.vec_env.action_space))
        history["rewards"] = history["rewards"].astype(np.float32)
        history["dones"] = history["dones"].astype(bool)
        history["compress_markers"] = mark_regions(self.regions, self.n_steps)
        return history | {name: np.concatenate(values) for name, values in self.policy.items()}


def env_seed(seed: int) -> int:
    """The seed of a task's first environment, by the task's; stream j has so much more.

    Tasks have seeds that follow each other. Taken as they are, a stream would share its random numbers with one of the
    next task, with the source itself, and with an environment that a model is evaluated in.
    """
    return int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1


def check_history(history: dict[str, np.ndarray], spaces: Spaces, region_length: int, n_streams: int) -> None:
    """Raise ValueError, saying what is wrong, for arrays that training could not use.

    Args:
        spaces: observation and action space of the family.
        n_streams: that the config asks for.
    """
    if not isinstance(history, dict):
        raise ValueError(f"the source's run() gave {type(history).__name__}, expected a dict of arrays")
    needed = (*REQUIRED_FIELDS, "dones", "compress_markers")
    if missing := [name for name in needed if name not in history]:
        raise ValueError(f"the source's history lacks {', '.join(missing)}")
    shape = history["states"].shape[:2]
    if shape[1:] != (n_streams,) or not shape[0]:
        raise ValueError(
            f"the source's states are of {shape} steps and streams, expected some steps of {n_streams} streams"
        )
    for name, array in history.items():
        expected = shape[:1] if name == "compress_markers" else shape
        if array.shape[: len(expected)] != expected:
            raise ValueError(
                f"the source's {name} have shape {array.shape}, expected {expected} first, by its states; "
                "a policy is given at every step or at none"
            )
    known = soft_target_names(spaces[1])
    if found := [name for name in history if name.startswith("action_") and name not in known]:
        raise ValueError(f"the source's policy has {', '.join(found)}, expected {' and '.join(known)} for its actions")
    for name in [name for name in (*FIELDS, "next_states", *known) if name in history]:
        array, entry = history[name], entry_shape(name, spaces)
        if np.prod(array.shape[2:], dtype=int) != np.prod(entry, dtype=int):
            raise ValueError(
                f"the source's {name} have shape {array.shape}, expected {(*shape, *entry)}, by the env's spaces"
            )
        if problem := value_problem(name, array.reshape(*shape, *entry), spaces):
            raise ValueError(f"the source's {name}: {problem}")
    find_regions(history["compress_markers"], region_length)


def as_held(vec_env: VecEnv, observations: np.ndarray, n_axes: int) -> np.ndarray:
    """Observations as histories hold them: `n_axes` axes, of steps or streams, then one of entries, in the smallest type."""
    if recorded := getattr(vec_env, "recorded", None):  # see env.make_source_env
        observations = recorded(observations)
    flat = observations.reshape(*observations.shape[:n_axes], -1)
    return flat.astype(smallest_dtype(vec_env.observation_space))


def smallest_dtype(space: gym.Space) -> np.dtype:
    """The smallest type that holds every value of a space: integers by their bounds, a Box of them as it is, else float32."""
    if (sizes := env.entry_sizes(space)) is not None:
        return np.min_scalar_type(int(sizes.max()) - 1)
    return space.dtype if space.dtype.kind in "iu" else np.dtype(np.float32)


def reached_observations(observations: np.ndarray, dones: np.ndarray, infos: list[dict]) -> np.ndarray:
    """What a VecEnv's step led to, (E, ...): where an episode ended its last observation, not the reset one."""
    reached = observations.copy()
    for stream in np.flatnonzero(dones):
        reached[stream] = infos[stream]["terminal_observation"]
    return reached
