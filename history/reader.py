"""Reading and checking of history files, in memory or straight from the file.

Letters in shapes: T environment steps per stream, E streams, N all steps of all tasks and streams, flat.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np

import env
from files import InputError
from history.format import AXIS_OF_STREAMS, FIELDS, NUMBER_KINDS, REQUIRED_FIELDS, soft_target_names
from history.markers import find_regions, of_first_stream
from history.origin import check_env, check_shards, open_history, reading, recorded_config, shards_of, task_group
from history.values import entry_shape, value_problem

MEMORY_SHARE = 0.5  # of what is free; larger datasets stay in the file
CACHE_BYTES = 256e6  # for pieces of such a dataset
GROUPS_KEPT = 256  # open at a time; their shards are open too, and a process may mostly open 1,024 files
Group = dict[str, h5py.Dataset]  # of a task: its datasets that this code reads


class HistoryFile:
    """The histories of some tasks of one file, each field as a flat array of N entries.

    Entry `(task_offset[i] + t) * n_streams + e` of every array is step t of stream e of the i-th task.

    Args:
        path: the HDF5 file.
        config: the effective config; its env says what values are possible.
        tasks: task indices, in the order wanted.
        n_stream, source_timesteps: how many streams and steps per stream to use; None for all.
        spaces: observation and action space; None for those of the config's env.
        region_length: steps of every finished region that the file marks; None for the config's `compress_interval`.

    Attributes:
        arrays: name to (N, ...), an ndarray or a StoredArray.
        has_soft_targets: whether the file has the source policy's distributions.
        has_markers, regions: whether the file marks regions; then, per task, their (start, stop).
        n_streams, task_steps, task_offset: E, (tasks,) T of each, and (tasks + 1,) their cumulative sum.

    Raises:
        InputError: the file is missing, damaged, or contradicts itself or the config.
    """

    def __init__(
        self,
        path: Path,
        config: dict,
        tasks: list[int],
        n_stream: int | None = None,
        source_timesteps: int | None = None,
        spaces: tuple[gym.Space, gym.Space] | None = None,
        region_length: int | None = None,
    ):
        self.path, self.config = path, config
        self.region_length = region_length or config["compress_interval"]
        self.observation_space, self.action_space = spaces or env.spaces(config)
        with ExitStack() as opened:
            file = opened.enter_context(open_history(path, config))
            if spaces is None:  # else the config's env is not known, so there is nothing to compare
                check_env(recorded_config(file, path, config), path, config)
            with reading(path, config):
                are_alike = "every_task" in file.attrs  # then one task tells what all of them hold
                shards = shards_of(file, tasks)
            check_shards(path, shards, config)
            groups = [self._open_group(file, task) for task in (tasks[:1] if are_alike else tasks)]
            self._choose_names(groups)
            steps, streams = zip(*(self._sizes_to_use(group, source_timesteps, n_stream) for group in groups))
            n_alike = len(tasks) if are_alike else 1
            self.task_steps, self.n_streams = np.array(steps * n_alike), min(streams)
            self.task_offset = np.concatenate([[0], np.cumsum(self.task_steps)])
            for group in groups:
                self._check_shapes(group)
            regions = [self._regions(g, n) for g, n in zip(groups, steps)] if self.has_markers else []
            self.regions = regions * n_alike
            self.file, self.tasks = file, tasks
            self.groups = OrderedDict(enumerate(groups))  # those that are open
            self.n_kept = max(len(groups), GROUPS_KEPT)
            self.arrays = {name: StoredArray(self, name, groups) for name in self.names}
            if self._fits_in_memory():
                self.arrays = self._read_all()
            else:
                opened.pop_all()  # the arrays go on reading

    def _read_all(self) -> dict[str, np.ndarray]:
        """The arrays in memory, read one task after the other."""
        results = {name: np.empty(array.shape, dtype=array.dtype) for name, array in self.arrays.items()}
        for number, n_steps in enumerate(self.task_steps.tolist()):
            here = slice(*(self.task_offset[number : number + 2] * self.n_streams))
            for name, array in self.arrays.items():
                results[name][here] = array.read(number, 0, n_steps).reshape(-1, *array.entry)
        return results

    def group(self, number: int) -> Group:
        """The datasets of the `number`-th task.

        Raises:
            InputError: it is opened for the first time, and does not hold what the file says that every task holds.
        """
        if number not in self.groups:
            while len(self.groups) >= self.n_kept:
                self.groups.popitem(last=False)
            group, steps = self._open_group(self.file, self.tasks[number]), int(self.task_steps[number])
            markers = ["compress_markers"] if self.has_markers else []
            if missing := [name for name in (*self.names, *markers) if name not in group]:
                raise InputError(
                    f"{self.path}:/{self.tasks[number]}: lacks the dataset {', '.join(missing)}; collect it again"
                )
            self._check_shapes(group)
            self._sizes_to_use(group, steps, self.n_streams)
            if self.has_markers and self._regions(group, steps) != self.regions[number]:
                raise InputError(
                    f"{self.path}:/{self.tasks[number]}: its regions are not those of the other tasks; collect it again"
                )
            self.groups[number] = group
        self.groups.move_to_end(number)
        return self.groups[number]

    def _open_group(self, file: h5py.File, task: int) -> Group:
        place = f"{self.path}:/{task}"
        names = (*FIELDS, "next_states", *soft_target_names(self.action_space), "compress_markers")
        with reading(self.path, self.config):
            group = task_group(file, self.path, task, self.config)
            if not isinstance(group, h5py.Group):
                n_tasks = len(env.list_tasks(self.config))
                raise InputError(
                    f"{self.path}: has no group '{task}'; the config's env has tasks 0 to {n_tasks - 1}: "
                    "collect it again, or let the env have those of the file"
                )
            found = {name: group[name] for name in names if name in group}
            if missing := [name for name in REQUIRED_FIELDS if name not in found]:
                raise InputError(f"{place}: lacks the dataset {', '.join(missing)}; collect it again")
            for name, data in found.items():
                if not isinstance(data, h5py.Dataset) or data.dtype.kind not in NUMBER_KINDS or data.shape is None:
                    raise InputError(f"{place}/{name}: is no dataset of numbers; collect it again")
                _ = data.shape, data.chunks  # h5py keeps them, once read without an error
        return found

    def _choose_names(self, groups: list[Group]) -> None:
        soft_names = soft_target_names(self.action_space)
        fields = (*FIELDS, *(["next_states"] if self.config.get("reached_observations") else []))
        self.names = [name for name in fields if all(name in group for group in groups)]
        self.has_soft_targets = all(name in group for group in groups for name in soft_names)
        self.has_markers = all("compress_markers" in group for group in groups)
        if self.config["soft_targets"] and self.has_soft_targets:
            self.names += soft_names

    def _sizes_to_use(self, group: Group, source_timesteps: int | None, n_stream: int | None) -> tuple[int, int]:
        """Steps per stream and streams of a task."""
        states, shape = f"{self.path}:{group['states'].name}", group["states"].shape
        if 0 in shape:
            raise InputError(f"{states}: has shape {shape}, expected none of them 0; collect it again")
        if len(shape) < 2 or (len(shape) == 2 and self.entry_shape("states") != (1,)):
            raise InputError(
                f"{states}: has shape {shape}, expected (steps, streams, entries) with {self.entry_shape('states')[0]} entries; "
                f"{AXIS_OF_STREAMS}"
            )
        for held, what, key, wanted in (
            (shape[0], "steps per stream", "train_source_timesteps", source_timesteps),
            (shape[1], "streams", "n_stream", n_stream),
        ):
            if wanted is not None and wanted > held:
                place = states.removesuffix("/states")
                raise InputError(f"{place}: holds {held} {what}, {key} asks for {wanted}; lower it or collect more")
        return source_timesteps or shape[0], n_stream or shape[1]

    def _fits_in_memory(self) -> bool:
        if self.config["in_memory"] != "auto":
            return self.config["in_memory"] == "always"
        needed = sum(array.n_bytes for array in self.arrays.values())
        return needed < MEMORY_SHARE * available_memory()

    def entry_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one step of one stream, as the arrays have it."""
        return entry_shape(name, (self.observation_space, self.action_space))

    def _check_shapes(self, group: Group) -> None:
        for name in self.names:
            entry, found = self.entry_shape(name), group[name].shape
            expected = (*group["states"].shape[:2], *entry)
            if found[:2] != expected[:2] or np.prod(found[2:]) != np.prod(entry):
                raise InputError(
                    f"{self.path}:{group[name].name}: has shape {found}, expected {expected}, by the states and the "
                    "config's env; use the config it was collected with, or collect again"
                )

    def check_values(self, place: str, name: str, values: np.ndarray, start: int) -> None:
        """Raise InputError where a value cannot be; see `value_problem`."""
        if problem := value_problem(name, values, (self.observation_space, self.action_space), start):
            raise InputError(
                f"{place}: {problem}; the file does not fit the config's env, or is damaged: collect it again"
            )

    def _regions(self, group: Group, n_steps: int) -> list[tuple[int, int]]:
        place = f"{self.path}:{group['compress_markers'].name}"
        with reading(self.path, self.config):
            markers = group["compress_markers"][()]
        n_steps_held, n_streams = group["states"].shape[:2]
        if markers.shape not in ((n_steps_held,), (n_steps_held, n_streams)):
            raise InputError(
                f"{place}: has shape {markers.shape}, states has {n_steps_held} steps of {n_streams} streams; collect it again"
            )
        if markers.ndim == 2 and (markers != markers[:, :1]).any():
            raise InputError(f"{place}: differs between streams; the streams of a task share their rollouts")
        try:
            return find_regions(of_first_stream(markers)[:n_steps], self.region_length)
        except ValueError as error:
            if not self.config["use_compressed_context"]:
                return []  # standard mode does without; ADDataset then says what it cannot do
            raise InputError(
                f"{place}: {error}; compress_interval has to be the file's rollout length, unless markers are damaged: then "
                "collect it again"
            ) from None


