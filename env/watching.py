"""Watching environments that are not ours: what they raise, or give and must not give, is told with task, episode and step."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from files import EnvironmentFault

LARGEST = np.float64(np.finfo(np.float32).max)  # histories hold no larger number


class Watched(gym.Wrapper):
    """Lets everything through, and stops at the first fault.

    An exception of the environment is let through too, with a note of where it was.

    Args:
        task: arguments of the environment, for messages.

    Attributes:
        checks_bounds: whether real-valued observations must lie in their space. They may leave it by a little,
            so only the first steps of an environment are checked so, before any work.

    Raises:
        EnvironmentFault: in `reset` and `step`.
    """

    def __init__(self, env: gym.Env, task: dict):
        super().__init__(env)
        self.task, self.checks_bounds = str(task)[:120], False
        self.space, self.actions = env.observation_space, env.action_space
        self.episode = self.n_steps = 0

    def reset(self, **options):
        self.episode, self.n_steps = self.episode + 1, 0
        observation, info = self._call(self.env.reset, **options)
        self._check(observation=observation, info=info)
        return observation, info

    def step(self, action):
        self.n_steps += 1
        observation, reward, terminated, truncated, info = self._call(self.env.step, as_its_space(action, self.actions))
        self._check(observation=observation, reward=reward, terminated=terminated, truncated=truncated, info=info)
        if terminated or truncated:  # kept past the reset, which may write into the same array
            observation = np.array(observation)
        return observation, reward, terminated, truncated, info

    def _call(self, method: Callable, *given, **options) -> tuple:
        try:
            return method(*given, **options)
        except Exception as error:  # whatever a user's environment raises
            error.add_note(f"in {self.place}")
            raise
        except SystemExit as error:  # it would end the script without a word
            raise EnvironmentFault(f"{self.place}: it called sys.exit({error.code!r}); mend the environment") from error

    @property
    def place(self) -> str:
        return f"{self.task}, episode {self.episode}, {f'step {self.n_steps}' if self.n_steps else 'reset'}"

    def _check(self, **given: object) -> None:
        for argument, value in given.items():
            if found := _wrong(argument, value, self.space, self.checks_bounds):
                raise EnvironmentFault(f"{self.place}: {argument}: {found}; mend the environment, or wrap it")


def as_its_space(action: object, space: gym.Space) -> object:
    """An action in its space's own type: a source's and a model's are of floats of 32 bits, also for MultiBinary."""
    is_its = isinstance(action, np.ndarray) and action.dtype == space.dtype  # else of no axis: a number of numpy's
    if not isinstance(space, (Box, MultiBinary)) or is_its:
        return action
    action = np.asarray(action, space.dtype)
    return np.asarray(action.clip(space.low, space.high)) if isinstance(space, Box) else action


def is_finite(values: np.ndarray | float) -> np.ndarray:
    """True where a number is finite as a float32, which is what training takes."""
    return abs(values) <= LARGEST


def entry_sizes(space: gym.Space) -> np.ndarray | None:
    """How many values each entry of a space can have, (entries,); None for real-valued ones."""
    if isinstance(space, MultiBinary):
        return np.full(int(np.prod(space.shape)), 2)
    if isinstance(space, (Discrete, MultiDiscrete)):
        return np.ravel(space.n if isinstance(space, Discrete) else space.nvec)
    return None


def _wrong(argument: str, value: object, space: gym.Space, checks_bounds: bool) -> str | None:
    """What a step gave and what it should have given, or None if it is as it should be."""
    if argument == "info":
        return None if isinstance(value, dict) else f"{repr(value)[:120]}: expected a dict"
    is_usual = isinstance(value, bool) or (argument == "reward" and isinstance(value, float) and is_finite(value))
    if is_usual and argument != "observation":  # fast
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return f"{repr(value)[:120]}: expected one array"
    if argument == "observation":
        return _outside(array, space, checks_bounds)
    is_number = array.shape == () and array.dtype.kind in ("biuf" if argument == "reward" else "biu")
    if argument == "reward":
        fits = is_number and is_finite(array)
        return None if fits else f"{_shown(array)}: expected a finite number, as float32 holds it"
    return None if is_number and array in (0, 1) else f"{_shown(array)}: expected True or False"


def _shown(array: np.ndarray) -> str:
    return repr(array.tolist())[:120]


def _outside(array: np.ndarray, space: gym.Space, checks_bounds: bool) -> str | None:
    """What is wrong with an observation, as `_wrong` says it."""
    is_real = isinstance(space, Box) and space.dtype.kind == "f"
    if array.dtype.kind not in ("biuf" if is_real else "biu"):
        wanted = "numbers" if is_real else "whole numbers"
        return f"{_shown(array)}: expected {wanted}, as in its {space}; got {array.dtype}"
    if array.shape != space.shape:
        return f"{_shown(array)}: expected the shape {space.shape} of its {space}, got {array.shape}"
    fits = is_finite(array)
    if not isinstance(space, Box):
        fits &= (array >= 0) & (array < entry_sizes(space).reshape(space.shape))
    elif checks_bounds or not is_real:
        with np.errstate(over="ignore"):
            array = array.astype(space.dtype) if is_real else array
        fits &= (array >= space.low) & (array <= space.high)
    if fits.all():
        return None
    bad = tuple(int(i) for i in np.argwhere(~fits)[0])
    place = f" (entry {bad[0] if len(bad) == 1 else bad})" if bad else ""
    return f"{array[bad]}{place}: expected finite numbers within its {space}, as float32 holds them"
