"""Tokens, padding, causality and losses of the model; all on small random weights."""

import numpy as np
import pytest
import torch
from conftest import tiny_config, write_file

from dataset import ADDataset
from model import AD
from model.tokens import IGNORE, TokenType, layout_tokens
from utils import history_path

TRANSITION, START, END = TokenType
MODES = ["use_compressed_context=true", "use_compressed_context=false"]


@pytest.fixture(params=MODES)
def setup(request, tmp_path):
    """A model and a dataset with short windows among its samples, in either mode."""
    config = tiny_config(request.param)
    write_file(history_path(config, tmp_path), config, n_steps=41, n_streams=3)
    torch.manual_seed(0)
    model = AD(config)
    with torch.no_grad():  # larger weights than at the start of training, so that everything shows
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    rewards = 1e-4  # the test file's rewards are large numbers
    dataset = ADDataset(config, tmp_path, "train")
    dataset.arrays["rewards"] *= rewards
    return model.eval(), dataset


def test_full_window_layout():
    config = tiny_config("use_compressed_context=true")
    layout = layout_tokens(torch.tensor([[12, 12]]), config)
    assert layout.types[0].tolist() == [START, *[TRANSITION] * 12, END, START, *[TRANSITION] * 12]
    assert layout.positions[0].tolist() == list(range(27))
    assert layout.steps[0].tolist() == [0, *range(12), 0, 0, *range(12, 24)]
    assert layout.next_types[0].tolist() == [*[TRANSITION] * 12, END, START, *[TRANSITION] * 12, END]
    assert layout.valid.all()


def test_short_windows_are_padded_on_the_right():
    config = tiny_config("use_compressed_context=true")
    layout = layout_tokens(torch.tensor([[0, 2], [12, 2], [3, 1]]), config)
    first, second, third = layout.types.tolist()
    assert first[:3] == [START, TRANSITION, TRANSITION] and layout.valid.sum(1).tolist() == [3, 17, 7]
    assert second == [START, *[TRANSITION] * 12, END, START, TRANSITION, TRANSITION]
    assert third[:7] == [START, *[TRANSITION] * 3, END, START, TRANSITION]
    # A current region stands at the same positions whatever the length of the one before it
    assert layout.positions[1, 14:17].tolist() == [14, 15, 16] and layout.positions[2, 5:7].tolist() == [14, 15]
    # What follows the newest step of an unfinished region is unknown
    assert layout.next_types[0, :4].tolist() == [TRANSITION, TRANSITION, IGNORE, IGNORE]


def test_standard_layout_has_no_markers():
    layout = layout_tokens(torch.tensor([[5], [3]]), tiny_config("use_compressed_context=false"))
    assert (layout.types == TRANSITION).all() and layout.steps[0].tolist() == [0, 1, 2, 3, 4]
    assert layout.valid[1].tolist() == [True] * 3 + [False] * 2


def features_of(model, batch):
    x, layout = model.embed_window(batch)
    return model.transformer(x), layout


