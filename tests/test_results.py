"""The committed results: what the README and docs/ show is what the stored scores give."""

import argparse
import sys

import numpy as np
import pytest
from conftest import tiny_config
from test_context import random_model

from files import InputError
from model.acting import Sampling
from plots.intervals import interval
from utils import ROOT

sys.path.insert(0, str(ROOT / "results"))
import controls
import report
import stored
import study
from controls import Lapsing


def test_readme_shows_the_table_that_the_scores_give():
    table = report.main_table(stored.Scores("compressed"), stored.best_standard())
    assert table in (ROOT / "README.md").read_text()
    assert table in (ROOT / "results" / "tables.md").read_text()


def test_docs_show_the_table_of_the_other_families():
    assert report.family_table() in (ROOT / "docs" / "families.md").read_text()
    assert report.family_table() in (ROOT / "results" / "tables.md").read_text()


def test_bootstrap_interval_holds_the_mean():
    values = np.random.default_rng(0).normal(3.0, 1.0, size=(5, 8))
    low, high = interval(values)
    assert low < values.mean() < high and high - low < 2.0


def test_a_lapse_is_one_random_episode():
    """At temperature 0 all environments that see the same do the same; not in the second of three episodes."""
    model, n_envs, episode = random_model(), 50, 2
    actor = Lapsing(model, n_envs, Sampling(temperature=0.0), lapses=[2])
    kinds = []
    for step in range(3 * episode):
        actions = actor.act(np.zeros((n_envs, 2), dtype=int))
        kinds.append(len(np.unique(actions)))
        actor.record(np.zeros(n_envs), np.full(n_envs, step % episode == episode - 1), [{}] * n_envs)
    assert kinds[:2] == [1, 1] and kinds[2:4] == [5, 5]


def test_a_lapse_may_be_a_stretch_of_an_episode():
    model, n_envs = random_model(), 50
    actor = Lapsing(model, n_envs, Sampling(temperature=0.0), lapses=[2], span=3)
    kinds = []
    for _ in range(9):
        kinds.append(len(np.unique(actor.act(np.zeros((n_envs, 2), dtype=int)))))
        actor.record(np.zeros(n_envs), np.zeros(n_envs, dtype=bool), [{}] * n_envs)
    assert kinds[:3] == [1, 1, 1] and kinds[3:6] == [5, 5, 5]


def test_how_many_come_back_after_a_lapse():
    returns = np.zeros((1, 1, 3, 100))
    returns[..., 15:25] = 2
    returns[0, 0, :, 19] = 0, 0, 2  # the third one opens the door in the lapse, which tells nothing
    returns[0, 0, 0, 20] = 1
    of_doors = object.__new__(stored.Scores)
    of_doors.returns = returns
    assert stored.after_lapses(of_doors, 1, 1) == 0.5 and stored.after_lapses(of_doors, 1, 2) == 1
    returns[0, 0, :2, 19:23] = 0
    assert stored.after_lapses(of_doors, 4, 1) == 1  # of the first two, none opens it in episodes 20 to 23


def test_waiting_costs_no_regret(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "SCORES", tmp_path)
    means, gained = np.array([0.5, 1.0]), np.zeros((2, 15))  # two tasks; nothing is ever gained
    name = "delayed-bandit-memory_split-0_seed-0"
    told = {"tasks": [0, 1], "random_returns": np.zeros((2, 1))}
    np.savez(tmp_path / f"{name}_delay-50.npz", returns=np.zeros((2, 3, 1)), optimal=100 * means, **told)
    np.savez(tmp_path / f"{name}_pulls.npz", returns=np.zeros((2, 3, 15)), optimal=[np.nan] * 2, **told)
    np.savez(tmp_path / "source_delayed_bandit.npz", pulls=gained)
    expected = np.outer(means, [10] * 5 + [0] * 5 + [10] * 5)[None]
    for kind in ("memory", "UCB"):
        np.testing.assert_allclose(stored.regret_along_a_life(kind, "delayed_bandit"), expected)
    assert stored.regret_along_a_life("window", "delayed_bandit") is None


def test_every_stored_score_can_be_made_by_the_study():
    wanted = {
        path.name
        for setting in study.SETTINGS
        for split in setting.splits
        for seed in setting.seeds
        for path in study.wanted(setting, split, seed)
    }
    stored_scores = {path.stem for path in stored.SCORES.glob("*.npz")}
    assert not {name for name in stored_scores - wanted if not name.startswith("source_")}


def test_a_control_that_would_control_nothing_is_refused():
    config = {"horizon": 6, "action_space": {"kind": "discrete"}}
    memory = tiny_config("context=memory", "compress_interval=6") | config

    def wrong(config, n_held_out=2, **arguments):
        given = {"ckpt": "CKPT", "memory": None, "lapses": None, "span": None, "episodes": 3} | arguments
        with pytest.raises(InputError) as found:
            controls.check(argparse.Namespace(**given), config, n_held_out)
        return str(found.value)

    controls.check(argparse.Namespace(ckpt="C", memory="other-task", lapses=None, span=None, episodes=3), memory, 2)
    assert "two held-out tasks" in wrong(memory, 1, memory="other-task")
    assert "expected fixed" in wrong(memory | {"boundaries": "predicted"}, memory="other-task")
    assert "expected at most 3" in wrong(memory, lapses=[2, 4])
    assert "expected at most 4" in wrong(memory, lapses=[5], span=4)
    assert "--span 19: expected at most 18" in wrong(memory, memory="cleared", span=19)
    assert "expected memory" in wrong(tiny_config(), memory="cleared")
    assert "expected AD" in wrong(memory | {"model": "gru:GRU"}, lapses=[1])
    assert "holds out no task" in wrong(memory, 0, lapses=[1])
