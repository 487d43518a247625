"""The rule behind `compress_interval: auto`, on histories whose policy changes at known steps."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from conftest import tiny_config, write_file
from test_pipeline import MEMORY, TINY_MODEL, set_flags

import train
from checkpoints import load_checkpoint
from effective import effective_config
from history.format import history_path
from history.pace import _gaussian_divergence, shortest_change

N_STEPS, N_STREAMS = 384, 8
CONTEXT = ["use_compressed_context=true", "context=memory", "n_summary=2"]


def write_policies(folder, config: dict, policies: np.ndarray, **changes) -> None:
    """A file with episodes of 6 steps and rollouts of 12, and (T, 5) the policy that acts at each step."""
    probs = np.repeat(policies[:, None], N_STREAMS, axis=1).astype(np.float16)
    settings = config | {"compress_interval": 12}
    write_file(history_path(config, folder), settings, N_STEPS, N_STREAMS, **{"action_probs": probs} | changes)


def changing_every(period: int) -> np.ndarray:
    return np.repeat(np.random.default_rng(0).dirichlet(np.ones(5), N_STEPS // period), period, axis=0)


@pytest.mark.parametrize(
    "period, settings, expected",
    [
        (6, [], 6),
        (12, [], 12),
        (24, [], 24),
        (48, ["region_stride=4"], 48),
        (6, ["context=regions", "n_transit=48"], 12),  # two regions take no part of a rollout
    ],
)
def test_regions_are_as_long_as_a_policy_lasts(tmp_path, period, settings, expected):
    config = tiny_config(*CONTEXT[: 2 if "context=regions" in settings else 3], *settings, "compress_interval=auto")
    write_policies(tmp_path, config, changing_every(period))
    assert effective_config(config, tmp_path)["compress_interval"] == expected


def test_a_source_that_has_learned_does_not_count_any_more(tmp_path):
    """Only the first tenth of the history is learning; every episode is."""
    config = tiny_config(*CONTEXT, "compress_interval=auto")
    policies = changing_every(6)
    policies[36:] = policies[36]
    write_policies(tmp_path, config, policies)
    assert effective_config(config, tmp_path)["compress_interval"] == 6


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"action_probs": None}, "has no action_probs"),
        ({"dones": None}, "has no dones"),
        ({"dones": np.zeros((N_STEPS, N_STREAMS), dtype=bool)}, "allows no region of whole episodes"),
        ({}, "shows no change of policy from one region to the next, with regions of .6, 12, 24. steps"),
    ],
)
def test_without_an_answer_a_region_is_a_rollout(tmp_path, changes, reason):
    config = tiny_config(*CONTEXT, "compress_interval=auto")
    write_policies(tmp_path, config, np.full((N_STEPS, 5), 0.2), **changes)
    with pytest.warns(UserWarning, match=f"{reason}: compress_interval auto is the length of its rollouts"):
        assert effective_config(config, tmp_path)["compress_interval"] == 12


def test_a_file_without_markers_is_not_said_to_answer(tmp_path):
    config = tiny_config(*CONTEXT, "compress_interval=auto", "histories=causal", "history_regions=4")
    write_policies(tmp_path, config, changing_every(6), compress_markers=None)
    with pytest.warns(UserWarning, match="has no compress_markers: compress_interval auto is n_transit"):
        assert effective_config(config, tmp_path)["compress_interval"] == config["n_transit"]


def test_what_is_trained_holds_the_number(tiny_histories, tmp_path, capsys):
    common = [
        "--traj-dir",
        str(tiny_histories),
        "--device",
        "cpu",
        "--run-dir",
        str(tmp_path),
        "--model-config",
        MEMORY,
    ]
    settings = [*TINY_MODEL[1:], "train_batch_size=4", "history_regions=4", "n_summary=2", "compress_interval=auto"]
    for words in ("compress_interval: auto is 12 steps", "already complete"):  # the same number the second time
        assert train.main([*common, *set_flags(*settings)]) == 0
        assert words in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "ckpt-20.pt")["config"]["compress_interval"] == 12


def test_the_divergence_of_gaussians():
    p, q = np.array([0.0, 1.0]), np.array([1.0, 4.0 + 1.0])  # N(0, 1) and N(1, 4): mean, second moment
    assert _gaussian_divergence(p, q) == pytest.approx(np.log(2) + 2 / 8 - 1 / 2)
    assert _gaussian_divergence(q, q) == 0


def test_real_observations_and_gaussian_policies():
    rng, n_steps = np.random.default_rng(0), 240
    means = np.repeat(rng.normal(size=(n_steps // 24, 1)), 24, axis=0)  # a new policy every 24 steps
    arrays = {
        "states": rng.normal(size=(n_steps, N_STREAMS, 2)),
        "action_means": np.repeat(means[:, None], N_STREAMS, axis=1),
        "action_stds": np.ones((n_steps, N_STREAMS, 1)),
    }
    history = SimpleNamespace(
        arrays={name: values.reshape(-1, values.shape[-1]) for name, values in arrays.items()},
        task_steps=np.array([n_steps]), task_offset=np.array([0, n_steps]), n_streams=N_STREAMS,
        observation_space=gym.spaces.Box(-9, 9, (2,)), action_space=gym.spaces.Box(-1, 1, (1,)),
    )  # fmt: skip
    assert shortest_change(history, [6, 12, 24, 48]) == 24
    assert shortest_change(history, [6, 12]) is None
