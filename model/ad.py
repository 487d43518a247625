"""Algorithm Distillation, with compressed context or with the standard window.

Source: Algorithm Distillation (arXiv:2210.14215); compressed context is this project's own.

Letters in shapes: B batch, L environment steps per window, R regions per window, T tokens, D embedding,
O observation entries, A actions, N environments.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from model.context import RollingContext
from model.spaces import ACTIONS, ObservationEmbedding, keep_standardisation
from model.tokens import IGNORE, Layout, TokenType, layout_tokens, n_positions
from model.transformer import Transformer


class AD(nn.Module):
    """A causal transformer over learning histories, predicting the source algorithm's next action.

    Args:
        config: the effective config, with `observation_space` and `action_space` as described in
            model/spaces.py and `with_dones`, whether histories say where episodes end.
    """

    def __init__(self, config: dict):
        super().__init__()
        self.config, D = config, config["n_embd"]
        self.observation_embedding = ObservationEmbedding(config["observation_space"], D)
        self.actions = ACTIONS[config["action_space"]["kind"]](config["action_space"], D)
        self.reward_embedding = nn.Linear(1, D, bias=False)
        keep_standardisation(self, "reward_mean", "reward_std", ())
        self.done_embedding = nn.Embedding(2, D)
        self.compress_start_token = nn.Parameter(torch.zeros(D))
        self.compress_end_token = nn.Parameter(torch.zeros(D))
        self.token_type_embedding = nn.Embedding(len(TokenType), D)
        self.position_embedding = nn.Embedding(n_positions(config), D)
        self.transformer = Transformer(D, config["n_layer"], config["n_head"], config["dropout"])
        self.pred_action = nn.Linear(D, self.actions.n_outputs)
        self.pred_token_type = nn.Linear(D, len(TokenType))
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for parameter in (self.compress_start_token, self.compress_end_token):
            nn.init.normal_(parameter, std=0.02)

    # Tokens ---------------------------------------------------------------------------------------

    def embed_steps(
        self, observations: Tensor, actions: Tensor, rewards: Tensor, dones: Tensor, is_none: Tensor
    ) -> Tensor:
        """Embed environment steps: each observation with the action, reward and episode end that led to it.

        Args:
            observations: (B, L, O). actions: (B, L) or (B, L, A), rewards, dones: (B, L), those of the step before.
            is_none: (B, L) True where there was no step before; its action, reward and done are not used.

        Returns:
            (B, L, D)
        """
        known = ~is_none
        dones = dones.bool() & known & self.config["with_dones"]
        rewards = (rewards.float() - self.reward_mean) / self.reward_std * known
        x = self.observation_embedding(observations) + self.actions(actions, is_none)
        return x + self.reward_embedding(rewards[..., None]) + self.done_embedding(dones.long())

    def embed_window(self, batch: dict[str, Tensor]) -> tuple[Tensor, Layout]:
        """The embedded token sequence of a batch of windows, (B, T, D), and its layout.

        What led to a window's first step is not in the window, so it does not reach the model either.
        """
        layout = layout_tokens(batch["region_lengths"], self.config)
        before = {name: batch[name].roll(1, dims=1) for name in ("actions", "rewards", "dones")}
        is_none = torch.zeros_like(batch["rewards"], dtype=torch.bool)
        is_none[:, 0] = True
        steps = self.embed_steps(batch["observations"], **before, is_none=is_none)  # (B, L, D)

        B, _, D = steps.shape
        markers = torch.stack([self.compress_start_token, self.compress_end_token]).expand(B, -1, -1)
        source = torch.where(layout.types == TokenType.TRANSITION, layout.steps + 2, layout.types - 1)
        x = torch.cat([markers, steps], dim=1).gather(1, source[..., None].expand(-1, -1, D))  # (B, T, D)
        return x + self.embed_place(layout.types, layout.positions), layout

    def embed_place(self, types: Tensor, positions: Tensor) -> Tensor:
        """(...) token types and positions to (..., D)."""
        return self.token_type_embedding(types) + self.position_embedding(positions)

    # Training -------------------------------------------------------------------------------------

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses and accuracies of a batch of windows from `ADDataset`.

        Args:
            batch: `observations` (B, L, O), `actions` (B, L) or (B, L, A), `rewards` (B, L), `dones` (B, L),
                optionally the source policy's distributions, `action_probs` (B, L, A), or `action_means` and
                `action_stds` (B, L, A), `region_lengths` (B, R), `target_from` (B,), the first step whose
                action is a target, and optionally `target_until` (B,), the first one after these.
                Where the batch is one rank's share of a larger one, `n_action_targets` and
                `n_type_targets` are the numbers to divide the summed losses by.

        Returns:
            Scalars `loss_action`, `acc_action` and `loss_total`; in compressed mode also
            `loss_token_type`, `acc_token_type` and `recall_compress_end` (NaN if no region ends here).
        """
        x, layout = self.embed_window(batch)
        features = self.transformer(x)

        is_target = layout.valid & (layout.types == TokenType.TRANSITION)
        is_target &= layout.steps >= batch["target_from"][:, None]
        if "target_until" in batch:
            is_target &= layout.steps < batch["target_until"][:, None]
        window, token = is_target.nonzero(as_tuple=True)
        step = layout.steps[window, token]
        outputs = self.pred_action(features[window, token])  # (M, A), M targets
        actions = batch["actions"][window, step]
        soft = [batch[name][window, step].float() for name in self.actions.soft_targets if name in batch]
        losses = self.actions.loss(outputs, actions, *soft)  # (M,)
        loss_action = losses.sum() / batch.get("n_action_targets", len(losses))
        result = {"loss_action": loss_action, "acc_action": self.actions.accuracy(outputs, actions).mean()}
        if not self.config["use_compressed_context"]:
            return result | {"loss_total": loss_action}

        known = layout.next_types != IGNORE
        target_types = layout.next_types[known]
        type_outputs = self.pred_token_type(features[known])  # (M', 3)
        type_losses = F.cross_entropy(type_outputs, target_types, reduction="sum")
        loss_token_type = type_losses / batch.get("n_type_targets", len(target_types))
        is_right = (type_outputs.argmax(-1) == target_types).float()
        return result | {
            "loss_token_type": loss_token_type,
            "acc_token_type": is_right.mean(),
            "recall_compress_end": is_right[target_types == TokenType.COMPRESS_END].mean(),
            "loss_total": loss_action + self.config["token_type_loss_weight"] * loss_token_type,
        }

    # Evaluation -----------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate_in_context(
        self,
        vec_env: VecEnv,
        eval_timesteps: int,
        temperature: float | None = None,
        boundaries: str | None = None,
        seed: int = 0,
        n_episodes: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Act in every environment of `vec_env`, learning in context only.

        Args:
            vec_env: any number of environments, of any tasks of the family.
            eval_timesteps: steps per environment, at most.
            temperature: divides the action logits before sampling; 0 takes the most probable action.
                Default: the config's. Where `RollingContext.seeks_reward`, the config's `exploring_temperature`
                takes its place, if there is one.
            boundaries: `fixed` ends a region after `compress_interval` steps, `predicted` where the
                token-type head says so, at the latest then. Default: the config's.
            seed: of the action sampling.
            n_episodes: stop as soon as every environment has finished so many. Default: never.

        Returns:
            `rewards`, `dones` and `region_ends`, True where a region ended after the step, each (steps, N),
            and `returns` (N, episodes): of the finished episodes, as many as every environment has finished.
        """
        temperature = self.config["temperature"] if temperature is None else temperature
        boundaries = self.config["boundaries"] if boundaries is None else boundaries
        was_training = self.training
        self.eval()
        device = self.compress_start_token.device
        generator = torch.Generator(device).manual_seed(seed)
        usual = torch.tensor(temperature, dtype=torch.float, device=device)
        exploring, patience = self.config["exploring_temperature"], self.config["exploring_patience"]

        def temperatures(context: RollingContext) -> Tensor:
            if exploring is None:
                return usual
            return torch.where(context.seeks_reward(patience), exploring, usual)

        context = RollingContext(self, vec_env.num_envs, predict_ends=boundaries == "predicted")
        record = {
            "rewards": np.zeros((eval_timesteps, vec_env.num_envs), dtype=np.float32),
            "dones": np.zeros((eval_timesteps, vec_env.num_envs), dtype=bool),
            "region_ends": np.zeros((eval_timesteps, vec_env.num_envs), dtype=bool),
        }
        n_finished = np.zeros(vec_env.num_envs, dtype=np.int64)  # episodes
        observations = vec_env.reset()
        for t in range(eval_timesteps):
            features = context.observe(torch.as_tensor(observations, device=device).reshape(vec_env.num_envs, -1))
            actions = self.actions.sample(self.pred_action(features), temperatures(context), generator)
            observations, rewards, dones, _ = vec_env.step(actions.cpu().numpy())
            ends = context.record(actions, torch.as_tensor(rewards), torch.as_tensor(dones))
            record["rewards"][t], record["dones"][t], record["region_ends"][t] = rewards, dones, ends
            n_finished += dones
            if n_episodes is not None and n_finished.min() >= n_episodes:
                record = {name: values[: t + 1] for name, values in record.items()}
                break
        self.train(was_training)
        return record | {"returns": episode_returns(record["rewards"], record["dones"])}


def episode_returns(rewards: np.ndarray, dones: np.ndarray) -> np.ndarray:
    """Returns of finished episodes.

    Args:
        rewards: (T, N). dones: (T, N), True where an episode ended after the step.

    Returns:
        (N, episodes), cut to the number of episodes that every environment finished.
    """
    per_env = returns_per_env(rewards, dones)
    n_episodes = min(len(returns) for returns in per_env)
    return np.stack([returns[:n_episodes] for returns in per_env])


def returns_per_env(rewards: np.ndarray, dones: np.ndarray) -> list[np.ndarray]:
    """Returns of all finished episodes, (episodes,) of each environment; arguments as in `episode_returns`."""
    cumulative = rewards.cumsum(axis=0, dtype=np.float64)
    return [np.diff(cumulative[dones[:, n], n], prepend=0.0) for n in range(rewards.shape[1])]
