"""Films of the agent: pictures of chosen episodes, side by side, as a GIF."""

from __future__ import annotations

import os
import sys
from ctypes.util import find_library
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

import env
from files import InputError, describe_foreign_error, make_folder, write_atomically
from model.interface import Model
from plots.style import new_figure, styled

N_COLOURS = 64  # of a GIF's palette; pictures of grids have fewer
FILMED_EPISODES = (1, 2, 5, 10, 20)
MOST_TASKS = 9  # side by side
MOST_PIXELS = 320  # of a picture's longer side; larger ones are made smaller
DOTS_PER_INCH = 100
LEAST_WIDTH = 2.0  # of a panel, in inches: its title needs room
CHARACTERS_PER_INCH = 13  # of a title
MOST_TITLE_LINES = 4  # for a task's arguments
MILLISECONDS = 100  # that a picture is shown
MOST_FRAMES = 100  # of an episode; of longer ones every n-th step is shown


def check_renders(config: dict, task: dict) -> None:
    """Raise InputError where the environment cannot draw itself."""
    advice = choose_renderers()
    try:
        made = env.make_vec_env(config, [task], render_mode="rgb_array")
        made.reset()
        (picture,) = made.get_images()
        made.close()
    except Exception as error:  # whatever a user's environment raises, or a library that it draws with
        raise InputError(
            f"--render: env '{config['env']}' cannot be drawn here: {describe_foreign_error(error)}; {advice}leave --render out"
        ) from error
    check_picture(picture)


def check_picture(picture: object) -> None:
    """Raise InputError where an environment has not drawn what a film is made of."""
    is_array = isinstance(picture, np.ndarray)
    if not is_array or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (3, 4):
        got = f"{picture.dtype} of shape {picture.shape}" if is_array else type(picture).__name__
        raise InputError(
            f"--render: expected rgb_array pictures, uint8 of shape (height, width, 3), from environments that keep their "
            f"render_mode; got {got}; mend the environment, or leave --render out"
        )


def choose_renderers() -> str:
    """Without a screen, let MuJoCo draw with EGL or OSMesa; where there is neither, return what to install.

    Left to itself it takes GLFW, which fails only when it draws. SDL, which Gymnasium's own environments draw with, would
    print an error and go on.
    """
    if sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        return ""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if "MUJOCO_GL" in os.environ:
        return ""
    for library, name in (("EGL", "egl"), ("OSMesa", "osmesa")):
        if find_library(library):
            os.environ["MUJOCO_GL"] = name
            return ""
    return "if it is one of MuJoCo's, install a library that draws without a screen (apt-get install libegl1); "


