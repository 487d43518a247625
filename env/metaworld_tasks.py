"""Meta-World's reach-v3 with a goal that is not observed; needs the package metaworld."""

from __future__ import annotations

import numpy as np

try:
    from metaworld.envs.sawyer_reach_v3 import SawyerReachEnvV3
except ImportError as error:
    raise ImportError("Meta-World is not installed: pip install -r requirements-metaworld.txt") from error


class ReachTask(SawyerReachEnvV3):
    """Move the gripper to a place in space, the same one in all episodes.

    Observations are Meta-World's 39 entries with zeros in place of the goal. Rewards are its version v2, from 0 to 10 per
    step (arXiv:1910.10897 and its code). The object, which does not matter here, lies where Meta-World has it by default.

    Args:
        goal_x, goal_y, goal_z: the place, in m; Meta-World draws it from [-0.1, 0.1] x [0.8, 0.9] x [0.05, 0.3].
        settings: reach-v3's own, such as `render_mode`.
    """

    def __init__(self, goal_x: float = 0.0, goal_y: float = 0.85, goal_z: float = 0.2, **settings):
        super().__init__(reward_function_version="v2", **settings)
        goal = np.array([goal_x, goal_y, goal_z])
        self._last_rand_vec = np.hstack([self.init_config["obj_init_pos"], goal])  # Meta-World's way to fix a task ...
        self._freeze_rand_vec = self._set_task_called = self._partially_observable = True  # ... and to hide its goal
