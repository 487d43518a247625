"""Killed processes, full disks, damaged files, and several ranks: nothing is lost, all is told."""

import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time

import h5py
import numpy as np
import pytest
import torch
from conftest import set_flags, tiny_config
from faults import (
    COLLECT,
    HISTORY,
    TRAIN,
    assert_same_arrays,
    children,
    damage,
    kill,
    left_in_group,
    read_arrays,
    run,
    start,
    wait_until,
)

import collect
import evaluate
import train
from checkpoints import checkpoint_paths, checkpoint_update, load_checkpoint, save_checkpoint
from dataset import ADDataset
from files import InputError, WriteError, write_atomically
from ranks import Ranks

pytestmark = pytest.mark.slow


def assert_same_weights(one, other, tolerance: float = 0.0) -> None:
    first, second = load_checkpoint(one), load_checkpoint(other)
    assert first["update"] == second["update"]
    for name, weights in first["model"].items():
        torch.testing.assert_close(weights, second["model"][name], rtol=tolerance, atol=tolerance, msg=name)


# Collection ---------------------------------------------------------------------------------------


def test_collection_survives_kill_9_of_the_parent(tiny_histories, tmp_path):
    command = [*COLLECT, "--traj-dir", str(tmp_path), "--log-dir", str(tmp_path / "logs"), "--set", "n_process=2"]
    parts = tmp_path / f".{HISTORY}.parts"
    process = start(command)
    wait_until(lambda: len(list(parts.glob("*.hdf5"))) >= 3, process)
    kill(process)
    assert not (tmp_path / HISTORY).exists()
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("*.hdf5")}
    (parts / "8.hdf5").write_bytes(b"half a part")  # damaged since; and other settings are not mixed in
    assert "total_source_timesteps: 1920 there, 960 now" in run(
        [*command, "--set", "total_source_timesteps=960"], code=2
    )
    second = start(command)
    wait_until(lambda: len(list(parts.glob("*.hdf5"))) > len(finished) + 1, second)
    second.send_signal(signal.SIGSTOP)  # or it may end before the third one has started
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())
    assert "another process is at work" in run(command, code=2)
    second.send_signal(signal.SIGCONT)
    out, err = second.communicate()
    assert second.returncode == 0 and "going on:" in out and "8.hdf5: damaged" in err and not parts.exists()
    assert_same_arrays(tiny_histories / HISTORY, tmp_path / HISTORY)


def test_a_killed_worker_is_reported_and_the_others_finish(tmp_path):
    def kill_one():
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(workers[0].pid, signal.SIGKILL)

    config = tiny_config("n_process=1")
    collect.prepare_parts(tmp_path / "parts", config)
    threading.Thread(target=kill_one).start()
    failures = collect.collect_tasks(config, [0, 1], tmp_path / "parts", tmp_path / "logs", Ranks())
    assert failures == {0: "killed by SIGKILL"} and (tmp_path / "parts" / "1.hdf5").is_file()
    assert not (tmp_path / "parts" / "0.hdf5").exists()


def test_ctrl_c_stops_collection_cleanly(tmp_path):
    command = [
        *COLLECT,
        "--traj-dir",
        str(tmp_path),
        "--log-dir",
        str(tmp_path / "logs"),
        *set_flags("n_process=2", "total_source_timesteps=9600"),
    ]
    parts = tmp_path / f".{HISTORY}.parts"
    process = start(command)
    wait_until(lambda: any(parts.glob("*.hdf5")), process)
    printed = kill(process, signal.SIGINT)
    assert process.returncode == 130 and "the same command goes on" in printed and "Traceback" not in printed
    assert not left_in_group(process.pid)  # no worker


# Training -----------------------------------------------------------------------------------------


def test_training_killed_and_resumed_ends_with_the_same_weights(tiny_histories, tmp_path, capsys):
    """One run, killed three times in three ways, against one that was left alone."""
    run_dir, reached = tmp_path / "killed", 0
    command = [*TRAIN, "--traj-dir", str(tiny_histories), *set_flags("dropout=0.1", "train_timesteps=160")]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        process = start([*command, "--run-dir", str(run_dir)])
        wait_until(lambda: newest_update(run_dir) > reached, process)  # noqa: B023, called in this turn only
        printed = kill(process, number)
        assert f"from update {reached}" in printed and "Traceback" not in printed
        reached = newest_update(run_dir)
        assert reached < 160
        if number != signal.SIGKILL:
            assert process.returncode == 128 + number and f"after update {reached}, which is saved" in printed
    assert train.main([*command[1:], "--run-dir", str(run_dir)]) == 0
    assert f"from update {reached}" in capsys.readouterr().out
    assert train.main([*command[1:], "--run-dir", str(tmp_path / "straight")]) == 0
    ends = [folder / "ckpt-160.pt" for folder in (run_dir, tmp_path / "straight")]
    assert_same_weights(*ends)
    assert len({str(load_checkpoint(path)["best"]) for path in ends}) == 1  # a stop's own checkpoint is never the best


