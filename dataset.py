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
from history_file import HistoryFile, soft_target_names
from model.tokens import n_kept_steps
from utils import InputError, history_path


class ADDataset(Dataset):
    """Windows of the learning histories of one split.

    In compressed mode sample i is one current region of one stream, behind the region that is
    `region_stride` rollouts older; a history's first region stands alone, and so does nothing else.
    In standard mode sample i is the window of up to `n_transit` steps that ends with one given step, or,
    for a step near the beginning, the first `n_transit` ones.

    Args:
        config: the effective config.
        traj_dir: folder of the history file.
        mode: "train", "test" (held-out tasks) or "all".
        n_stream: streams per task to use; None for all in the file.
        source_timesteps: steps per stream to use; None for all in the file.
        path: the history file; None for the one in `traj_dir` that the config's names give.

    Attributes:
        use_compressed_context: the mode in force; False for a file without markers, whatever the config says.
        with_dones, soft_targets: whether the file has what these need (and the config asks for it).

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
        path: Path | None = None,
    ):
        if mode not in ("train", "test", "all"):
            raise ValueError(f"mode is '{mode}', expected train, test or all")
        self.config, self.tasks = config, env.split_tasks(config)[mode]
        if not self.tasks:
            raise InputError(f"mode '{mode}' has no tasks, since train_env_ratio is {config['train_env_ratio']}")
        path = path or history_path(config, traj_dir)
        self.history = HistoryFile(path, config, self.tasks, n_stream, source_timesteps)
        self.arrays, self.n_streams = self.history.arrays, self.history.n_streams
        self.with_dones = "dones" in self.arrays
        self.soft_targets = config["soft_targets"] and self.history.has_soft_targets
        self.use_compressed_context = config["use_compressed_context"] and self.history.has_markers
        if config["use_compressed_context"] and not self.history.has_markers:
            warnings.warn(
                f"{path} has no compress_markers: standard mode, with a window of n_transit steps, is used",
                stacklevel=2,
            )
        if config["soft_targets"] and not self.soft_targets:
            names = " and ".join(soft_target_names(self.history.action_space))
            warnings.warn(f"{path} has no {names}: the actions themselves are the targets", stacklevel=2)
        self._index_samples()

    def _index_samples(self) -> None:
        """Count the samples of each task; a sample number becomes a task, a place in its history and a stream.

        A place is a current region, or in standard mode a last step. Rollouts 1 to `region_stride` - 1 have
        none to follow at that stride, so they only ever appear before a current region or last step.
        """
        regions = self.history.regions
        self.stride, self.mix_streams = self.config["region_stride"], self.config["mix_streams"]
        if not regions or not all(regions):  # histories can then neither be thinned nor mixed by rollouts
            if self.history.has_markers and (self.stride > 1 or self.mix_streams):
                self._warn("rollouts are not compress_interval steps long: region_stride and mix_streams are not used")
            self.stride, self.mix_streams = 1, False
        else:
            n_before = max(1, self.config["context_regions"] - 1)
            longest = max(1, (max(map(len, regions)) - 1) // n_before)
            if self.stride > longest:
                self._warn(f"rollouts are too few for region_stride {self.stride}: {longest} is used")
                self.stride = longest
        if self.use_compressed_context:
            n_regions = np.array([len(regions) for regions in self.history.regions])
            self.region_starts = np.zeros((len(self.tasks), n_regions.max()), dtype=np.int64)
            self.region_lengths = np.zeros_like(self.region_starts)
            for task, regions in enumerate(self.history.regions):
                spans = np.array(regions)
                self.region_starts[task, : len(spans)] = spans[:, 0]
                self.region_lengths[task, : len(spans)] = spans[:, 1] - spans[:, 0]
            places = 1 + np.maximum(0, n_regions - self.stride)
            if self.config["context_regions"] == 1:
                places = n_regions
        else:
            interval = self.config["compress_interval"]
            places = np.minimum(self.history.task_steps, interval) + np.maximum(
                0, self.history.task_steps - self.stride * interval
            )
        self.n_samples = np.concatenate([[0], np.cumsum(places * self.n_streams)])

    def _warn(self, text: str) -> None:
        warnings.warn(f"{self.history.path}: {text}", stacklevel=4)

    def __len__(self) -> int:
        return int(self.n_samples[-1])

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        """Sample `idx` as a dict of tensors, without the batch dimension."""
        if not 0 <= idx < len(self):
            raise IndexError(f"sample {idx} of {len(self)}")
        if self.use_compressed_context:
            return self._get_compressed_context_sample(idx)
        return self._unbatched(self._standard_batch(np.array([idx])))

    def _get_compressed_context_sample(self, idx: int) -> dict[str, torch.Tensor]:
        """Previous and current region of sample `idx`; both of the same stream."""
        return self._unbatched(self._compressed_batch(np.array([idx])))

    @staticmethod
    def _unbatched(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: values[0] for name, values in batch.items()}

    def sample_batch(self, batch_size: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """A batch of random samples, drawn with replacement, as `AD.forward` takes it.

        With `mix_streams` the regions of a window come from random streams of the task: these share one
        policy, so each shows equally well what the policy did in that rollout.
        """
        batch = self.batch(rng.integers(len(self), size=batch_size), rng if self.mix_streams else None)
        if not self.config["dense_supervision"]:
            # One random step is the query; the model is causal, so what follows it is not seen
            n_targets = batch["region_lengths"].sum(1) - batch["target_from"]
            batch["target_from"] += torch.from_numpy(rng.random(batch_size) * n_targets.numpy()).long()
            batch["target_until"] = batch["target_from"] + 1
        return batch

    def batch(self, samples: np.ndarray, rng: np.random.Generator | None = None) -> dict[str, torch.Tensor]:
        """The given samples as one batch; `rng` picks another stream for every region but the current one."""
        return (
            self._compressed_batch(samples, rng) if self.use_compressed_context else self._standard_batch(samples, rng)
        )

    def _locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(B,) sample numbers to (B,) tasks, places in the history, and streams."""
        tasks = np.searchsorted(self.n_samples, samples, side="right") - 1
        places, streams = np.divmod(samples - self.n_samples[tasks], self.n_streams)
        return tasks, places, streams

    def _compressed_batch(self, samples: np.ndarray, rng: np.random.Generator | None = None) -> dict[str, torch.Tensor]:
        tasks, places, streams = self._locate(samples)
        n_regions = self.config["context_regions"]
        current = places if n_regions == 1 else np.where(places == 0, 0, places + self.stride - 1)
        regions = current[:, None] - self.stride * np.arange(n_regions - 1, -1, -1)  # (B, R), oldest first
        exists, regions, task_column = regions >= 0, np.maximum(regions, 0), tasks[:, None]
        lengths = np.where(exists, self.region_lengths[task_column, regions], 0)  # (B, R)
        starts = self.region_starts[task_column, regions]
        streams = self._streams_per_part(streams, n_regions, rng)  # (B, R)

        ends = lengths.cumsum(axis=1)
        step = np.arange(ends[:, -1].max())  # (L,) index within the window
        region = np.minimum((step[None, :, None] >= ends[:, None, :]).sum(axis=-1), n_regions - 1)  # (B, L)
        index = step - np.take_along_axis(ends - lengths, region, axis=1)
        times = np.take_along_axis(starts, region, axis=1) + index
        valid = step < ends[:, -1:]
        batch = self._gather(tasks, times, np.take_along_axis(streams, region, axis=1), valid)
        return batch | {
            "region_lengths": torch.from_numpy(lengths),
            "target_from": torch.from_numpy(ends[:, -1] - lengths[:, -1]),
        }

    def _standard_batch(self, samples: np.ndarray, rng: np.random.Generator | None = None) -> dict[str, torch.Tensor]:
        """Windows of a thinned history: every `region_stride`-th rollout, or every step without markers.

        A window that starts with the history has targets everywhere; a later one only where evaluation,
        which keeps `kept_fraction` of the window when it rolls, would act.
        """
        tasks, places, streams = self._locate(samples)
        n_transit, interval, stride = self.config["n_transit"], self.config["compress_interval"], self.stride
        last = np.where(places < interval, places, places + (stride - 1) * interval)
        offset = last // interval % stride  # which of the thinned histories the last step belongs to
        period = interval * stride
        n_left = self.history.task_steps[tasks] - offset * interval
        thinned = n_left // period * interval + np.minimum(n_left % period, interval)  # (B,) its length
        stop = np.minimum(np.maximum(last // period * interval + last % interval + 1, n_transit), thinned)
        start = np.maximum(stop - n_transit, 0)
        lengths = stop - start

        step = np.arange(lengths.max())
        position = start[:, None] + step  # (B, L) in the thinned history
        times = (offset[:, None] + position // interval * stride) * interval + position % interval
        part = position // interval - start[:, None] // interval
        streams = self._streams_per_part(streams, int(part.max()) + 1, rng)
        batch = self._gather(tasks, times, np.take_along_axis(streams, part, axis=1), step < lengths[:, None])
        at_start = np.where(offset == 0, 0, interval)  # evaluation does not begin with a later rollout
        target_from = np.where(start == 0, at_start, n_kept_steps(self.config))
        return batch | {
            "region_lengths": torch.from_numpy(lengths[:, None]),
            "target_from": torch.from_numpy(target_from),
        }

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
        batch["rewards"] = batch["rewards"].float()
        if not self.with_dones:
            batch["dones"] = torch.zeros_like(batch["rewards"])
        return batch


def as_torch_type(values: np.ndarray) -> np.ndarray:
    """Unsigned integers of more than 8 bits as int64: torch has them, but cannot index or compare them."""
    return values.astype(np.int64) if values.dtype.kind == "u" and values.dtype.itemsize > 1 else values
