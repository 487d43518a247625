"""Acting: the one loop that steps any actor in a VecEnv, how actions are sampled, and the actors.

Letters in shapes: N environments, T steps, A action entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from history.returns import episode_returns
from model.context.boundaries import BOUNDARIES
from model.spaces import as_torch_type
from utils import HIGHEST_SEED

NOISE_STEPS = 256  # of each environment's random numbers drawn at once


@dataclass(frozen=True)
class Sampling:
    """How actions are drawn, and where regions end.

    temperature: divides the action logits (scales a Gaussian's deviation); 0 takes the most probable action.
    exploring_temperature: takes its place where the context `seeks_reward`; None is no other temperature.
    exploring_patience: see RollingContext.seeks_reward.
    restart_after: a context that has shown no reward in so many steps begins anew; None is never.
    boundaries: where regions end, one of `BOUNDARIES`.
    """

    temperature: float = 1.0
    exploring_temperature: float | None = None
    exploring_patience: float | None = None
    restart_after: int | None = None
    boundaries: str | None = "fixed"

    @classmethod
    def of(cls, config: dict) -> Sampling:
        """What the config's evaluation keys say."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class Actor(Protocol):
    """Acts in N environments at once. `act` and `record` alternate."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        """(N, ...) newest observations to (N,) or (N, A) actions."""
        ...

    def record(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict]) -> np.ndarray:
        """Take what followed, (N,) each; return where a region ended, (N,) bool."""
        ...


def run_actor(
    actor: Actor,
    vec_env: VecEnv,
    n_steps: int,
    n_episodes: int | None = None,
    stop: Callable[[], bool] | None = None,
    on_step: Callable[[], object] | None = None,
) -> dict[str, np.ndarray]:
    """Let an actor act in every environment.

    Args:
        n_steps: per environment, at most.
        n_episodes: stop as soon as every environment has finished so many. Default: never.
        stop: asked after every step; True ends the loop at once.
        on_step: called after every step, for a progress bar.

    Returns:
        `rewards`, `dones`, `region_ends`, True where a region ended after the step, and `successes`, what the step's info
        tells as `success` or `is_success`, NaN where it does not, each (T, N); and `returns` (N, episodes): of the finished
        episodes, as many as every environment has finished.
    """
    N = vec_env.num_envs
    steps: list[tuple[np.ndarray, ...]] = []  # grows: `n_steps` may be far more than are taken
    n_finished = np.zeros(N, dtype=np.int64)
    observations = vec_env.reset()
    for _ in range(n_steps):
        actions = actor.act(observations).reshape(N, *vec_env.action_space.shape)
        observations, rewards, dones, infos = vec_env.step(actions)
        rewards, dones = rewards.astype(np.float32), dones.astype(bool)  # copies: a VecEnv may reuse its arrays
        region_ends = np.array(actor.record(rewards, dones, infos))
        successes = np.array([told_success(info) for info in infos], dtype=np.float32)
        steps.append((rewards, dones, region_ends, successes))
        n_finished += dones
        if on_step:
            on_step()
        if (n_episodes is not None and n_finished.min() >= n_episodes) or (stop and stop()):
            break
    record = dict(zip(("rewards", "dones", "region_ends", "successes"), map(np.stack, zip(*steps))))
    return record | {"returns": episode_returns(record["rewards"], record["dones"])}


def told_success(info: dict) -> float:
    """What a step's info tells as `success` or `is_success`; NaN where that is no number."""
    value = info.get("success", info.get("is_success"))
    return float(value) if isinstance(value, (int, float, np.bool_, np.number)) else np.nan


class RandomActor:
    """Draws every action from the action space."""

    def __init__(self, action_space: gym.Space, n_envs: int, seed: int):
        self.action_space, self.n_envs = action_space, n_envs
        action_space.seed(seed)

    def act(self, observations: np.ndarray) -> np.ndarray:
        return np.array([self.action_space.sample() for _ in range(self.n_envs)])

    def record(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict]) -> np.ndarray:
        return np.zeros(self.n_envs, dtype=bool)


