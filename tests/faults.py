"""Ways to break things, shared by test_faults.py and soak.py."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from conftest import TINY_ENV, TINY_MODEL, TINY_SOURCE, set_flags

from utils import ROOT

HISTORY = "history_darkroom_PPO_alg-seed42.hdf5"
COLLECT = ["collect.py", *set_flags(*TINY_ENV, *TINY_SOURCE)]
TRAIN = ["train.py", *set_flags(*TINY_ENV, *TINY_SOURCE, *TINY_MODEL), "--device", "cpu"]


def start(arguments: list[str], n_ranks: int = 0, **options) -> subprocess.Popen:
    """Start a script as a user would, in a process group of its own; `n_ranks` of them under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"] if n_ranks else []
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / arguments[0]), *arguments[1:]], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


def run(arguments: list[str], n_ranks: int = 0, code: int = 0, **options) -> str:
    """Run a script to its end; return what it printed."""
    process = start(arguments, n_ranks, **options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    return out + err


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait for something a running script does."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> str:
    """Signal the script's own process, not its children; return what it printed."""
    process.send_signal(number)
    return "".join(process.communicate(timeout=120))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def left_in_group(group: int, seconds: float = 10) -> list[str]:
    """What still runs of a process group after so long a time to end."""
    end = time.monotonic() + seconds
    while (found := running_in_group(group)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def running_in_group(group: int) -> list[str]:
    """Process ids and names; those that only wait to be reaped do not run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            name, rest = path.read_text().rsplit(")", 1)
            state, _, of_group = rest.split()[:3]
            found += [name] * (int(of_group) == group and state != "Z")
    return found


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {f"{task}/{name}": data[()] for task, group in file.items() for name, data in group.items()}


def assert_same_arrays(one: Path, other: Path) -> None:
    first, second = read_arrays(one), read_arrays(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut a file at a random place, flip a bit, or overwrite a stretch with noise or zeros."""
    data, kind = bytearray(content), rng.integers(4)
    place = int(rng.integers(len(data)))
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        data[place] ^= 1 << int(rng.integers(8))
    else:
        stretch = min(int(rng.integers(1, 600)), len(data) - place)
        data[place : place + stretch] = rng.bytes(stretch) if kind == 2 else bytes(stretch)
    return bytes(data)
