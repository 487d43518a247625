"""CartPole whose gravity and pole length can be set, so that they can differ between tasks."""

from __future__ import annotations

from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class CartPoleTask(CartPoleEnv):
    """Gymnasium's CartPole; the defaults are its own values.

    Args:
        gravity: in m/s^2.
        length: half the pole's length, in m. The pole's mass stays the same.
        render_mode, sutton_barto_reward: as in CartPole.
    """

    def __init__(
        self,
        gravity: float = 9.8,
        length: float = 0.5,
        sutton_barto_reward: bool = False,
        render_mode: str | None = None,
    ):
        super().__init__(sutton_barto_reward=sutton_barto_reward, render_mode=render_mode)
        if gravity <= 0 or length <= 0:
            raise ValueError(f"gravity {gravity} and length {length} must be above 0")
        self.gravity, self.length = float(gravity), float(length)
        self.polemass_length = self.masspole * self.length  # CartPole computes it once, from its own length
