"""Tokens, padding, causality and losses of the model; all on small random weights."""

import math

import numpy as np
import pytest
import torch
from conftest import tiny_config, write_file
from torch.distributions import Normal, kl_divergence

from dataset import ADDataset
from history.format import history_path
from model import AD, lay_out_for_acting
from model.context import make_context
from model.spaces import ContinuousActions
from model.tokens import IGNORE, TokenType

TRANSITION, START, END = TokenType
MODES = ["use_compressed_context=true", "use_compressed_context=false"]


@pytest.fixture(params=MODES)
def setup(request, tmp_path):
    """A model and a dataset with short windows among its samples, in either mode."""
    config = tiny_config(request.param, "region_stride=1", "mix_streams=false")
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
    layout = make_context(config).layout(torch.tensor([[12, 12]]))
    assert layout.types[0].tolist() == [START, *[TRANSITION] * 12, END, START, *[TRANSITION] * 12]
    assert layout.positions[0].tolist() == list(range(27))
    assert layout.steps[0].tolist() == [0, *range(12), 0, 0, *range(12, 24)]
    assert layout.next_types[0].tolist() == [*[TRANSITION] * 12, END, START, *[TRANSITION] * 12, END]
    assert layout.valid.all()


def test_short_windows_are_padded_on_the_right():
    config = tiny_config("use_compressed_context=true")
    layout = make_context(config).layout(torch.tensor([[0, 2], [12, 2], [3, 1]]))
    first, second, third = layout.types.tolist()
    assert first[:3] == [START, TRANSITION, TRANSITION] and layout.valid.sum(1).tolist() == [3, 17, 7]
    assert second == [START, *[TRANSITION] * 12, END, START, TRANSITION, TRANSITION]
    assert third[:7] == [START, *[TRANSITION] * 3, END, START, TRANSITION]
    # A current region stands at the same positions whatever the length of the one before it
    assert layout.positions[1, 14:17].tolist() == [14, 15, 16] and layout.positions[2, 5:7].tolist() == [14, 15]
    # What follows the newest step of an unfinished region is unknown
    assert layout.next_types[0, :4].tolist() == [TRANSITION, TRANSITION, IGNORE, IGNORE]


def test_standard_layout_has_no_markers():
    layout = make_context(tiny_config("use_compressed_context=false")).layout(torch.tensor([[5], [3]]))
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
    actions = model.actions.sample(torch.randn(50, 4) * 3, 1.0, torch.randn(50, 2))
    assert actions.shape == (50, 2) and actions.abs().max() <= 1


def gaussian_actions(low: float, high: float, mean: float = 0.0, std: float = 1.0) -> ContinuousActions:
    actions = ContinuousActions({"kind": "continuous", "sizes": [2], "low": [low] * 2, "high": [high] * 2}, 8)
    actions.mean.fill_(mean)
    actions.std.fill_(std)
    return actions


def test_gaussian_losses_are_those_of_torch():
    """To the source's Gaussian the cross-entropy, to an action its negative log-likelihood; standardised units."""
    actions = gaussian_actions(-50, 50, mean=3.0, std=4.0)
    outputs, means, stds = torch.randn(20, 4), 5 * torch.randn(20, 2), torch.rand(20, 2) + 0.1
    predicted, source = actions.distribution(outputs), Normal(means, stds)
    cross_entropy = kl_divergence(source, predicted) + source.entropy()
    in_own_units = math.log(4.0)  # a density's unit is one over the action's
    soft = actions.loss(outputs, means, means, stds)
    torch.testing.assert_close(soft, (cross_entropy - in_own_units).sum(-1), atol=1e-4, rtol=1e-4)
    hard = actions.loss(outputs, means)
    torch.testing.assert_close(hard, (-predicted.log_prob(means) - in_own_units).sum(-1), atol=1e-4, rtol=1e-4)
    drawn = source.sample((20_000,))  # (draws, 20, 2)
    expected = -predicted.log_prob(drawn).mean(0) - in_own_units
    torch.testing.assert_close(soft, expected.sum(-1), atol=0.1, rtol=0.02)


