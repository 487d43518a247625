"""MuJoCo tasks of which the agent is not told what differs between them: Reacher's target, HalfCheetah's speed."""

from __future__ import annotations

import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv

REACH = 0.2  # of the arm, in m


class ReacherTask(ReacherEnv):
    """Gymnasium's Reacher with one target for all episodes; rewards and observations are its own.

    Entries 4, 5, 8 and 9 of the observation tell where the target is: a wrapper should leave them out.

    Args:
        angle, radius: place of the target, in radians and in m from the arm's base.
        settings: Reacher's own.
    """

    def __init__(self, angle: float = 0.0, radius: float = 0.1, **settings):
        if not 0 < radius < REACH:
            raise ValueError(f"radius {radius}: expected a number between 0 and {REACH}, the arm's reach")
        self.target = radius * np.array([np.cos(angle), np.sin(angle)])
        super().__init__(**settings)

    def reset_model(self):
        super().reset_model()  # it draws a target of its own
        self.goal, qpos = self.target, self.data.qpos.copy()
        qpos[2:] = self.target
        self.set_state(qpos, self.data.qvel.copy())
        return self._get_obs()


class HalfCheetahVel(HalfCheetahEnv):
    """HalfCheetah that is to run at a speed which it is not told.

    The reward is minus the difference from that speed, minus 0.05 times the squared action, and episodes have 200
    steps: MAML (arXiv:1703.03400, section 5.3 and its code), which draws speeds from 0 to 2 m/s.

    Args:
        velocity: the wanted speed, in m/s.
        settings: HalfCheetah's own.
    """

    def __init__(self, velocity: float = 1.0, **settings):
        self.velocity = velocity
        super().__init__(**{"ctrl_cost_weight": 0.05} | settings)

    def _get_rew(self, x_velocity: float, action: np.ndarray):
        error, cost = abs(x_velocity - self.velocity), self.control_cost(action)
        return -error - cost, {"reward_forward": -error, "reward_ctrl": -cost}
