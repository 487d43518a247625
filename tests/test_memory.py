"""Context with memory: the plan of merges, one pass equal to acting, and nothing older or later is seen."""

import numpy as np
import pytest
import torch
from conftest import write_file
from test_context import N_ENVS, random_model, random_steps

from dataset import ADDataset
from files import InputError
from history.format import history_path
from history.paths import CausalHistories, Histories
from model.context.memory import make_plan

MEMORY = ["use_compressed_context=true", "context=memory", "compress_interval=4", "n_summary=2", "history_regions=9"]


def test_the_plan_merges_the_oldest_neighbours_of_a_level():
    plan = make_plan(9, 3)
    assert plan.visible[:6] == ((), (), (0,), (0, 1), (0, 1, 2), (9, 2, 3))  # node 9 stands for 0 and 1
    assert plan.children == ((0, 1), (2, 3), (9, 10), (4, 5)) and plan.levels[9:] == (2, 2, 3, 2)
    assert plan.regions()[9:] == [(0, 1), (2, 3), (0, 1, 2, 3), (4, 5)]
    assert all(len(seen) <= 3 for seen in plan.visible) and make_plan(5, 0).visible == ((),) * 5
    long = make_plan(400, 6)
    assert max(map(len, long.visible)) <= 6 and max(long.levels) >= 7  # coarser and coarser


