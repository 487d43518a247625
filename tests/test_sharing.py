"""Windows that share a previous region: the same losses and gradients as if each had its own."""

import numpy as np
import pytest
import torch
from conftest import tiny_config, write_file
from test_context import random_model

from dataset import ADDataset
from files import InputError
from history.format import history_path
from model import config_problems
from ranks import Ranks
from train import build_optimizer, check_shares, share_of_batch

SETTINGS = [
    ["currents_per_previous=4"],
    ["currents_per_previous=2", "context_regions=3", "n_transit=36"],
    ["currents_per_previous=4", "histories=causal", "history_regions=6"],
    ["currents_per_previous=2", "dense_supervision=false"],
]


def shared_batch(folder, settings: list[str]) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model, and a batch with first regions and with a rollout that is cut short among its windows."""
    model = random_model("use_compressed_context=true", "region_stride=1", *settings)
    write_file(history_path(model.config, folder), model.config, n_steps=41, n_streams=8)
    dataset = ADDataset(model.config, folder, "train")
    dataset.arrays["rewards"] *= 1e-4  # the test file's are large numbers
    return model, dataset.sample_batch(32, np.random.default_rng(1))


@pytest.mark.parametrize("settings", SETTINGS)
def test_windows_that_share_a_region_train_as_separate_ones(tmp_path, settings):
    model, batch = shared_batch(tmp_path, settings)
    separate = {name: values for name, values in batch.items() if name != "group"}
    results, gradients = [], []
    for windows in (batch, separate):
        model.zero_grad()
        results.append(model(windows))
        results[-1]["loss_total"].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert len(batch["region_lengths"].unique(dim=0)) > 1 or "histories=causal" in settings  # not all alike
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=1e-5, rtol=1e-5, equal_nan=True)
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_ten_updates_give_the_same_weights(tmp_path):
    _, batch = shared_batch(tmp_path, SETTINGS[0])
    trained = []
    for windows in (batch, {name: values for name, values in batch.items() if name != "group"}):
        model = random_model("use_compressed_context=true", *SETTINGS[0], "lr=1e-3")
        optimizer = build_optimizer(model, model.config)
        for _ in range(10):
            optimizer.zero_grad()
            model(windows)["loss_total"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), model.config["grad_clip"])
            optimizer.step()
        trained.append(dict(model.named_parameters()))
    for name, one in trained[0].items():
        difference = (one - trained[1][name]).abs()
        if name.endswith(
            "qkv.bias"
        ):  # a bias of keys changes no attention: Adam scales up the rounding of its gradient
            difference = torch.stack(difference.chunk(3))[[0, 2]]
        assert difference.max() < 1e-5, name


@pytest.mark.parametrize("settings", SETTINGS)
def test_they_differ_in_their_current_region_only(tmp_path, settings):
    model, batch = shared_batch(tmp_path, settings)
    n = model.config["currents_per_previous"]
    lengths, rewards = batch["region_lengths"], batch["rewards"]
    n_groups = 32 // n
    assert batch["group"].tolist() == list(range(n_groups)) * n
    streams = []
    for i in range(32):
        first, n_before = i % n_groups, int(lengths[i, :-1].sum())
        assert torch.equal(lengths[i], lengths[first])
        assert torch.equal(rewards[i, :n_before], rewards[first, :n_before])
        ours, theirs = (rewards[at, n_before : lengths[i].sum()] * 1e4 // 1 for at in (i, first))
        assert ((ours - theirs).abs() < 10).all()  # the same steps, of any stream
        streams.append(round(float(rewards[i, n_before]) * 1e4) % 10)
    assert len(set(streams)) > 3


def test_each_rank_gets_whole_groups(tmp_path):
    model, batch = shared_batch(tmp_path, ["currents_per_previous=4"])
    ranks = Ranks(torch.device("cpu"))
    ranks.size, losses = 2, []
    for ranks.rank in range(2):
        share = share_of_batch(model, batch, ranks)
        assert share["group"].tolist() == [ranks.rank, ranks.rank + 2, ranks.rank + 4, ranks.rank + 6] * 4
        losses.append(model(share)["loss_total"])
    torch.testing.assert_close(sum(losses) / 2, model(batch)["loss_total"])
    ranks.size = 3
    with pytest.raises(InputError, match="train_batch_size 32 must be a multiple of the 3 ranks, 4 windows each"):
        check_shares(model.config, ranks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train_batch_size=30"], "train_batch_size 30 must be a multiple of currents_per_previous 4"),
        (["mix_streams=false"], "with mix_streams: true and histories every or causal only"),
        (["histories=whole"], "with mix_streams: true and histories every or causal only"),
        (["context_regions=1"], "currents_per_previous 4 needs a previous region"),
    ],
)
def test_settings_that_cannot_share_are_told(settings, message):
    config = tiny_config("use_compressed_context=true", "currents_per_previous=4", *settings)
    (problem,) = config_problems(config)
    assert message in problem