def film_tasks(model: Model, config: dict, tasks: list[dict], episodes: int, seed: int) -> FrameRecorder:
    """One repeat of each of the first tasks; pictures of `FILMED_EPISODES` and of the last one."""
    chosen = [episode for episode in FILMED_EPISODES if episode < episodes] + [episodes]
    longest = env.max_episode_steps(config)
    vec_env = env.make_vec_env(config, tasks[:MOST_TASKS], render_mode="rgb_array")
    recorder = FrameRecorder(vec_env, chosen, every=-(-longest // MOST_FRAMES))
    recorder.seed(seed)
    model.evaluate_in_context(recorder, episodes * longest, seed=seed, n_episodes=episodes)
    recorder.close()
    return recorder


class FrameRecorder(VecEnvWrapper):
    """Keeps pictures of every environment in some of its episodes: before the steps, and of the end.

    Args:
        vec_env: its environments have the render mode `rgb_array`.
        episodes: which to keep, counted from 1.
        every: n, to keep every n-th step only.

    Attributes:
        frames: per chosen episode, per environment, a list of (H, W, 3) uint8 pictures.
        returns: likewise the return so far at each picture.
    """

    def __init__(self, vec_env: VecEnv, episodes: list[int], every: int = 1):
        super().__init__(vec_env)
        self.episodes, self.every = episodes, every
        self.frames = {episode: [[] for _ in range(self.num_envs)] for episode in episodes}
        self.returns = {episode: [[] for _ in range(self.num_envs)] for episode in episodes}
        self.episode, self.step_in_episode = np.ones(self.num_envs, dtype=int), np.zeros(self.num_envs, dtype=int)
        self.episode_return = np.zeros(self.num_envs)

    def reset(self) -> np.ndarray:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        shown = np.flatnonzero(np.isin(self.episode, self.episodes) & (self.step_in_episode % self.every == 0))
        pictures = self.venv.get_images() if len(shown) else []
        for i in shown:
            self._keep(i, pictures[i])
        self.venv.step_async(actions)

    def step_wait(self) -> tuple:
        observations, rewards, dones, infos = self.venv.step_wait()
        self.episode_return += rewards
        self.step_in_episode += 1
        for i in np.flatnonzero(dones & np.isin(self.episode, self.episodes)):
            if hasattr(self.venv, "image_at"):
                self._keep(i, self.venv.image_at(i, infos[i]["terminal_observation"]))
            else:  # the next episode has already begun: the last picture stands for the end
                self._keep(i, self.frames[self.episode[i]][i][-1])
        self.episode += dones
        self.episode_return[dones], self.step_in_episode[dones] = 0.0, 0
        return observations, rewards, dones, infos

    def _keep(self, i: int, picture: np.ndarray) -> None:
        check_picture(picture)
        factor = -(-max(picture.shape[:2]) // MOST_PIXELS)
        if factor > 1:  # averages blocks: leaving pixels out would break thin lines, such as CartPole's pole
            picture = np.asarray(Image.fromarray(picture).reduce(factor))
        self.frames[self.episode[i]][i].append(picture.copy())
        self.returns[self.episode[i]][i].append(self.episode_return[i])


def save_film(recorder: FrameRecorder, labels: list[str], path: Path) -> None:
    """Write the episodes of a recorder one after another, all environments side by side, as a GIF.

    Args:
        labels: a heading, then one per environment, as `env.task_labels` gives them.
    """
    first, *others = _draw_film(recorder, labels)
    options = {"save_all": True, "append_images": others, "duration": MILLISECONDS, "loop": 0}
    make_folder(path.parent)
    write_atomically(path, lambda temporary: first.save(temporary, "GIF", **options))


@styled
def _draw_film(recorder: FrameRecorder, labels: list[str]) -> list[Image.Image]:
    figure, panels, names = _film_panels(recorder, labels)
    canvas, heading, shown = FigureCanvasAgg(figure), figure.suptitle(" "), []
    for episode in recorder.episodes:
        frames, returns = recorder.frames[episode], recorder.returns[episode]
        for step in range(max(map(len, frames))):
            heading.set_text(f"episode {episode} in context")
            for i, axes in enumerate(panels):
                if not frames[i]:
                    continue
                at = min(step, len(frames[i]) - 1)  # an episode that has ended waits for the others
                axes.set_title("\n".join([*names[i], f"return {returns[i][at]:.4g}"]), fontsize=8, parse_math=False)
                if axes.images:
                    axes.images[0].set_data(frames[i][at])
                else:
                    axes.imshow(frames[i][at])
            canvas.draw()
            figure.set_layout_engine("none")  # the first layout stays: it is slow, and panels should not move
            picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
            shown.append(picture.quantize(N_COLOURS))
    return shown


def _film_panels(recorder: FrameRecorder, labels: list[str]) -> tuple[Figure, list[Axes], list[list[str]]]:
    """A figure with a panel per environment, as large as its pictures, and the lines that name each one's task."""
    pictures = [picture for episode in recorder.frames.values() for frames in episode for picture in frames]
    height, width = np.max([picture.shape[:2] for picture in pictures], axis=0) / DOTS_PER_INCH
    width = max(width, LEAST_WIDTH)
    names = [wrap(name, int(width * CHARACTERS_PER_INCH)) for name in _task_names(labels)]
    names = [[*lines[: MOST_TITLE_LINES - 1], "..."] if len(lines) > MOST_TITLE_LINES else lines for lines in names]
    columns = int(np.ceil(np.sqrt(recorder.num_envs)))
    rows = -(-recorder.num_envs // columns)
    title_height = 0.15 * (1 + max(map(len, names)))
    figure, panels = new_figure(
        (width + 0.1) * columns, (height + title_height + 0.1) * rows + 0.3, rows, columns, squeeze=False
    )
    figure.set_dpi(DOTS_PER_INCH)
    for axes in panels.flat:
        axes.set_axis_off()
    return figure, list(panels.flat)[: recorder.num_envs], names


def _task_names(labels: list[str]) -> list[str]:
    """Each task's arguments with their names, from a heading "a; b" and labels "1; 2": "a 1, b 2".

    A heading "-" has none: then no argument differs between tasks.
    """
    if labels[0] == "-":
        return [""] * len(labels[1:])
    heading, *values = [label.split("; ") for label in labels]
    return [", ".join(f"{name} {value}" for name, value in zip(heading, row)) for row in values]
