"""The notebooks run from a clean kernel, and are committed with their outputs."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from utils import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.slow


def figures(notebook) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tiny_histories, monkeypatch):
    monkeypatch.setenv("HISTORY", str(tiny_histories / "history_darkroom_PPO_alg-seed42.hdf5"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    committed = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in committed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run it from a clean kernel before committing it"
    executed = NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    assert len(figures(executed)) == len(figures(committed)) >= 4
    assert os.fspath(ROOT) not in path.read_text(), "its outputs name a folder of the machine that ran it"