def newest_update(run_dir) -> int:
    paths = checkpoint_paths(run_dir)
    return checkpoint_update(paths[-1]) if paths else 0


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_it_used(tiny_histories, tmp_path):
    command = [*TRAIN, "--traj-dir", str(tiny_histories), "--run-dir", str(tmp_path)]
    assert train.main(command[1:]) == 0
    shutil.copy(tmp_path / "ckpt-20.pt", tmp_path / "whole.pt")
    (tmp_path / "ckpt-20.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-1000])
    evaluated = run(["evaluate.py", "--runs-dir", str(tmp_path), "--episodes", "1", "--repeats", "1"])
    assert "ckpt-20.pt: not readable" in evaluated and "ckpt-10.pt: compressed context" in evaluated
    printed = run(command)
    assert "ckpt-20.pt: not readable as a checkpoint" in printed and "from update 10" in printed
    assert_same_weights(tmp_path / "ckpt-20.pt", tmp_path / "whole.pt")
    for path in checkpoint_paths(tmp_path):
        path.write_bytes(b"")
    printed = run(command, code=2)
    assert "none of its checkpoints can be read; use --overwrite" in printed and "Traceback" not in printed


# Files --------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk():
    """No file may grow beyond 20 kB, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_file_intact(tmp_path, full_disk):
    def write_hdf5(path):
        with h5py.File(path, "w") as file:
            file["data"] = np.random.default_rng(0).random(100_000)

    writers = {
        "text": lambda path: write_atomically(path, lambda temporary: temporary.write_text("x" * 100_000)),
        "hdf5": lambda path: write_atomically(path, write_hdf5),
        "pt": lambda path: save_checkpoint(path, {"weights": torch.zeros(100_000)}),
    }
    for name, write in writers.items():
        path = tmp_path / name
        with pytest.raises(WriteError, match="could not be written.*nothing half-written is left"):
            write(path)
        path.write_text("old")
        with pytest.raises(WriteError, match="could not be written.*the file that was there is intact"):
            write(path)
        assert path.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(writers)


def test_a_full_disk_ends_training_with_one_message(tiny_histories, tmp_path):
    command = [*TRAIN, "--traj-dir", str(tiny_histories), "--run-dir", str(tmp_path), "--set", "eval_interval=1000"]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    printed = run(command, code=1, preexec_fn=limit)
    assert "ckpt-10.pt: could not be written" in printed and "Traceback" not in printed
    assert checkpoint_paths(tmp_path) == [] and not list(tmp_path.glob("*tmp*"))


def test_damaged_histories_are_refused_or_read_as_they_were(tiny_histories, tmp_path):
    config = tiny_config()
    whole = (tiny_histories / HISTORY).read_bytes()
    intact = ADDataset(config, tiny_histories, "all")
    rng = np.random.default_rng(0)
    n_refused = 0
    for _ in range(60):
        (tmp_path / HISTORY).write_bytes(damage(whole, rng))
        try:
            dataset = ADDataset(config, tmp_path, "all")
        except InputError as error:
            assert str(tmp_path / HISTORY) in str(error)
            n_refused += 1
            continue
        assert dataset.history.regions == intact.history.regions
        for name, values in intact.arrays.items():
            np.testing.assert_array_equal(values, dataset.arrays[name])
    assert n_refused >= 30


def test_damaged_checkpoints_are_refused_or_read_as_they_were(tmp_path):
    checkpoint = {"config": tiny_config(), "model": {"w": torch.randn(3000)}, "update": 3}
    save_checkpoint(tmp_path / "whole.pt", checkpoint)
    whole, intact = (tmp_path / "whole.pt").read_bytes(), load_checkpoint(tmp_path / "whole.pt")
    rng = np.random.default_rng(0)
    n_refused = 0
    for _ in range(100):
        (tmp_path / "ckpt-1.pt").write_bytes(damage(whole, rng))
        try:
            checkpoint = load_checkpoint(tmp_path / "ckpt-1.pt")
        except InputError:
            n_refused += 1
            continue
        assert checkpoint["config"] == intact["config"] and checkpoint["update"] == 3
        assert torch.equal(checkpoint["model"]["w"], intact["model"]["w"])
    assert n_refused >= 50


# Several ranks ------------------------------------------------------------------------------------


def test_two_ranks_collect_the_same_file(tiny_histories, tmp_path):
    folders = ["--traj-dir", str(tmp_path), "--log-dir", str(tmp_path / "logs")]
    assert "9 tasks" in run([*COLLECT, *folders], n_ranks=2)
    assert_same_arrays(tiny_histories / HISTORY, tmp_path / HISTORY)
    assert len(read_arrays(tmp_path / HISTORY)) == 9 * 7
    assert "already complete" in run([*COLLECT, *folders], n_ranks=2)


def test_a_folder_that_cannot_be_written_ends_every_rank_of_a_collection(tmp_path):
    (tmp_path / "file").write_text("")
    folders = ["--traj-dir", str(tmp_path), "--log-dir", str(tmp_path / "file" / "logs")]
    printed = run([*COLLECT, *folders], n_ranks=2, code=1)
    assert printed.count("nothing can be written there") == 2  # each says so, and none waits for the other


MODES = {
    "ad_dr_compressed": [],
    "ad_dr": [],
    "ad_dr_memory": ["compress_interval=6", "history_regions=5", "memory_regions=2", "recall_loss_weight=0.5"],
}


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_train_as_one_and_evaluate_together(tiny_histories, tmp_path, mode):
    command = [*TRAIN, "--traj-dir", str(tiny_histories), "--model-config", f"config/model/{mode}.yaml"]
    command += set_flags("train_env_ratio=0.6", "train_timesteps=10", *MODES[mode])
    assert train.main([*command[1:], "--run-dir", str(tmp_path / "one")]) == 0
    assert "2 rank(s)" in run([*command, "--run-dir", str(tmp_path / "two")], n_ranks=2)
    assert_same_weights(tmp_path / "one" / "ckpt-10.pt", tmp_path / "two" / "ckpt-10.pt", tolerance=1e-4)
    if mode != "ad_dr_compressed":  # evaluation shares tasks out alike in all modes
        return
    arguments = ["evaluate.py", "--ckpt", str(tmp_path / "two" / "ckpt-10.pt"), "--episodes", "3", "--repeats", "2"]
    assert run(arguments, n_ranks=2).count("mean return over the last") == 1
    with np.load(tmp_path / "two" / "eval-test-10_episodes-3_repeats-2.npz") as results:
        assert results["returns"].shape == (4, 2, 3) and len(results["tasks"]) == 4
        shared = results["returns"]
    assert evaluate.main([*arguments[1:], "--out", str(tmp_path / "alone")]) == 0
    with np.load(tmp_path / "alone.npz") as alone:
        np.testing.assert_array_equal(alone["returns"], shared)


def test_a_rank_that_dies_ends_the_run_and_leaves_it_resumable(tiny_histories, tmp_path):
    command = [*TRAIN, "--traj-dir", str(tiny_histories), "--run-dir", str(tmp_path), "--set", "train_timesteps=3000"]
    process = start(command, n_ranks=2)
    wait_until(lambda: len(checkpoint_paths(tmp_path)) >= 2, process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "another rank" in out + err
    reached = load_checkpoint(checkpoint_paths(tmp_path)[-1])["update"]
    resumed = start(command)
    wait_until(lambda: load_checkpoint(checkpoint_paths(tmp_path)[-1])["update"] > reached, resumed)
    assert f"from update {reached}" in kill(resumed, signal.SIGTERM)


def test_a_write_error_of_the_first_rank_ends_all_ranks(tmp_path):
    (tmp_path / "file").write_text("in the way")
    command = [*COLLECT, "--traj-dir", str(tmp_path / "file" / "histories"), "--log-dir", str(tmp_path / "logs")]
    printed = run(command, n_ranks=2, code=1)
    assert "nothing can be written there" in printed and "the first rank has failed" in printed


@pytest.mark.parametrize(
    ("n_updates", "words"),
    [(1000, "after update 6, which is saved; the same"), (5, "after update 5, which is saved; evaluate.py")],
)
def test_ctrl_c_during_the_evaluation_within_training_stops_it(tiny_histories, tmp_path, n_updates, words):
    settings = set_flags(
        "eval_interval=5",
        "eval_episodes=100000",
        "eval_repeats=2",
        f"train_timesteps={n_updates}",
        "warmup_timesteps=2",
    )
    process = start([*TRAIN, "--traj-dir", str(tiny_histories), "--run-dir", str(tmp_path), *settings])
    wait_until(lambda: any(tmp_path.glob("events*")), process)
    time.sleep(3)  # by then it is evaluating, for hours
    printed = kill(process, signal.SIGINT)
    assert process.returncode == 130 and f"stopped by SIGINT {words}" in printed
    assert "Traceback" not in printed
