"""Compressed context with memory: older regions stay as a few summary tokens each, ever more coarsely.

    [summaries of older regions] <compress> [previous region] </compress> s s s s <compress> [current region ...

Every finished region appends `n_summary` summary tokens behind its `</compress>`. A token attends to its own
region up to itself, to the previous region, and to the summaries of older ones. When there are more than
`memory_regions` of these, the model merges the two oldest neighbours of the same level into one of the next
level: level 1 stands for one region, level 2 for two, level 3 for four, and so on. In each layer a merged summary's
keys and values are mixtures of its children's in the same layer, so what a region taught lasts through any number of
merges. Keys hold no positions that change with age; a learned bias per head, layer and age is added to the attention
scores instead. So one pass over a history trains all of its regions, and acting encodes nothing anew.

Related: AutoCompressors (arXiv:2305.14788) accumulate summaries of segments, without bound and without merging.

Letters in shapes: B batch, R regions per training history, L steps per region, K summary tokens, T tokens per
region, S nodes (summaries and merged ones), M nodes that a region sees at most, H heads, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import keys_of
from model.context.base import Context, Timeline, Windows, interval_problems, pack
from model.context.boundaries import Boundaries
from model.context.memory_acting import MERGING, N_AGES, PREVIOUS, MemoryContext, pair_to_merge
from model.context.recall import Recall, answers, ask
from model.tokens import IGNORE, Layout, TokenType
from model.transformer import attend_with_bias

N_LEVELS = 8  # with a type embedding of their own; higher ones share the last


@dataclass(frozen=True)
class Plan:
    """Which summaries there are, in what order they are merged, and who sees which.

    levels: of each node, in the order they are made; the first R are those of the regions. children: per merged
    node its two. visible: per region the nodes that it sees, oldest first.
    """

    levels: tuple[int, ...]
    children: tuple[tuple[int, int], ...]
    visible: tuple[tuple[int, ...], ...]

    def regions(self) -> list[tuple[int, ...]]:
        """The regions that each node stands for."""
        held = [(region,) for region in range(len(self.visible))]
        for one, other in self.children:
            held.append(held[one] + held[other])
        return held

    def at_once(self) -> list[list[tuple[int, int]]]:
        """The children, in groups that need no node of the same group."""
        groups, n_regions = [], len(self.visible)
        for number, pair in enumerate(self.children):
            if not groups or max(pair) >= n_regions + number - len(groups[-1]):
                groups.append([])
            groups[-1].append(pair)
        return groups


@lru_cache
def make_plan(n_regions: int, memory_regions: int) -> Plan:
    """The plan of a history of `n_regions` regions."""
    levels, children, visible, nodes = [1] * n_regions, [], [], []
    for region in range(n_regions):
        if region >= 2 and memory_regions:
            nodes.append(region - 2)  # the previous region is seen in full
        while (at := pair_to_merge([levels[node] for node in nodes], memory_regions)) is not None:
            children.append((nodes[at], nodes[at + 1]))
            nodes[at : at + 2] = [len(levels)]
            levels.append(max(levels[child] for child in children[-1]) + 1)
        visible.append(tuple(nodes))
    return Plan(tuple(levels), tuple(children), tuple(visible))


@dataclass(frozen=True)
class Masks:
    """What the regions of a history see, and what is merged.

    nodes: (R, M) the nodes that each region sees, oldest first; 0 stands for none. seen: (R, T, M K + 2 T) 0 or -inf, for
    the tokens of these nodes, of the previous region and of the own one; ages: (R, M K + 2 T) of the same. merges: (n, 2)
    pairs of nodes that can be merged at once, one after the other.
    """

    nodes: Tensor
    seen: Tensor
    ages: Tensor
    merges: tuple[Tensor, ...]


@lru_cache(maxsize=64)
def make_masks(R: int, room: int, T: int, K: int) -> Masks:
    plan = make_plan(R, room)
    M = max(map(len, plan.visible))
    nodes = torch.zeros(R, M, dtype=torch.long)
    sees, ages = torch.zeros(R, T, M * K + 2 * T, dtype=torch.bool), torch.zeros(R, M * K + 2 * T, dtype=torch.long)
    for region, visible in enumerate(plan.visible):
        n = len(visible)
        nodes[region, :n] = torch.tensor(visible, dtype=torch.long)
        sees[region, :, : n * K] = True
        newest_first = torch.arange(n - 1, -1, -1).repeat_interleave(K)
        ages[region, : n * K] = (PREVIOUS + 1 + newest_first).clamp(max=N_AGES - 1)
    sees[1:, :, M * K : M * K + T] = True
    ages[:, M * K : M * K + T] = PREVIOUS
    sees[:, :, M * K + T :] = torch.ones(T, T).tril().bool()
    seen = torch.zeros(sees.shape).masked_fill(~sees, -torch.inf)
    return Masks(nodes, seen, ages, tuple(torch.tensor(pairs) for pairs in plan.at_once()))


@dataclass
class MemoryLayout(Layout):
    """A layout with `room` for so many summaries of older regions.

    held: (B, R, T) False for padding in regions that are not full; None where all are.
    values: those of all nodes, (B, H, S, K, width) per layer, once the layout has been read; kept where summaries are asked.
    """

    room: int
    held: Tensor | None
    values: list[Tensor] = field(default_factory=list, kw_only=True)


class Memory(Context):
    """The previous and the current region of `compress_interval` steps, and summaries of all older ones."""

    keys = keys_of("context", "memory")
    marks_regions = windows_are_histories = True
    n_types = len(TokenType) + N_LEVELS

    def __init__(self, config: dict):
        super().__init__()
        self.n_summary, self.memory_regions = config["n_summary"], config["memory_regions"]
        self.n_regions, self.region_capacity = config["history_regions"], config["compress_interval"]
        self.n_positions = self.region_capacity + 2 + self.n_summary
        self.varied_room, self.blank_starts = config["varied_room"], config["blank_starts"]
        n_values = config["n_layer"] * config["n_summary"] * config["n_embd"]
        self.recall_loss_weight = config["recall_loss_weight"]
        self.recall = Recall(n_values, config["n_embd"]) if self.recall_loss_weight else None
        self.age_bias = nn.Parameter(torch.zeros(config["n_layer"], config["n_head"], N_AGES + len(MERGING)))

    @classmethod
    def problems(cls, config: dict) -> list[str]:
        return interval_problems(config, may_divide=True)

    # Training -------------------------------------------------------------------------------------

    def untrained(self, timeline: Timeline) -> str | None:
        n_regions, room = self.n_regions, self.memory_regions
        if timeline.histories:
            n_regions = timeline.histories.most_regions(n_regions)
        n_seen = max(0, n_regions - 2)  # the third region is the first to see a summary
        is_merging = n_seen > room or (n_seen == room > 1 and self.varied_room > 0)
        if not room or is_merging:
            return None
        return (
            f"training histories have {n_regions} regions at most, so a step sees up to {n_seen} summaries: that acting keeps "
            f"up to {room}, and then merges some, is not learned; use more history_regions, or fewer memory_regions"
        )

    def n_places(self, timeline: Timeline) -> np.ndarray:
        """One per rollout: a history is drawn anew each time."""
        return np.maximum(1, timeline.n_regions)

    def cut(self, timeline: Timeline, tasks: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> Windows:
        """Histories of R regions, as `timeline.histories` puts them together."""
        starts, lengths, streams = timeline.histories.draw(tasks, self.n_regions, rng)  # (B, R) each
        return replace(pack(starts, lengths), target_from=np.zeros(len(tasks), dtype=np.int64), streams=streams)

    def drawn_layout(self, region_lengths: Tensor) -> MemoryLayout:
        """As `layout`; in training a share `varied_room` of the batches has room for a drawn number of summaries.

        It is 1 to `memory_regions`: with little room the model merges again and again, as it has to in a life much longer
        than a training history.
        """
        room = self.memory_regions
        if self.training and room and torch.rand(()) < self.varied_room:
            room = int(torch.randint(1, room + 1, ()))
        return self.layout(region_lengths, room)

    def layout(self, region_lengths: Tensor, room: int | None = None) -> MemoryLayout:
        """R blocks of T tokens, then K tokens for each merged node. A short region's padding stands before its `</compress>`.

        room: for so many summaries of older regions; by default `memory_regions`.
        """
        (B, R), L, K = region_lengths.shape, self.region_capacity, self.n_summary
        room = self.memory_regions if room is None else room
        levels = make_plan(R, room).levels[R:]
        types = torch.tensor([TokenType.COMPRESS_START, *[0] * L, TokenType.COMPRESS_END, *[self.type_of(1)] * K])
        merged = torch.tensor([self.type_of(level) for level in levels], dtype=torch.long).repeat_interleave(K)
        positions, summary = torch.arange(self.n_positions), torch.arange(L + 2, L + 2 + K)
        rows = [torch.cat([types.repeat(R), merged]), torch.cat([positions.repeat(R), summary.repeat(len(levels))])]
        types, positions = (row.to(region_lengths.device).expand(B, -1) for row in rows)
        lengths, first_steps = region_lengths[:, :, None], (region_lengths.cumsum(1) - region_lengths)[:, :, None]
        index = torch.arange(self.n_positions, device=region_lengths.device)  # of a region's token; 1 to L are steps
        held = (index <= lengths) | (index > L)  # (B, R, T)
        steps = torch.where((index > 0) & (index <= lengths), first_steps + index - 1, 0)
        following = torch.where(index < lengths, TokenType.TRANSITION, TokenType.COMPRESS_END)
        exists = lengths > 0  # in a region that does not, nothing follows
        following = torch.where((index <= lengths) & exists, following, IGNORE)
        per_merged = (0, len(merged))
        return MemoryLayout(
            types,
            positions,
            steps=F.pad(steps.flatten(1), per_merged),
            valid=F.pad(held.flatten(1), per_merged, value=True),
            next_types=F.pad(following.flatten(1), per_merged, value=IGNORE),
            room=room,
            held=None if held.all() else held,
        )

    def type_of(self, level: int) -> int:
        """The token type of a summary."""
        return len(TokenType) - 1 + min(level, N_LEVELS)

    def shown_types(self, n_older: int, n_current: int) -> Tensor:
        """(T,) token types that the newest of `n_current` steps sees, with `n_older` regions before the previous one."""
        region = self.layout(torch.full((1, 1), self.region_capacity)).types[0]
        plan = make_plan(n_older + 2, self.memory_regions)
        levels = torch.tensor([self.type_of(plan.levels[node]) for node in plan.visible[-1]], dtype=torch.long)
        return torch.cat([levels.repeat_interleave(self.n_summary), region, region[: n_current + 1]])

    def read(self, trunk: nn.Module, x: Tensor, layout: MemoryLayout) -> Tensor:
        """(B, tokens, D) to features: all regions of the histories in one pass."""
        R, T, K = self.n_regions, self.n_positions, self.n_summary
        masks = make_masks(R, layout.room, T, K)
        seen, ages, visible = (m.to(x.device) for m in (masks.seen, masks.ages, masks.nodes))

        def regions(z: Tensor) -> Tensor:
            return z[:, :, : R * T].unflatten(2, (R, T))  # (B, H, R, T, width)

        def nodes(layer: int, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
            """Keys and values of all nodes, (B, H, S, K, width) each."""
            made = [regions(z)[:, :, :, T - K :] for z in (k, v)]
            queries = q[:, :, R * T :].unflatten(2, (-1, K)).split([len(pairs) for pairs in masks.merges], dim=2)
            for pairs, of_merged in zip(masks.merges, queries):
                merged = self.merge(layer, of_merged, *(z[:, :, pairs].flatten(3, 4) for z in made))
                made = [torch.cat(both, dim=2) for both in zip(made, merged)]
            return made

        def seen_by_regions(z: Tensor, summaries: Tensor) -> Tensor:
            own = regions(z)
            previous = F.pad(own, (0, 0, 0, 0, 1, 0))[:, :, :R]
            older = summaries[:, :, visible].flatten(3, 4)  # (B, H, R, M K, width)
            return torch.cat([older, previous, own], dim=3).flatten(1, 2)  # (B, H R, M K + 2 T, width)

        padding = None if layout.held is None else self._hide_padding(layout.held, masks.seen.shape[-1])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            bias = (seen + self.age_bias[layer][:, ages][:, :, None])[None]  # (1, H, R, T, M K + 2 T)
            if padding is not None:
                bias = bias + padding
            of_nodes = nodes(layer, q, k, v)
            if self.recall is not None:
                layout.values.append(of_nodes[1])
            keys, values = (seen_by_regions(z, summaries) for z, summaries in zip((k, v), of_nodes))
            out = attend_with_bias(regions(q).flatten(1, 2), keys, values, bias.flatten(1, 2))[1]
            out = out.unflatten(1, (-1, R)).flatten(2, 3)  # (B, H, R T, width)
            return torch.cat([out, of_nodes[1][:, :, R:].flatten(2, 3)], dim=2)

        return trunk(x, attend)

    def auxiliary_losses(
        self, batch: dict[str, Tensor], layout: MemoryLayout, embed: nn.Module
    ) -> dict[str, tuple[Tensor, float]]:
        """`loss_recall`: see model/context/recall.py."""
        if self.recall is None:
            return {}
        asked = ask(batch, self.training)
        occurs, exists = answers(batch, asked, make_plan(self.n_regions, layout.room).regions())
        questions = embed(asked).detach()  # how observations are embedded is for acting alone to say
        return {"loss_recall": (self.recall(layout.values, questions, occurs, exists), self.recall_loss_weight)}

    def merge(self, layer: int, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of merged nodes, (..., H, nodes, K, width) each.

        Args:
            q: (..., H, nodes, K, width) their own queries.
            keys, values: (..., H, nodes, 2 K, width) their children's, the older child's first.
        """
        bias = self.age_bias[layer][:, list(MERGING)].repeat_interleave(self.n_summary, dim=1)  # (H, 2 K)
        weights, mixed = attend_with_bias(q, keys, values, bias[:, None, None])
        return weights @ keys, mixed

    @staticmethod
    def _hide_padding(held: Tensor, n_keys: int) -> Tensor:
        """(B, R, T) tokens that are no padding to what is added to scores, (B, 1, R, 1, keys): -inf at padding's keys."""
        both = torch.cat([F.pad(held, (0, 0, 1, 0), value=True)[:, :-1], held], dim=2)  # previous and own region
        hidden = ~F.pad(both, (n_keys - both.shape[2], 0), value=True)
        return torch.zeros(hidden.shape, device=held.device).masked_fill(hidden, -torch.inf)[:, None, :, None]

    # Acting ---------------------------------------------------------------------------------------

    def rolling(self, model: nn.Module, n_envs: int, boundaries: Boundaries | None = None) -> MemoryContext:
        return MemoryContext(model, self, n_envs, boundaries)
