"""Kill collect.py and train.py at random moments and damage files at random places; count what is lost.

python tests/soak.py --kills 100 --files 500     # about 15 minutes on 2 cores
python tests/soak.py --kills 4 --files 20        # a first look
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from conftest import tiny_config
from faults import COLLECT, HISTORY, TRAIN, assert_same_arrays, damage, kill, run, start

from checkpoints import checkpoint_paths, load_checkpoint
from dataset import ADDataset
from files import InputError

SIGNALS = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
COUNTS = (
    "kills survived",
    "tasks lost",
    "updates lost",
    "files refused",
    "files harmless",
    "wrongly accepted",
    "tracebacks",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kills", type=int, default=100, help="half during collect, half during train (default: %(default)s)"
    )
    parser.add_argument(
        "--files", type=int, default=500, help="half histories, half checkpoints (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default: %(default)s)")
    args = parser.parse_args()
    rng, counts = np.random.default_rng(args.seed), dict.fromkeys(COUNTS, 0)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run([*COLLECT, "--traj-dir", str(folder / "whole"), "--log-dir", str(folder / "logs")])
        kill_collect(folder, args.kills // 2, rng, counts)
        kill_train(folder, args.kills - args.kills // 2, rng, counts)
        damage_histories(folder, args.files // 2, rng, counts)
        damage_checkpoints(folder, args.files - args.files // 2, rng, counts)
    print(f"{args.kills} kills, {args.files} damaged files, seed {args.seed}")
    for name, count in counts.items():
        print(f"{name:>18}: {count}")
    return int(any(counts[name] for name in ("tasks lost", "updates lost", "wrongly accepted", "tracebacks")))


def interrupt(command: list[str], rng: np.random.Generator, counts: dict, longest: float) -> bool:
    """Start a script and kill it after a random time; False if it was already done by then."""
    process = start(command)
    time.sleep(rng.uniform(1.0, longest))
    if process.poll() is not None:
        process.communicate()
        return False
    printed = kill(process, SIGNALS[rng.integers(len(SIGNALS))])
    if "Traceback" in printed:
        counts["tracebacks"] += 1
        print(printed)
    return True


def kill_collect(folder: Path, n_kills: int, rng: np.random.Generator, counts: dict) -> None:
    """Kill collections until enough kills have been survived; each file must equal the uninterrupted one."""
    n_run = 0
    while n_kills:
        n_run += 1
        target = folder / f"collect-{n_run}"
        parts = target / f".{HISTORY}.parts"
        command = [*COLLECT, "--traj-dir", str(target), "--log-dir", str(folder / "logs")]
        while n_kills and not (target / HISTORY).exists():
            finished = set(parts.glob("*.hdf5"))
            if interrupt(command, rng, counts, longest=8.0):
                n_kills -= 1
                if not (target / HISTORY).exists():
                    counts["tasks lost"] += len(finished - set(parts.glob("*.hdf5")))
                counts["kills survived"] += 1
        run(command)
        assert_same_arrays(folder / "whole" / HISTORY, target / HISTORY)


def kill_train(folder: Path, n_kills: int, rng: np.random.Generator, counts: dict) -> None:
    """The same for training: the weights must be those of an uninterrupted run, bit for bit."""
    command = [*TRAIN, "--traj-dir", str(folder / "whole"), "--set", "train_timesteps=300"]
    run([*command, "--run-dir", str(folder / "straight")])
    expected = load_checkpoint(folder / "straight" / "ckpt-300.pt")["model"]
    n_run = 0
    while n_kills:
        n_run += 1
        run_dir = folder / f"train-{n_run}"
        while n_kills and not (run_dir / "ckpt-300.pt").exists():
            before = [load_checkpoint(path)["update"] for path in checkpoint_paths(run_dir)[-1:]]
            if interrupt([*command, "--run-dir", str(run_dir)], rng, counts, longest=7.0):
                n_kills -= 1
                after = [load_checkpoint(path)["update"] for path in checkpoint_paths(run_dir)[-1:]]
                counts["updates lost"] += after < before
                counts["kills survived"] += 1
        run([*command, "--run-dir", str(run_dir)])
        weights = load_checkpoint(run_dir / "ckpt-300.pt")["model"]
        counts["updates lost"] += not all(torch.equal(values, weights[name]) for name, values in expected.items())


def damage_histories(folder: Path, n_files: int, rng: np.random.Generator, counts: dict) -> None:
    config, whole = tiny_config(), (folder / "whole" / HISTORY).read_bytes()
    intact = ADDataset(config, folder / "whole", "all")

    def read(path: Path) -> bool:
        dataset = ADDataset(config, path.parent, "all")
        same = dataset.history.regions == intact.history.regions and dataset.arrays.keys() == intact.arrays.keys()
        return same and all(np.array_equal(values, dataset.arrays[name]) for name, values in intact.arrays.items())

    damage_files(folder / "damaged" / HISTORY, whole, read, n_files, rng, counts)


def damage_checkpoints(folder: Path, n_files: int, rng: np.random.Generator, counts: dict) -> None:
    path = folder / "straight" / "ckpt-300.pt"
    intact = load_checkpoint(path)

    def read(path: Path) -> bool:
        found = load_checkpoint(path)
        same = found["config"] == intact["config"] and found["update"] == intact["update"]
        return same and all(torch.equal(values, found["model"][name]) for name, values in intact["model"].items())

    damage_files(folder / "damaged" / "ckpt-1.pt", path.read_bytes(), read, n_files, rng, counts)


def damage_files(path: Path, whole: bytes, read, n_files: int, rng: np.random.Generator, counts: dict) -> None:
    """Damage a file again and again; `read` says whether what it got is what was written."""
    path.parent.mkdir(exist_ok=True)
    for _ in range(n_files):
        path.write_bytes(damage(whole, rng))
        try:
            counts["files harmless" if read(path) else "wrongly accepted"] += 1
        except InputError:
            counts["files refused"] += 1
        except Exception as error:  # what a user would see as a traceback
            print(f"{type(error).__name__}: {error}")
            counts["tracebacks"] += 1


if __name__ == "__main__":
    raise SystemExit(main())
