"""Training windows from a history file.

Letters in shapes: B batch, L steps per window, R regions per window, O observation entries, A actions.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

import env
from config.loading import Config
from effective import effective_config
from files import InputError
from history.format import history_path, soft_target_names
from history.news import news_ends
from history.paths import HISTORIES, CausalHistories, Histories, WholeHistories
from history.reader import HistoryFile
from model.context import make_context
from model.context.base import Timeline, Windows, interval_problems
from model.spaces import as_torch_type


class ADDataset(Dataset):
    """Windows of the learning histories of one split, as the config's context strategy cuts them.

    Args:
        config: the effective config, or a complete one from which it can be made.
        traj_dir: folder of the history file.
        mode: "train", "test" (held-out tasks) or "all".
        n_stream: streams per task to use; None for all in the file.
        source_timesteps: steps per stream to use; None for all in the file.

    Attributes:
        config: the effective one.
        context: the strategy.
        soft_targets: whether the file has the source's distributions, and the config asks for them.

    Raises:
        InputError: the file is missing, damaged, or contradicts itself or the config.
    """

    def __init__(
        self,
        config: dict,
        traj_dir: str | Path,
        mode: str,
        n_stream: int | None = None,
        source_timesteps: int | None = None,
    ):
        if mode not in ("train", "test", "all"):
            raise ValueError(f"mode is '{mode}', expected train, test or all")
        self.config = config if isinstance(config, Config) else effective_config(config, traj_dir)
        self.tasks = env.split_tasks(self.config)[mode]
        if not self.tasks:
            raise InputError(f"mode '{mode}' {env.why_no_tasks(self.config)}")
        path = history_path(self.config, traj_dir)
        self.context = make_context(self.config)
        self.draws_histories = self.context.windows_are_histories or self.config["histories"] != "every"
        interval, length = self.config["compress_interval"], self.config["rollout_length"]
        joins = self.context.marks_regions and length and interval % length == 0  # regions of several rollouts
        marked = length if self.draws_histories or joins else interval
        self.history = HistoryFile(path, self.config, self.tasks, n_stream, source_timesteps, region_length=marked)
        self.arrays, self.n_streams = self.history.arrays, self.history.n_streams
        self._check_kind(path)
        self.soft_targets = self.config["soft_targets"] and self.history.has_soft_targets
        if self.config["soft_targets"] and not self.soft_targets:
            names = " and ".join(soft_target_names(self.history.action_space))
            warnings.warn(f"{path} has no {names}: the actions themselves are the targets", stacklevel=2)
        self._index_samples()

    def _check_kind(self, path: Path) -> None:
        """Raise InputError where some tasks lack what the effective config promises of all."""
        promised = {
            "dones": self.config["with_dones"],
            "next_states": self.config["reached_observations"],
            "compress_markers": self.context.marks_regions,
        }
        found = {name: name in self.arrays for name in promised} | {"compress_markers": self.history.has_markers}
        missing = [name for name, is_promised in promised.items() if is_promised and not found[name]]
        if missing:
            raise InputError(f"{path}: {' and '.join(missing)}: in some of its groups only; collect it again")

    def _index_samples(self) -> None:
        """Count the samples of each task; a sample number becomes a task, a place in its history and a stream."""
        regions = self.history.regions if self.draws_histories else self._join_rollouts()
        knows_rollouts = bool(regions) and all(regions)
        stride, self.mix_streams = self._usable_stride(regions if knows_rollouts else None)
        self.blank_starts = self.config["blank_starts"] and knows_rollouts
        n_regions = np.array([len(of_task) for of_task in regions] or [0] * len(self.tasks))
        spans = self._spans(regions, max(1, n_regions.max()))
        starts, stops = spans[..., 0], spans[..., 1]
        self.timeline = Timeline(self.history.task_steps, n_regions, starts, stops - starts, stride)
        if self.draws_histories and knows_rollouts:
            self.timeline.histories = self._make_histories(spans)
        elif self.draws_histories:
            self._warn("its rollouts are not marked: histories: every is used")
        if untrained := self.context.untrained(self.timeline):
            self._warn(untrained)
        if self.context.n_currents > 1 and self.n_streams == 1:
            self._warn(
                "has one stream, so no two windows can share a previous region: currents_per_previous is not used"
            )
        places = self.context.n_places(self.timeline)
        self.n_samples = np.concatenate([[0], np.cumsum(places * self.n_streams)])

    def _usable_stride(self, regions: list[list[tuple[int, int]]] | None) -> tuple[int, bool]:
        """`region_stride` and `mix_streams`, as far as the rollouts allow them; None: the rollouts are not known."""
        stride, mix_streams = self.config["region_stride"], self.config["mix_streams"]
        if regions is None:  # histories can neither be thinned nor mixed by rollouts
            if self.history.has_markers and (stride > 1 or mix_streams):
                self._warn("rollouts are not compress_interval steps long: region_stride and mix_streams are not used")
            return 1, False
        if self.draws_histories:
            return stride, mix_streams
        longest = max(1, (max(map(len, regions)) - 1) // max(1, self.context.n_regions - 1))
        if stride > longest:
            if self.context.n_regions > 1 and longest < (n_joined := self._rollouts_per_region()):
                raise InputError(
                    f"{self.history.path}: its tasks have too few rollouts for windows of {self.context.n_regions} regions of "
                    f"{n_joined} each; lower compress_interval or context_regions, or collect more"
                )
            self._warn(f"rollouts are too few for region_stride {stride}: {longest} is used")
        return min(stride, longest), mix_streams

    def _spans(self, regions: list[list[tuple[int, int]]], most: int) -> np.ndarray:
        """(tasks, most, 2) start and stop of every region; zeros where a task has fewer."""
        if regions and regions[0] and all(of_task is regions[0] for of_task in regions):  # as where the file says so
            return np.broadcast_to(np.array(regions[0]), (len(self.tasks), most, 2))
        spans = np.zeros((len(self.tasks), most, 2), dtype=np.int64)
        for task, of_task in enumerate(regions):
            spans[task, : len(of_task)] = np.array(of_task).reshape(-1, 2)
        return spans

    def _rollouts_per_region(self) -> int:
        return self.config["compress_interval"] // self.history.region_length

    def _join_rollouts(self) -> list[list[tuple[int, int]]]:
        """Per task the (start, stop) of what may be a region: one from the start of each rollout on, of one or more."""
        interval, regions = self.config["compress_interval"], self.history.regions
        n_joined = self._rollouts_per_region()
        if n_joined <= 1:
            return regions
        if n_joined > min(map(len, regions)):
            raise InputError(f"{self.history.path}: a task has fewer rollouts than one region, {interval} steps, needs")
        return [
            [(start, stop) for (start, _), (_, stop) in zip(of_task, of_task[n_joined - 1 :])] for of_task in regions
        ]

    def _make_histories(self, spans: np.ndarray) -> Histories:
        """What puts training histories together, from the (tasks, regions, 2) starts and stops of the rollouts."""
        length, interval = self.config["rollout_length"], self.config["compress_interval"]
        n_whole = (spans[..., 1] - spans[..., 0] == length).sum(axis=1)
        self._check_histories(n_whole)
        kind, more = HISTORIES[self.config["histories"]], {}
        if kind is CausalHistories:
            more["returns"] = [self._region_returns(task, n * length // interval) for task, n in enumerate(n_whole)]
        if kind is WholeHistories:
            more["repeats"] = self.config["repeat_last_region"]
        if self.config["region_ends"] == "news":
            more["ends"] = [self._news_ends(task, n * length) for task, n in enumerate(n_whole)]
        stride = self.config["region_stride"]
        return kind(n_whole, length, interval, self.n_streams, stride, self.mix_streams, **more)

    def _check_histories(self, n_whole: np.ndarray) -> None:
        """Raise InputError where `histories` asks for what the file does not hold: (tasks,) whole rollouts of a stream."""
        config, path = self.config, self.history.path
        length, interval, n_regions = (
            config[name] for name in ("rollout_length", "compress_interval", "history_regions")
        )
        shortest = int(n_whole.min()) * length
        if config["region_ends"] == "news" and not config["with_dones"]:
            raise InputError(f"{path}: has no dones, which region_ends: news needs; use region_ends: fixed")
        if problems := interval_problems(config | {"n_steps": length}, may_divide=True):
            raise InputError(f"{path}: {problems[0]}")
        if shortest < max(length, interval):
            raise InputError(
                f"{path}:/{self.tasks[n_whole.argmin()]}: has {shortest} steps of whole rollouts, expected {max(length, interval)} "
                f"at least: a rollout of {length} and a region of {interval}; lower compress_interval, or use more of the file "
                "(train_source_timesteps)"
            )
        ends_early = (
            config["histories"] == "whole" and not config["repeat_last_region"] and n_regions * interval > shortest
        )
        if interval > length and ends_early and config["region_ends"] == "fixed":
            raise InputError(
                f"{path}: streams of {shortest} steps hold {shortest // interval} regions of compress_interval {interval}, "
                f"history_regions asks for {n_regions}; lower one of them"
            )
        if config["histories"] == "causal" and (self.n_streams == 1 or not self.mix_streams):
            raise InputError(
                f"{path}: histories: causal goes on in other streams, else a history repeats itself: expected "
                f"mix_streams: true and 2 streams or more, got {str(self.mix_streams).lower()} and {self.n_streams}; use "
                "histories: every"
            )

    def _region_returns(self, task: int, n_regions: int) -> np.ndarray:
        """(regions, E) sum of rewards in each stretch of `compress_interval` steps of a task."""
        steps = self.history.task_offset[task] + np.arange(n_regions * self.config["compress_interval"])
        return self._of_streams("rewards", steps).reshape(n_regions, -1, self.n_streams).sum(axis=1)

    def _news_ends(self, task: int, n_steps: int) -> np.ndarray:
        """(n_steps, E) True at the last step of each region that ends with news."""
        steps = self.history.task_offset[task] + np.arange(n_steps)
        limits = self.config["shortest_region"], self.config["compress_interval"]
        return news_ends(self._of_streams("rewards", steps), self._of_streams("dones", steps), *limits)

    def _of_streams(self, name: str, steps: np.ndarray) -> np.ndarray:
        """(steps, E) the values of all streams."""
        return self.arrays[name][steps[:, None] * self.n_streams + np.arange(self.n_streams)]

    def _warn(self, text: str) -> None:
        warnings.warn(f"{self.history.path}: {text}", stacklevel=4)

    def __len__(self) -> int:
        return int(self.n_samples[-1])

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        """Sample `idx` as a dict of tensors, without the batch dimension.

        All its regions are of one stream; where histories are drawn, `idx` chooses the task and is the seed of the drawing.
        """
        if not 0 <= idx < len(self):
            raise IndexError(f"sample {idx} of {len(self)}")
        return {name: values[0] for name, values in self.batch(np.array([idx])).items()}

    def _get_compressed_context_sample(self, idx: int) -> dict[str, torch.Tensor]:
        """Sample `idx` of compressed context: its previous and its current region."""
        return self[idx]

    def sample_batch(self, batch_size: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """A batch of random samples, drawn with replacement, as the model's `forward` takes it.

        With `mix_streams` the regions of a window come from random streams of the task: these share one
        policy, so each shows equally well what the policy did in that rollout. With `currents_per_previous`
        several windows differ in their current region's stream only.
        """
        is_random = self.mix_streams or self.timeline.histories is not None
        n_currents = self.context.n_currents if self.mix_streams and self.n_streams > 1 else 1
        samples = rng.integers(len(self), size=batch_size // n_currents)
        batch = self.batch(samples, rng if is_random else None, n_currents)
        if not self.config["dense_supervision"]:
            # One random step is the query; the model is causal, so what follows it is not seen
            n_targets = batch["region_lengths"].sum(1) - batch["target_from"]
            batch["target_from"] += torch.from_numpy(rng.random(len(n_targets)) * n_targets.numpy()).long()
            batch["target_until"] = batch["target_from"] + 1
        return batch

    def batch(
        self, samples: np.ndarray, rng: np.random.Generator | None = None, n_currents: int = 1
    ) -> dict[str, torch.Tensor]:
        """The given samples, (B,), as one batch; `rng` picks another stream for every region but the current one.

        With `n_currents` it is a batch of so many times the windows: in each further window of a sample `rng` picks another
        stream for the current region. `group` then says which windows are of the same sample.
        """
        tasks = np.searchsorted(self.n_samples, samples, side="right") - 1
        places, streams = np.divmod(samples - self.n_samples[tasks], self.n_streams)
        windows = self.context.cut(self.timeline, tasks, places, rng or np.random.default_rng(samples))
        if windows.streams is None:
            windows.streams = self._streams_per_part(streams, windows.n_parts, rng)
        group = {}
        if n_currents > 1:
            windows, tasks = windows.repeat(n_currents), np.tile(tasks, n_currents)
            steps = rng.integers(1, max(2, self.n_streams), size=len(tasks) - len(samples))  # to another stream
            windows.streams[len(samples) :, -1] = (windows.streams[len(samples) :, -2] + steps) % self.n_streams
            group = {"group": np.tile(np.arange(len(samples)), n_currents)}
        streams = windows.streams  # (B, parts)
        batch = self._gather(tasks, windows.times, np.take_along_axis(streams, windows.parts, axis=1), windows.valid)
        more = {
            "region_lengths": windows.region_lengths,
            "target_from": windows.target_from,
            "starts": self._starts(tasks, windows, streams),
        }
        return batch | {name: torch.from_numpy(values) for name, values in (more | group).items()}

    def _starts(self, tasks: np.ndarray, windows: Windows, streams: np.ndarray) -> np.ndarray:
        """(B, L) True at steps where the window does not show what led to them: the first one, the first one of another
        stream or of a rollout that does not follow, and with `blank_starts` the first one of any other rollout.

        There the step before, in the window, is not the one that led to it. It may stand for it where an episode
        ended with it and another one begins: then the observation depends on neither.
        """
        starts = np.zeros(windows.valid.shape, dtype=bool)
        starts[:, 0] = True
        window, step = np.nonzero((windows.parts[:, 1:] != windows.parts[:, :-1]) & windows.valid[:, 1:])
        stream_before, stream = (streams[window, windows.parts[window, at]] for at in (step, step + 1))
        before, own = windows.times[window, step], windows.times[window, step + 1] - 1
        follows = (own == before) & (stream == stream_before) & (not self.blank_starts)
        if "dones" in self.arrays:
            offset, dones = self.history.task_offset[tasks[window]], self.arrays["dones"]
            ended = dones[(offset + before) * self.n_streams + stream_before].astype(bool)
            begins = dones[(offset + np.maximum(own, 0)) * self.n_streams + stream].astype(bool) | (own < 0)
            follows |= ended & begins
        starts[window, step + 1] = ~follows
        return starts

    def _streams_per_part(self, streams: np.ndarray, n_parts: int, rng: np.random.Generator | None) -> np.ndarray:
        """(B, n_parts) the stream that each rollout of a window is taken from."""
        if rng is None:
            return np.repeat(streams[:, None], n_parts, axis=1)
        mixed = rng.integers(self.n_streams, size=(len(streams), n_parts))
        mixed[:, -1] = streams
        return mixed

    def _gather(
        self, tasks: np.ndarray, times: np.ndarray, streams: np.ndarray, valid: np.ndarray
    ) -> dict[str, torch.Tensor]:
        """Cut (B, L) steps out of the flat arrays; padding repeats step 0 and is never looked at."""
        flat = np.where(valid, (self.history.task_offset[tasks][:, None] + times) * self.n_streams + streams, 0)
        batch = {name: torch.from_numpy(as_torch_type(array[flat])) for name, array in self.arrays.items()}
        batch["observations"] = batch.pop("states")
        if "next_states" in batch:
            batch["reached"] = batch.pop("next_states")
        batch["rewards"] = batch["rewards"].float()
        if "dones" not in batch:
            batch["dones"] = torch.zeros_like(batch["rewards"])
        return batch
