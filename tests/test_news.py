"""Regions of different length: they end with the first step that shows news, the same in training and in acting."""

import numpy as np
import pytest
import torch
from conftest import write_file
from test_context import N_ENVS, EndsAnywhere, random_model
from test_pipeline import evaluate_in, train_in

import env
from checkpoints import load_checkpoint
from config.loading import load_config
from dataset import ADDataset
from files import InputError
from history.format import history_path
from history.news import news_ends
from model.context.boundaries import BOUNDARIES, random_lengths
from model.tokens import TokenType
from scripts import DEFAULT_CONFIG

NEWS = ["use_compressed_context=true", "histories=whole", "region_ends=news", "shortest_region=3", "mix_streams=false"]
MEMORY = ["context=memory", "n_summary=2", "memory_regions=2", "history_regions=4"]
MERGING = ["context=memory", "n_summary=2", "memory_regions=1", "history_regions=4"]
TWO = ["context=regions", "n_transit=24", "history_regions=4"]


def test_regions_end_with_the_first_step_that_shows_news():
    """Episodes of 3 steps return 0, 1, 1, 2, 0 to the first learner, and -3, -2, -2, -9, -1 to the other."""
    returns = np.array([[0, 1, 1, 2, 0], [-3, -2, -2, -9, -1]])
    rewards, dones = np.zeros((18, 2)), np.zeros((18, 2), dtype=bool)
    rewards[2:15:3], dones[2::3] = returns.T, True
    ends = news_ends(rewards, dones, shortest=1, longest=100)
    assert np.flatnonzero(ends[:, 0]).tolist() == [6, 12]  # the first steps after the episodes of 1 and 2
    assert np.flatnonzero(ends[:, 1]).tolist() == [6, 15]
    ends = news_ends(rewards, dones, shortest=4, longest=5)
    assert np.flatnonzero(ends[:, 0]).tolist() == [4, 9, 14]  # news at steps 6 and 12 came too soon
    assert not news_ends(-1.0 - rewards, dones, 1, 100)[:3].any()  # a first episode without gain is none


def test_random_lengths_keep_their_mean():
    for mean in (10, 17.5, 25, 40):
        low, high = random_lengths(10, 40, mean)
        assert 10 <= low <= high <= 40 and abs((low + high) / 2 - mean) <= 0.5
    assert random_lengths(10, 40, None) == (10, 40)


def write_lives(model, folder, n_steps=48):
    """Lives in which the streams' episodes of 4 steps are paid more and more, each stream at its own times."""
    rng = np.random.default_rng(1)
    rewards, dones = np.zeros((n_steps, N_ENVS), dtype=np.float32), np.zeros((n_steps, N_ENVS), dtype=bool)
    dones[3::4] = True
    rewards[3::4] = np.maximum.accumulate(rng.integers(0, 2, size=(n_steps // 4, N_ENVS)).cumsum(0), axis=0)
    path = history_path(model.config, folder)
    write_file(path, model.config | {"compress_interval": 12}, n_steps, N_ENVS, rewards=rewards, dones=dones)
    return rewards, dones


@torch.no_grad()
@pytest.mark.parametrize("settings", [MEMORY, MERGING, TWO])
def test_acting_at_news_equals_what_the_dataset_builds(tmp_path, settings):
    """Every environment ends regions at places of its own; with memory its features are those of one pass over a life."""
    model = random_model(*NEWS, *settings)
    rewards, dones = write_lives(model, tmp_path)
    dataset = ADDataset(model.config, tmp_path, "test")
    lives = {name: dataset._of_streams(name, np.arange(48)) for name in dataset.arrays}
    context = model.context.rolling(model, N_ENVS, BOUNDARIES["news"](model, N_ENVS))
    features, ends = [], []
    for t in range(48):
        features.append(context.observe(torch.from_numpy(lives["states"][t].astype(int))))
        ends.append(context.record(*(torch.from_numpy(lives[name][t]) for name in ("actions", "rewards", "dones"))))
    expected = news_ends(rewards, dones, 3, 12)
    assert np.array_equal(np.array(ends), expected) and len(set(map(tuple, expected.T))) > 1

    batch = dataset.batch(np.arange(N_ENVS), np.random.default_rng(0))
    starts, lengths, streams = dataset.timeline.histories.draw(np.zeros(N_ENVS, int), 4, np.random.default_rng(0))
    assert np.array_equal((starts + lengths)[0], np.flatnonzero(expected[:, streams[0, 0]])[:4] + 1)
    if settings is TWO:
        _, layout = model.embed_window(batch)
        last = (batch["region_lengths"] + 2 * (batch["region_lengths"] > 0)).sum(
            1
        ) - 2  # the current region's last step
        assert (layout.next_types.gather(1, last[:, None]) == TokenType.COMPRESS_END).all()
        assert set(batch["region_lengths"].flatten().tolist()) <= {0, *lengths.flatten().tolist()}
        return
    assert np.array_equal(batch["region_lengths"], lengths)
    x, layout = model.embed_window(batch)
    together = model.context.read(model.transformer, x, layout)
    for row, stream in enumerate(streams[:, 0]):
        own = together[row, layout.valid[row] & (layout.types[row] == 0)]
        acted = torch.stack([of_all[stream] for of_all in features[: len(own)]])
        torch.testing.assert_close(own, acted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [MEMORY, TWO])
@pytest.mark.parametrize("kind", BOUNDARIES)
def test_regions_are_as_long_as_they_may_be(settings, kind):
    model = random_model(*NEWS, *settings)
    model.pred_token_type = EndsAnywhere()
    vec_env = env.make_vec_env(model.config, env.list_tasks(model.config))
    ends = model.evaluate_in_context(vec_env, 80, boundaries=kind)["region_ends"]
    lengths = np.concatenate([np.diff(np.flatnonzero(of_env), prepend=-1) for of_env in ends.T])
    assert lengths.min() >= 3 and lengths.max() <= 12 and (kind == "fixed") == (lengths.min() == 12)


def test_a_shortest_region_above_the_longest_one_is_told_before_training(tiny_histories, tmp_path):
    settings = [*NEWS, *MEMORY, "shortest_region=20"]
    with pytest.raises(InputError, match="shortest_region 20 is longer than a region may be: compress_interval is 12"):
        train_in(tmp_path, tiny_histories, *settings, "compress_interval=null")
    path = train_in(tmp_path, tiny_histories, *settings, "compress_interval=auto")[-1]
    assert load_checkpoint(path)["config"]["compress_interval"] == 24  # `auto` takes none that is shorter


def test_the_scripts_take_news_and_every_boundary(tiny_histories, tmp_path):
    path = train_in(tmp_path, tiny_histories, *NEWS, *MEMORY, "compress_interval=24", "history_regions=6")[-1]
    for kind in BOUNDARIES:
        flags = ["--episodes", "3", "--repeats", "1", "--boundaries", kind]
        assert evaluate_in(path, *flags)["returns"].shape == (1, 1, 3)


def test_what_cannot_be_cut_is_refused():
    for settings, message in (
        (["region_ends=news"], "set histories: whole"),
        (["histories=whole", "shortest_region=90", "compress_interval=80"], "shortest_region 90 is longer"),
    ):
        with pytest.raises(InputError, match=message):
            load_config(DEFAULT_CONFIG, settings)
