"""Films of the agent: pictures of chosen episodes, side by side, as a GIF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

import env
from plots.style import new_figure, styled
from utils import InputError, make_folder, one_line, write_atomically

if TYPE_CHECKING:
    from model.ad import AD

N_COLOURS = 64  # of a GIF's palette; pictures of grids have fewer
FILMED_EPISODES = (1, 2, 5, 10, 20)
MOST_TASKS = 9  # side by side
MOST_PIXELS = 200  # of a picture's longer side; larger ones are thinned
MOST_FRAMES = 100  # of an episode; of longer ones every n-th step is shown


def check_renders(config: dict, task: dict) -> None:
    """Raise InputError where the environment cannot draw itself."""
    try:
        made = env.make_env(config, task, render_mode="rgb_array")
        made.reset()
        picture = made.render()
        made.close()
    except Exception as error:  # whatever a user's environment raises, or a library that it draws with
        raise InputError(f"--render: env '{config['env']}' cannot be drawn here: {one_line(error)}") from None
    if not isinstance(picture, np.ndarray):
        raise InputError(f"--render: env '{config['env']}' draws no rgb_array, but {type(picture).__name__}")


def film_tasks(model: AD, config: dict, tasks: list[dict], episodes: int, seed: int) -> FrameRecorder:
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
        thinning = -(-max(picture.shape[:2]) // MOST_PIXELS)
        self.frames[self.episode[i]][i].append(picture[::thinning, ::thinning].copy())
        self.returns[self.episode[i]][i].append(self.episode_return[i])


def save_film(recorder: FrameRecorder, names: list[str], path: Path, frames_per_second: int = 10) -> None:
    """Write the episodes of a recorder one after another, all environments side by side, as a GIF.

    Args:
        names: what to call the environments, in their order.
    """
    pictures = _draw_film(recorder, names)
    milliseconds = 1000 // frames_per_second
    make_folder(path.parent)
    write_atomically(
        path,
        lambda temporary: pictures[0].save(
            temporary, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0
        ),
    )


@styled
def _draw_film(recorder: FrameRecorder, names: list[str]) -> list[Image.Image]:
    columns = int(np.ceil(np.sqrt(recorder.num_envs)))
    rows = -(-recorder.num_envs // columns)
    figure, panels = new_figure(1.7 * columns, 1.9 * rows + 0.3, rows, columns, squeeze=False)
    canvas, shown = FigureCanvasAgg(figure), []
    for axes in panels.flat:
        axes.set_axis_off()
    for episode in recorder.episodes:
        frames, returns = recorder.frames[episode], recorder.returns[episode]
        for step in range(max(map(len, frames))):
            figure.suptitle(f"episode {episode} in context")
            for i, axes in enumerate(list(panels.flat)[: recorder.num_envs]):
                if not frames[i]:
                    continue
                at = min(step, len(frames[i]) - 1)  # an episode that has ended waits for the others
                axes.set_title(f"{names[i]}: {returns[i][at]:g}")
                if axes.images:
                    axes.images[0].set_data(frames[i][at])
                else:
                    axes.imshow(frames[i][at])
            canvas.draw()
            picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
            shown.append(picture.quantize(N_COLOURS))
    return shown
