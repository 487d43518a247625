"""Compressed context: the previous and the current region, each bracketed by marker tokens.

    <compress> x_1 ... x_80 </compress> <compress> x_81 ... x_160

The current region is still open. One region is one rollout of the source, or several. The idea is this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from config.schema import keys_of
from model.context.base import Context, Timeline, Windows, interval_problems, pack
from model.tokens import IGNORE, Layout, TokenType, following


@dataclass
class SharedLayout(Layout):
    """A layout whose first `n_groups` rows are the regions that groups of windows share."""

    n_groups: int


class Regions(Context):
    """The newest `context_regions` regions of up to `compress_interval` steps; older ones are dropped."""

    keys = keys_of("context", "regions")
    marks_regions = True

    def __init__(self, config: dict):
        super().__init__()
        self.n_regions, self.region_capacity = config["context_regions"], config["compress_interval"]
        self.n_currents = config["currents_per_previous"]
        self.n_positions = self.n_regions * (self.region_capacity + 2)
        self.n_tokens = self.n_positions - 1  # the current region is open
        self.blank_starts, self.with_dones = config["blank_starts"], config["with_dones"]
        self.history_regions, self.ends_at_news = config["history_regions"], config["region_ends"] == "news"

    @classmethod
    def problems(cls, config: dict) -> list[str]:
        interval, n_regions = config["compress_interval"], config["context_regions"]
        if not isinstance(interval, int):  # null or auto: a rollout, or what the history file allows
            interval = config.get("n_steps")
        problems = interval_problems(config, may_divide=config["histories"] != "every")
        if interval and config["n_transit"] < n_regions * interval:
            problems.append(
                f"n_transit {config['n_transit']} is too small: it must hold {n_regions} regions of "
                f"compress_interval {interval} steps, at least {n_regions * interval}"
            )
        if config["histories"] != "every" and config["history_regions"] < n_regions:
            problems.append(
                f"history_regions {config['history_regions']} is too small: a window shows context_regions {n_regions}"
            )
        return problems + cls._sharing_problems(config)

    @staticmethod
    def _sharing_problems(config: dict) -> list[str]:
        n_currents, n_windows = config["currents_per_previous"], config["train_batch_size"]
        if n_currents == 1:
            return []
        problems = []
        if config["context_regions"] == 1:
            problems.append(f"currents_per_previous {n_currents} needs a previous region: context_regions of 2 or more")
        if config["histories"] == "whole" or not config["mix_streams"]:
            problems.append(
                f"currents_per_previous {n_currents} takes current regions of several streams: with mix_streams: true "
                "and histories every or causal only"
            )
        if n_windows % n_currents:
            problems.append(
                f"train_batch_size {n_windows} must be a multiple of currents_per_previous {n_currents}: it counts windows"
            )
        return problems

    def untrained(self, timeline: Timeline) -> str | None:
        if timeline.histories:
            most = timeline.histories.most_regions(self.history_regions)
        else:
            most = (int(timeline.n_regions.max()) - 1) // timeline.stride + 1
        if most >= self.n_regions:
            return None
        return (
            f"training windows have {most} regions at most: acting shows {self.n_regions}, which is not learned; lower "
            "context_regions, or region_stride"
        )

    def n_places(self, timeline: Timeline) -> np.ndarray:
        """One per current region; rollouts 1 to `stride` - 1 appear before a current region only."""
        if self.n_regions == 1:
            return timeline.n_regions
        return 1 + np.maximum(0, timeline.n_regions - timeline.stride)

    def cut(self, timeline: Timeline, tasks: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> Windows:
        """A current region behind those that are `stride`, 2 `stride`, ... rollouts older, or in causal histories
        behind those that a history has before it.

        The first region of a history has no previous region.
        """
        if timeline.histories:
            return self._cut_from_histories(timeline, tasks, rng)
        current = places if self.n_regions == 1 else np.where(places == 0, 0, places + timeline.stride - 1)
        regions = current[:, None] - timeline.stride * np.arange(self.n_regions - 1, -1, -1)  # (B, R), oldest first
        exists, regions, task_column = regions >= 0, np.maximum(regions, 0), tasks[:, None]
        lengths = np.where(exists, timeline.region_lengths[task_column, regions], 0)
        return pack(timeline.region_starts[task_column, regions], lengths)

    def _cut_from_histories(self, timeline: Timeline, tasks: np.ndarray, rng: np.random.Generator) -> Windows:
        starts, all_lengths, streams = timeline.histories.draw(tasks, self.history_regions, rng)
        current = rng.integers((all_lengths > 0).sum(axis=1))
        regions = current[:, None] - np.arange(self.n_regions - 1, -1, -1)  # (B, R), oldest first
        exists, regions = regions >= 0, np.maximum(regions, 0)
        lengths = np.where(exists, np.take_along_axis(all_lengths, regions, axis=1), 0)
        windows = pack(np.take_along_axis(starts, regions, axis=1), lengths)
        windows.streams = np.take_along_axis(streams, regions, axis=1)
        return windows

    def layout(self, region_lengths: Tensor) -> Layout:
        """A region's positions start where they would if all regions before it were full, so a short region
        does not move those behind it. A region that does not exist takes no place: a first region starts at 0.
        """
        B, _ = region_lengths.shape
        present = region_lengths > 0  # (B, R)
        n_tokens = region_lengths + present * 2  # both markers ...
        n_tokens[:, -1] -= 1  # ... but the current region is still open
        ends = n_tokens.cumsum(1)
        starts, first_steps = ends - n_tokens, region_lengths.cumsum(1) - region_lengths  # (B, R)

        t = torch.arange(int(ends[:, -1].max()), device=ends.device).expand(B, -1)  # (B, T)
        region = (t[:, :, None] >= starts[:, None, :]).sum(-1) - 1  # (B, T) the last region that started
        index = t - starts.gather(1, region)  # within the region, markers included
        valid = t < ends[:, -1:]
        types = torch.full_like(t, TokenType.TRANSITION)
        types = types.masked_fill(index == 0, TokenType.COMPRESS_START)
        types = types.masked_fill(index == region_lengths.gather(1, region) + 1, TokenType.COMPRESS_END)
        n_missing = (~present).sum(1, keepdim=True)
        positions = (region - n_missing) * (self.region_capacity + 2) + index
        is_step = valid & (types == TokenType.TRANSITION)
        steps = torch.where(is_step, first_steps.gather(1, region) + index - 1, 0)

        next_types = following(types, valid)
        # A full current region ends here, a shorter one goes on to where nobody knows, if its end is not that of news
        is_full = (region_lengths[:, -1:] == self.region_capacity) | self.ends_at_news
        next_types.scatter_(1, ends[:, -1:] - 1, torch.where(is_full, TokenType.COMPRESS_END, IGNORE))
        return Layout(types, positions * valid, steps, valid, next_types)

    def shared_layout(self, region_lengths: Tensor, n_sharing: int) -> SharedLayout:
        """A row for each group's shared regions, (G, T), then one for each window's current region, (B, T)."""
        whole, (B, G) = self.layout(region_lengths), (len(region_lengths), len(region_lengths) // n_sharing)
        before = region_lengths[:, :-1]
        n_before = (before + 2 * (before > 0)).sum(1)  # (B,) tokens before the current region
        n_current, device = region_lengths[:, -1] + 1, n_before.device
        windows = torch.arange(B, device=device)
        windows = torch.cat([windows[:G], windows])
        first = torch.cat([torch.zeros_like(n_before[:G]), n_before])
        n_tokens = torch.cat([n_before[:G], n_current])[:, None]  # (G + B, 1)
        t = torch.arange(int(n_tokens.max()), device=device)
        valid, at = t < n_tokens, (windows[:, None], (first[:, None] + t).clamp(max=whole.types.shape[1] - 1))
        fields = (whole.types, whole.positions, whole.steps)
        next_types = torch.where(valid, whole.next_types[at], IGNORE)
        counts = torch.ones_like(windows)
        counts[:G] = n_sharing
        types, positions, steps = (torch.where(valid, of_windows[at], 0) for of_windows in fields)
        return SharedLayout(types, positions, steps, valid, next_types, G, windows=windows, counts=counts)

    def read(self, trunk: nn.Module, x: Tensor, layout: Layout) -> Tensor:
        """Causal attention over each window, whether it is one row or two."""
        if not isinstance(layout, SharedLayout):
            return trunk(x)
        G, (rows, T, _) = layout.n_groups, x.shape
        n = (rows - G) // G  # windows of a group
        causal = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        sees_shared = layout.valid[:G].repeat(n, 1)[:, None].expand(-1, T, -1)
        sees = torch.cat([sees_shared, causal.expand(rows - G, -1, -1)], dim=2)[:, None]  # (B, 1, T, 2 T)
        bias = torch.zeros(sees.shape, device=x.device).masked_fill(~sees, -torch.inf)

        def attend(layer: int, *qkv: Tensor) -> Tensor:
            # As (rows, T, H, width), the order in memory, so that joining copies whole tokens
            shared, (q, k, v) = zip(*(z.transpose(1, 2).split([G, rows - G]) for z in qkv))
            k, v = (torch.cat([z.repeat(n, 1, 1, 1), own], dim=1) for z, own in zip(shared[1:], (k, v)))
            of_shared = trunk.attend(*(z.transpose(1, 2) for z in shared))
            of_currents = trunk.attend(*(z.transpose(1, 2) for z in (q, k, v)), bias.to(q.dtype))
            return torch.cat([z.transpose(1, 2) for z in (of_shared, of_currents)]).transpose(1, 2)

        return trunk(x, attend)

    def roll(self, region_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The oldest region is dropped, the current one becomes the previous one, and a new one begins."""
        kept = torch.cat([region_lengths[:, 1:], torch.zeros_like(region_lengths[:, :1])], dim=1)
        return region_lengths[:, 0], kept

    def starts(self, region_lengths: Tensor, dones: Tensor) -> Tensor:
        """As in training: a region's first step shows what led to it where an episode begins there."""
        step = torch.arange(dones.shape[1], device=dones.device)
        if not self.blank_starts:
            return (step == 0).expand(len(dones), -1)
        first_steps = (region_lengths.cumsum(1) - region_lengths).to(dones.device)  # (N, R)
        is_first = (step[None, :, None] == first_steps[:, None, :]).any(-1)
        return is_first & ((step == 0) | ~(dones.bool() & self.with_dones).roll(1, dims=1))
