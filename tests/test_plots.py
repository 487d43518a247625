"""Figures: what they show where tasks have no grid, and that a user's own style is left alone."""

import gymnasium as gym
import matplotlib
import numpy as np
import pytest
from conftest import tiny_config
from stable_baselines3.common.vec_env import DummyVecEnv

import env
from env.darkroom import Darkroom, DarkroomHard, DarkroomHardVecEnv, DarkroomVecEnv
from plots.frames import FrameRecorder, check_renders, save_film
from plots.returns import plot_per_task, plot_returns
from plots.style import save_figure
from utils import InputError


def test_tasks_on_a_grid_become_a_heat_map_with_the_held_out_ones_framed():
    tasks = env.list_tasks(tiny_config())
    values = np.full(9, np.nan)
    values[[1, 5]] = 0.25, 1.0
    axes = plot_per_task(values, tasks, "share", np.arange(9) == 5).axes[0]
    shown = axes.images[0].get_array()
    assert shown[0, 1] == 0.25 and shown[1, 2] == 1.0 and shown.mask.sum() == 7
    assert [text.get_text() for text in axes.texts] == ["0.25", "1.00"] and len(axes.patches) == 1


def test_other_tasks_become_bars():
    axes = plot_per_task(np.array([3.0, np.nan, 5.0]), [{"g": 1.0}, {"g": 2.0}, {"g": 3.0}], "return").axes[0]
    assert [bar.get_height() for bar in axes.patches] == [3.0, 5.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "2"]


def test_returns_are_drawn_with_their_band_and_levels(tmp_path):
    returns = np.array([[0.0, 2.0], [0.0, 4.0]])
    style = dict(matplotlib.rcParams)
    figure = plot_returns({"AD": returns}, {"optimum": 5.0}, (np.array([1.0, 2.0]), np.array([0.0, 1.0])))
    curve, source, optimum = figure.axes[0].lines
    assert curve.get_ydata().tolist() == [0.0, 3.0] and source.get_ydata().tolist() == [0.0, 1.0]
    assert set(optimum.get_ydata()) == {5.0} and len(figure.axes[0].collections) == 1
    save_figure(figure, tmp_path / "new" / "returns.png")
    assert (tmp_path / "new" / "returns.png").read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == style


@pytest.mark.parametrize("batched", [True, False])
def test_the_recorder_keeps_the_chosen_episodes(batched, tmp_path):
    tasks = [{"goal": goal, "grid_size": 3, "horizon": 4} for goal in ((0, 0), (1, 1))]
    if batched:
        vec_env = DarkroomVecEnv(tasks, render_mode="rgb_array")
    else:
        vec_env = DummyVecEnv([lambda task=task: Darkroom(**task, render_mode="rgb_array") for task in tasks])
    recorder = FrameRecorder(vec_env, [2])
    recorder.reset()
    for _ in range(12):
        recorder.step(np.array([4, 4]))  # both stay where they start: on the second one's goal
    assert [len(frames) for frames in recorder.frames[2]] == [5, 5]  # four steps, and how it ended
    assert recorder.returns[2] == [[0, 0, 0, 0, 0], [0, 1, 2, 3, 4]]
    assert recorder.frames[2][0][0].shape == recorder.frames[2][1][0].shape and recorder.frames[2][0][0].ndim == 3
    save_film(recorder, ["far", "near"], tmp_path / "film.gif")
    assert (tmp_path / "film.gif").read_bytes().startswith(b"GIF")


def test_a_film_shows_how_an_episode_ended():
    """The batched grids draw the terminal cell, which the environment has already left."""
    recorder = FrameRecorder(DarkroomHardVecEnv([{"goal": (0, 1), "grid_size": 3, "horizon": 4}], "rgb_array"), [1])
    recorder.reset()
    recorder.step(np.array([1]))  # from the centre up, onto the goal
    expected = DarkroomHard((0, 1), 3, 4, render_mode="rgb_array")
    expected.cell = np.array([0, 1])
    np.testing.assert_array_equal(recorder.frames[1][0][-1], expected.render())
    assert recorder.returns[1] == [[0, 1]]


@pytest.mark.parametrize("goals", [[0, 1], [(0, 0), (0, 0)], [(0, 0), (3, 0)], [(0, 0), (0.5, 0)], [None, (0, 0)]])
def test_goals_that_are_no_cells_become_bars(goals):
    tasks = [{"goal": goal, "grid_size": 3} for goal in goals]
    assert not plot_per_task(np.array([1.0, 2.0]), tasks, "return").axes[0].images


def test_an_environment_that_draws_nothing_is_told():
    class Dark(gym.Env):
        metadata = {"render_modes": ["rgb_array"]}  # it promises more than it does
        observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

        def reset(self, seed=None, options=None):
            return 0, {}

    gym.register("Dark-v0", Dark, max_episode_steps=5)
    with pytest.raises(InputError, match="--render: env 'Dark-v0' cannot be drawn"):
        check_renders(tiny_config() | {"env": "Dark-v0"}, {})
