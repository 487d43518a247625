"""The committed results: what the README and docs/ show is what the stored scores give."""

import argparse
import sys
from itertools import product

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_config
from test_context import N_ENVS, random_model, random_steps

from config.loading import load_config
from config.schema import KEYS, Decides
from files import InputError
from model.acting import Sampling
from plots.intervals import interval
from scripts import family_paths
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


def test_docs_show_the_tables_of_the_other_families():
    assert report.family_table() in (ROOT / "docs" / "families.md").read_text()
    assert report.control_table() in (ROOT / "docs" / "families.md").read_text()


def test_all_tables_are_those_that_the_scores_give():
    assert report.text() == (ROOT / "results" / "tables.md").read_text()


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


@torch.no_grad()
def test_controls_take_the_summaries_away_or_show_those_of_another_task(monkeypatch):
    """After the third region's start each environment holds one summary."""
    model = random_model("use_compressed_context=true", "context=memory", "compress_interval=4", "n_summary=2")
    monkeypatch.setattr(controls.OtherTask, "shift", 2)  # two repeats of three tasks
    held = {}
    for kind in (controls.MemoryContext, controls.Cleared, controls.OtherTask):
        context = kind(model, model.context, N_ENVS)
        for observations, *results in random_steps(9):
            context.observe(observations)
            context.record(*results)
        held[kind] = context.cache[:, :, :, :, :2]
        assert [len(levels) for levels in context.levels] == [0 if kind is controls.Cleared else 1] * N_ENVS
    own, cleared, other = held.values()
    assert own.abs().sum() > 0 and not cleared.any() and not torch.equal(own, other)
    torch.testing.assert_close(other, own.roll(2, dims=2))


def of_returns(returns: list) -> stored.Scores:
    """Scores of one seed."""
    scores = object.__new__(stored.Scores)
    scores.returns, scores.optimal = np.array(returns, dtype=float)[None], np.ones(len(returns))
    return scores


def test_success_after_the_first_one():
    lives = of_returns(
        [[[0, 1, 2, 0], [0, 2, 0, 1]], [[0, 0, 0, 1], [2, 2, 0, 0]]]
    )  # the last episode has none after it
    assert stored.after_first_success(lives) == pytest.approx(2 / 3)  # the three that have: 1 to 2, 2 to 0, 2 to 2
    assert stored.after_first_success(lives, wanted=2) == pytest.approx(1 / 3)  # 2 to 0, 2 to 0, 2 to 2


def test_doors_after_misses():
    lives = of_returns([[[2, 0, 2, 2, 0, 0, 0, 1], [2, 0, 0, 0, 2, 0, 1, 0]]])
    assert stored.after_misses(lives, 0) == pytest.approx(1 / 5)  # after a door: 0, 2, 0 and 0, 0
    assert stored.after_misses(lives, 1) == pytest.approx(1 / 4)
    assert stored.after_misses(lives, 3) == pytest.approx(1 / 2)


def test_share_of_the_optimum_after_lost_stretches(monkeypatch):
    monkeypatch.setattr(stored, "LAPSES", (2, 6))
    lives = of_returns([[[1.0, 0.1, 0.2, 0.3, 1.0, 0.4, 0.5, 0.6]]])
    assert stored.after_stretches(lives, 1, 1) == pytest.approx((0.2 + 0.5) / 2)
    assert stored.after_stretches(lives, 1, 2) == pytest.approx((0.3 + 0.6) / 2)


def test_differences_are_taken_over_the_same_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "SCORES", tmp_path)
    told = {"optimal": np.ones(2), "tasks": [0, 1], "random_returns": np.zeros((2, 1))}
    for name, seeds in {"one": (0, 1, 10), "other": (0, 2, 10)}.items():
        for seed in seeds:
            returns = np.full((2, 3, 100), seed, dtype=float)
            np.savez(tmp_path / f"{name}_split-0_seed-{seed}_default.npz", returns=returns, **told)
    one, other = stored.Scores("one").beside(stored.Scores("other"))
    assert one.seeds == other.seeds == [0, 10] and one.at(1)[:, 0].tolist() == [0, 10]
    assert report.difference(stored.Scores("one"), stored.Scores("other")).startswith("0.00 (0.00 to 0.00)")
    assert not stored.Scores("none").beside(stored.Scores("one"))[1].n_seeds


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


def test_stored_scores_were_made_with_the_settings_that_the_study_has():
    decide_training = [name for name, key in KEYS["model"].items() if key.decides is Decides.TRAINING]
    wrong = []
    for setting in study.SETTINGS:
        paths = family_paths(setting.family, setting.is_standard, setting.source)
        paths |= {"model": setting.model} if setting.model else {}
        config = load_config(paths, setting.overrides)
        read = [name for name in decide_training if KEYS["model"][name].is_read(config) and name != "autocast"]
        for split, seed in product(setting.splits, setting.seeds):
            paths = (path.with_name(f"{path.name}.npz") for path in study.wanted(setting, split, seed))
            scores = next(
                (of_path for path in paths if path.exists() and "settings" in (of_path := np.load(path))), None
            )
            if scores is not None:
                used = yaml.safe_load(str(scores["settings"]))["config"]
                wanted = config | {
                    "train_seed": seed, "compress_interval": config["compress_interval"] or config["n_steps"]
                }  # fmt: skip
                differing = [name for name in read if name in used and used[name] != wanted[name]]
                wrong += [(setting.name, split, seed, name, used[name], wanted[name]) for name in differing]
    assert not wrong


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
    assert "restart_after is 20, expected null" in wrong(memory | {"restart_after": 20}, memory="other-task")
    assert "expected at most 3" in wrong(memory, lapses=[2, 4])
    assert "expected at most 4" in wrong(memory, lapses=[5], span=4)
    assert "--span 19: expected at most 18" in wrong(memory, memory="cleared", span=19)
    assert "expected memory" in wrong(tiny_config(), memory="cleared")
    assert "no summaries" in wrong(memory | {"memory_regions": 0}, memory="cleared")
    assert "expected AD" in wrong(memory | {"model": "gru:GRU"}, lapses=[1])
    assert "holds out no task" in wrong(memory, 0, lapses=[1])
