"""docs/extending.md as it stands: a new environment, source, model and context strategy, without a change to a shipped file."""

import re
import shlex
import sys

import h5py
import numpy as np
import pytest
from conftest import set_flags

import collect
import evaluate
import train
from checkpoints import checkpoint_paths, load_checkpoint
from utils import ROOT

pytestmark = pytest.mark.slow
SMALL = [
    "n_embd=32", "n_layer=1", "train_batch_size=16", "train_timesteps=150", "warmup_timesteps=10", "test_interval=150",
    "eval_interval=150", "eval_episodes=3", "eval_repeats=2", "ckpt_interval=150", "log_interval=50",
]  # fmt: skip


def code_blocks() -> tuple[dict[str, str], list[list[str]]]:
    """The page's files by name, and its commands."""
    text = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", text, re.DOTALL)
    assert all(len(block.splitlines()) < 40 for block in blocks)
    environment, tasks, source, settings, model, actor, strategy = blocks
    files = {
        "ring.py": environment,
        "ring.yaml": tasks,
        "seeker.py": source,
        "seeker.yaml": settings,
        "gru.py": f"{model}\n\n{actor}",
        "chapters.py": strategy,
    }
    assert all(f"`{name}`" in text for name in files)
    return files, [shlex.split(line) for line in text.splitlines() if line.startswith("    python ")]


def test_the_page_works_as_written(tmp_path, monkeypatch, capsys):
    files, commands = code_blocks()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("ring", "seeker", "gru", "chapters"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    collecting, with_strategy, with_model, evaluating = commands
    assert collect.main(collecting[2:]) == 0
    with h5py.File("datasets/history_ring-Ring-v0_seeker-Seeker_alg-seed42.hdf5") as file:
        assert (
            len(file) == 8 and "boldness: 0.8" in file.attrs["config"] and file["0/action_probs"].shape == (400, 8, 3)
        )
        assert file["0/rewards"][-100:].mean() > 2 * file["0/rewards"][:100].mean()
    for number, command in enumerate((with_strategy, with_model)):
        run_dir = tmp_path / "runs" / f"run-{number}"
        assert train.main([*command[2:], "--run-dir", str(run_dir), *set_flags(*SMALL)]) == 0
        config = load_checkpoint(checkpoint_paths(run_dir)[-1])["config"]
        assert config["alg"] == "seeker:Seeker" and config["boldness"] == 0.8 and config["n_steps"] == 20
        assert evaluate.main([*evaluating[2:], "--runs-dir", str(run_dir)]) == 0
        with np.load(next(run_dir.glob("eval-*.npz"))) as results:
            assert results["returns"].shape == (1, 16, 20) and np.isfinite(results["optimal"]).all()
    assert config["gru_layers"] == 1 and "share" in capsys.readouterr().out
    with pytest.raises(Exception, match="unknown key 'gru_layer'; did you mean 'gru_layers'"):
        train.main([*with_model[2:], "--set", "gru_layer=2"])
