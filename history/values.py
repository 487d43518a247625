"""What the arrays of a history can hold: the shapes and values that the environment's spaces allow.

Asked when a source's history is written, and again when a file is read.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np

import env

SUM_TOLERANCE = 0.01  # of probabilities: float16 keeps three digits
Spaces = tuple[gym.Space, gym.Space]  # of observations and actions


def entry_shape(name: str, spaces: Spaces) -> tuple[int, ...]:
    """Shape of one step of one stream of an array, as training has it."""
    observation_space, action_space = spaces
    if name in ("rewards", "dones") or (name == "actions" and isinstance(action_space, gym.spaces.Discrete)):
        return ()
    if name == "action_probs":
        return (int(env.entry_sizes(action_space).sum()),)
    space = observation_space if name in ("states", "next_states") else action_space
    return (int(np.prod(space.shape, dtype=int)),)


def value_problem(name: str, values: np.ndarray, spaces: Spaces, start: int = 0) -> str | None:
    """The first value that cannot be, not finite or outside the spaces, and what was expected; None if there is none.

    Args:
        values: (steps, E, ...), the first one being step `start`.
    """
    space = {"states": spaces[0], "next_states": spaces[0], "actions": spaces[1]}.get(name)
    if space is not None and (sizes := env.entry_sizes(space)) is not None:
        highest = sizes - 1
        with np.errstate(invalid="ignore"):
            is_whole = np.isin(values % 1, 0)  # False for NaN too
        wrong, expected = ~(is_whole & (values >= 0) & (values <= highest)), f"whole numbers 0 to {np.max(highest)}"
    elif name == "action_probs":
        wrong, expected = ~((values >= 0) & (values <= 1)), "probabilities"
    elif name == "action_stds":
        wrong, expected = ~((values > 0) & env.is_finite(values)), "standard deviations"
    elif name == "dones":
        wrong, expected = ~np.isin(values, (0, 1)), "True or False"
    else:
        wrong, expected = ~env.is_finite(values), "finite numbers, as float32 holds them"
    if wrong.any():
        step, *rest = (int(i) for i in np.argwhere(wrong)[0])
        return f"value {values[step, *rest]} at {(start + step, *rest)}, expected {expected}"
    return _sum_problem(values, spaces[1], start) if name == "action_probs" else None


def _sum_problem(probs: np.ndarray, action_space: gym.Space, start: int) -> str | None:
    n_entries = int(np.prod(action_space.shape, dtype=int))
    sums = probs.sum(axis=-1, dtype=np.float64)
    wrong = np.argwhere(~(np.abs(sums - n_entries) <= n_entries * SUM_TOLERANCE))
    if not wrong.size:
        return None
    step, stream = (int(i) for i in wrong[0])
    return f"at {(start + step, stream)} they sum to {sums[step, stream]:.3f}, expected probabilities that sum to {n_entries}"
