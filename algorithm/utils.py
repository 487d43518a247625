"""Recording of source histories, and the rule that marks their regions.

A region is one rollout: what the algorithm collects between two updates. Its first step is marked
`REGION_START`, its last `REGION_END`, all others `INSIDE`.

Letters in shapes: T environment steps per stream, E streams, A actions.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

INSIDE, REGION_START, REGION_END = 0, 1, 2  # values of compress_markers in a history file


def mark_regions(regions: list[tuple[int, int]], n_steps: int) -> np.ndarray:
    """Markers of a history of `n_steps` steps.

    Args:
        regions: half-open (start, stop) step indices; a stop beyond `n_steps` is an unfinished region,
            which gets a start marker only.

    Returns:
        (n_steps,) int8.
    """
    markers = np.full(n_steps, INSIDE, dtype=np.int8)
    for start, stop in regions:
        markers[start] = REGION_START
        if stop <= n_steps:
            markers[stop - 1] = REGION_END
    return markers


def find_regions(markers: np.ndarray, compress_interval: int) -> list[tuple[int, int]]:
    """Locate the regions of one history; the inverse of `mark_regions`.

    Args:
        markers: (T,) integers, one per environment step.
        compress_interval: the length every finished region must have, in environment steps.

    Returns:
        Half-open (start, stop) step indices in time order. An unfinished last region is included, with
        stop = T, so it is shorter than `compress_interval`.

    Raises:
        ValueError: a value is no marker, a step lies outside every region, a start follows a start, an
            end follows an end, or a length differs; the message gives the step and what was expected.
    """
    unknown = np.flatnonzero(~np.isin(markers, (INSIDE, REGION_START, REGION_END)))
    if unknown.size:
        raise ValueError(f"step {unknown[0]} has marker {markers[unknown[0]]}, expected 0, 1 or 2")
    regions, expected_start = [], 0
    starts, ends = np.flatnonzero(markers == REGION_START), np.flatnonzero(markers == REGION_END)
    for i, start in enumerate(starts):
        if start != expected_start:
            raise ValueError(
                f"expected a region start (1) at step {expected_start}, found the next one at step {start}"
            )
        stop = int(ends[i]) + 1 if i < len(ends) else len(markers)
        finished, length = i < len(ends), stop - start
        if (finished and length != compress_interval) or length > compress_interval:
            raise ValueError(
                f"the region from step {start} to {stop - 1} has {length} steps, expected compress_interval = {compress_interval}"
            )
        regions.append((int(start), stop))
        expected_start = stop
    if len(ends) > len(starts) or expected_start != len(markers):
        raise ValueError(f"steps from {expected_start} on lie in no region: no start marker (1) there")
    return regions


def smallest_dtype(space: gym.Space) -> np.dtype:
    """The smallest type that holds every value of a space: integers by their bounds, floats as float32."""
    if isinstance(space, gym.spaces.Discrete):
        return np.min_scalar_type(int(space.n) - 1)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return np.min_scalar_type(int(space.nvec.max()) - 1)
    return np.dtype(np.float32)


def reached_observations(observations: np.ndarray, dones: np.ndarray, infos: list[dict]) -> np.ndarray:
    """What a VecEnv's step led to, (E, ...): where an episode ended its last observation, not the reset one."""
    reached = observations.copy()
    for stream in np.flatnonzero(dones):
        reached[stream] = infos[stream]["terminal_observation"]
    return reached


