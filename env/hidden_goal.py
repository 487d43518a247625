"""A MiniGrid room in which one cell, unseen, is the goal."""

from __future__ import annotations

import numpy as np
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Floor
from minigrid.minigrid_env import MiniGridEnv

COLOURS = ("red", "green", "blue", "yellow")  # of the four quarters of the floor: they tell where the agent is


class HiddenGoal(MiniGridEnv):
    """The agent starts in the middle, looking to the right; nothing it sees tells where the goal is.

    | | |
    |---|---|
    | observation | MiniGrid's: what lies before the agent, its direction, the mission |
    | actions | MiniGrid's: 0 turn left, 1 turn right, 2 go on; 3 to 6 do nothing here |
    | reward | 1 for the step onto the goal, which ends the episode |

    Args:
        goal: the number of the cell, row by row, without the start.
        width: of the room, in cells, without its walls.
        settings: MiniGrid's own.
    """

    def __init__(self, goal: int = 0, width: int = 5, max_steps: int = 30, **settings):
        self.start = 1 + width // 2, 1 + width // 2
        cells = [(x, y) for y in range(1, width + 1) for x in range(1, width + 1) if (x, y) != self.start]
        if not 0 <= goal < len(cells):
            raise ValueError(f"goal {goal}: expected 0 to {len(cells) - 1}, a cell of the {width}x{width} room")
        self.goal = cells[goal]
        mission = MissionSpace(lambda: "find the goal")
        super().__init__(mission, grid_size=width + 2, max_steps=max_steps, see_through_walls=True, **settings)

    @property
    def optimal_return(self) -> float:
        (x, y), (start_x, start_y) = self.goal, self.start
        turns = 2 if x < start_x else int(y != start_y)  # it looks to the right at first
        return float(turns + abs(x - start_x) + abs(y - start_y) <= self.max_steps)

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        for x, y in np.ndindex(width - 2, height - 2):
            quarter = 2 * (2 * y >= height - 2) + (2 * x >= width - 2)
            self.grid.set(x + 1, y + 1, Floor(COLOURS[quarter]))
        self.agent_pos, self.agent_dir, self.mission = self.start, 0, "find the goal"

    def step(self, action):
        observation, _, _, truncated, info = super().step(action)
        found = tuple(self.agent_pos) == self.goal
        return observation, float(found), found, truncated and not found, info
