"""Algorithm Distillation: a causal transformer over learning histories.

Source: Algorithm Distillation (arXiv:2210.14215); compressed context is this project's own.

Letters in shapes: B batch, L environment steps per window, R regions per window, T tokens, D embedding,
O observation entries, A actions, N environments.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.acting import ContextActor, Sampling
from model.context import make_context
from model.interface import Model
from model.spaces import ACTIONS, ObservationEmbedding, deviation, keep_standardisation
from model.tokens import IGNORE, Layout, TokenType
from model.transformer import Transformer


class AD(Model):
    """Embeds a window's tokens as its context strategy lays them out; predicts the next action and token type."""

    def __init__(self, config: dict):
        super().__init__(config)
        D, self.context = config["n_embd"], make_context(config)
        self.leaves_weights_unused = not self.context.marks_regions  # the token-type head then has no loss
        self.observation_embedding = ObservationEmbedding(config["observation_space"], D)
        self.actions = ACTIONS[config["action_space"]["kind"]](config["action_space"], D)
        self.reward_embedding = nn.Linear(1, D, bias=False)
        keep_standardisation(self, "reward_mean", "reward_std", ())
        self.done_embedding = nn.Embedding(2, D)
        self.followed = ["actions", "rewards", "dones"]  # what a token tells of the step before
        if config["reached_observations"]:
            self.followed.append("reached")
            self.reached_embedding = ObservationEmbedding(config["observation_space"], D)
        self.compress_start_token = nn.Parameter(torch.zeros(D))
        self.compress_end_token = nn.Parameter(torch.zeros(D))
        self.token_type_embedding = nn.Embedding(self.context.n_types, D)
        self.position_embedding = nn.Embedding(self.context.n_positions, D)
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
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        dones: Tensor,
        starts: Tensor,
        reached: Tensor | None = None,
    ) -> Tensor:
        """Embed environment steps: each observation with the action, reward and episode end that led to it.

        Where an episode has ended, the observation is the next episode's first one; `reached_observations` adds the one
        that the episode ended on.

        Args:
            observations: (B, L, O). actions: (B, L) or (B, L, A), rewards, dones: (B, L), those of the step before.
            reached: (B, L, O) what the step before led to, needed with `reached_observations`.
            starts: (B, L) True where the step before is not known; its action, reward and done are not used.

        Returns:
            (B, L, D)
        """
        known = ~starts
        dones = dones.bool() & known & self.config["with_dones"]
        rewards = (rewards.float() - self.reward_mean) / self.reward_std * known
        x = self.observation_embedding(observations) + self.actions(actions, starts)
        x = x + self.reward_embedding(rewards[..., None]) + self.done_embedding(dones.long())
        if self.config["reached_observations"]:
            x = x + self.reached_embedding(reached) * dones[..., None]
        return x

    def embed_window(self, batch: dict[str, Tensor]) -> tuple[Tensor, Layout]:
        """The embedded token sequence of a batch of windows, (B, T, D), and its layout."""
        if "group" in batch:
            n_sharing = int((batch["group"] == batch["group"][0]).sum())
            layout = self.context.shared_layout(batch["region_lengths"], n_sharing)
        else:
            layout = self.context.drawn_layout(batch["region_lengths"])
        windows = (
            torch.arange(len(layout.types), device=layout.types.device) if layout.windows is None else layout.windows
        )
        at = windows[:, None], layout.steps
        before = {name: batch[name].roll(1, dims=1)[at] for name in self.followed}
        # By default the window shows what led to every step but its first
        starts = batch["starts"][at] if "starts" in batch else layout.steps == 0
        steps = self.embed_steps(batch["observations"][at], **before, starts=starts)  # (B, T, D)
        is_step = layout.types == TokenType.TRANSITION
        return steps * is_step[..., None] + self.embed_place(layout.types, layout.positions), layout

    def embed_place(self, types: Tensor, positions: Tensor) -> Tensor:
        """(...) token types and positions to (..., D): all that a marker or summary token is."""
        start, end = self.compress_start_token, self.compress_end_token
        markers = torch.stack([torch.zeros_like(start), start, end])  # in the order of TokenType
        of_types = self.token_type_embedding.weight + F.pad(markers, (0, 0, 0, self.context.n_types - len(markers)))
        return F.embedding(types, of_types) + self.position_embedding(positions)

    # Training -------------------------------------------------------------------------------------

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses and accuracies of a batch of windows from `ADDataset`.

        Args:
            batch: `observations` (B, L, O), `actions` (B, L) or (B, L, A), `rewards` (B, L), `dones` (B, L),
                with `reached_observations` also `reached` (B, L, O),
                optionally `starts` (B, L), True at steps where the window does not show what led to them (default:
                the first one), optionally the source policy's distributions, `action_probs` (B, L, A), or `action_means` and
                `action_stds` (B, L, A), `region_lengths` (B, R), `target_from` (B,), the first step whose
                action is a target, and optionally `target_until` (B,), the first one after these.
                With `currents_per_previous` also `group` (B,), the same number in windows that share their previous
                region: 0, 1, ... for the first window of each, then again for the second.
                Where the batch is one rank's share of a larger one, also the larger one's `target_counts`, each
                divided by the number of ranks.

        Returns:
            Scalars `loss_action`, `acc_action` and `loss_total`; in compressed mode also
            `loss_token_type`, `acc_token_type` and `recall_compress_end` (NaN if no region ends here); and the
            context strategy's `auxiliary_losses`.
        """
        x, layout = self.embed_window(batch)
        features = self.context.read(self.transformer, x, layout)
        result = self._action_losses(features, layout, batch)
        total = result["loss_action"]
        if self.context.marks_regions:
            result |= self._token_type_losses(features, layout, batch)
            total = total + self.config["token_type_loss_weight"] * result["loss_token_type"]
        for name, (loss, weight) in self.context.auxiliary_losses(batch, layout, self.observation_embedding).items():
            result[name], total = loss, total + weight * loss
        return result | {"loss_total": total}

    def _action_losses(self, features: Tensor, layout: Layout, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        is_target = layout.valid & (layout.types == TokenType.TRANSITION)
        windows = slice(None) if layout.windows is None else layout.windows
        is_target &= layout.steps >= batch["target_from"][windows, None]
        if "target_until" in batch:
            is_target &= layout.steps < batch["target_until"][windows, None]
        row, token = is_target.nonzero(as_tuple=True)
        step, window = layout.steps[row, token], row if layout.windows is None else layout.windows[row]
        outputs = self.pred_action(features[row, token])  # (M, A), M targets
        actions = batch["actions"][window, step]
        soft = [batch[name][window, step].float() for name in self.actions.soft_targets if name in batch]
        losses = self.actions.loss(outputs, actions, *soft)  # (M,)
        loss_action = losses.sum() / batch.get("n_action_targets", len(losses))
        return {"loss_action": loss_action, "acc_action": self.actions.accuracy(outputs, actions).mean()}

    def _token_type_losses(self, features: Tensor, layout: Layout, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        known = layout.next_types != IGNORE
        targets = layout.next_types[known]
        outputs = self.pred_token_type(features[known])  # (M', types)
        losses, is_right = F.cross_entropy(outputs, targets, reduction="none"), (outputs.argmax(-1) == targets).float()
        counts = torch.ones_like(losses)  # in how many windows a token stands
        if layout.counts is not None:
            counts = layout.counts[:, None].expand_as(known)[known].to(losses)
        is_end = (targets == TokenType.COMPRESS_END) * counts
        return {
            "loss_token_type": (losses * counts).sum() / batch.get("n_type_targets", counts.sum()),
            "acc_token_type": (is_right * counts).sum() / counts.sum(),
            "recall_compress_end": (is_right * is_end).sum() / is_end.sum(),
        }

    def target_counts(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """How many targets the losses of `batch` are means over, by the names under which `forward` reads them."""
        until = batch.get("target_until", batch["region_lengths"].sum(1))
        n_types = (self.context.layout(batch["region_lengths"]).next_types != IGNORE).sum()
        return {"n_action_targets": (until - batch["target_from"]).sum(), "n_type_targets": n_types}

    def fit_inputs(self, windows: dict[str, Tensor]) -> None:
        """Keep the mean and standard deviation of real-valued inputs with the weights.

        Rewards that are all 0 or 1 need none, and are left as they are.
        """
        held = torch.arange(windows["rewards"].shape[1]) < windows["region_lengths"].sum(1, keepdim=True)
        rewards = windows["rewards"][held]
        if not ((rewards == 0) | (rewards == 1)).all():
            self.reward_mean.copy_(rewards.double().mean())
            self.reward_std.copy_(deviation(rewards))
        parts = [("observations", self.observation_embedding), ("actions", self.actions)]
        if self.config["reached_observations"]:
            parts.append(("observations", self.reached_embedding))
        for name, part in parts:
            if hasattr(part, "mean"):  # continuous
                values = windows[name][held]
                part.mean.copy_(values.double().mean(0))
                part.std.copy_(deviation(values))

    def compile_trunk(self) -> None:
        self.transformer.compile()

    # Acting ---------------------------------------------------------------------------------------

    def actor(self, n_envs: int, sampling: Sampling, seed: int = 0, first_env: int = 0) -> ContextActor:
        return ContextActor(self, n_envs, sampling, seed, first_env)