def test_padding_changes_nothing(setup):
    model, dataset = setup
    samples = np.array([0, len(dataset) - 1, len(dataset) // 2])
    with torch.no_grad():
        together, layout = features_of(model, dataset.batch(samples))
        for row, sample in enumerate(samples):
            alone, alone_layout = features_of(model, dataset.batch(np.array([sample])))
            n = int(alone_layout.valid.sum())
            assert int(layout.valid[row].sum()) == n
            torch.testing.assert_close(together[row, :n], alone[0, :n], atol=1e-5, rtol=1e-5)


def test_loss_of_a_batch_is_the_mean_over_its_targets(setup):
    model, dataset = setup
    samples = [0, len(dataset) - 1, len(dataset) // 2]
    with torch.no_grad():
        together = model(dataset.batch(np.array(samples)))["loss_action"]
        total, n_targets = 0.0, 0
        for sample in samples:
            batch = dataset.batch(np.array([sample]))
            n = int(batch["region_lengths"].sum() - batch["target_from"])
            total, n_targets = total + n * model(batch)["loss_action"], n_targets + n
    torch.testing.assert_close(together, total / n_targets, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "dones"])
def test_no_token_sees_a_later_one(setup, name):
    model, dataset = setup
    batch = dataset.batch(np.array([len(dataset) // 2]))
    n_steps = int(batch["region_lengths"].sum())
    with torch.no_grad():
        before, layout = features_of(model, batch)
        for step in range(n_steps):
            changed = dict(batch)
            changed[name] = batch[name].clone()
            changed[name][0, step] = ~batch[name][0, step] if name == "dones" else (batch[name][0, step] + 1) % 3
            after, _ = features_of(model, changed)
            own = int(((layout.steps[0] == step) & (layout.types[0] == TRANSITION)).nonzero()[0, 0])
            first_seen = own if name == "observations" else own + 1  # what follows a step reaches later tokens only
            assert torch.equal(before[0, :first_seen], after[0, :first_seen])
            if step < n_steps - 1:
                assert not torch.allclose(before[0, own + 1 :], after[0, own + 1 :])


def test_loss_is_the_cross_entropy_to_the_sources_distribution(setup):
    model, dataset = setup
    batch = dataset.batch(np.array([0]))
    with torch.no_grad():
        features, layout = features_of(model, batch)
        is_target = (layout.types[0] == TRANSITION) & (layout.steps[0] >= batch["target_from"][0])
        log_probs = model.pred_action(features[0, is_target]).log_softmax(-1)
        steps = layout.steps[0, is_target]
        soft = -(batch["action_probs"][0, steps].float() * log_probs).sum(-1).mean()
        torch.testing.assert_close(model(batch)["loss_action"], soft)
        del batch["action_probs"]
        hard = -log_probs[torch.arange(len(steps)), batch["actions"][0, steps].long()].mean()
        torch.testing.assert_close(model(batch)["loss_action"], hard)


def test_results_have_the_documented_names(setup):
    model, dataset = setup
    result = model(dataset.batch(np.arange(6)))
    names = {"loss_action", "acc_action", "loss_total"}
    if model.config["use_compressed_context"]:
        names |= {"loss_token_type", "acc_token_type", "recall_compress_end"}
        expected = result["loss_action"] + 0.1 * result["loss_token_type"]
        torch.testing.assert_close(result["loss_total"], expected)
    assert set(result) == names
    result["loss_total"].backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert all(name.startswith(("pred_token_type", "compress_")) for name in unused)
    assert not unused or not model.config["use_compressed_context"]


def test_recall_counts_true_region_ends_only():
    config = tiny_config("use_compressed_context=true")
    model = AD(config)
    batch = {
        "observations": torch.zeros(1, 24, 2), "actions": torch.zeros(1, 24), "rewards": torch.zeros(1, 24),
        "dones": torch.zeros(1, 24), "region_lengths": torch.tensor([[12, 12]]), "target_from": torch.tensor([12]),
    }  # fmt: skip
    for favoured, accuracy, recall in ((END, 2 / 27, 1.0), (TRANSITION, 24 / 27, 0.0)):
        with torch.no_grad():
            model.pred_token_type.weight.zero_()
            model.pred_token_type.bias.copy_(torch.eye(3)[favoured])
        result = model(batch)
        assert result["acc_token_type"].item() == pytest.approx(accuracy)
        assert result["recall_compress_end"].item() == recall


def test_continuous_observations_and_actions():
    config = tiny_config("use_compressed_context=true")
    config["observation_space"] = {"kind": "continuous", "sizes": [3], "low": [-1.0] * 3, "high": [1.0] * 3}
    config["action_space"] = {"kind": "continuous", "sizes": [2], "low": [-1.0] * 2, "high": [1.0] * 2}
    model = AD(config)
    batch = {
        "observations": torch.randn(4, 24, 3), "actions": torch.randn(4, 24, 2), "rewards": torch.randn(4, 24),
        "dones": torch.zeros(4, 24), "region_lengths": torch.tensor([[12, 12]] * 4), "target_from": torch.full((4,), 12),
    }  # fmt: skip
    result = model(batch)
    result["loss_total"].backward()
    assert 0 <= result["acc_action"] <= 1 and torch.isfinite(result["loss_total"])
    actions = model.actions.sample(torch.randn(50, 4) * 3, 1.0, torch.Generator().manual_seed(0))
    assert actions.shape == (50, 2) and actions.abs().max() <= 1
