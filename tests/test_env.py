"""The environments: dynamics with known answers, the split, and batched equals scalar."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

import env
from env.darkroom import Darkroom, DarkroomVecEnv
from utils import DEFAULT_CONFIG, InputError, load_config


@pytest.fixture
def config():
    return load_config(DEFAULT_CONFIG)


def test_split_is_the_published_one(config):
    split, tasks = env.split_tasks(config), env.list_tasks(config)
    held_out = [tasks[i]["goal"] for i in split["test"]]
    assert held_out == [(4, 2), (5, 6), (6, 8), (7, 2), (3, 6), (0, 5), (5, 8), (5, 4)]
    assert len(split["train"]) == 73 and sorted(split["train"] + split["test"]) == split["all"] == list(range(81))
    assert np.mean([env.optimal_return(config, tasks[i]) for i in split["test"]]) == 17.25


@pytest.mark.parametrize(("goal", "expected"), [((4, 4), 20), ((4, 5), 20), ((0, 0), 13), ((8, 8), 13), ((4, 2), 19)])
def test_optimal_return_is_reached_by_the_shortest_path(goal, expected):
    task = Darkroom(goal)
    assert task.optimal_return == expected
    cell, _ = task.reset()
    total, truncated = 0.0, False
    while not truncated:
        row, column = np.array(goal) - cell
        action = (0 if row > 0 else 1) if row else (2 if column > 0 else 3) if column else 4
        cell, reward, terminated, truncated, _ = task.step(action)
        total += reward
        assert not terminated
    assert total == expected


@pytest.mark.parametrize(("action", "expected"), [(0, (8, 4)), (1, (0, 4)), (2, (4, 8)), (3, (4, 0)), (4, (4, 4))])
def test_actions_move_as_documented_and_walls_stop_them(action, expected):
    task = Darkroom((0, 0))
    assert tuple(task.reset()[0]) == (4, 4)
    for _ in range(6):
        cell, *_ = task.step(action)
    assert tuple(cell) == expected


def test_gymnasium_accepts_it_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(Darkroom((1, 2)), skip_render_check=True)


def test_batched_equals_scalar():
    tasks = [{"goal": goal, "grid_size": 5, "horizon": 7} for goal in ((0, 0), (2, 3), (4, 4), (2, 2), (1, 2))]
    batched, scalar = DarkroomVecEnv(tasks), DummyVecEnv([lambda task=task: Darkroom(**task) for task in tasks])
    rng = np.random.default_rng(0)
    first, second = batched.reset(), scalar.reset()
    np.testing.assert_array_equal(first, second)
    assert first.dtype == second.dtype and batched.reset_infos == scalar.reset_infos
    for _ in range(50):
        actions = rng.integers(5, size=len(tasks))
        for one, other in zip(batched.step(actions)[:3], scalar.step(actions)[:3]):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    # infos, on steps of their own: plain comparison does not work on arrays
    for _ in range(15):
        actions = rng.integers(5, size=len(tasks))
        for one, other in zip(batched.step(actions)[3], scalar.step(actions)[3]):
            assert one.keys() == other.keys() and one["TimeLimit.truncated"] == other["TimeLimit.truncated"]
            if "terminal_observation" in one:
                np.testing.assert_array_equal(one["terminal_observation"], other["terminal_observation"])
    assert batched.get_attr("goal") == scalar.get_attr("goal")


def test_results_of_a_step_are_not_overwritten_by_the_next():
    vec_env = DarkroomVecEnv([{"goal": (0, 0)}])
    before = vec_env.reset()
    after, *_ = vec_env.step(np.array([0]))
    assert before.tolist() == [[4, 4]] and after.tolist() == [[5, 4]]


def test_any_gymnasium_environment_is_a_family(config):
    config |= {"env": "CartPole-v1", "env_kwargs": {"sutton_barto_reward": True}, "task_kwargs": [{}, {}]}
    assert env.config_problems(config) == []
    vec_env = env.make_vec_env(config, env.list_tasks(config))
    assert isinstance(vec_env, DummyVecEnv) and vec_env.reset().shape == (2, 4)
    assert env.max_episode_steps(config) == 500 and env.optimal_return(config, {}) is None
    assert env.describe_spaces(config)["observation_space"]["kind"] == "continuous"


def test_what_cannot_be_stepped_is_told(config):
    assert "neither" in env.config_problems(config | {"env": "Nowhere-v0"})[0]
    wrong = config | {"env": "CartPole-v1", "env_kwargs": {"wheels": 4}}
    assert "cannot be made" in env.config_problems(wrong)[0]
    gym.register("TupleSpace-v0", lambda: TupleSpace())
    assert "observation space" in env.config_problems(config | {"env": "TupleSpace-v0", "env_kwargs": {}})[0]
    with pytest.raises(InputError, match="Nowhere"):
        load_config(DEFAULT_CONFIG, ["env=Nowhere-v0"], checks=(env.config_problems,))


class TupleSpace(gym.Env):
    observation_space = gym.spaces.Tuple([gym.spaces.Discrete(2)])
    action_space = gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        return (0,), {}