class NoiseStreams:
    """A stream of random numbers for each environment, so that what one draws does not depend on its neighbours.

    Args:
        draw: makes n entries, (n, ...), with a generator.
        seed: of all streams.
        envs: numbers of the environments; each has its own stream.
    """

    def __init__(self, draw: Callable[[np.random.Generator, int], np.ndarray], seed: int, envs: range):
        self.draw, self.generators = draw, [np.random.default_rng([seed, i]) for i in envs]
        self.block, self.used = np.zeros((0,)), NOISE_STEPS

    def next(self) -> np.ndarray:
        """(N, ...) one entry for each environment."""
        if self.used == NOISE_STEPS:
            self.block = np.stack([self.draw(generator, NOISE_STEPS) for generator in self.generators], axis=1)
            self.used = 0
        self.used += 1
        return self.block[self.used - 1]


class ContextActor:
    """Acts with a model that has a context strategy, learning in context only.

    Args:
        model: in evaluation mode; has `context`, `actions` and `pred_action`, as AD.
        n_envs: N.
        seed, first_env: environment i takes the random numbers of stream `first_env + i` of this seed.
    """

    def __init__(self, model: nn.Module, n_envs: int, sampling: Sampling, seed: int = 0, first_env: int = 0):
        self.model, self.sampling = model, sampling
        envs = range(first_env, first_env + n_envs)
        self.noise = NoiseStreams(model.actions.draw_noise, seed, envs)
        # Other numbers than the actions take
        lengths = NoiseStreams(lambda rng, n: rng.random(n), seed + HIGHEST_SEED, envs)
        kind = sampling.boundaries if model.context.marks_regions else "fixed"
        boundaries = BOUNDARIES[kind](model, n_envs, lengths.next)
        self.context = model.context.rolling(model, n_envs, boundaries)
        self.actions = torch.zeros(n_envs)
        # Steps since the context began; infinite once it has shown a reward
        self.n_searched = torch.zeros(n_envs, dtype=torch.double)

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> np.ndarray:
        device = self.model.device
        self.observations = torch.as_tensor(as_torch_type(observations), device=device).reshape(len(observations), -1)
        features = self.context.observe(self.observations)
        noise = torch.as_tensor(self.noise.next(), dtype=torch.float, device=device)
        self.actions = self.model.actions.sample(self.model.pred_action(features), self._temperatures(), noise)
        return self.actions.cpu().numpy()

    def record(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict]) -> np.ndarray:
        taken = {"actions": self.actions, "rewards": torch.from_numpy(rewards), "dones": torch.from_numpy(dones)}
        if self.model.config["reached_observations"]:
            taken["reached"] = self._reached(dones, infos)
        region_ends = self.context.record(**taken)
        self._give_up_search(taken["rewards"])
        return region_ends

    def _give_up_search(self, rewards: torch.Tensor) -> None:
        """Forget what found nothing for too long: no source has searched that long, so the model never saw what to do then.

        A search that may get stuck is best begun anew (Luby, Sinclair and Zuckerman, 1993: Optimal speedup of Las Vegas
        algorithms).
        """
        if self.sampling.restart_after is None:
            return
        self.n_searched += 1
        self.n_searched[rewards != 0] = torch.inf
        given_up = (self.n_searched == self.sampling.restart_after).nonzero()[:, 0]
        if len(given_up):
            self.context.forget(given_up)
            self.n_searched[given_up] = 0

    def _reached(self, dones: np.ndarray, infos: list[dict]) -> torch.Tensor:
        """(N, O) the observations that episodes ended on; 0 where none ended."""
        reached = torch.zeros_like(self.observations)
        for env in np.flatnonzero(dones):
            reached[env] = torch.as_tensor(as_torch_type(np.asarray(infos[env]["terminal_observation"]))).reshape(-1)
        return reached

    def _temperatures(self) -> torch.Tensor:
        usual = torch.tensor(self.sampling.temperature, device=self.model.device)
        if self.sampling.exploring_temperature is None:
            return usual
        exploring = self.context.seeks_reward(self.sampling.exploring_patience)
        return torch.where(exploring, self.sampling.exploring_temperature, usual)
