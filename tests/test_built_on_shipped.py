"""Classes of the user's that build on a shipped one, and configs written before a key was there."""

import sys
from types import ModuleType

import pytest
import torch
from conftest import tiny_config, write_file

import algorithm
import env
from algorithm import ALGORITHM
from checkpoints import load_checkpoint
from config.loading import (
    complete_config,
    free_in_evaluation,
    free_when_resuming,
    load_config,
    override_config,
    recorded_settings,
)
from config.schema import keys_of
from dataset import ADDataset
from history.format import history_path
from model import config_problems as model_problems
from model import make_model
from model.context import CONTEXT
from scripts import DEFAULT_CONFIG, family_paths
from utils import ROOT

SOURCES = {  # alg: a family and the name of its source
    "PPO": ("darkroom", None), "Explorer": ("darkroom", "explorer"), "PSRL": ("frozen_lake", "psrl"),
    "Conditioned": ("pendulum", "conditioned"), "UCB": ("bandit", None),
}  # fmt: skip
MODELS = {"window": "ad_dr.yaml", "regions": "ad_dr_compressed.yaml", "memory": "ad_dr_explorer.yaml"}


@pytest.fixture(autouse=True)
def own_module(monkeypatch):
    """`mine:PPO`, `mine:memory` and so on: each shipped source and context, built on and not changed."""
    module = ModuleType("mine")
    for name, shipped in (ALGORITHM | CONTEXT).items():
        setattr(module, name, type(name, (shipped,), {}))
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


@pytest.mark.parametrize("alg", SOURCES)
def test_a_source_reads_the_keys_of_the_one_it_builds_on(alg):
    family, source = SOURCES[alg]
    paths = family_paths(family, source=source)
    shipped = load_config(paths)
    own = load_config(paths, [f"alg=mine:{alg}"], checks=(env.config_problems, algorithm.config_problems))
    assert shipped["alg"] == alg and own == shipped | {"alg": f"mine:{alg}"}
    for name in keys_of("alg", alg):
        assert recorded_settings(own)[name] == shipped[name]


@pytest.mark.parametrize("context", MODELS)
def test_a_context_reads_the_keys_of_the_one_it_builds_on(context):
    paths = DEFAULT_CONFIG | {"model": ROOT / "config" / "model" / MODELS[context]}
    kept = ["kept_fraction=0.3"] if context == "window" else ["token_type_loss_weight=0.3", "boundaries=predicted"]
    own = load_config(paths, [f"context=mine:{context}", *kept], checks=(model_problems,))
    assert own == load_config(paths, kept) | {"context": f"mine:{context}"}
    assert not (set(keys_of("context", context)) - {"boundaries", "mean_region"}) & free_when_resuming(own)
    trained = complete_config(own | {"observation_space": {}}, "ckpt-1.pt")
    if context != "window":
        assert override_config(trained, ["boundaries=fixed"], free_in_evaluation(), ())["boundaries"] == "fixed"


def test_losses_of_a_window_strategy_count_too(own_module, tmp_path):
    class Penalized(own_module.window):
        def auxiliary_losses(self, batch, layout, embed):
            return {"loss_mine": (torch.tensor(2.0), 0.5)}

    own_module.window = Penalized
    config = tiny_config("context=mine:window")
    model = make_model(config)
    write_file(history_path(config, tmp_path), config, 36, 6)
    losses = model(ADDataset(config, tmp_path, "train").batch(range(3)))
    assert losses["loss_mine"] == 2 and losses["loss_total"] == losses["loss_action"] + 1


def test_a_key_that_came_later_is_null_where_the_source_does_not_read_it():
    """The reference checkpoint's histories were looked for under the name of a source that knows training tasks."""
    checkpoint = load_checkpoint(ROOT / "results/reference/ckpt-800.pt")
    config = complete_config(checkpoint["config"], "ckpt-800.pt")
    assert "learns_from" not in checkpoint["config"] and config["learns_from"] is None
    assert history_path(config, "datasets").name == "history_darkroom_PPO_alg-seed42.hdf5"
    today = load_config(DEFAULT_CONFIG)
    later = ("learns_from", "policy_timesteps", "explorer_noise", "explorer_lapses", "rewards_per_round")
    before = {name: value for name, value in today.items() if name not in later}
    assert recorded_settings(before) == recorded_settings(today)
