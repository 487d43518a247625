"""SB3's actor-critic policy where few observations are possible: each is evaluated once, not once per transition.

A rollout on Darkroom has 8,000 transitions and 81 cells. What the network says of a cell is the same for all of them.
Losses and gradients are those of SB3's policy, up to the order of sums.

Letters in shapes: B transitions, S possible observations, A actions of one entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium.spaces import Discrete, MultiDiscrete
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

import env


@dataclass
class Table:
    """What the networks say of every possible observation.

    outputs: (S, ...) of the action network. log_probs: (S, A) for each entry of an action. cumulative: (S, A) the same
    as cumulative probabilities. entropy, values: (S,).
    """

    outputs: Tensor
    log_probs: list[Tensor]
    cumulative: list[Tensor]
    entropy: Tensor
    values: Tensor


class TabulatedPolicy(ActorCriticPolicy):
    """SB3's "MlpPolicy" for Discrete or MultiDiscrete observations and actions."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sizes = env.entry_sizes(self.observation_space).tolist()
        every = torch.cartesian_prod(*map(torch.arange, self.sizes)).reshape(-1, *self.observation_space.shape)
        with torch.no_grad():
            self.every = self.extract_features(every)
        self.held: Table | None = None

    def set_training_mode(self, mode: bool) -> None:
        """SB3 calls this before each rollout and before its updates: the weights may have changed since."""
        super().set_training_mode(mode)
        self.held = None

    def table(self) -> Table:
        if self.held is not None:
            return self.held
        latent_policy, latent_value = self.mlp_extractor(self.every)
        outputs = self.action_net(latent_policy)
        log_probs = [
            entry.log_softmax(1) for entry in outputs.split(env.entry_sizes(self.action_space).tolist(), dim=1)
        ]
        entropy = -sum((entry.exp() * entry).sum(1) for entry in log_probs)
        values = self.value_net(latent_value)[:, 0]
        if self.training:
            return Table(outputs, log_probs, [], entropy, values)
        self.held = Table(outputs, log_probs, [entry.exp().cumsum(1) for entry in log_probs], entropy, values)
        return self.held

    def numbers(self, observations: Tensor) -> Tensor:
        """(B, ...) observations to their rows in the table, (B,)."""
        entries = observations.reshape(-1, len(self.sizes)).long().unbind(1)
        number = entries[0]
        for size, entry in zip(self.sizes[1:], entries[1:]):
            number = number * size + entry
        return number

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        table, numbers = self.table(), self.numbers(obs)
        if deterministic:
            actions = torch.stack([entry[numbers].argmax(1) for entry in table.log_probs], dim=1)
        else:
            chances = torch.rand(len(table.log_probs), len(numbers), 1)
            below = [(entry[numbers] < chance).sum(1) for entry, chance in zip(table.cumulative, chances)]
            last = [entry.shape[1] - 1 for entry in table.cumulative]  # where rounding leaves a sum below 1
            actions = torch.stack([entry.clamp(max=most) for entry, most in zip(below, last)], dim=1)
        log_prob = self.log_prob(table, numbers, actions)
        return actions.reshape(-1, *self.action_space.shape), table.values[numbers, None], log_prob

    def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        table, numbers = self.table(), self.numbers(obs)
        log_prob = self.log_prob(table, numbers, actions.long().reshape(len(numbers), -1))
        return table.values.index_select(0, numbers)[:, None], log_prob, table.entropy.index_select(0, numbers)

    @staticmethod
    def log_prob(table: Table, numbers: Tensor, actions: Tensor) -> Tensor:
        """(B,) of (B, entries) actions. `index_select` on flat values has a faster gradient than indexing by two arrays."""
        entries = zip(table.log_probs, actions.unbind(1))
        return sum(of.flatten().index_select(0, numbers * of.shape[1] + action) for of, action in entries)

    def get_distribution(self, obs: Tensor) -> Distribution:
        return self.action_dist.proba_distribution(self.table().outputs[self.numbers(obs)])

    def predict_values(self, obs: Tensor) -> Tensor:
        return self.table().values[self.numbers(obs), None]


def policy_for(vec_env: VecEnv, most: int) -> str | type[ActorCriticPolicy]:
    """SB3's policy class; the tabulated one where at most so many observations are possible."""
    spaces = vec_env.observation_space, vec_env.action_space
    if not all(isinstance(space, (Discrete, MultiDiscrete)) for space in spaces):
        return "MlpPolicy"
    return TabulatedPolicy if np.prod(env.entry_sizes(spaces[0]), dtype=float) <= most else "MlpPolicy"