class HistoryLoggerCallback(BaseCallback):
    """Records the whole learning history of an on-policy algorithm, with its rollouts as regions.

    After `learn`, `history()` returns the arrays of one task's group in a history file.

    Args:
        compress_interval: expected region length in environment steps; must equal the algorithm's
            `n_steps`. The markers themselves follow the rollouts as they happen.

    Raises:
        ValueError: at the start of training, when the algorithm has no rollouts of `n_steps` steps
            (off-policy), or when `n_steps` is not `compress_interval` or below 2.
    """

    def __init__(self, compress_interval: int, verbose: int = 0):
        super().__init__(verbose)
        self.compress_interval = compress_interval
        self.steps: dict[str, list[np.ndarray]] = {}  # one (E, ...) array per environment step
        self.policy: dict[str, list[np.ndarray]] = {}  # its distributions: one (n_steps, E, A) array per rollout
        self.regions: list[tuple[int, int]] = []
        self.mean_return_per_rollout: list[float] = []
        self.episode_return = np.zeros(0)  # (E,) running return of the current episode
        self.finished_returns: list[float] = []  # of the episodes that ended in the current rollout

    def _on_training_start(self) -> None:
        n_steps = getattr(self.model, "n_steps", None)
        if n_steps is None or not hasattr(self.model, "rollout_buffer"):
            raise ValueError(
                f"{type(self.model).__name__} is not an on-policy algorithm: it has no rollouts to mark as regions"
            )
        if n_steps != self.compress_interval:
            raise ValueError(f"compress_interval is {self.compress_interval}, but the algorithm's n_steps is {n_steps}")
        if n_steps < 2:
            raise ValueError("n_steps must be at least 2: a region's first and last step carry different markers")
        self.steps = {name: [] for name in ("states", "actions", "rewards", "next_states", "dones")}
        self.episode_return = np.zeros(self.training_env.num_envs)

    def _on_rollout_start(self) -> None:
        start = len(self.steps["dones"])
        self.regions.append((start, start + self.model.n_steps))
        self.finished_returns = []

    def _on_step(self) -> bool:
        dones = self.locals["dones"]
        rewards = getattr(self.training_env, "earned", self.locals["rewards"])  # without the exploration bonus
        next_states = reached_observations(self.locals["new_obs"], dones, self.locals["infos"])
        self.steps["states"].append(self.model._last_obs.copy())
        self.steps["actions"].append(self.locals["clipped_actions"].copy())
        self.steps["rewards"].append(rewards.copy())  # SB3 adds bootstrapped values to it in place later
        self.steps["next_states"].append(next_states)
        self.steps["dones"].append(dones.copy())

        self.episode_return += rewards
        self.finished_returns.extend(self.episode_return[dones].tolist())
        self.episode_return[dones] = 0.0
        return True

    def _on_rollout_end(self) -> None:
        mean_return = float(np.mean(self.finished_returns)) if self.finished_returns else float("nan")
        self.mean_return_per_rollout.append(mean_return)
        self.logger.record("rollout/mean_return", mean_return)
        for name, values in self._rollout_policy().items():
            self.policy.setdefault(name, []).append(values)

    def _rollout_policy(self) -> dict[str, np.ndarray]:
        """The distributions of the policy that collected this rollout, (n_steps, E, A) arrays.

        For discrete actions `action_probs`; else `action_means` and `action_stds` of its diagonal Gaussian,
        from which actions are drawn before they are clipped to the action space. The policy does not change
        before the rollout ends, so one pass over all states gives them.
        """
        start, _ = self.regions[-1]
        states = np.stack(self.steps["states"][start:])  # (n_steps, E, dim)
        with torch.no_grad():
            flat = torch.as_tensor(states.reshape(-1, *self.model.observation_space.shape))
            policy = self.model.policy.get_distribution(flat).distribution
        if isinstance(self.model.action_space, gym.spaces.Discrete):
            arrays = {"action_probs": policy.probs.numpy().astype(np.float16)}
        else:  # float32: float16 cannot hold any scale of action
            arrays = {"action_means": policy.mean.numpy(), "action_stds": policy.stddev.numpy()}
        return {name: values.reshape(*states.shape[:2], -1) for name, values in arrays.items()}

    def history(self) -> dict[str, np.ndarray]:
        """All that was recorded, as arrays (T, E, ...) with `compress_markers` (T,)."""
        state_dtype = smallest_dtype(self.model.observation_space)
        n_streams = self.training_env.num_envs
        history = {name: np.stack(steps) for name, steps in self.steps.items()}
        for name in ("states", "next_states"):
            if recorded := getattr(self.training_env, "recorded", None):  # see env.make_source_env
                history[name] = recorded(history[name])
            flat = history[name].reshape(len(history[name]), n_streams, -1)
            history[name] = flat.astype(state_dtype)
        history["actions"] = history["actions"].astype(smallest_dtype(self.model.action_space))
        history["rewards"] = history["rewards"].astype(np.float32)
        history["compress_markers"] = mark_regions(self.regions, len(history["dones"]))
        return history | {name: np.concatenate(rollouts) for name, rollouts in self.policy.items()}
