"""CartPole whose gravity and pole length can be set, so that they can differ between tasks."""

from __future__ import annotations

from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class CartPoleTask(CartPoleEnv):
    """Gymnasium's CartPole; the defaults are its own values.

    Args:
        gravity: in m/s^2.
        length: half the pole's length, in m. The pole's mass stays the same.
        settings: CartPole's own, `render_mode` and `sutton_barto_reward`.
    """

    def __init__(self, gravity: float = 9.8, length: float = 0.5, **settings):
        super().__init__(**settings)
        if gravity <= 0 or length <= 0:
            raise ValueError(f"gravity {gravity} and length {length} must be above 0")
        self.gravity, self.length = float(gravity), float(length)
        self.polemass_length = self.masspole * self.length  # CartPole computes it once, from its own length
