"""Standard AD: a plain window of the newest steps, one token each.

In training it is a stretch of the history, thinned to every `region_stride`-th rollout. In acting it grows to
`n_transit` steps; then the newest `kept_fraction` of them stay.
"""

from __future__ import annotations

import numpy as np
import torch

from config.schema import keys_of
from model.context.base import Context, Timeline, Windows
from model.tokens import Layout, TokenType, following


class Window(Context):
    """Up to `n_transit` steps without marker tokens. Source: Algorithm Distillation (arXiv:2210.14215)."""

    keys = keys_of("context", "window")
    marks_regions = False
    n_regions = 1

    def __init__(self, config: dict):
        super().__init__()
        self.n_transit, self.interval = config["n_transit"], config["compress_interval"]
        self.history_regions = config["history_regions"]
        self.region_capacity = self.n_positions = self.n_tokens = self.n_transit
        self.n_kept = min(max(1, int(self.n_transit * config["kept_fraction"] + 1e-9)), self.n_transit - 1)

    def untrained(self, timeline: Timeline) -> str | None:
        if timeline.histories:
            longest = timeline.histories.most_regions(self.history_regions) * self.interval
        else:
            whole, rest = np.divmod(timeline.n_steps, timeline.stride * self.interval)
            longest = int((whole * self.interval + np.minimum(rest, self.interval)).max())
        if longest >= self.n_transit:
            return None
        return (
            f"n_transit is {self.n_transit}, and training windows have {longest} steps at most: acting will show longer ones, "
            "which are not learned; lower n_transit, or region_stride"
        )

    def n_places(self, timeline: Timeline) -> np.ndarray:
        """One per last step; steps of rollouts 1 to `stride` - 1 appear before a last step only."""
        later = np.maximum(0, timeline.n_steps - timeline.stride * self.interval)
        return np.minimum(timeline.n_steps, self.interval) + later

    def cut(self, timeline: Timeline, tasks: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> Windows:
        """The window that ends with a given step or, for a step near the beginning, the first `n_transit` ones.

        A window that starts with the history has targets everywhere; a later one only where evaluation,
        which keeps `kept_fraction` of the window when it rolls, would act.
        """
        if timeline.histories:
            return self._cut_from_histories(timeline, tasks, rng)
        n_transit, interval, stride = self.n_transit, self.interval, timeline.stride
        last = np.where(places < interval, places, places + (stride - 1) * interval)
        # It belongs to the thinned history of rollouts `offset`, `offset` + `stride`, ...; all below are places in that
        offset, period = last // interval % stride, interval * stride
        in_thinned = last // period * interval + last % interval
        n_left = timeline.n_steps[tasks] - offset * interval
        length = n_left // period * interval + np.minimum(n_left % period, interval)
        stop = np.clip(in_thinned + 1, n_transit, length)
        start = np.maximum(stop - n_transit, 0)
        lengths = stop - start

        step = np.arange(lengths.max())
        position = start[:, None] + step  # (B, L)
        at_start = np.where(offset == 0, 0, interval)  # evaluation does not begin with a later rollout
        parts = position // interval - start[:, None] // interval
        return Windows(
            times=(offset[:, None] + position // interval * stride) * interval + position % interval,
            parts=parts,
            n_parts=int(parts.max()) + 1,
            valid=step < lengths[:, None],
            region_lengths=lengths[:, None],
            target_from=np.where(start == 0, at_start, self.n_kept),
        )

    def _cut_from_histories(self, timeline: Timeline, tasks: np.ndarray, rng: np.random.Generator) -> Windows:
        """Up to `n_transit` steps that follow each other in a drawn history: from a region's start on, or its last ones.

        Where such windows would not have every step of a region as a target, from any step on.
        """
        starts, lengths, streams = timeline.histories.draw(tasks, self.history_regions, rng)
        n_held = (lengths > 0).sum(axis=1)  # (B,) regions of the history
        n_shown, total = -(-self.n_transit // self.interval), n_held * self.interval
        ends_within = self.n_transit % self.interval > 0  # then one more place ends with the history
        n_places = np.maximum(0, n_held - n_shown + ends_within) + 1
        first = np.minimum(rng.integers(n_places) * self.interval, np.maximum(0, total - self.n_transit))
        if self.n_transit - self.n_kept < self.interval:  # else some steps of a region would never be targets
            first = np.clip(rng.integers(total) + 1, self.n_transit, np.maximum(self.n_transit, total)) - self.n_transit
        n_steps = np.minimum(self.n_transit, total - first)
        step = np.arange(n_steps.max())
        valid = step < n_steps[:, None]
        regions, within = np.divmod(np.where(valid, first[:, None] + step, first[:, None]), self.interval)
        parts = regions - regions[:, :1]
        n_parts = int(parts.max()) + 1
        chosen = np.minimum(regions[:, :1] + np.arange(n_parts), n_held[:, None] - 1)
        return Windows(
            times=np.take_along_axis(starts, regions, axis=1) + within,
            parts=parts,
            n_parts=n_parts,
            valid=valid,
            region_lengths=n_steps[:, None],
            target_from=np.where(first == 0, 0, np.minimum(self.n_kept, n_steps - 1)),
            streams=np.take_along_axis(streams, chosen, axis=1),
        )

    def layout(self, region_lengths: torch.Tensor) -> Layout:
        n_steps = region_lengths[:, -1:]
        t = torch.arange(int(n_steps.max()), device=n_steps.device).expand(len(n_steps), -1)  # (B, T)
        valid = t < n_steps
        types = torch.full_like(t, TokenType.TRANSITION)
        return Layout(types, t * valid, t * valid, valid, following(types, valid))

    def roll(self, region_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept = torch.full_like(region_lengths, self.n_kept)
        return region_lengths[:, 0] - self.n_kept, kept

    def starts(self, region_lengths: torch.Tensor, dones: torch.Tensor) -> torch.Tensor:
        """Only what led to the oldest step is unknown: acting goes on in one stream, rollout after rollout."""
        return (torch.arange(dones.shape[1], device=dones.device) == 0).expand(len(dones), -1)
