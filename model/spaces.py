"""How observations and actions enter and leave the model, discrete or continuous.

A space is described by a plain dict, so that it can be stored in a checkpoint:
`{"kind": "discrete", "sizes": [9, 9]}` or `{"kind": "continuous", "sizes": [3]}` for observations,
`{"kind": "discrete", "sizes": [5]}`, `{"kind": "multi_discrete", "sizes": [3, 2]}` or `{"kind": "continuous",
"sizes": [1], "low": ..., "high": ...}` for actions.

Letters in shapes: ... any leading dimensions, D embedding, O observation entries, A actions or action entries.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal


def keep_standardisation(module: nn.Module, mean: str, std: str, shape: tuple[int, ...]) -> None:
    """Give `module` buffers for the mean and deviation of an input in the training data, stored with the model.

    Until training sets them, and in a checkpoint from before they existed, they change nothing.
    """
    module.register_buffer(mean, torch.zeros(shape))
    module.register_buffer(std, torch.ones(shape))

    def fill_in(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
        state_dict.setdefault(prefix + mean, torch.zeros(shape))
        state_dict.setdefault(prefix + std, torch.ones(shape))

    module.register_load_state_dict_pre_hook(fill_in)


def deviation(values: Tensor) -> Tensor:
    """Standard deviation over the first axis; 1 for an entry that never changes, which leaves it as it is."""
    std = values.double().std(0)
    return torch.where(std > 1e-6, std, 1.0)


def action_shape(space: dict) -> tuple[int, ...]:
    """Shape of one action of a described space: () for one of A actions, else (entries,)."""
    if space["kind"] == "discrete":
        return ()
    return (len(space["sizes"]),) if space["kind"] == "multi_discrete" else tuple(space["sizes"])


def as_torch_type(values: np.ndarray) -> np.ndarray:
    """Unsigned integers of more than 8 bits as int64: torch has them, but cannot index or compare them."""
    return values.astype(np.int64) if values.dtype.kind == "u" and values.dtype.itemsize > 1 else values


def draw_categorical(logits: Tensor, temperature: Tensor, noise: Tensor) -> Tensor:
    """(N, A) logits, (N, 1) or (1,) temperatures and (N,) uniform noise to (N,) values; the most probable ones at 0."""
    scaled = logits / torch.where(temperature > 0, temperature, 1.0)
    below = scaled.softmax(-1).cumsum(-1) <= noise[:, None]  # by the inverse of the distribution function
    sampled = below.sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return torch.where(temperature > 0, sampled, logits.argmax(-1, keepdim=True))[:, 0]


class ObservationEmbedding(nn.Module):
    """(..., O) observations to (..., D): a sum of one embedding per entry, or a linear layer."""

    def __init__(self, space: dict, n_embd: int):
        super().__init__()
        self.discrete = space["kind"] == "discrete"
        sizes = torch.tensor(space["sizes"])
        if self.discrete:
            self.embedding = nn.Embedding(int(sizes.sum()), n_embd)
            self.register_buffer("first_index", sizes.cumsum(0) - sizes, persistent=False)
        else:
            self.linear = nn.Linear(int(sizes[0]), n_embd)
            keep_standardisation(self, "mean", "std", (int(sizes[0]),))

    def forward(self, observations: Tensor) -> Tensor:
        if self.discrete:
            return self.embedding(observations.long() + self.first_index).sum(dim=-2)
        return self.linear((observations.float() - self.mean) / self.std)


class DiscreteActions(nn.Module):
    """One of A actions: embedded as input, a categorical distribution as output."""

    soft_targets = ("action_probs",)  # datasets that `loss` takes instead of the actions

    def __init__(self, space: dict, n_embd: int):
        super().__init__()
        self.n_outputs = space["sizes"][0]
        self.embedding = nn.Embedding(self.n_outputs + 1, n_embd)  # the last one is "none"

    def forward(self, previous_actions: Tensor, is_none: Tensor) -> Tensor:
        """(...) actions, and where there was none, to (..., D)."""
        return self.embedding(torch.where(is_none, self.n_outputs, previous_actions.long()))

    def loss(self, outputs: Tensor, actions: Tensor, action_probs: Tensor | None = None) -> Tensor:
        """(M, A) outputs to (M,) cross-entropies: to the source's distribution if given, else to its action."""
        return F.cross_entropy(outputs, actions.long() if action_probs is None else action_probs, reduction="none")

    def accuracy(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """(M,) 1 where the most probable action is the one taken."""
        return (outputs.argmax(-1) == actions.long()).float()

    def draw_noise(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """(n,) random numbers, as many as n samples of one environment need."""
        return rng.random(n, dtype=np.float32)

    def sample(self, outputs: Tensor, temperature: Tensor | float, noise: Tensor) -> Tensor:
        """(N, A) outputs and (N,) `draw_noise` to (N,) actions.

        Temperature, (N,) or a single one, takes the most probable action where it is 0.
        """
        temperature = torch.as_tensor(temperature, device=outputs.device)[..., None]
        return draw_categorical(outputs, temperature, noise)


class MultiDiscreteActions(nn.Module):
    """A vector of choices, each with its own number of values: embedded by their sum, a categorical each as output.

    The categoricals lie side by side in outputs and `action_probs`, A values together. K is the number of entries.
    """

    soft_targets = ("action_probs",)  # datasets that `loss` takes instead of the actions

    def __init__(self, space: dict, n_embd: int):
        super().__init__()
        self.sizes = space["sizes"]
        self.n_outputs = sum(self.sizes)
        sizes = torch.tensor(self.sizes)
        self.embedding = nn.Embedding(self.n_outputs + 1, n_embd)  # the last one is "none"
        self.register_buffer("first_index", sizes.cumsum(0) - sizes, persistent=False)

    def forward(self, previous_actions: Tensor, is_none: Tensor) -> Tensor:
        """(..., K) actions, and where there was none (...), to (..., D)."""
        chosen = self.embedding(previous_actions.long() + self.first_index).sum(dim=-2)
        return torch.where(is_none[..., None], self.embedding.weight[-1], chosen)

    def loss(self, outputs: Tensor, actions: Tensor, action_probs: Tensor | None = None) -> Tensor:
        """(M, A) outputs to (M,) cross-entropies, summed over entries: to the source's distributions, else to its action."""
        targets = actions.long().unbind(-1) if action_probs is None else action_probs.split(self.sizes, dim=-1)
        entries = zip(outputs.split(self.sizes, dim=-1), targets)
        return torch.stack([F.cross_entropy(logits, target, reduction="none") for logits, target in entries]).sum(0)

    def accuracy(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """(M,) share of entries at which the most probable value is the one taken."""
        likely = torch.stack([logits.argmax(-1) for logits in outputs.split(self.sizes, dim=-1)], dim=-1)
        return (likely == actions.long()).float().mean(-1)

    def draw_noise(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """(n, K) random numbers, as many as n samples of one environment need."""
        return rng.random((n, len(self.sizes)), dtype=np.float32)

    def sample(self, outputs: Tensor, temperature: Tensor | float, noise: Tensor) -> Tensor:
        """(N, A) outputs and (N, K) `draw_noise` to (N, K) actions; temperature as for `DiscreteActions`."""
        temperature = torch.as_tensor(temperature, device=outputs.device)[..., None]
        entries = zip(outputs.split(self.sizes, dim=-1), noise.unbind(-1))
        return torch.stack([draw_categorical(logits, temperature, drawn) for logits, drawn in entries], dim=-1)


class ContinuousActions(nn.Module):
    """A real-valued action vector: a linear layer as input, a diagonal Gaussian as output.

    Both are in units of the training data's actions, so that their scale does not matter. Actions are
    drawn from the Gaussian and then clipped to the action space, as stable-baselines3 does with the source's.
    """

    soft_targets = ("action_means", "action_stds")  # datasets that `loss` takes instead of the actions
    BEYOND_BOUNDS = 3  # standard deviations

    def __init__(self, space: dict, n_embd: int):
        super().__init__()
        n_entries = space["sizes"][0]
        self.n_outputs = 2 * n_entries  # mean and log standard deviation
        self.linear = nn.Linear(n_entries, n_embd)
        self.none = nn.Parameter(0.02 * torch.randn(n_embd))
        self.register_buffer("low", torch.tensor(space["low"]), persistent=False)
        self.register_buffer("high", torch.tensor(space["high"]), persistent=False)
        keep_standardisation(self, "mean", "std", (n_entries,))

    def forward(self, previous_actions: Tensor, is_none: Tensor) -> Tensor:
        """(..., A) actions, and where there was none (...), to (..., D)."""
        standardised = (previous_actions.float() - self.mean) / self.std
        return torch.where(is_none[..., None], self.none, self.linear(standardised))

    def distribution(self, outputs: Tensor) -> Normal:
        """The predicted Gaussian before clipping, in the action space's units."""
        mean, log_std = outputs.chunk(2, dim=-1)
        mean, std = self.mean + self.std * mean, self.std * log_std.clamp(-5, 2).exp()
        return Normal(mean, std, validate_args=False)  # training that has diverged is told by train.py

    def loss(self, outputs: Tensor, actions: Tensor, means: Tensor | None = None, stds: Tensor | None = None) -> Tensor:
        """(M, 2A) outputs to (M,) expected negative log-likelihoods, in standardised units.

        Expected over the source's Gaussian, of (M, A) `means` and `stds`, if given; else of the actions
        taken. A source's mean far outside the action space says no more than its bound: nearly all that is
        drawn around it is clipped. So it counts as `BEYOND_BOUNDS` deviations outside, lest it outweigh the rest.
        """
        if means is None:
            means, stds = actions.float(), torch.zeros_like(actions, dtype=torch.float)
        else:
            means = means.clamp(self.low - self.BEYOND_BOUNDS * stds, self.high + self.BEYOND_BOUNDS * stds)
        predicted_mean, log_std = outputs.chunk(2, dim=-1)
        log_std = log_std.clamp(-5, 2)
        squared = ((means - self.mean) / self.std - predicted_mean) ** 2 + (stds / self.std) ** 2  # expected
        return (0.5 * squared * (-2 * log_std).exp() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def accuracy(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """(M,) share of action entries within one predicted standard deviation of the mean.

        0.68 is calibrated; more where actions are clipped, since the interval is clipped as they are.
        """
        predicted = self.distribution(outputs)
        low = (predicted.mean - predicted.stddev).clamp(self.low, self.high)
        high = (predicted.mean + predicted.stddev).clamp(self.low, self.high)
        return ((actions >= low) & (actions <= high)).float().mean(-1)

    def draw_noise(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """(n, A) random numbers, as many as n samples of one environment need."""
        return rng.standard_normal((n, self.n_outputs // 2), dtype=np.float32)

    def sample(self, outputs: Tensor, temperature: Tensor | float, noise: Tensor) -> Tensor:
        """(N, 2A) outputs and (N, A) `draw_noise` to (N, A) actions within bounds.

        Temperature, (N,) or a single one, scales the standard deviation.
        """
        predicted = self.distribution(outputs)
        temperature = torch.as_tensor(temperature, device=outputs.device)[..., None]
        return (predicted.mean + temperature * predicted.stddev * noise).clamp(self.low, self.high)


ACTIONS = {"discrete": DiscreteActions, "multi_discrete": MultiDiscreteActions, "continuous": ContinuousActions}