def test_the_loss_is_least_at_the_sources_gaussian():
    actions = gaussian_actions(-2, 2, mean=0.5, std=1.5)
    means, stds = torch.tensor([[0.3, -1.0]]), torch.tensor([[0.6, 0.9]])
    outputs = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([outputs], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        actions.loss(outputs, means, means, stds).sum().backward()
        optimizer.step()
    found = actions.distribution(outputs)
    torch.testing.assert_close(found.mean, means, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.stddev, stds, atol=1e-3, rtol=0)


def test_a_mean_far_outside_the_bounds_says_no_more_than_the_bound():
    actions = gaussian_actions(-2, 2)
    outputs, stds = torch.randn(5, 4), torch.full((5, 2), 0.5)
    far, at_three_deviations = torch.full((5, 2), 40.0), torch.full((5, 2), 3.5)
    torch.testing.assert_close(
        actions.loss(outputs, far, far, stds), actions.loss(outputs, far, at_three_deviations, stds)
    )
    inside = torch.full((5, 2), 1.9)
    assert (actions.loss(outputs, far, far, stds) != actions.loss(outputs, far, inside, stds)).all()
    endless = gaussian_actions(-math.inf, math.inf)
    assert endless.loss(outputs, far, far, stds).isfinite().all()


def test_accuracy_counts_clipped_actions_as_what_they_are():
    actions = gaussian_actions(-2, 2)
    wide = torch.tensor([[5.0, -5.0, 0.0, 0.0]])  # means beyond both bounds, deviations of 1
    assert actions.accuracy(wide, torch.tensor([[2.0, -2.0]])) == 1
    assert actions.accuracy(wide, torch.tensor([[1.9, -2.0]])) == 0.5
    centred = torch.zeros(1, 4)
    assert actions.accuracy(centred, torch.tensor([[0.9, -1.1]])) == 0.5


@pytest.mark.parametrize("mode", MODES)
def test_the_scale_of_actions_and_rewards_does_not_matter(mode):
    """The same windows with actions 200 times and rewards 50 times as large, and 7 lower, standardised."""
    config = tiny_config(mode)
    config["observation_space"] = {"kind": "continuous", "sizes": [3], "low": [-1.0] * 3, "high": [1.0] * 3}
    results = []
    for scale, reward_scale, shift in ((1.0, 1.0, 0.0), (200.0, 50.0, -7.0)):
        bound = [2 * scale] * 2
        config["action_space"] = {"kind": "continuous", "sizes": [2], "low": [-b for b in bound], "high": bound}
        torch.manual_seed(3)
        model = AD(config)
        model.actions.std.fill_(scale)
        model.reward_std.fill_(reward_scale)
        model.reward_mean.fill_(shift)
        batch = {
            "observations": torch.randn(4, 24, 3), "actions": torch.randn(4, 24, 2).clamp(-2, 2) * scale,
            "rewards": torch.randn(4, 24) * reward_scale + shift, "action_means": 3 * torch.randn(4, 24, 2) * scale,
            "action_stds": torch.rand(4, 24, 2) * scale, "dones": torch.zeros(4, 24),
            "region_lengths": torch.tensor([[12, 12]] * 4 if model.config["use_compressed_context"] else [[24]] * 4),
            "target_from": torch.full((4,), 12),
        }  # fmt: skip
        result = model(batch)
        sample = model.actions.sample(torch.randn(50, 4), 1.0, torch.randn(50, 2))
        results.append((result["loss_action"], result["acc_action"], sample / scale))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_an_older_checkpoint_has_nothing_standardised():
    """Buffers that it lacks change nothing, also where the model at hand had other values."""
    config = tiny_config()
    config["action_space"] = {"kind": "continuous", "sizes": [2], "low": [-1.0] * 2, "high": [1.0] * 2}
    model = AD(config)
    new = ("reward_mean", "reward_std", "actions.mean", "actions.std")
    older = {name: values for name, values in model.state_dict().items() if name not in new}
    assert len(older) == len(model.state_dict()) - len(new)
    for name in new:
        model.get_buffer(name).fill_(5.0)
    model.load_state_dict(older)
    values = {name: model.get_buffer(name) for name in new}
    assert all((values[name] == (1 if name.endswith("std") else 0)).all() for name in new)
    assert not set(new) & set(older)  # the checkpoint itself is left alone


def test_attention_weights_are_those_of_the_forward_pass(setup):
    model, dataset = setup
    batch = dataset.batch(np.array([5, 40]))
    x, _ = model.embed_window(batch)
    weights = model.transformer.attention(x)
    n_tokens = x.shape[1]
    assert weights.shape == (2, 2, 2, n_tokens, n_tokens)  # layers, windows, heads
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 2, n_tokens))
    assert (weights.triu(1) == 0).all()
    first = model.transformer.blocks[0]
    *_, values = first.qkv(first.norm_attention(x)).view(2, n_tokens, 3, 2, -1).permute(2, 0, 3, 1, 4)
    attended = (weights[0] @ values).transpose(1, 2).flatten(2)

    def expect(layer, q, k, v):
        result = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        if layer == 0:
            torch.testing.assert_close(result.transpose(1, 2).flatten(2), attended)
        return result

    model.transformer(x, expect)


def test_the_layout_for_acting_changes_no_weight_and_no_result(setup):
    model, dataset = setup
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    batch = dataset.batch(np.array([5, 40]))
    expected, _ = features_of(model, batch)
    lay_out_for_acting(model)
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, before[name]), name
    torch.testing.assert_close(features_of(model, batch)[0], expected, atol=1e-5, rtol=1e-5)
