"""The markers of a history: which environment steps begin and end a region.

A region is one rollout: what the source algorithm collects between two updates. Its first step is marked
`REGION_START`, its last `REGION_END`, all others `INSIDE`.

Letters in shapes: T environment steps per stream.
"""

from __future__ import annotations

import numpy as np

INSIDE, REGION_START, REGION_END = 0, 1, 2  # values of compress_markers in a history file


def mark_regions(regions: list[tuple[int, int]], n_steps: int) -> np.ndarray:
    """Markers of a history of `n_steps` steps.

    Args:
        regions: half-open (start, stop) step indices; a stop beyond `n_steps` is an unfinished region,
            which gets a start marker only.

    Returns:
        (n_steps,) int8.
    """
    markers = np.full(n_steps, INSIDE, dtype=np.int8)
    for start, stop in regions:
        markers[start] = REGION_START
        if stop <= n_steps:
            markers[stop - 1] = REGION_END
    return markers


def find_regions(markers: np.ndarray, compress_interval: int) -> list[tuple[int, int]]:
    """Locate the regions of one history; the inverse of `mark_regions`.

    Args:
        markers: (T,) integers, one per environment step.
        compress_interval: the length every finished region must have, in environment steps.

    Returns:
        Half-open (start, stop) step indices in time order. An unfinished last region is included, with
        stop = T, so it is shorter than `compress_interval`.

    Raises:
        ValueError: a value is no marker, a step lies outside every region, a start follows a start, an
            end follows an end, or a length differs; the message gives the step and what was expected.
    """
    unknown = np.flatnonzero(~np.isin(markers, (INSIDE, REGION_START, REGION_END)))
    if unknown.size:
        raise ValueError(f"step {unknown[0]} has marker {markers[unknown[0]]}, expected 0, 1 or 2")
    regions, expected_start = [], 0
    starts, ends = np.flatnonzero(markers == REGION_START), np.flatnonzero(markers == REGION_END)
    for i, start in enumerate(starts):
        if start != expected_start:
            raise ValueError(
                f"expected a region start (1) at step {expected_start}, found the next one at step {start}"
            )
        if i + 1 < len(starts) and (i >= len(ends) or ends[i] >= starts[i + 1]):
            raise ValueError(
                f"the region from step {start} on has no end (2) before the next one starts at {starts[i + 1]}"
            )
        stop = int(ends[i]) + 1 if i < len(ends) else len(markers)
        finished, length = i < len(ends), stop - start
        if (finished and length != compress_interval) or length > compress_interval:
            raise ValueError(
                f"the region from step {start} to {stop - 1} has {length} steps, expected compress_interval = {compress_interval}"
            )
        regions.append((int(start), stop))
        expected_start = stop
    if len(ends) > len(starts) or expected_start != len(markers):
        raise ValueError(f"steps from {expected_start} on lie in no region: no start marker (1) there")
    return regions


def region_bounds(markers: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of regions of any length, from one start marker to the next; nothing is checked."""
    starts = np.flatnonzero(markers == REGION_START).tolist()
    return list(zip(starts, [*starts[1:], len(markers)]))


def rollout_length(markers: np.ndarray) -> int:
    """The most common distance between region starts; all steps where there are less than two."""
    distances = np.diff(np.flatnonzero(markers == REGION_START))
    return int(np.bincount(distances).argmax()) if len(distances) else len(markers)


def of_first_stream(markers: np.ndarray) -> np.ndarray:
    """(T,) markers; those of the first stream where an older file has a column per stream."""
    return markers[:, 0] if markers.ndim == 2 else markers
