"""The committed results: what the README and docs/ show is what the stored scores give."""

import sys

from plots.intervals import interval
from utils import ROOT

sys.path.insert(0, str(ROOT / "results"))
import report


def test_readme_shows_the_table_that_the_scores_give():
    table = report.main_table(report.Scores("compressed"), report.best_standard())
    assert table in (ROOT / "README.md").read_text()
    assert table in (ROOT / "results" / "tables.md").read_text()


def test_docs_show_the_table_of_the_other_families():
    assert report.family_table() in (ROOT / "docs" / "families.md").read_text()
    assert report.family_table() in (ROOT / "results" / "tables.md").read_text()


def test_bootstrap_interval_holds_the_mean():
    import numpy as np

    values = np.random.default_rng(0).normal(3.0, 1.0, size=(5, 8))
    low, high = interval(values)
    assert low < values.mean() < high and high - low < 2.0
