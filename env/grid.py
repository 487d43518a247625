"""What all tasks in a dark grid share: moves, walls, episodes, batched stepping and drawing.

A task is a `GridTask`, a plain Gymnasium environment that says what arriving at a cell earns. Its
`GridVecEnv` steps many tasks of one kind at once with NumPy; both give the same results.

Letters in shapes: N environments, A actions, P pixels.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

Cell = tuple[int, int]  # (row, column)
MOVES = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])  # (row, column) change per action


def distance(one: Cell, other: Cell) -> int:
    """Moves from one cell to another."""
    return sum(abs(a - b) for a, b in zip(one, other))


def shared_settings(config: dict) -> dict:
    """The arguments that all tasks of a config share; a `horizon` of null leaves the class its own default."""
    return {name: config[name] for name in ("grid_size", "horizon") if config[name] is not None}


class GridTask(gym.Env):
    """One task: the agent sees its own cell, and learns from rewards alone where to go.

    | | |
    |---|---|
    | observation | the cell, (row, column), `MultiDiscrete([grid_size, grid_size])` |
    | actions | 0 row+1, 1 row-1, 2 column+1, 3 column-1, 4 stay; walls stop a move |
    | reward | 0.0, except where a subclass says otherwise |
    | end | truncated after `horizon` steps; terminated where a subclass says so |

    Args:
        grid_size: rows and columns.
        horizon: steps per episode.
        start: the cell where every episode starts; None for the centre.
        render_mode: "ansi" (text), "rgb_array" (image), or None.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 5}

    def __init__(self, grid_size: int, horizon: int, start: Cell | None = None, render_mode: str | None = None):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is '{render_mode}', expected one of {self.metadata['render_modes']} or None")
        self.grid_size, self.horizon, self.render_mode = grid_size, horizon, render_mode
        self.start = self.as_cell("start", (grid_size // 2,) * 2 if start is None else start)
        self.moves = MOVES
        self.observation_space = gym.spaces.MultiDiscrete([grid_size, grid_size])
        self.action_space = gym.spaces.Discrete(len(MOVES))
        self.steps_taken, self.cell = 0, np.array(self.start)

    def as_cell(self, name: str, cell: Cell) -> Cell:
        """`cell` as a tuple of integers, checked to lie in the grid."""
        cell = tuple(int(c) for c in cell)
        if len(cell) != 2 or not all(0 <= c < self.grid_size for c in cell):
            raise ValueError(f"{name} {cell} lies outside the {self.grid_size}x{self.grid_size} grid")
        return cell

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps_taken, self.cell = 0, np.array(self.start)
        return self.cell.copy(), {}

    def step(self, action):
        self.cell = np.clip(self.cell + self.moves[action], 0, self.grid_size - 1)
        self.steps_taken += 1
        reward, terminated = self.arrive()
        return self.cell.copy(), reward, terminated, self.steps_taken >= self.horizon, {}

    def arrive(self) -> tuple[float, bool]:
        """Reward of the step that has just ended on `cell`, and whether it terminates the episode."""
        raise NotImplementedError

    def marks(self) -> list[tuple[str, Cell, bool]]:
        """What there is to draw besides the agent: kind (a key of `MARKS`), cell, whether it is used up."""
        raise NotImplementedError

    def render(self):
        if self.render_mode is None:
            return None
        return grid_text(self) if self.render_mode == "ansi" else grid_image(self)


class GridVecEnv(VecEnv):
    """Many tasks of one kind stepped at once, with the results of SB3's DummyVecEnv of them.

    Args:
        tasks: one dict of `task_class` keyword arguments per environment; all of one size and horizon.
        render_mode: "rgb_array" for `get_images()` and `render()`, or None.
    """

    task_class: type[GridTask]

    def __init__(self, tasks: list[dict], render_mode: str | None = None):
        name = type(self).__name__
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is '{render_mode}', expected rgb_array or None; a {name} has no other")
        self.envs = [self.task_class(**task, render_mode=render_mode) for task in tasks]  # never stepped
        first = self.envs[0]
        if any((e.grid_size, e.horizon) != (first.grid_size, first.horizon) for e in self.envs):
            raise ValueError(f"all tasks of one {name} need the same grid_size and horizon")
        self.grid_size, self.horizon = first.grid_size, first.horizon
        self.everyone = np.arange(len(tasks))
        self.moves = np.stack([e.moves for e in self.envs])  # (N, A, 2)
        self.starts = np.array([e.start for e in self.envs])  # (N, 2)
        self.cells = self.starts.copy()  # (N, 2)
        self.steps_taken = np.zeros(len(tasks), dtype=np.int64)  # (N,) in each environment's episode
        super().__init__(len(tasks), first.observation_space, first.action_space)

    def reset(self):
        self.begin_episodes(np.ones(self.num_envs, dtype=bool))
        self._reset_seeds()
        self._reset_options()
        return self.cells.copy()

    def begin_episodes(self, which: np.ndarray) -> None:
        """Start anew in the environments where `which`, (N,), is True; arrays handed out before stay as they are."""
        self.cells = np.where(which[:, None], self.starts, self.cells)
        self.steps_taken = np.where(which, 0, self.steps_taken)
        for i in np.flatnonzero(which):
            self.reset_infos[i] = {}

    def step_async(self, actions):
        self.actions = np.asarray(actions)

    def step_wait(self):
        self.cells = np.clip(self.cells + self.moves[self.everyone, self.actions], 0, self.grid_size - 1)
        self.steps_taken += 1
        rewards, terminated = self.arrive()
        truncated = self.steps_taken >= self.horizon
        ended = terminated | truncated
        infos = [{"TimeLimit.truncated": was_cut} for was_cut in (truncated & ~terminated).tolist()]
        for i in np.flatnonzero(ended):
            infos[i]["terminal_observation"] = self.cells[i]
        if ended.any():
            self.begin_episodes(ended)
        return self.cells.copy(), rewards, ended, infos

    def arrive(self) -> tuple[np.ndarray, np.ndarray]:
        """`GridTask.arrive` of all environments: (N,) float32 rewards, (N,) bool terminated."""
        raise NotImplementedError

    def scalar(self, i: int) -> GridTask:
        """Environment `i` as a `GridTask` in its current state; to look at, not to step."""
        task = self.envs[i]
        task.cell, task.steps_taken = self.cells[i].copy(), int(self.steps_taken[i])
        return task

    def image_at(self, i: int, cell: np.ndarray) -> np.ndarray:
        """A picture of environment `i` with the agent on `cell`, such as the last one of an episode."""
        task = self.scalar(i)
        task.cell = cell
        return task.render()

    def get_images(self):
        return [self.scalar(i).render() for i in range(self.num_envs)]

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        return [getattr(self.scalar(i), attr_name) for i in self._get_indices(indices)]

    def set_attr(self, attr_name, value, indices=None):
        raise NotImplementedError(f"{type(self).__name__} tasks are fixed; build a new one instead")

    def env_method(self, method_name, *args, indices=None, **kwargs):
        remedy = f"use DummyVecEnv of {self.task_class.__name__}"
        raise NotImplementedError(f"{type(self).__name__} has no scalar environments to call; {remedy}")

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False for _ in self._get_indices(indices)]


# Drawing ------------------------------------------------------------------------------------------

CELL_PIXELS = 24
FLOOR, LINE = (45, 45, 45), (75, 75, 75)
_x = (np.arange(CELL_PIXELS) + 0.5) / CELL_PIXELS * 2 - 1  # -1 to 1 across a cell
_radius = np.hypot(_x[:, None], _x)  # (P, P)
# Okabe and Ito's palette, safe for colour-blind readers; shapes and brightness tell them apart in grey
MARKS = {
    "goal": ("G", (240, 228, 66), np.maximum(abs(_x[:, None]), abs(_x)) < 0.85),  # a bright square
    "key": ("K", (230, 159, 0), (_radius > 0.45) & (_radius < 0.8)),  # a ring
    "door": ("D", (86, 180, 233), (abs(_x[:, None]) < 0.85) & (abs(_x) < 0.4)),  # an upright bar
}


def grid_text(task: GridTask) -> str:
    """One line per row: `.` floor, `A` agent, `*` agent on a mark, a mark's letter, small where it is used up."""
    letters = np.full((task.grid_size, task.grid_size), ".")
    for kind, cell, is_used in task.marks():
        letter, *_ = MARKS[kind]
        letters[cell] = letter.lower() if is_used else letter
    agent = tuple(task.cell)
    letters[agent] = "A" if letters[agent] == "." else "*"
    return "\n".join("".join(line) for line in letters)


def grid_image(task: GridTask) -> np.ndarray:
    """(P, P, 3) uint8: marks, dimmed where they are used up, and the agent as a white disc with a black rim."""
    tile = np.full((CELL_PIXELS, CELL_PIXELS, 3), FLOOR, dtype=np.uint8)
    tile[0], tile[:, 0] = LINE, LINE
    image = np.tile(tile, (task.grid_size, task.grid_size, 1))

    def paint(cell: Cell, shape: np.ndarray, colour: tuple[int, ...]) -> None:
        row, column = (c * CELL_PIXELS for c in cell)
        image[row : row + CELL_PIXELS, column : column + CELL_PIXELS][shape] = colour

    for kind, cell, is_used in task.marks():
        _, colour, shape = MARKS[kind]
        paint(cell, shape, tuple(c // 2 for c in colour) if is_used else colour)
    paint(task.cell, _radius < 0.62, (0, 0, 0))
    paint(task.cell, _radius < 0.5, (255, 255, 255))
    return image
