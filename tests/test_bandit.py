"""Bandits, and UCB against a reference computed here."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import collect
import env
from algorithm.source import env_seed
from algorithm.ucb import UCB, best
from config.loading import load_config
from env.bandit import Bandit
from files import InputError
from scripts import family_paths


def tiny_config(name: str, *settings: str) -> dict:
    return load_config(family_paths(name), ["n_tasks=4", "train_env_ratio=0.5", "n_stream=3", "n_steps=5", *settings])


def test_a_life_is_half_the_pulls_a_delay_and_the_other_half():
    bandit = Bandit(0, 0, 1, 0, 0, n_pulls=4, delay=3, noise=0)
    seen, rewards, ends = [bandit.reset(seed=0)[0]], [], []
    for _ in range(7):
        observation, reward, terminated, truncated, _ = bandit.step(2)
        seen.append(observation)
        rewards.append(reward)
        ends.append(terminated or truncated)
    assert seen[:7] == [0, 0, 1, 1, 1, 0, 0] and rewards == [1, 1, 0, 0, 0, 1, 1]
    assert ends == [False] * 6 + [True] and bandit.optimal_return == 4 and bandit.horizon == 7


def test_gymnasium_accepts_it_and_wrong_arguments_are_told():
    check_env(gym.make("DelayedBandit-v0").unwrapped, skip_render_check=True)
    for wrong in ({"n_pulls": 3}, {"delay": -1}, {"noise": -0.1}):
        with pytest.raises(ValueError, match="expected an even number"):
            Bandit(**wrong)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_ucb_says_before_any_work_what_it_counts(env_id):
    with pytest.raises(InputError, match="alg: UCB counts: expected Discrete observations and actions, got Box"):
        UCB.prepare(
            tiny_config("bandit")
            | {"env": env_id, "task_ranges": {}, "task_kwargs": [{}], "env_kwargs": {}, "n_tasks": None},
            Path(),
        )


def test_ucb_takes_what_a_reference_takes():
    """Each stream's choices, from its own past alone, in plain Python."""
    config = tiny_config("bandit", "total_source_timesteps=600", "env_kwargs={n_pulls: 100, delay: 0, noise: 0.3}")
    vec_env = env.make_vec_env(config, [env.list_tasks(config)[0]] * 3)
    history = UCB(config, vec_env, seed=1).run()
    assert history["dones"].sum(axis=0).tolist() == [2, 2, 2]
    for stream in range(3):
        past = {arm: [] for arm in range(5)}
        for t in range(200):
            bounds = [np.mean(past[a]) + 1 / np.sqrt(len(past[a])) if past[a] else np.inf for a in range(5)]
            allowed = np.flatnonzero(np.isclose(bounds, max(bounds)) | (np.array(bounds) == np.inf))
            action = int(history["actions"][t, stream])
            assert action in allowed and history["action_probs"][t, stream, action] == pytest.approx(
                1 / len(allowed), abs=1e-3
            )
            past[action].append(float(history["rewards"][t, stream]))
            if history["dones"][t, stream]:
                past = {arm: [] for arm in range(5)}


def test_ucb_is_near_the_best_arm_and_learns_nothing_while_it_waits():
    config = tiny_config("delayed_bandit", "total_source_timesteps=4500", "n_stream=30")
    task = env.list_tasks(config)[1]
    history = UCB(config, env.make_vec_env(config, [task] * 30), seed=0).run()
    assert history["rewards"].sum() / 30 > 0.8 * env.optimal_return(config, task)
    waiting = history["states"][..., 0] == 1
    assert waiting.sum() == 50 * 30 and not history["rewards"][waiting].any()
    taken = np.bincount(history["actions"][waiting], minlength=5)
    assert taken.min() > 0.9 * taken.max()  # at random


def test_bounds():
    probs = best(np.array([[1, 4, 0], [1, 1, 4]]), np.array([[1.0, 4, 0], [1, 1, 5]]))
    assert probs.tolist() == [[0, 0, 1], [0.5, 0.5, 0]]


def test_a_source_without_settings_for_a_family_is_refused():
    with pytest.raises(InputError, match="--source ucb: has no settings for darkroom, only for bandit, delayed_bandit"):
        collect.main(["darkroom", "--source", "ucb"])


def test_each_bandit_has_its_own_source_and_files():
    paths = family_paths("delayed_bandit")
    assert paths["algorithm"] == "config/algorithm/ucb_delayed_bandit.yaml"
    assert paths["model"] == "config/model/ad_delayed_bandit_compressed.yaml"
    assert family_paths("darkroom", source="explorer")["model"] == "config/model/ad_dr_explorer.yaml"
    assert family_paths("frozen_lake", source="explorer")["algorithm"] == "config/algorithm/explorer_darkroom.yaml"


def test_no_two_streams_share_their_random_numbers():
    """Seeds of tasks follow each other; stream j of a task had been stream j - 1 of the next one."""
    seeds = {env_seed(42 + task) + stream for task in range(200) for stream in range(8)}
    assert len(seeds) == 1600 and max(seeds) < 2**31 + 8 and not seeds & set(range(2000))
    rewards = []
    for seed in (42, 43):
        vec_env = env.make_vec_env(tiny_config("bandit"), env.list_tasks(tiny_config("bandit"))[:1] * 3)
        UCB(tiny_config("bandit"), vec_env, seed)
        vec_env.reset()
        rewards.append(np.array([vec_env.step([0, 0, 0])[1] for _ in range(5)]))
    one, other = rewards
    assert not np.isclose(one[:, 1:], other[:, :-1]).any()
