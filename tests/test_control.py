"""The families with hidden maps, goals, targets and speeds: each has a known answer."""

import os

import gymnasium as gym
import numpy as np
import pytest

import env
from config.loading import load_config
from env.frozen_lake import FrozenLakeTask
from env.hidden_goal import HiddenGoal
from files import InputError
from plots.frames import check_renders, choose_renderers
from scripts import DEFAULT_CONFIG


def family(name: str, *settings: str) -> dict:
    return load_config(DEFAULT_CONFIG | {"env": f"config/env/{name}.yaml"}, settings)


def test_frozen_lakes_differ_and_a_seed_is_a_map():
    config = family("frozen_lake")
    maps = ["".join(FrozenLakeTask(**task).map) for task in env.list_tasks(config)]
    assert len(set(maps)) == len(maps) == 400 and maps[5] == "".join(FrozenLakeTask(map_seed=5).map)
    assert all(lake[0] == "S" and lake[-1] == "G" and len(lake) == 36 for lake in maps)
    assert env.list_tasks(config | {"n_tasks": 120}) == env.list_tasks(config)[:120]


@pytest.mark.parametrize(("size", "frozen"), [(1, 0.8), (3, 0.0), (40, 0.3), (6, 1.1), (6, -0.1)])
def test_frozen_lakes_without_ways_are_refused(size, frozen):
    """Gymnasium would look for one for ever."""
    with pytest.raises(ValueError, match="expected a size from 2 on, and frozen high enough"):
        FrozenLakeTask(size=size, frozen=frozen)


def test_a_frozen_lakes_optimum_is_the_chance_to_get_there():
    assert FrozenLakeTask(map_seed=3).optimal_return == 1
    assert FrozenLakeTask(map_seed=3, frozen=1.0, is_slippery=True).optimal_return == pytest.approx(1)  # no holes
    slippery = FrozenLakeTask(map_seed=3, is_slippery=True)
    slippery.P = {
        0: {0: [(0.25, 1, 1.0, True), (0.75, 0, 0.0, True)], 1: [(1.0, 0, 0.0, True)]},
        1: {0: [(1.0, 1, 0.0, True)]},
    }
    slippery.observation_space = gym.spaces.Discrete(2)
    assert slippery.optimal_return == 0.25


def test_the_hidden_goal_ends_the_episode_and_is_not_seen():
    turn_right, ahead = 1, 2
    task = HiddenGoal(goal=12, width=5, max_steps=6)  # of 24 cells the one to the right of the start
    first, _ = task.reset(seed=0)
    assert np.array_equal(first["image"], HiddenGoal(goal=0, width=5).reset(seed=1)[0]["image"])
    assert task.step(turn_right)[1:4] == (0.0, False, False) and task.step(0)[1] == 0.0
    assert task.step(ahead)[1:4] == (1.0, True, False) and task.optimal_return == 1
    for goal, n_steps in {0: 6, 4: 5, 10: 4, 11: 3, 12: 1, 7: 2}.items():  # behind it to the left above, ..., in front
        optima = [HiddenGoal(goal, width=5, max_steps=n).optimal_return for n in (n_steps - 1, n_steps)]
        assert optima == [0, 1]
    task.reset()
    ends = [task.step(turn_right)[1:4] for _ in range(6)]
    assert ends == [(0.0, False, False)] * 5 + [(0.0, False, True)]
    cells = {HiddenGoal(goal=i, width=5).goal for i in range(24)}
    assert len(cells) == 24 and (3, 3) not in cells
    with pytest.raises(ValueError, match="goal 24: expected 0 to 23"):
        HiddenGoal(goal=24, width=5)


