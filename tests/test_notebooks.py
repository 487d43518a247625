"""The notebooks run from a clean kernel, on other files too, and are committed with their outputs."""

import os

import h5py
import nbformat
import numpy as np
import pytest
from conftest import tiny_config, write_file
from nbclient import NotebookClient

from checkpoints import save_checkpoint
from model import AD
from utils import ROOT

HISTORY, CONTEXT, MEMORY = (ROOT / "notebooks" / f"inspect_{name}.ipynb" for name in ("history", "context", "memory"))
FIGURES = {HISTORY: 6, CONTEXT: 4, MEMORY: 2}
WITH_MEMORY = [
    "use_compressed_context=true",
    "context=memory",
    "compress_interval=6",
    "n_summary=2",
    "memory_regions=2",
]
pytestmark = pytest.mark.slow


def n_figures(notebook) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def printed(notebook) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def execute(path, monkeypatch, **environment):
    for name, value in {"OMP_NUM_THREADS": "1", **environment}.items():
        monkeypatch.setenv(name, str(value))
    resources = {"metadata": {"path": str(path.parent)}}
    return NotebookClient(nbformat.read(path, as_version=4), timeout=300, resources=resources).execute()


def untrained(path, *overrides):
    """A checkpoint of a model of this config."""
    config = tiny_config(*overrides)
    save_checkpoint(path, {"config": config, "model": AD(config).state_dict(), "update": 1})
    return path


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_it_runs_and_is_committed_with_its_outputs(path, tiny_histories, tmp_path, monkeypatch):
    committed = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in committed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run it from a clean kernel before committing it"
    assert os.fspath(ROOT) not in path.read_text(), "its outputs name a folder of the machine that ran it"
    history = tiny_histories / "history_darkroom_PPO_alg-seed42.hdf5"
    model = {"CKPT": untrained(tmp_path / "ckpt-1.pt", *WITH_MEMORY)} if path == MEMORY else {}
    executed = execute(path, monkeypatch, HISTORY=history, **model)
    assert n_figures(executed) == n_figures(committed) == FIGURES[path]
    if path == HISTORY:  # 8 training tasks: the middle window is the first one of a task
        assert "steps per region [12, 12] - first target 12" in printed(executed)


def test_a_window_of_a_file_under_another_name_is_not_guessed(tiny_histories, tmp_path, monkeypatch):
    copy = tmp_path / "mine.hdf5"
    copy.write_bytes((tiny_histories / "history_darkroom_PPO_alg-seed42.hdf5").read_bytes())
    executed = execute(HISTORY, monkeypatch, HISTORY=copy)
    assert n_figures(executed) == 5 and "not called history_darkroom_PPO_alg-seed42.hdf5" in printed(executed)


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_its_words_fit_every_family(path):
    """What a notebook says must hold for any file or checkpoint it is given."""
    words = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    assert not [word for word in ("PPO", "Darkroom", "ln(5)", "five actions", "centre", "the star is") if word in words]


def test_an_older_file_shows_what_it_has(tmp_path, monkeypatch):
    path = write_file(tmp_path / "old.hdf5", tiny_config(), 24, 3, dones=None, action_probs=None, compress_markers=None)
    assert n_figures(execute(HISTORY, monkeypatch, HISTORY=path)) == 2  # a stream, and where all were


@pytest.mark.parametrize(
    ("path", "context", "figures", "told"),
    [
        (CONTEXT, [], 4, ["Pendulum-v1, task {", "optimal return not known"]),  # a heat map in place of the paths
        (MEMORY, WITH_MEMORY, 1, ["no goal cell on a grid: nothing is probed"]),  # attention
    ],
    ids=["context", "memory"],
)
def test_a_model_of_another_family_shows_what_it_has(path, context, figures, told, tmp_path, monkeypatch):
    """Real-valued actions, no goal cell, no known optimum."""
    ranges = ["env=Pendulum-v1", "env_kwargs={max_episode_steps: 8}", "task_ranges={g: [4, 12]}", "n_tasks=2"]
    model = untrained(tmp_path / "ckpt-1.pt", *ranges, "train_env_ratio=0.5", *context)
    executed = execute(path, monkeypatch, CKPT=model)
    assert n_figures(executed) == figures and all(words in printed(executed) for words in told)


def test_arrays_of_other_shapes_that_training_takes_are_shown(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    shapes = {"states": rng.integers(9, size=(24, 3)), "rewards": rng.random((24, 3, 1)).astype(np.float32)}
    path = write_file(tmp_path / "flat.hdf5", tiny_config(), 24, 3, next_states=None, **shapes)
    executed = execute(HISTORY, monkeypatch, HISTORY=path)
    assert n_figures(executed) == 4 and "observations of one entry" in str(executed.cells)


def test_streams_shorter_than_a_training_history_are_drawn(tmp_path, monkeypatch):
    """Of a source whose streams learn each on its own."""
    path = write_file(tmp_path / "short.hdf5", tiny_config(), 36, 3)
    with h5py.File(path, "r+") as file:
        file.attrs["config"] = "alg: UCB"
    assert n_figures(execute(HISTORY, monkeypatch, HISTORY=path)) == 5  # all but the window