@torch.no_grad()
@pytest.mark.parametrize("memory_regions", [0, 1, 2, 3, 20])
@pytest.mark.parametrize("more", ["reached_observations=false", "reached_observations=true"])
@pytest.mark.parametrize("with_dones", [True, False])
def test_acting_equals_one_pass_over_the_history(memory_regions, more, with_dones):
    """Without dones in the file, training does not know where an episode begins, so acting does not show it either."""
    model = random_model(*MEMORY, f"memory_regions={memory_regions}", more)
    model.config["with_dones"] = with_dones
    torch.nn.init.normal_(model.context.age_bias)
    steps, n_steps = list(random_steps(36, episode=5, with_reached=True)), 36
    observations, actions, rewards, dones, reached = (torch.stack(values, dim=1) for values in zip(*steps))
    context, features = model.context.rolling(model, N_ENVS), []
    for observation, *results in steps:
        features.append(context.observe(observation))
        context.record(*results)
    starts = torch.zeros(N_ENVS, n_steps, dtype=torch.bool)
    starts[:, 4::4] = ~dones[:, 3:-1:4] | (not with_dones)
    starts[:, 0] = True
    batch = {"observations": observations, "actions": actions, "rewards": rewards, "dones": dones, "starts": starts}
    batch["reached"] = reached
    x, layout = model.embed_window(batch | {"region_lengths": torch.full((N_ENVS, 9), 4)})
    together = model.context.read(model.transformer, x, layout)
    token = (layout.types[0] == 0).nonzero()[:, 0]
    assert layout.steps[0, token].tolist() == list(range(36))
    torch.testing.assert_close(torch.stack(features, dim=1), together[:, token], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_environments_end_regions_where_they_like():
    """What one environment sees does not depend on where the others are."""
    model = random_model(*MEMORY, "memory_regions=2")
    together, alone = model.context.rolling(model, N_ENVS), [model.context.rolling(model, 1) for _ in range(N_ENVS)]
    rng = np.random.default_rng(3)
    for observations, *results in random_steps(60):
        features = together.observe(observations)
        ends = torch.from_numpy(rng.random(N_ENVS) < 0.2) | together.ended
        together.ended = ends
        together.record(*results)
        for i, context in enumerate(alone):
            own = context.observe(observations[i : i + 1])
            torch.testing.assert_close(own[0], features[i], atol=1e-5, rtol=1e-4)
            context.ended = ends[i : i + 1]
            context.record(*(values[i : i + 1] for values in results))
    assert len(set(map(tuple, together.levels))) >= 1 and max(map(len, together.levels)) <= 2


@torch.no_grad()
def test_attention_by_age_is_what_the_newest_step_used(monkeypatch):
    """Also where regions end at different steps; what summaries hold is in the cache that was attended to."""
    model, used = random_model(*MEMORY, "memory_regions=3"), []
    torch.nn.init.normal_(model.context.age_bias)

    def attend(q, k, v, attn_mask):
        used.append((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + attn_mask).softmax(-1))
        return used[-1] @ v

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    context, rng = model.context.rolling(model, N_ENVS), np.random.default_rng(3)
    for observations, *results in random_steps(60):
        context.observe(observations)
        shares, used = context.attention_by_age(), used[-model.transformer.n_layer :]
        torch.testing.assert_close(shares.sum(-1), torch.ones(shares.shape[:2]))
        weights = torch.stack(used)[..., 0, :].mean(2)  # (n_layer, N, slots)
        parts = weights.split([8, context.T, weights.shape[-1] - 8 - context.T], dim=-1)  # 4 summaries of 2 tokens
        for age, part in enumerate(reversed(parts[1:])):
            torch.testing.assert_close(shares[..., age], part.sum(-1))
        for env, levels in enumerate(context.levels):
            newest_first = parts[0][:, env, : 2 * len(levels)].unflatten(-1, (-1, 2)).sum(-1).flip(-1)
            torch.testing.assert_close(shares[:, env, 2 : 2 + len(levels)], newest_first)
        context.ended |= torch.from_numpy(rng.random(N_ENVS) < 0.2)
        context.record(*results)
    assert max(map(len, context.levels)) == 3


@torch.no_grad()
@pytest.mark.parametrize("memory_regions", [0, 3])
def test_summary_values_are_those_of_the_summary_tokens(memory_regions):
    """Nothing is merged yet: those of all finished regions, in order, as one pass over the history has them."""
    model, values = random_model(*MEMORY, f"memory_regions={memory_regions}", "history_regions=4"), []
    context, steps = model.context.rolling(model, N_ENVS), list(random_steps(13))
    assert context.summary_values() == []
    for observation, *results in steps:
        context.observe(observation)
        context.record(*results)
    hooks = [
        block.qkv.register_forward_hook(lambda b, i, out: values.append(out)) for block in model.transformer.blocks
    ]
    names = ("observations", "actions", "rewards", "dones")
    batch = {name: torch.stack([*of_steps, *of_steps[:3]], dim=1) for name, of_steps in zip(names, zip(*steps))}
    batch["starts"] = torch.zeros(N_ENVS, 16, dtype=torch.bool)
    batch["starts"][:, 4::4] = ~batch["dones"][:, 3:-1:4].bool()
    batch["starts"][:, 0] = True
    x, layout = model.embed_window(batch | {"region_lengths": torch.full((N_ENVS, 4), 4)})
    model.context.read(model.transformer, x, layout)
    for hook in hooks:
        hook.remove()
    found, T = context.summary_values(), context.T
    assert len(found) == (3 if memory_regions else 1)
    for number, of_region in enumerate(found, start=3 - len(found)):
        tokens = torch.stack(values, dim=1)[:, :, (number + 1) * T - 2 : (number + 1) * T].chunk(3, dim=-1)[2]
        expected = tokens.unflatten(-1, (2, -1)).transpose(2, 3)  # (N, n_layer, H, K, width)
        torch.testing.assert_close(of_region, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_a_region_taught_lasts_through_any_number_of_merges():
    """Two layers, and seven merges between the first region and the last one."""
    model = random_model(*MEMORY, "memory_regions=1")
    observations, actions, rewards, dones = (torch.stack(values, dim=1) for values in zip(*random_steps(36)))
    batch = {"actions": actions, "rewards": rewards, "dones": dones, "region_lengths": torch.full((N_ENVS, 9), 4)}
    features = []
    for first in (observations[:, :4], (observations[:, :4] + 1) % 3):
        x, layout = model.embed_window(batch | {"observations": torch.cat([first, observations[:, 4:]], dim=1)})
        features.append(model.context.read(model.transformer, x, layout)[0, layout.steps[0] == 35])
    assert (features[0] - features[1]).abs().max() > 1e-4


def test_a_history_makes_progress_only_where_there_is_a_reason(tmp_path):
    model = random_model(*MEMORY, "histories=causal", "region_stride=1")
    interval, n_steps = 12, 120
    rewards = np.zeros((n_steps, 4), dtype=np.float32)
    rewards[24:, 1] = 1.0  # only stream 1 is ever paid, from the third rollout on
    write_file(
        history_path(model.config, tmp_path), model.config | {"compress_interval": 12}, n_steps, 4, rewards=rewards
    )
    dataset = ADDataset(model.config, tmp_path, "train")
    histories = dataset.timeline.histories
    starts, _, streams = histories.draw(np.zeros(500, dtype=int), 9, np.random.default_rng(0))
    rollouts = starts // interval
    moved = np.diff(rollouts, axis=1) > 0
    paid = (streams[:, :-1] == 1) & (rollouts[:, :-1] >= 2)
    last = rollouts[:, :-1] == n_steps // interval - 1
    assert (moved == (paid & ~last)).all() or (moved <= paid).all()
    assert (starts % 4 == 0).all() and (np.diff(rollouts, axis=1) >= 0).all()
    batch = dataset.sample_batch(16, np.random.default_rng(0))
    assert batch["rewards"].shape == (16, 36) and batch["region_lengths"].shape == (16, 9)
    losses = model(batch)
    losses["loss_total"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("context", ["context=memory", "context=regions", "context=window"])
def test_whole_histories_are_the_beginnings_of_streams(tmp_path, context):
    settings = ["use_compressed_context=true", "histories=whole", "n_transit=24", "history_regions=8", context]
    settings += ["compress_interval=4", "n_summary=2"] if context == "context=memory" else []
    model = random_model(*settings)
    write_file(history_path(model.config, tmp_path), model.config | {"compress_interval": 12}, 120, 4)
    batch = ADDataset(model.config, tmp_path, "train").sample_batch(64, np.random.default_rng(0))
    rewards = batch["rewards"].numpy().astype(int)
    for row, n_steps in enumerate(batch["region_lengths"].sum(1).tolist()):
        assert (np.diff(rewards[row, :n_steps]) == 10).all()  # one stream's steps, one after the other
        assert context != "context=memory" or rewards[row, 0] % 10_000 < 10
    assert batch["starts"].sum() == 64  # what led to a step is shown for all but the first
    assert torch.isfinite(model(batch)["loss_total"])


@pytest.mark.parametrize(
    "settings", [["use_compressed_context=true"], ["use_compressed_context=false", "n_transit=30"]]
)
def test_other_contexts_take_pieces_of_causal_histories(tmp_path, settings):
    model = random_model(*settings, "histories=causal", "history_regions=6", "region_stride=1")
    write_file(history_path(model.config, tmp_path), model.config, 120, 4)
    batch = ADDataset(model.config, tmp_path, "train").sample_batch(64, np.random.default_rng(0))
    rewards = batch["rewards"].numpy().astype(int)
    rollouts, streams = rewards % 10_000 // 10 // 12, rewards % 10
    n_steps = batch["region_lengths"].sum(1).numpy()
    assert rewards.shape[1] in (24, 30) and (n_steps == (30 if model.context.n_regions == 1 else n_steps)).all()
    for row in range(64):
        within = rewards[row, : n_steps[row]] % 10_000 // 10 % 12  # a window that ends with its history begins anywhere
        bounds = [0, *(np.flatnonzero(within[1:] == 0) + 1), n_steps[row]]
        parts = [slice(*bound) for bound in zip(bounds, bounds[1:])]
        assert (np.diff(within) % 12 == 1).all() and all(
            len(set(rollouts[row, part])) == len(set(streams[row, part])) == 1 for part in parts
        )
        assert (np.diff([rollouts[row, part.start] for part in parts]) >= 0).all()
    assert torch.isfinite(model(batch)["loss_total"])


@pytest.mark.parametrize("histories", ["every", "whole"])
@pytest.mark.parametrize("context", ["memory", "regions", "window"])
def test_a_region_may_be_several_rollouts_of_one_stream(tmp_path, histories, context):
    if (histories, context) == ("every", "window"):
        pytest.skip("a plain window has no regions")
    settings = ["use_compressed_context=true", "compress_interval=24", "n_transit=48", "history_regions=4"]
    settings += [
        f"context={context}",
        f"histories={histories}",
        "region_stride=2",
        *(["n_summary=2"] * (context == "memory")),
    ]
    model = random_model(*settings)
    write_file(history_path(model.config, tmp_path), model.config | {"compress_interval": 12}, 120, 4)
    dataset = ADDataset(model.config, tmp_path, "train")
    batch = dataset.sample_batch(64, np.random.default_rng(0))
    rewards, firsts = batch["rewards"].numpy().astype(int), set()
    for row, n_steps in enumerate(batch["region_lengths"].sum(1).tolist()):
        for start in range(0, n_steps, 24):
            region = rewards[row, start : start + 24]
            assert (np.diff(region) == 10).all()  # steps that follow each other in one stream
            assert (rewards[row, start] % 10_000 // 10) % 12 == 0  # from the start of a rollout on
            firsts.add(int(region[0]) % 10_000 // 10)
    if histories == "whole":
        assert firsts == {0, 24, 48, 72}
    else:
        assert {0, 12, 24, 36} < firsts <= set(range(0, 108, 12))
    assert torch.isfinite(model(batch)["loss_total"])


WHOLE = ["histories=whole", "mix_streams=false", "region_stride=1"]
PIECES = ["histories=every", "mix_streams=false", "region_stride=2", "compress_interval=6"]


@pytest.mark.parametrize(
    "context, settings", [("memory", WHOLE), ("memory", PIECES), ("regions", WHOLE), ("window", WHOLE)]
)
def test_a_short_stream_is_not_shown_twice(tmp_path, context, settings):
    """A copy of the region before would teach to copy it; histories end with their streams."""
    model = random_model(
        f"use_compressed_context={context != 'window'}",
        f"context={context}",
        "history_regions=20",
        "n_transit=24",
        *settings,
    )
    write_file(history_path(model.config, tmp_path), model.config | {"compress_interval": 12}, 120, 4)
    dataset = ADDataset(model.config, tmp_path, "train")
    starts, lengths, streams = dataset.timeline.histories.draw(np.zeros(9, dtype=int), 20, np.random.default_rng(0))
    n_held = 10 if settings is WHOLE else 5
    assert (lengths[:, :n_held] > 0).all() and not lengths[:, n_held:].any() and (streams == streams[:, :1]).all()
    for seed in range(5):
        batch = dataset.sample_batch(16, np.random.default_rng(seed))
        n_steps = batch["region_lengths"].sum(1)
        for rewards, n in zip(batch["rewards"], n_steps):  # `write_file` gives each step a reward of its own
            assert len(rewards[:n].unique()) == n
        assert torch.isfinite(model(batch)["loss_total"])


@pytest.mark.parametrize(
    "settings",
    [
        ["context=memory", *PIECES, "region_stride=1"],
        ["context=memory", *WHOLE, "compress_interval=6"],
        ["context=memory", "histories=every", "mix_streams=true", "region_stride=1"],
        ["context=regions", "histories=causal", "currents_per_previous=4"],
        ["context=regions", *WHOLE],
    ],
)
def test_a_step_shows_what_led_to_it_or_nothing(tmp_path, settings):
    """`write_file` gives each step a reward of its own: 10 more than the one before in its stream."""
    config = random_model("use_compressed_context=true", "history_regions=8", "n_transit=24", *settings).config
    write_file(history_path(config, tmp_path), config | {"compress_interval": 12}, 120, 4, dones=None)
    dataset = ADDataset(config, tmp_path, "train")
    batch = dataset.sample_batch(64, np.random.default_rng(0))
    shown = ~batch["starts"][:, 1:] & (
        torch.arange(1, batch["rewards"].shape[1]) < batch["region_lengths"].sum(1)[:, None]
    )
    assert shown.any() and (batch["rewards"].diff(dim=1)[shown] == 10).all()
    for rewards, lengths in zip(batch["rewards"], batch["region_lengths"]):  # no region is a copy of the one before
        parts = [part for part in rewards[: lengths.sum()].split(lengths.tolist()) if len(part)]
        assert all(not torch.equal(one, other) for one, other in zip(parts, parts[1:]))


@torch.no_grad()
def test_empty_regions_behind_a_short_life_change_nothing(tmp_path):
    model = random_model(*MEMORY, "memory_regions=2", "history_regions=9").eval()
    torch.nn.init.normal_(model.context.age_bias)
    observations, actions, rewards, dones = (torch.stack(v, dim=1) for v in zip(*random_steps(36)))
    batch = {"observations": observations, "actions": actions, "rewards": rewards, "dones": dones}
    batch["starts"] = (torch.arange(36) == 0).expand(N_ENVS, -1)
    found = []
    for n_held in (9, 4):
        lengths = torch.tensor([4] * n_held + [0] * (9 - n_held)).expand(N_ENVS, -1)
        cut = {name: values[:, : 4 * n_held] for name, values in batch.items()}
        x, layout = model.embed_window(cut | {"region_lengths": lengths})
        token = (layout.types[0] == 0) & layout.valid[0]
        assert layout.steps[0, token].tolist() == list(range(4 * n_held))
        assert (layout.next_types[0] != -100).sum() == n_held * 5  # each step's and each start's
        found.append(model.context.read(model.transformer, x, layout)[:, token][:, :16])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_regions_longer_than_a_stream_allows_are_told(tmp_path):
    settings = ["compress_interval=24", "histories=whole", "history_regions=6", "n_transit=48"]
    config = random_model("use_compressed_context=true", *settings).config
    write_file(history_path(config, tmp_path), config | {"compress_interval": 12}, 120, 4)
    with pytest.raises(InputError, match="streams of 120 steps hold 5 regions of .* 24, history_regions asks for 6"):
        ADDataset(config, tmp_path, "train")


@pytest.mark.parametrize("kind", [Histories, CausalHistories])
def test_a_region_never_repeats_the_one_before(kind):
    more = {"returns": [np.zeros((4, 3))]} if kind is CausalHistories else {}
    histories = kind(np.array([4]), 12, 12, 3, 2, True, **more)
    starts, _, streams = histories.draw(np.zeros(200, dtype=int), 12, np.random.default_rng(0))
    assert (np.diff(streams, axis=1) != 0).all() and (np.bincount(streams.ravel()) > 600).all()
    to_the_next = (np.diff(streams, axis=1) % 3 == 1).mean()
    assert 0.45 < to_the_next < 0.55  # either of the two others as often
    assert (starts[:, -1] == starts[:, -2]).any()  # the same rollout, in another stream


@pytest.mark.parametrize("settings", [["mix_streams=false"], ["n_stream=1"]])
def test_causal_histories_need_other_streams(tmp_path, settings):
    config = random_model("use_compressed_context=true", "histories=causal", *settings).config
    write_file(history_path(config, tmp_path), config, 120, 4)
    with pytest.raises(
        InputError, match="causal goes on in other streams.* 2 streams or more, got (true and 1|false and 4)"
    ):
        ADDataset(config, tmp_path, "train", n_stream=1 if "n_stream=1" in settings else None)