def test_reachers_target_stays_and_is_not_seen():
    config = family(
        "reacher", "task_ranges={}", "n_tasks=null", "task_kwargs=[{angle: 0.5}, {angle: 2.0, radius: 0.15}]"
    )
    made = [env.make_env(config, task) for task in env.list_tasks(config)]
    for episode in (0, 1):
        one, other = (task.reset(seed=episode)[0] for task in made)
        assert one.shape == (6,) and np.array_equal(one, other)
        steps = [task.step(np.array([0.5, -0.5], np.float32)) for task in made]
        assert np.array_equal(steps[0][0], steps[1][0]) and steps[0][1] != steps[1][1]
        for task, (angle, radius) in zip(made, ((0.5, 0.1), (2.0, 0.15))):
            place = task.unwrapped.get_body_com("target")[:2]
            np.testing.assert_allclose(place, radius * np.array([np.cos(angle), np.sin(angle)]), atol=1e-9)
    away = np.linalg.norm(made[1].unwrapped.get_body_com("fingertip") - made[1].unwrapped.get_body_com("target"))
    assert steps[1][1] == pytest.approx(-away - 0.5)


def test_half_cheetah_is_paid_for_the_wanted_speed():
    config = family("half_cheetah_vel")
    assert env.max_episode_steps(config) == 200
    made = env.make_env(config, {"velocity": 1.5})
    made.reset(seed=0)
    action = made.action_space.sample()
    _, reward, _, _, info = made.step(action)
    assert reward == pytest.approx(-abs(info["x_velocity"] - 1.5) - 0.05 * np.square(action).sum())


def test_meta_worlds_goal_stays_and_is_not_seen():
    pytest.importorskip("metaworld")
    goals = ({"goal_x": -0.1, "goal_y": 0.8}, {"goal_x": 0.1, "goal_z": 0.3})
    config = family("metaworld_reach")
    made = [env.make_env(config, task) for task in goals]
    observations = [task.reset(seed=0)[0] for task in made]
    assert np.array_equal(*observations) and observations[0].shape == (39,) and not observations[0][-3:].any()
    steps = [task.step(np.array([0, 1, 0, 0], np.float32)) for task in made]
    assert np.array_equal(steps[0][0], steps[1][0]) and steps[0][1] != steps[1][1] and 0 < steps[0][1] < 10
    np.testing.assert_allclose(made[0].unwrapped._target_pos, [-0.1, 0.8, 0.2])


def test_numbered_tasks_are_checked():
    wrong = family("frozen_lake") | {"n_tasks": None, "task_kwargs": [{}]}
    assert [problem.split(":")[0][:24] for problem in env.config_problems(wrong)] == [
        "task_kwargs and task_num",
        "n_tasks is missing",
    ]
    twice = family("frozen_lake") | {"env_kwargs": {"map_seed": 1}}
    assert env.config_problems(twice)[0].startswith("task_number: map_seed is in env_kwargs or task_ranges too")
    both = family("frozen_lake", "task_ranges={frozen: [0.7, 0.9]}", "n_tasks=3", "env_kwargs={}")
    tasks = env.list_tasks(both)
    assert [task["map_seed"] for task in tasks] == [0, 1, 2] and len({task["frozen"] for task in tasks}) == 3
    (problem,) = env.config_problems(family("darkroom", "task_number=goal"))
    assert problem.startswith("task_number: env 'darkroom' has its own list of tasks")


@pytest.mark.parametrize(("libraries", "chosen"), [({"EGL", "OSMesa"}, "egl"), ({"OSMesa"}, "osmesa"), (set(), None)])
def test_mujoco_draws_without_a_screen_where_it_can(libraries, chosen, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "SDL_VIDEODRIVER"):
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("plots.frames.find_library", lambda name: name if name in libraries else None)
    assert ("apt-get install libegl1" in choose_renderers()) == (chosen is None)
    assert os.environ.get("MUJOCO_GL") == chosen and os.environ["SDL_VIDEODRIVER"] == "dummy"


def test_what_cannot_draw_is_told(monkeypatch):
    monkeypatch.setattr("plots.frames.choose_renderers", lambda: "install a library; ")
    config = family("reacher") | {"env": "toy_envs:Late-v0", "wrappers": []}
    with pytest.raises(InputError, match="cannot be drawn here: .*; install a library; leave --render out"):
        check_renders(config, {})
