"""Figures: what they show where tasks have no grid, and that a user's own style is left alone."""

import re
import warnings
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import pytest
from conftest import tiny_config
from matplotlib.backends.backend_agg import FigureCanvasAgg
from stable_baselines3.common.vec_env import DummyVecEnv

import env
from env.darkroom import Darkroom, DarkroomHard, DarkroomHardVecEnv, DarkroomVecEnv
from files import InputError
from plots.frames import FrameRecorder, _film_panels, check_picture, check_renders, save_film
from plots.inside import plot_histories, plot_per_rollout
from plots.intervals import interval
from plots.returns import plot_groups, plot_per_task, plot_regret, plot_returns, plot_shares
from plots.style import save_figure


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
    returns = np.array([[[0.0, 2.0]], [[0.0, 4.0]]])  # two tasks, one repeat
    style = dict(matplotlib.rcParams)
    figure = plot_returns({"AD": returns}, {"optimum": 5.0}, (np.array([1.0, 2.0]), np.array([0.0, 1.0])))
    curve, source, optimum = figure.axes[0].lines
    assert curve.get_ydata().tolist() == [0.0, 3.0] and source.get_ydata().tolist() == [0.0, 1.0]
    assert set(optimum.get_ydata()) == {5.0} and len(figure.axes[0].collections) == 1
    save_figure(figure, tmp_path / "new" / "returns.png")
    assert (tmp_path / "new" / "returns.png").read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == style


def draw(figure):
    """Lay a figure out, as saving does."""
    FigureCanvasAgg(figure).draw()
    return figure


def test_repeats_of_a_task_are_no_further_evidence():
    """Each task has the same return in all its repeats: the band must not shrink with their number."""
    one = np.random.default_rng(0).normal(size=(8, 1, 3))
    bands = [plot_returns({"AD": np.repeat(one, repeats, axis=1)}).axes[0].collections[0] for repeats in (1, 16)]
    few, many = (band.get_paths()[0].vertices for band in bands)
    np.testing.assert_allclose(few, many)
    low, high = interval(one.mean(axis=1)[None])
    assert low.shape == (3,) and (high - low > 0.5).all()


def test_an_interval_stays_within_what_was_observed():
    successes = np.array([[0.0] * 7 + [1.0]])  # one of eight tasks solved: the normal band begins below 0
    low, high = interval(successes)
    assert low == 0.0 < successes.mean() < high <= 1.0
    assert np.isnan(interval(np.array([[0.5]]))).all()  # a single value does not tell


def test_an_interval_is_a_pointwise_bootstrap_of_seeds_and_tasks():
    values = np.random.default_rng(0).normal(size=(3, 5, 2))
    rng = np.random.default_rng(0)
    seeds, tasks = rng.integers(3, size=(4000, 3, 1)), rng.integers(5, size=(4000, 1, 5))
    expected = np.quantile(values[seeds, tasks].mean(axis=(1, 2)), (0.025, 0.975), axis=0)
    np.testing.assert_allclose(interval(values), expected)
    for episode in range(2):
        np.testing.assert_allclose(interval(values[..., episode]), expected[:, episode])


@pytest.mark.parametrize("n_episodes", [1, 2, 3, 6])
def test_ticks_are_whole_episodes(n_episodes):
    axes = draw(plot_returns({"AD": np.random.rand(2, 1, n_episodes)})).axes[0]
    ticks = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    assert ticks and all(tick == round(tick) >= 1 for tick in ticks)


def test_rollouts_are_whole_too():
    axes = draw(plot_per_rollout(np.random.rand(4, 3), 0, "return")).axes[0]
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_shares_are_drawn_with_their_intervals_and_curves_without_runs_left_out():
    varied = np.array([[0.5, 1.0]])
    axes = plot_shares({"window": {80: np.ones((2, 3)), 160: varied}, "not run": {}, "memory": {40: varied}}, "").axes[
        0
    ]
    window, memory = axes.containers
    assert window[0].get_xdata().tolist() == [80, 160] and window[0].get_ydata().tolist() == [1.0, 0.75]
    low, high = interval(varied)
    np.testing.assert_allclose(window[2][0].get_segments()[1][:, 1], [low, high])
    assert memory[0].get_xdata().tolist() == [40] and memory[0].get_color() != window[0].get_color()


def test_regret_adds_up_from_nothing():
    regret = np.ones((2, 3, 4))
    figure = plot_regret({"no delay": {"UCB": regret[:1]}, "delay": {"memory": regret, "UCB": regret[:1]}}, span=10)
    left, right = figure.axes
    assert [line.get_label() for line in right.lines] == ["memory", "UCB"] and len(left.lines) == 1
    np.testing.assert_array_equal(right.lines[0].get_xydata(), [[0, 0], [10, 1], [20, 2], [30, 3], [40, 4]])
    assert left.lines[0].get_color() == right.lines[1].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["UCB", "memory"]


def test_bars_of_one_name_look_alike_in_all_panels():
    one, three = np.ones((2, 3)), np.array([[2.0, 4.0]])
    figure = draw(
        plot_groups({"A": {"first": {"memory": one, "window": three}}, "B": {"x": {"window": one}}}, {"B": ("best", 2)})
    )
    left, right = figure.axes
    assert [bar.get_height() for bar in left.patches] == [1, 3] and len(right.patches) == 1
    assert left.patches[1].get_facecolor() == right.patches[0].get_facecolor() != left.patches[0].get_facecolor()
    assert right.lines[-1].get_ydata()[0] == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["memory", "window", "best"]


