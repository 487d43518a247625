"""Recording of what an on-policy algorithm of stable-baselines3 does, with its rollouts as regions.

Letters in shapes: T environment steps per stream, E streams, A actions or action entries.
"""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import unwrap_vec_wrapper
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal

from algorithm.normalization import Unscaled
from algorithm.source import Recorder, reached_observations
from history.markers import INSIDE, REGION_END, REGION_START, find_regions, mark_regions  # noqa: F401, the marker rule's usual place
from history.returns import RunningReturns, mean_return


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

    def _on_training_start(self) -> None:
        n_steps = getattr(self.model, "n_steps", None)
        if n_steps is None or not hasattr(self.model, "rollout_buffer"):
            raise ValueError(
                f"{type(self.model).__name__} is not an on-policy algorithm: it has no rollouts to mark as regions"
            )
        if n_steps != self.compress_interval:
            raise ValueError(f"compress_interval is {self.compress_interval}, but the algorithm's n_steps is {n_steps}")
        self.recorder = Recorder(self.training_env, n_steps)
        self.returns = RunningReturns(self.training_env.num_envs)
        self.unscaled = unwrap_vec_wrapper(self.training_env, Unscaled)
        self.observed = self.unscaled.observed if self.unscaled else self.model._last_obs

    def _on_rollout_start(self) -> None:
        self.recorder.start_region()
        self.seen: list[np.ndarray] = []  # by the policy, (E, ...) at each step of the current rollout
        self.finished_returns: list[float] = []  # of the episodes that ended in it

    def _on_step(self) -> bool:
        dones, actions = self.locals["dones"], self.locals["clipped_actions"]
        if self.unscaled:  # what histories hold, not what the algorithm sees
            observed, rewards, reached = self.unscaled.observed, self.unscaled.earned, self.unscaled.reached
        else:
            observed, rewards = self.locals["new_obs"], self.locals["rewards"]
            reached = reached_observations(observed, dones, self.locals["infos"])
        self.seen.append(self.model._last_obs)
        self.recorder.step(self.observed, actions, rewards, reached, dones)
        self.observed = observed
        self.finished_returns.extend(self.returns.step(rewards, dones).tolist())
        return True

    def _on_rollout_end(self) -> None:
        self.logger.record("rollout/mean_return", mean_return(self.finished_returns))
        self.recorder.add_policy(self._rollout_policy())

    def _rollout_policy(self) -> dict[str, np.ndarray]:
        """The distributions of the policy that collected this rollout, (n_steps, E, A) arrays.

        The policy does not change before the rollout ends, so one pass over all states gives them.
        """
        states = np.stack(self.seen)  # (n_steps, E, dim)
        with torch.no_grad():
            flat = torch.as_tensor(states.reshape(-1, *self.model.observation_space.shape))
            arrays = policy_arrays(self.model.policy.get_distribution(flat).distribution)
        return {name: values.numpy().reshape(*states.shape[:2], -1) for name, values in arrays.items()}

    def history(self) -> dict[str, np.ndarray]:
        """All that was recorded, as arrays (T, E, ...) with `compress_markers` (T,)."""
        return self.recorder.history()


def policy_arrays(policy: Categorical | list[Categorical] | Bernoulli | Normal) -> dict[str, Tensor]:
    """What histories hold of SB3's distribution of M actions, (M, A) each.

    A diagonal Gaussian's `action_means` and `action_stds`, from which actions are drawn before they are clipped to the
    action space; else `action_probs`, those of several entries side by side, and of a binary one those of 0 and of 1.
    """
    if isinstance(policy, Normal):
        return {"action_means": policy.mean, "action_stds": policy.stddev}
    if isinstance(policy, Bernoulli):
        return {"action_probs": torch.stack([1 - policy.probs, policy.probs], dim=-1).flatten(1)}
    entries = policy if isinstance(policy, list) else [policy]
    return {"action_probs": torch.cat([entry.probs for entry in entries], dim=-1)}
