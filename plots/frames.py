"""Films of the agent: pictures of chosen episodes, side by side, as a GIF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from plots.style import new_figure, styled
from utils import make_folder, write_atomically

N_COLOURS = 64  # of a GIF's palette; pictures of grids have fewer


class FrameRecorder(VecEnvWrapper):
    """Keeps a picture of every environment before each step of some of its episodes.

    Args:
        vec_env: its environments have the render mode `rgb_array`.
        episodes: which to keep, counted from 1.

    Attributes:
        frames: per chosen episode, per environment, a list of (H, W, 3) uint8 pictures.
        returns: likewise the return before the step of each picture.
    """

    def __init__(self, vec_env: VecEnv, episodes: list[int]):
        super().__init__(vec_env)
        self.episodes = episodes
        self.frames = {episode: [[] for _ in range(self.num_envs)] for episode in episodes}
        self.returns = {episode: [[] for _ in range(self.num_envs)] for episode in episodes}
        self.episode, self.episode_return = np.ones(self.num_envs, dtype=int), np.zeros(self.num_envs)

    def reset(self) -> np.ndarray:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        filmed = np.flatnonzero(np.isin(self.episode, self.episodes))
        pictures = self.venv.get_images() if len(filmed) else []
        for i in filmed:
            self.frames[self.episode[i]][i].append(pictures[i])
            self.returns[self.episode[i]][i].append(self.episode_return[i])
        self.venv.step_async(actions)

    def step_wait(self) -> tuple:
        observations, rewards, dones, infos = self.venv.step_wait()
        self.episode_return = np.where(dones, 0.0, self.episode_return + rewards)
        self.episode += dones
        return observations, rewards, dones, infos


def save_film(recorder: FrameRecorder, names: list[str], path: Path, frames_per_second: int = 10) -> None:
    """Write the episodes of a recorder one after another, all environments side by side, as a GIF.

    Args:
        names: what to call each environment.
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
    columns = int(np.ceil(np.sqrt(len(names))))
    rows = -(-len(names) // columns)
    figure, panels = new_figure(1.7 * columns, 1.9 * rows + 0.3, rows, columns, squeeze=False)
    canvas, shown = FigureCanvasAgg(figure), []
    for axes in panels.flat:
        axes.set_axis_off()
    for episode in recorder.episodes:
        frames, returns = recorder.frames[episode], recorder.returns[episode]
        for step in range(max(map(len, frames))):
            figure.suptitle(f"episode {episode} in context")
            for i, axes in enumerate(list(panels.flat)[: len(names)]):
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
