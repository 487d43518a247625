"""Each benchmark runs at a tiny size; what it measures is not tested."""

import json
import math

import pytest
from faults import run

from utils import ROOT

STAGES = ("stepping", "collection", "training", "evaluation", "opening", "operations")
pytestmark = pytest.mark.slow


def test_all_benchmarks_run_and_write_one_table(tmp_path):
    printed = run(["benchmarks/run_all.py", "--tiny", "--out", str(tmp_path / "results.json")])
    results = json.loads((tmp_path / "results.json").read_text())
    stages = [results.pop(stage) for stage in STAGES]
    assert set(results) == {"machine"} and all(stage["settings"] for stage in stages)
    rows = [row for stage in stages for row in stage["rows"]]
    assert len(rows) > 40 and all(row["name"] in printed and math.isfinite(row["median"]) for row in rows)


def test_the_table_is_what_was_measured():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    measured = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    for stage in ("collection", "training", "evaluation"):
        for row in measured[stage]["rows"]:
            median = f"{row['median']:,.4g}" if row["median"] < 1e4 else f"{row['median']:,.0f}"
            assert f"| {stage} | {row['name']} | {median} |" in text