def test_histories_of_each_kind_have_a_panel_and_reasons_are_full_dots():
    rollouts, reasons = np.array([[0, 3, 6], [0, 0, 2]]), np.array([[True, True, True], [False, True, True]])
    figure = draw(plot_histories({"every": (rollouts, reasons), "causal": (rollouts, ~reasons)}, [0, 7]))
    every, causal = figure.axes
    way, full, empty = every.lines[3:]  # of the second history
    assert np.diff(way.get_ydata()).tolist() == [0, 2] and len(causal.lines) == 6
    assert full.get_xdata().tolist() == [1, 2] and empty.get_xdata().tolist() == [0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["task 0", "task 7"]


def test_the_title_says_what_is_shown_and_the_legend_hides_nothing():
    levels = {"random policy": 0.1, "optimum": 1.0}
    figure = draw(plot_returns({"AD": np.ones((8, 4, 20))}, levels, title="darkroom, 8 held-out tasks"))
    axes, legend = figure.axes[0], figure.legends[0]
    assert axes.get_title() == "darkroom, 8 held-out tasks\nband: 95 % interval over 8 tasks"
    assert axes.get_legend() is None and not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert [text.get_text() for text in legend.get_texts()] == ["AD", "random policy", "optimum"]


def test_only_the_part_of_the_source_that_is_shown_counts():
    returns = np.linspace(0, 1, 12).reshape(2, 1, 6)
    source = np.array([4.0, 8.0, 400.0]), np.array([0.5, 3.0, 20.0])
    axes = draw(plot_returns({"AD": returns}, source=source)).axes[0]
    assert axes.lines[1].get_xdata().tolist() == [4.0] and axes.get_ylim()[1] < 1.5
    later = draw(plot_returns({"AD": returns}, source=(source[0][1:], source[1][1:])))
    assert len(later.axes[0].lines) == 1 and len(later.legends[0].get_texts()) == 1


def test_returns_without_their_tasks_are_refused():
    with pytest.raises(ValueError, match="tasks, repeats, episodes"):
        plot_returns({"AD": np.ones((16, 20))})


def test_film_titles_name_the_arguments_and_are_not_clipped():
    recorder = recorded_pictures(2, np.zeros((216, 216, 3), dtype=np.uint8))
    long = "(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)"
    figure, panels, names = _film_panels(recorder, ["gravity; permutation", f"9.8; {long}", "5; (1, 0)"])
    assert " ".join(names[1]) == "gravity 5, permutation (1, 0)" and len(names[0]) > 1
    for axes, lines in zip(panels, names):
        axes.imshow(np.zeros((216, 216, 3), dtype=np.uint8))
        axes.set_title("\n".join([*lines, "return 3"]), fontsize=8)
    draw(figure)
    for axes in panels:
        title = axes.title.get_window_extent()
        assert figure.bbox.x0 <= title.x0 and title.x1 <= figure.bbox.x1 and title.y1 <= figure.bbox.y1
    assert not panels[0].title.get_window_extent().overlaps(panels[1].title.get_window_extent())


def test_thin_lines_of_large_pictures_stay_and_panels_are_as_large_as_pictures():
    """CartPole's pictures are 400 x 600."""
    picture = np.full((400, 600, 3), 255, dtype=np.uint8)
    picture[:, 301] = 0  # leaving out every other column would lose it
    recorder = recorded_pictures(9, picture)
    kept = recorder.frames[1][0][0]
    assert kept.shape == (200, 300, 3) and kept.min() < 200
    figure, panels, _ = _film_panels(recorder, ["length", *map(str, range(9))])
    panels[0].imshow(kept)
    assert draw(figure) and panels[0].get_window_extent().width >= 290


def test_a_film_of_the_only_task_has_no_argument_to_name():
    assert _film_panels(recorded_pictures(1, np.zeros((9, 9, 3), dtype=np.uint8)), ["-", "-"])[2] == [[]]


def recorded_pictures(n_envs: int, picture: np.ndarray) -> FrameRecorder:
    """A recorder that has seen one picture in each of its environments."""
    tasks = [{"goal": (0, 0), "grid_size": 3, "horizon": 4}] * n_envs
    recorder = FrameRecorder(DarkroomVecEnv(tasks, render_mode="rgb_array"), [1])
    for i in range(n_envs):
        recorder._keep(i, picture)
    return recorder


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
    save_film(recorder, ["goal", "far", "near"], tmp_path / "film.gif")
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
    with pytest.raises(InputError, match="--render: env 'Dark-v0' cannot be drawn") as told:
        check_renders(tiny_config() | {"env": "Dark-v0"}, {})
    path = re.search(r"traceback in (\S+)\)", str(told.value)).group(1)
    assert "Traceback" in Path(path).read_text()


@pytest.mark.parametrize(
    "picture", [None, np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1), np.uint8)]
)
def test_what_is_no_picture_is_told(picture):
    with pytest.raises(InputError, match="expected rgb_array pictures, uint8 of shape"):
        check_picture(picture)


def test_rollouts_in_which_no_episode_ended_are_left_out():
    values = np.array([[np.nan, 1.0, np.nan, 3.0], [np.nan, np.nan, np.nan, 5.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes = plot_per_rollout(values, 0, "return").axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 3] and axes.lines[0].get_ydata().tolist() == [1, 4]
