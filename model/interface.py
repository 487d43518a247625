"""What training and acting ask of a model. A new model is one subclass in one file and one line in `MODEL`.

Letters in shapes: B batch, L environment steps per window, N environments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from config.schema import Key
from model.acting import Actor, Sampling, run_actor


class Model(nn.Module):
    """Predicts the source algorithm's next action from a learning history.

    Args:
        config: the effective config: all keys, and what the histories are like, `observation_space` and
            `action_space` as described in model/spaces.py and `with_dones`, whether they say where episodes end.
    """

    keys: dict[str, Key] = {}  # further config keys, for a model that is named as `module:Class`
    leaves_weights_unused = False  # whether some weights get no gradient

    def __init__(self, config: dict):
        super().__init__()
        self.config = config

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalar losses and accuracies of a batch from `ADDataset`; `loss_total` is what training lowers."""
        raise NotImplementedError

    def actor(self, n_envs: int, sampling: Sampling, seed: int = 0, first_env: int = 0) -> Actor:
        """What acts with this model in N new environments.

        Args:
            seed, first_env: environment i draws its actions with stream `first_env + i` of this seed.
        """
        raise NotImplementedError

    def fit_inputs(self, windows: dict[str, Tensor]) -> None:
        """Take the scale of real-valued inputs from a large batch of training windows, to keep with the weights."""

    def target_counts(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Numbers that a batch's summed losses are divided by; `forward` takes them back in a rank's share of the batch."""
        return {}

    def compile_trunk(self) -> None:
        """Hand the expensive part to torch.compile."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def evaluate_in_context(
        self,
        vec_env: VecEnv,
        eval_timesteps: int,
        temperature: float | None = None,
        boundaries: str | None = None,
        seed: int = 0,
        n_episodes: int | None = None,
        sampling: Sampling | None = None,
        first_env: int = 0,
        stop: Callable[[], bool] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> dict[str, np.ndarray]:
        """Act in every environment of `vec_env`, learning in context only.

        Args:
            vec_env: any number of environments, of any tasks of the family.
            eval_timesteps: steps per environment, at most.
            temperature, boundaries: replace those of `sampling`.
            seed, first_env: of the action sampling; see `actor`.
            sampling: default: the config's.
            n_episodes, stop, on_step: see `run_actor`.

        Returns:
            What `run_actor` returns.
        """
        sampling = sampling or Sampling.of(self.config)
        changes = {"temperature": temperature, "boundaries": boundaries}
        sampling = replace(sampling, **{name: value for name, value in changes.items() if value is not None})
        was_training = self.training
        self.eval()
        actor = self.actor(vec_env.num_envs, sampling, seed, first_env)
        record = run_actor(actor, vec_env, eval_timesteps, n_episodes, stop, on_step)
        self.train(was_training)
        return record