class StoredArray:
    """A flat array (N, ...) that stays in the file: `array[indices]` reads the pieces that are needed.

    A piece is one chunk of time of one task, all streams. The newest ones are kept, up to `CACHE_BYTES`.
    """

    def __init__(self, history: HistoryFile, name: str, groups: list[Group]):
        self.history, self.name = history, name
        self.dtype = np.result_type(*(group[name].dtype for group in groups)).newbyteorder("=")
        self.entry = history.entry_shape(name)
        self.shape = (int(history.task_offset[-1]) * history.n_streams, *self.entry)
        self.n_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.piece_steps = (groups[0][name].chunks or (1000,))[0]
        self.pieces: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        piece_bytes = self.piece_steps * history.n_streams * int(np.prod(self.entry)) * self.dtype.itemsize
        self.n_kept = max(1, int(CACHE_BYTES / len(history.names) / piece_bytes))

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Entries at any shape of flat indices; (..., *entry)."""
        history = self.history
        steps, streams = np.divmod(indices, history.n_streams)
        tasks = np.searchsorted(history.task_offset, steps, side="right") - 1
        numbers, within = np.divmod(steps - history.task_offset[tasks], self.piece_steps)
        result = np.empty((*indices.shape, *self.entry), dtype=self.dtype)
        keys, which = np.unique(np.stack([tasks.ravel(), numbers.ravel()]), axis=1, return_inverse=True)
        which = which.reshape(indices.shape)
        for number, (task, piece) in enumerate(keys.T):
            here = which == number
            result[here] = self._piece(int(task), int(piece))[within[here], streams[here]]
        return result

    def _piece(self, task: int, piece: int) -> np.ndarray:
        if (task, piece) not in self.pieces:
            while len(self.pieces) >= self.n_kept:
                self.pieces.popitem(last=False)
            start = piece * self.piece_steps
            stop = min(start + self.piece_steps, int(self.history.task_steps[task]))
            self.pieces[task, piece] = self.read(task, start, stop)
        self.pieces.move_to_end((task, piece))
        return self.pieces[task, piece]

    def read(self, task: int, start: int, stop: int) -> np.ndarray:
        """(stop - start, E, *entry) steps of one task, checked."""
        data, n_streams = self.history.group(task)[self.name], self.history.n_streams
        held_by = Path(data.file.filename)  # a shard, if there are any
        with reading(self.history.path, self.history.config, held_by):
            values = data[start:stop, :n_streams]
        values = values.reshape(stop - start, n_streams, *self.entry)
        self.history.check_values(f"{held_by}:{data.name}", self.name, values, start)
        return values


def available_memory() -> float:
    """Bytes that can still be used, by the system and by the container's limit; infinite where nothing tells."""
    available = float("inf")
    if (meminfo := Path("/proc/meminfo")).exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        available = 1024 * int(lines["MemAvailable"].split()[0])
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available
