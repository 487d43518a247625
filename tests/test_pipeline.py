"""The three scripts together, on CPU: they learn, resume, fall back, and write what they promise."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_ENV, TINY_MODEL, TINY_SOURCE, set_flags, tiny_config
from faults import HISTORY
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import collect
import evaluate
import inspect_history
import train
from checkpoints import checkpoint_paths, load_checkpoint
from files import InputError, WriteError
from history.format import history_path
from utils import ROOT

TINY = set_flags(*TINY_ENV, *TINY_SOURCE, *TINY_MODEL)
MEMORY = "config/model/ad_dr_memory.yaml"
pytestmark = pytest.mark.slow


def train_in(run_dir, histories, *settings, config="config/model/ad_dr_compressed.yaml") -> list:
    arguments = ["--traj-dir", str(histories), "--run-dir", str(run_dir), "--model-config", config, "--device", "cpu"]
    assert train.main([*arguments, *TINY, *set_flags(*settings)]) == 0
    return checkpoint_paths(run_dir)


def evaluate_in(path, *arguments) -> np.ndarray:
    assert evaluate.main(["--ckpt", str(path), "--device", "cpu", *arguments]) == 0
    newest = max(path.parent.glob("eval-test*.npz"), key=lambda path: path.stat().st_mtime_ns)
    with np.load(newest) as results:
        return {name: results[name] for name in results}


def test_learns_to_find_an_unseen_goal(tiny_histories, tmp_path, capsys):
    """Less than a minute of training on 8 of 9 goals; the held-out goal is then found in context."""
    settings = ["train_timesteps=600", "region_stride=3", "lr=0.003", "temperature=0.6"]
    path = train_in(tmp_path / "run", tiny_histories, *settings)[-1]
    results = evaluate_in(path, "--episodes", "30", "--repeats", "16", "--traj-dir", str(tiny_histories))
    last = results["returns"][..., -5:].mean()
    assert results["returns"].shape == (1, 16, 30)
    assert last > 3 * results["random_returns"].mean()
    assert last > results["returns"][..., :2].mean() + 0.5  # and it got better in context
    printed = capsys.readouterr().out
    assert "95 % interval" in printed and "share" in printed
    settings = yaml.safe_load(str(results["settings"]))
    assert settings["config"]["region_stride"] == 3 and settings["repeats"] == 16
    assert (tmp_path / "run" / "eval-test-600_episodes-30.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("mode", ["ad_dr_compressed", "ad_dr"])
def test_both_modes_train_log_and_evaluate(tiny_histories, tmp_path, mode):
    paths = train_in(tmp_path, tiny_histories, config=f"config/model/{mode}.yaml")
    assert [path.name for path in paths] == ["ckpt-10.pt", "ckpt-20.pt"]
    assert evaluate_in(paths[-1], "--episodes", "5", "--repeats", "2")["returns"].shape == (1, 2, 5)
    events = EventAccumulator(str(tmp_path)).Reload()
    names = {"loss_action", "acc_action", "loss_total"}
    if mode == "ad_dr_compressed":
        names |= {"loss_token_type", "acc_token_type", "recall_compress_end"}
    scalars = set(events.Tags()["scalars"])
    assert {f"{split}/{name}" for split in ("train", "test") for name in names} | {"train/lr"} <= scalars
    assert ("train/loss_token_type" in scalars) == (mode == "ad_dr_compressed")
    assert {"test/return_over_episodes", "test/return_per_task"} <= set(events.Tags()["images"])
    assert "config/text_summary" in events.Tags()["tensors"]
    assert "_hparams_/session_start_info" in events.summary_metadata and "result/return_last_episodes" in scalars
    assert len(events.Scalars("train/loss_total")) == 4 and len(events.Scalars("test/loss_total")) == 2


def test_a_film_shows_chosen_episodes_of_every_task(tiny_histories, tmp_path):
    path = train_in(tmp_path, tiny_histories, "train_env_ratio=0.7")[-1]
    # With a seed in which something moves at every step: Pillow makes one longer frame of two equal ones
    evaluate_in(path, "--episodes", "3", "--repeats", "2", "--seed", "2", "--render")
    with Image.open(tmp_path / "eval-test-20_episodes-3_repeats-2_seed-2.gif") as film:
        assert film.n_frames == 3 * 7  # episodes 1, 2 and 3: six steps and the end
        first, last = (np.asarray(film.convert("RGB")) for _ in map(film.seek, (0, 20)))
    assert first.shape == last.shape and (first != last).any()


def test_a_file_without_markers_trains_and_evaluates_in_standard_mode(tiny_histories, tmp_path):
    name = "history_darkroom_PPO_alg-seed42.hdf5"
    with h5py.File(tiny_histories / name) as source, h5py.File(tmp_path / name, "w") as old:
        for task in source:
            for field in ("states", "actions", "rewards", "next_states"):
                old[f"{task}/{field}"] = source[task][field][()].astype(np.int32)
    with pytest.warns(UserWarning) as caught:
        path = train_in(tmp_path / "run", tmp_path)[-1]
    assert [str(w.message) for w in caught if "no compress_markers: standard mode" in str(w.message)]
    with pytest.warns(UserWarning, match="no compress_markers"):  # what two regions would need is not asked for
        train_in(tmp_path / "short", tmp_path, "n_transit=20")
    config = load_checkpoint(path)["config"]
    assert config["use_compressed_context"] is False and config["with_dones"] is False
    assert evaluate_in(path, "--episodes", "3", "--repeats", "2")["returns"].shape == (1, 2, 3)


def test_a_resumed_run_ends_with_the_same_weights(tiny_histories, tmp_path):
    straight = train_in(tmp_path / "straight", tiny_histories, "dropout=0.1")[-1]
    halves = train_in(tmp_path / "halves", tiny_histories, "dropout=0.1")
    halves[-1].unlink()  # as if killed after update 10
    resumed = train_in(tmp_path / "halves", tiny_histories, "dropout=0.1")[-1]
    one, other = load_checkpoint(straight), load_checkpoint(resumed)
    assert one["update"] == other["update"] == 20
    for name, weights in one["model"].items():
        assert torch.equal(weights, other["model"][name]), name


def test_a_complete_run_is_left_alone_and_other_settings_are_told(tiny_histories, tmp_path, capsys):
    path = train_in(tmp_path, tiny_histories)[-1]
    before = path.stat().st_mtime_ns
    train_in(tmp_path, tiny_histories)
    assert "already complete" in capsys.readouterr().out and path.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="n_embd: 32 there, 16 now.*--overwrite"):
        train_in(tmp_path, tiny_histories, "n_embd=16")
    train_in(tmp_path, tiny_histories, "temperature=0.5")  # changes nothing that was learned
    assert path.stat().st_mtime_ns == before


def test_the_newest_checkpoints_and_the_best_are_kept(tiny_histories, tmp_path):
    paths = train_in(tmp_path, tiny_histories, "ckpt_interval=3", "keep_checkpoints=2")
    best = load_checkpoint(paths[-1])["best"]["update"]
    updates = [int(path.stem.removeprefix("ckpt-")) for path in paths]
    assert updates == sorted({best, 18, 20})
    losses = EventAccumulator(str(tmp_path)).Reload().Scalars("test/loss_total")
    at_checkpoints = {event.step: event.value for event in losses if event.step % 3 == 0 or event.step == 20}
    assert best == min(at_checkpoints, key=at_checkpoints.get)


def test_all_tasks_can_be_trained_on(tiny_histories, tmp_path):
    path = train_in(tmp_path, tiny_histories, "train_env_ratio=1.0")[-1]
    assert path.name == "ckpt-20.pt"
    with pytest.raises(InputError, match="--mode test: has no tasks"):
        evaluate.main(["--ckpt", str(path)])
    assert evaluate.main(["--ckpt", str(path), "--mode", "train", "--episodes", "1", "--repeats", "1"]) == 0


def test_overwrite_removes_a_runs_files_and_nothing_else(tiny_histories, tmp_path):
    (tmp_path / "notes.txt").write_text("keep me")
    first = train_in(tmp_path, tiny_histories)[-1].stat().st_mtime_ns
    arguments = ["--traj-dir", str(tiny_histories), "--run-dir", str(tmp_path), "--overwrite", "--device", "cpu"]
    assert train.main([*arguments, *TINY, "--set", "n_embd=16"]) == 0
    assert (tmp_path / "notes.txt").exists() and checkpoint_paths(tmp_path)[-1].stat().st_mtime_ns > first


def test_a_checkpoint_that_cannot_be_read_does_not_push_out_those_that_can(tiny_histories, tmp_path):
    train_in(tmp_path, tiny_histories, "keep_checkpoints=1", "ckpt_interval=5", "train_timesteps=15")
    newest = checkpoint_paths(tmp_path)[-1]
    newest.rename(tmp_path / "ckpt-10.pt")
    (tmp_path / "ckpt-99.pt").write_bytes(b"damaged")
    checkpoint = load_checkpoint(tmp_path / "ckpt-10.pt") | {"update": 10}
    torch.save(checkpoint, tmp_path / "ckpt-10.pt")
    paths = train_in(tmp_path, tiny_histories, "keep_checkpoints=1", "ckpt_interval=5", "train_timesteps=15")
    assert load_checkpoint(paths[-1])["update"] == 15


def test_evaluation_on_other_spaces_or_seen_tasks(tiny_histories, tmp_path, capsys):
    path = train_in(tmp_path, tiny_histories)[-1]
    checkpoint = load_checkpoint(path)
    checkpoint["config"]["observation_space"]["sizes"] = [4, 4]
    torch.save(checkpoint, tmp_path / "other.pt")
    with pytest.raises(InputError, match="other observations or actions"):
        evaluate.main(["--ckpt", str(tmp_path / "other.pt")])
    assert evaluate.main(["--ckpt", str(path), "--episodes", "1", "--repeats", "1", "--set", "env_split_seed=1"]) == 0
    assert "was trained on 1 of these 1 tasks" in capsys.readouterr().out


def test_evaluation_takes_the_newest_run_and_follows_its_mode(tiny_histories, tmp_path, capsys):
    train_in(tmp_path / "b", tiny_histories, config="config/model/ad_dr.yaml")
    train_in(tmp_path / "a", tiny_histories)
    assert evaluate.main(["--runs-dir", str(tmp_path), "--episodes", "2", "--repeats", "1"]) == 0
    assert f"{tmp_path / 'a' / 'ckpt-20.pt'}: compressed context" in capsys.readouterr().out
    with pytest.raises(InputError, match="--set n_layer: fixed by the checkpoint"):
        evaluate.main(["--runs-dir", str(tmp_path), "--set", "n_layer=3"])
    with pytest.raises(InputError, match="temperature: -1.0: expected at least 0"):
        evaluate.main(["--runs-dir", str(tmp_path), "--temperature", "-1"])


@pytest.mark.parametrize(
    ("env_id", "kwargs"), [("CartPole-v1", "{}"), ("Pendulum-v1", "{}"), ("FrozenLake-v1", "{is_slippery: false}")]
)
def test_any_gymnasium_environment_goes_through_all_scripts(tmp_path, env_id, kwargs):
    """Continuous and discrete observations, discrete and continuous actions, episodes of any length."""
    family = [
        f"env={env_id}",
        f"env_kwargs={kwargs}",
        "task_kwargs=[{}, {max_episode_steps: 99}]",
        "train_env_ratio=0.5",
    ]
    source = ["n_stream=4", "n_steps=12", "total_source_timesteps=192", "batch_size=48", "n_epochs=1"]
    folders = ["--traj-dir", str(tmp_path)]
    assert collect.main([*folders, "--log-dir", str(tmp_path / "logs"), *set_flags(*family, *source)]) == 0
    settings = [
        *family,
        *source,
        *TINY_MODEL,
        "eval_interval=1000",
        "eval_episodes=1",
        "eval_repeats=1",
        "train_timesteps=10",
    ]
    assert train.main([*folders, "--run-dir", str(tmp_path / "run"), *set_flags(*settings)]) == 0
    assert evaluate.main(["--runs-dir", str(tmp_path), *folders, "--episodes", "1", "--repeats", "2"]) == 0


def test_the_reference_checkpoint_learns_the_held_out_goals(tmp_path):
    path = ROOT / "results" / "reference" / "ckpt-800.pt"
    assert path.stat().st_size <= 2e6
    out = str(tmp_path / "reference")
    assert (
        evaluate.main(["--ckpt", str(path), "--out", out, "--episodes", "60", "--repeats", "4", "--device", "cpu"]) == 0
    )
    with np.load(out + ".npz") as results:
        returns, optimal = results["returns"], results["optimal"]
    assert returns[..., :4].mean() < 2 and returns[..., -10:].mean() > 0.9 * optimal.mean()


def test_a_finished_run_can_be_trained_longer(tiny_histories, tmp_path, capsys):
    train_in(tmp_path, tiny_histories)
    longer = train_in(tmp_path, tiny_histories, "train_timesteps=30")
    printed = capsys.readouterr().out
    assert longer[-1].name == "ckpt-30.pt" and "from update 20" in printed
    assert "it was to end after update 20; now the learning rate takes up the longer schedule" in printed
    with pytest.raises(InputError, match="train_timesteps: 30 there, 25 now"):
        train_in(tmp_path, tiny_histories, "train_timesteps=25")


def test_a_warm_up_longer_than_the_run_is_told(tiny_histories, tmp_path, capsys):
    train_in(tmp_path, tiny_histories, "warmup_timesteps=50")
    assert "note: warmup_timesteps 50 is not below train_timesteps 20" in capsys.readouterr().out


def test_checkpoints_say_where_they_come_from_and_histories_must_stay(tiny_histories, tmp_path):
    shutil.copy(tiny_histories / HISTORY, tmp_path / HISTORY)
    path = train_in(tmp_path / "run", tmp_path)[-1]
    origin = load_checkpoint(path)["origin"]
    assert origin["versions"]["torch"] and "git_commit" in origin and origin["history"]["path"].endswith(HISTORY)
    with h5py.File(tmp_path / HISTORY, "a") as file:
        assert file.attrs["created_utc"] == origin["history"]["created_utc"]
        file.attrs["created_utc"] = "2031-01-01T00:00:00+00:00"
    with pytest.raises(InputError, match="histories were collected again since .created .* 2031-01-01"):
        train_in(tmp_path / "run", tmp_path, "train_timesteps=30")


def test_a_file_under_another_name_is_refused(tiny_histories, tmp_path):
    shutil.copy(tiny_histories / HISTORY, tmp_path / HISTORY.replace("seed42", "seed7"))
    message = "seed7.hdf5: was collected with other settings .alg_seed: 42 there, 7 in the config.; call it .*seed42"
    with pytest.raises(InputError, match=message):
        train_in(tmp_path / "run", tmp_path, "alg_seed=7")


def test_settings_of_the_source_come_from_the_file(tiny_histories, tmp_path):
    """No flag repeats them; one that contradicts the file is told, with both values."""
    common = ["--traj-dir", str(tiny_histories), "--device", "cpu"]
    model = set_flags(*TINY_MODEL[1:])  # compress_interval is the file's rollout length
    assert train.main([*common, "--run-dir", str(tmp_path / "run"), *model]) == 0
    config = load_checkpoint(tmp_path / "run" / "ckpt-20.pt")["config"]
    assert (config["grid_size"], config["n_stream"], config["source_lr"], config["compress_interval"]) == (
        3,
        16,
        0.02,
        12,
    )
    for settings, message in (
        (["gamma=0.1", "ent_coef=0.5"], "ent_coef: 0.01 there, 0.5 given now; gamma: 0.99 there, 0.1 given now"),
        (["grid_size=9"], "grid_size: 3 there, 9 given now"),
    ):
        with pytest.raises(InputError, match=message):
            train.main([*common, "--run-dir", str(tmp_path / "other"), *model, *set_flags(*settings)])
    with pytest.raises(InputError, match="n_stream: 16 there, 100 given now"):
        alg = ["--alg-config", "config/algorithm/ppo_darkroom.yaml"]
        train.main([*common, "--run-dir", str(tmp_path / "other"), *model, *alg])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("n_steps", "ten", "int"), ("grid_size", "3", "int"), ("n_stream", -3, "at least 1")],
)
def test_a_file_that_records_impossible_settings_is_refused(tiny_histories, tmp_path, name, value, expected):
    path = Path(shutil.copy(tiny_histories / HISTORY, tmp_path))
    with h5py.File(path, "a") as file:
        file.attrs["config"] = yaml.safe_dump(yaml.safe_load(file.attrs["config"]) | {name: value})
    with pytest.raises(InputError, match=f"the config that it records: {name}: {value!r}: expected {expected}"):
        train_in(tmp_path / "run", tmp_path)
    inspect_history.main([str(path)])  # tells what the values alone say


def test_a_checkpoint_of_another_shape_does_not_go_on(tiny_histories, tmp_path):
    path = train_in(tmp_path, tiny_histories)[-1]
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["model"].popitem()
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match="newest checkpoint does not fit the model of its config .*--overwrite"):
        train_in(tmp_path, tiny_histories, "train_timesteps=30")


def test_a_horizon_that_nothing_reads_is_told(tmp_path):
    for name in ("frozen_lake", "bandit"):
        with pytest.raises(InputError, match="--set horizon: .* ends its episodes itself, so nothing reads it"):
            collect.main([name, "--traj-dir", str(tmp_path), *set_flags("horizon=15", "n_tasks=4")])
        with pytest.raises(InputError, match="--set horizon: "):
            train.main([name, "--traj-dir", str(tmp_path), *set_flags("horizon=15")])
    assert not list(tmp_path.iterdir())


def test_parts_without_a_finished_task_keep_no_settings(tiny_histories, tmp_path):
    """After a collection that failed everywhere the mended config is taken."""
    config = tiny_config()
    parts = tmp_path / f".{history_path(config, tmp_path).name}.parts"
    collect.prepare_parts(parts, config)
    other = config | {"n_stream": config["n_stream"] + 1}
    collect.check_parts(parts, other)
    collect.prepare_parts(parts, other)
    (parts / "0.hdf5").touch()
    with pytest.raises(InputError, match="n_stream"):
        collect.check_parts(parts, config)


def test_the_best_checkpoint_can_be_evaluated(tiny_histories, tmp_path, capsys):
    paths = train_in(tmp_path, tiny_histories, "ckpt_interval=5", "keep_checkpoints=9")
    checkpoint = load_checkpoint(paths[-1])
    checkpoint["best"]["update"] = 10
    torch.save(checkpoint, paths[-1])
    assert evaluate.main(["--runs-dir", str(tmp_path), "--best", "--episodes", "1", "--repeats", "1"]) == 0
    assert "ckpt-10.pt: compressed" in capsys.readouterr().out


def test_evaluations_with_other_settings_keep_both_files(tiny_histories, tmp_path):
    path = train_in(tmp_path, tiny_histories)[-1]
    for flags in ([], ["--temperature", "1.5"], ["--boundaries", "predicted"], ["--seed", "3"]):
        evaluate_in(path, "--episodes", "2", "--repeats", "2", *flags)
    names = sorted(found.name for found in tmp_path.glob("*.npz"))
    assert len(names) == 4 and "eval-test-20_temperature-1.5_episodes-2_repeats-2.npz" in names
    with pytest.raises(InputError, match="--set grid_size: fixed by the checkpoint"):
        evaluate.main(["--ckpt", str(path), "--set", "grid_size=4"])


def test_predicted_boundaries_need_compressed_context(tiny_histories, tmp_path):
    path = train_in(tmp_path, tiny_histories, config="config/model/ad_dr.yaml")[-1]
    with pytest.raises(InputError, match="boundaries: window does not read it, only regions"):
        evaluate.main(["--ckpt", str(path), "--boundaries", "predicted"])


def test_a_checkpoint_from_before_some_settings_is_evaluated(tiny_histories, tmp_path):
    path = train_in(tmp_path, tiny_histories)[-1]
    checkpoint = load_checkpoint(path)
    for name in ("with_dones", "blank_starts", "context", "exploring_patience"):
        del checkpoint["config"][name]
    torch.save(checkpoint, tmp_path / "ckpt-20.pt")
    assert evaluate_in(path, "--episodes", "2", "--repeats", "2")["returns"].shape == (1, 2, 2)


@pytest.mark.parametrize("out", [".", "..", "/", "results/", str(ROOT / "results")])
def test_a_folder_is_no_name_of_results(out, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--ckpt", "ckpt-1.pt", "--out", out])
    assert "not a folder" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_told_before_the_work(tiny_histories, tmp_path, monkeypatch):
    path = train_in(tmp_path, tiny_histories)[-1]
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(evaluate, "evaluate_tasks", None)  # it must not come to that
    with pytest.raises(WriteError, match="nothing can be written there"):
        evaluate.main(["--ckpt", str(path), "--out", str(tmp_path / "file" / "results")])


def test_memory_goes_through_all_scripts_and_resumes(tiny_histories, tmp_path):
    settings = ["compress_interval=6", "history_regions=5", "memory_regions=2", "n_summary=2", "train_batch_size=8"]
    settings += ["recall_loss_weight=0.5", "restart_after=9"]
    straight, halves = (train_in(tmp_path / name, tiny_histories, *settings, config=MEMORY) for name in ("one", "two"))
    halves[-1].unlink()  # as if killed after update 10
    resumed = train_in(tmp_path / "two", tiny_histories, *settings, config=MEMORY)[-1]
    for name, weights in load_checkpoint(straight[-1])["model"].items():
        assert torch.equal(weights, load_checkpoint(resumed)["model"][name]), name
    for flags in ([], ["--boundaries", "predicted"], ["--render"]):
        assert evaluate_in(resumed, "--episodes", "9", "--repeats", "2", *flags)["returns"].shape == (1, 2, 9)
    with pytest.raises(InputError, match="compress_interval 5 must be n_steps 12, divide it, or be a multiple of it"):
        train_in(tmp_path / "three", tiny_histories, *settings, "compress_interval=5", config=MEMORY)


def test_a_foreign_file_says_by_its_markers_how_long_rollouts_are(tiny_histories, tmp_path):
    """Not the config of a source that it was not made by."""
    path = next(tiny_histories.glob("*.hdf5"))
    shutil.copy(path, tmp_path / path.name)
    with h5py.File(tmp_path / path.name, "r+") as file:
        file.attrs.clear()
    (tmp_path / "own.yaml").write_text(
        "include: config/algorithm/ppo_darkroom.yaml\nn_stream: 100  # of a source's\nn_steps: 80\nbatch_size: 4000\n"
    )
    arguments = ["--traj-dir", str(tmp_path), "--device", "cpu", *TINY[: 2 * len(TINY_ENV)]]
    arguments += ["--alg-config", str(tmp_path / "own.yaml"), *set_flags(*TINY_MODEL)]
    memory = set_flags("context=memory", "compress_interval=6", "history_regions=4", "use_compressed_context=true")
    assert train.main([*arguments, *memory, "--run-dir", str(tmp_path / "run")]) == 0
    config = load_checkpoint(checkpoint_paths(tmp_path / "run")[-1])["config"]
    assert config["n_steps"] == config["rollout_length"] == 12 and config["compress_interval"] == 6
    with pytest.raises(InputError, match="n_steps: 12 there, 80 given now"):
        train.main([*arguments, *set_flags("n_steps=80")])
    assert train.main([*arguments, "--run-dir", str(tmp_path / "own")]) == 0
    assert load_checkpoint(checkpoint_paths(tmp_path / "own")[-1])["config"]["n_stream"] == 16


def test_training_that_has_diverged_is_told_before_anything_is_saved(tiny_histories, tmp_path):
    with pytest.raises(InputError, match="has diverged: after update 10 .* is not finite; lower lr, 1e.20"):
        train_in(tmp_path, tiny_histories, "lr=1e20", "warmup_timesteps=0", "log_interval=100")
    assert not checkpoint_paths(tmp_path)
