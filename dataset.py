"""Training windows from a history file.

Letters in shapes: T environment steps per stream, E streams, B batch, L steps per window, R regions per
window, O observation entries, A actions.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

import env
from algorithm.utils import find_regions
from utils import InputError, history_path, one_line

FIELDS = ("states", "actions", "rewards", "dones", "action_probs")  # what training reads; the last two are optional
NEWEST_FORMAT = 1


class ADDataset(Dataset):
    """Windows of the learning histories of one split.

    In compressed mode sample i is one current region of one stream, behind the region that is
    `region_stride` rollouts older; a history's first region stands alone, and so does nothing else.
    In standard mode sample i is the window of up to `n_transit` steps that ends with one given step.

    Args:
        config: the effective config.
        traj_dir: folder of the history file.
        mode: "train", "test" (held-out tasks) or "all".
        n_stream: streams per task to use; None for all in the file.
        source_timesteps: steps per stream to use; None for all in the file.

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
    ):
        self.config, self.path = config, history_path(config, traj_dir)
        if mode not in ("train", "test", "all"):
            raise ValueError(f"mode is '{mode}', expected train, test or all")
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such history file; collect it with: python collect.py")
        self.tasks = env.split_tasks(config)[mode]
        if not self.tasks:
            raise InputError(f"mode '{mode}' has no tasks: check train_env_ratio, {config['train_env_ratio']}")
        try:
            with h5py.File(self.path) as file:
                self._check_version(file)
                self._read(file, n_stream, source_timesteps)
        except InputError:
            raise
        except Exception as error:  # h5py raises many types for damaged files
            raise InputError(
                f"{self.path}: damaged or no HDF5 file ({one_line(error)[:200]}); "
                "collect it again with: python collect.py --overwrite"
            ) from None
        self._index_samples()

    # Reading --------------------------------------------------------------------------------------

    def _check_version(self, file: h5py.File) -> None:
        version = file.attrs.get("format_version", NEWEST_FORMAT)  # older files have none
        if version > NEWEST_FORMAT:
            raise InputError(
                f"{self.path}: format_version {version} is newer than this code reads, {NEWEST_FORMAT}; update the code"
            )

    def _read(self, file: h5py.File, n_stream: int | None, source_timesteps: int | None) -> None:
        """Read the fields of all tasks into flat arrays, (steps of all tasks * E, ...)."""
        groups = [self._group(file, task) for task in self.tasks]
        first = groups[0]
        names = [name for name in FIELDS if all(name in group for group in groups)]
        self.with_dones = "dones" in names
        self.soft_targets = self.config["soft_targets"] and "action_probs" in names
        has_markers = all("compress_markers" in group for group in groups)
        self.use_compressed_context = self.config["use_compressed_context"] and has_markers
        if self.config["use_compressed_context"] and not has_markers:
            warnings.warn(
                f"{self.path} has no compress_markers: standard mode, with a window of n_transit steps, is used",
                stacklevel=3,
            )
        is_discrete = isinstance(env.spaces(self.config)[1], gym.spaces.Discrete)
        if self.config["soft_targets"] and is_discrete and not self.soft_targets:
            warnings.warn(f"{self.path} has no action_probs: the actions themselves are the targets", stacklevel=3)
        if not self.soft_targets and "action_probs" in names:
            names.remove("action_probs")

        lengths = [self._steps_to_use(group, source_timesteps) for group in groups]
        self.n_streams = self._streams_to_use(first, n_stream)
        self.task_steps = np.array(lengths)  # (tasks,) T of each
        self.task_offset = np.concatenate([[0], np.cumsum(lengths)])  # (tasks + 1,) first step of each, over all tasks
        self.arrays = {}
        for name in names:
            shape = (self.task_offset[-1], self.n_streams, *self._entry_shape(first[name], name))
            self.arrays[name] = np.empty(shape, dtype=first[name].dtype)
        self.regions = []
        for group, start, stop in zip(groups, self.task_offset[:-1], self.task_offset[1:]):
            for name in names:
                self._check_shape(group, name)
                values = group[name][: stop - start, : self.n_streams]
                self._check_values(f"{self.path}:{group.name}/{name}", name, values)
                self.arrays[name][start:stop] = values.reshape(self.arrays[name][start:stop].shape)
            self.regions.append(self._read_regions(group, stop - start) if has_markers else [])
        self.arrays = {name: array.reshape(-1, *array.shape[2:]) for name, array in self.arrays.items()}

    def _group(self, file: h5py.File, task: int) -> h5py.Group:
        group = file.get(str(task))
        if not isinstance(group, h5py.Group):
            raise InputError(
                f"{self.path}: has no group '{task}'; the config's env has tasks 0 to {len(env.list_tasks(self.config)) - 1}"
            )
        missing = [name for name in ("states", "actions", "rewards") if name not in group]
        if missing:
            raise InputError(f"{self.path}:{group.name}: lacks the dataset {', '.join(missing)}")
        return group

    def _steps_to_use(self, group: h5py.Group, source_timesteps: int | None) -> int:
        available = len(group["states"])
        if source_timesteps is not None and source_timesteps > available:
            raise InputError(
                f"{self.path}:{group.name}: holds {available} steps per stream, train_source_timesteps asks for "
                f"{source_timesteps}; lower it or collect more"
            )
        return source_timesteps or available

    def _streams_to_use(self, group: h5py.Group, n_stream: int | None) -> int:
        available = group["states"].shape[1]
        if n_stream is not None and n_stream > available:
            raise InputError(f"{self.path}:{group.name}: holds {available} streams, n_stream asks for {n_stream}")
        return n_stream or available

    def _entry_shape(self, data: h5py.Dataset, name: str) -> tuple[int, ...]:
        """Shape of one step of one stream."""
        if name == "states":
            return (int(np.prod(data.shape[2:], dtype=int)),)
        if name == "actions" and isinstance(env.spaces(self.config)[1], gym.spaces.Discrete):
            return ()
        return data.shape[2:]

    def _check_shape(self, group: h5py.Group, name: str) -> None:
        observations, actions = env.spaces(self.config)
        n_entries = {
            "states": int(np.prod(observations.shape, dtype=int)),
            "actions": int(np.prod(actions.shape, dtype=int)),
            "action_probs": getattr(actions, "n", 1),
        }.get(name, 1)
        expected, found = (*group["states"].shape[:2], n_entries), group[name].shape
        if found[:2] != expected[:2] or int(np.prod(found[2:], dtype=int)) != n_entries or found[1] < self.n_streams:
            raise InputError(
                f"{self.path}:{group.name}/{name}: has shape {found}, expected {expected} as in states and the config's env"
            )

    def _check_values(self, place: str, name: str, values: np.ndarray) -> None:
        space = dict(zip(("states", "actions"), env.spaces(self.config))).get(name)
        if isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
            highest = (space.n if isinstance(space, gym.spaces.Discrete) else space.nvec) - 1
            is_whole = np.isin(values % 1, 0)  # False for NaN too
            wrong, expected = ~(is_whole & (values >= 0) & (values <= highest)), f"whole numbers 0 to {np.max(highest)}"
        elif name == "action_probs":
            wrong, expected = ~((values >= 0) & (values <= 1)), "probabilities"
        elif name == "dones":
            wrong, expected = ~np.isin(values, (0, 1)), "True or False"
        else:
            wrong, expected = ~np.isfinite(values), "finite numbers"
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise InputError(
                f"{place}: value {values[at]} at {at}, expected {expected}; the file does not fit the config's env, or is damaged"
            )

    def _read_regions(self, group: h5py.Group, n_steps: int) -> list[tuple[int, int]]:
        place, markers = f"{self.path}:{group.name}/compress_markers", group["compress_markers"][()]
        if len(markers) != len(group["states"]):
            raise InputError(f"{place}: has {len(markers)} steps, states has {len(group['states'])}")
        if markers.ndim == 2:  # one column per stream, in older files
            if (markers != markers[:, :1]).any():
                raise InputError(f"{place}: differs between streams; the streams of a task share their rollouts")
            markers = markers[:, 0]
        try:
            return find_regions(markers[:n_steps], self.config["compress_interval"])
        except ValueError as error:
            raise InputError(
                f"{place}: {error}; set compress_interval to the file's rollout length, or collect again"
            ) from None

    # Samples --------------------------------------------------------------------------------------

    def _index_samples(self) -> None:
        """Count the samples of each task; a sample number becomes a task, a place in its history and a stream.

        A place is a current region, or in standard mode a last step. Rollouts 1 to `region_stride` - 1 have
        none to follow at that stride, so they only ever appear before a current region or last step.
        """
        self.stride = self.config["region_stride"] if any(self.regions) else 1
        if self.use_compressed_context:
            n_regions = np.array([len(regions) for regions in self.regions])
            self.region_starts = np.zeros((len(self.tasks), n_regions.max()), dtype=np.int64)
            self.region_lengths = np.zeros_like(self.region_starts)
            for task, regions in enumerate(self.regions):
                spans = np.array(regions)
                self.region_starts[task, : len(spans)] = spans[:, 0]
                self.region_lengths[task, : len(spans)] = spans[:, 1] - spans[:, 0]
            places = 1 + np.maximum(0, n_regions - self.stride)
            if self.config["context_regions"] == 1:
                places = n_regions
        else:
            interval = self.config["compress_interval"]
            places = np.minimum(self.task_steps, interval) + np.maximum(0, self.task_steps - self.stride * interval)
        self.n_samples = np.concatenate([[0], np.cumsum(places * self.n_streams)])

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
        batch = self.batch(rng.integers(len(self), size=batch_size), rng if self.config["mix_streams"] else None)
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
        n_left = self.task_steps[tasks] - offset * interval
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
        n_kept = min(max(1, int(n_transit * self.config["kept_fraction"])), n_transit - 1)
        at_start = np.where(offset == 0, 0, interval)  # evaluation does not begin with a later rollout
        target_from = np.where(start == 0, at_start, n_kept)
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
        flat = np.where(valid, (self.task_offset[tasks][:, None] + times) * self.n_streams + streams, 0)
        batch = {name: torch.from_numpy(array[flat]) for name, array in self.arrays.items()}
        batch["observations"] = batch.pop("states")
        batch["rewards"] = batch["rewards"].float()
        if not self.with_dones:
            batch["dones"] = torch.zeros_like(batch["rewards"])
        return batch
