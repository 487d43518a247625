"""The tabulated policy is SB3's own, evaluated once per possible observation."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from algorithm.tabulated import TabulatedPolicy, policy_for

SPACES = [
    (Discrete(5), Discrete(3)),
    (MultiDiscrete([3, 4]), Discrete(5)),
    (MultiDiscrete([2, 2, 3]), MultiDiscrete([3, 2])),
]


class Free(gym.Env):
    """Observations are drawn; they depend on nothing."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space, self.n = observation_space, action_space, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action if np.ndim(action) else np.int64(action))
        self.n += 1
        return self.observation_space.sample(), float(np.sum(action)), self.n % 7 == 0, False, {}


def learners(spaces):
    """PPO with SB3's policy and with the tabulated one, of the same weights."""
    both = []
    for policy in ("MlpPolicy", TabulatedPolicy):
        vec_env = make_vec_env(lambda: Free(*spaces), n_envs=4, seed=0)
        both.append(
            PPO(policy, vec_env, n_steps=16, batch_size=32, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
        )
    both[1].policy.load_state_dict(both[0].policy.state_dict())
    return both


@pytest.mark.parametrize("spaces", SPACES, ids=str)
def test_losses_and_gradients_are_those_of_sb3(spaces):
    usual, tabulated = (learner.policy for learner in learners(spaces))
    rng = np.random.default_rng(0)
    observations, actions = (
        torch.from_numpy(np.stack([rng.integers(np.ravel(n)) for _ in range(50)])).float()
        for n in (space.nvec if isinstance(space, MultiDiscrete) else [space.n] for space in spaces)
    )
    actions = actions if isinstance(spaces[1], MultiDiscrete) else actions[:, 0]
    grads = []
    for policy in (usual, tabulated):
        policy.set_training_mode(True)
        values, log_prob, entropy = policy.evaluate_actions(observations, actions)
        (values.flatten().square() + log_prob + 0.1 * entropy).mean().backward()
        grads.append([p.grad for p in policy.parameters()])
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("spaces", SPACES, ids=str)
def test_a_rollout_is_that_of_the_policy(spaces):
    usual, tabulated = (learner.policy for learner in learners(spaces))
    observation = torch.zeros(1, len(np.ravel(spaces[0].sample())))
    many = observation.expand(20_000, -1)
    for policy in (usual, tabulated):
        policy.set_training_mode(False)
    with torch.no_grad():
        actions, values, log_prob = tabulated(many)
        expected_values, expected, _ = usual.evaluate_actions(many, actions)
        torch.testing.assert_close(log_prob, expected)
        torch.testing.assert_close(values, expected_values)
        torch.testing.assert_close(tabulated.predict_values(many), expected_values)
        for deterministic in (True, False):  # how often each value of each entry was drawn
            drawn, as_sb3 = (policy(many, deterministic=deterministic)[0].float() for policy in (tabulated, usual))
            torch.testing.assert_close(drawn.mean(0), as_sb3.mean(0), atol=0.03, rtol=0)
            torch.testing.assert_close(drawn.std(0), as_sb3.std(0), atol=0.03, rtol=0)


def test_the_table_follows_the_weights():
    learner = learners(SPACES[0])[1]
    learner.learn(2 * 4 * 16)
    policy, every = learner.policy, torch.arange(5)[:, None]
    policy.set_training_mode(False)
    with torch.no_grad():
        before = policy.predict_values(every)
        assert policy.held is not None
        policy.value_net.bias += 1.0
        policy.set_training_mode(False)
        torch.testing.assert_close(policy.predict_values(every), before + 1.0)


def test_it_is_used_where_it_can_be():
    def chosen(observations, actions, most=100):
        return policy_for(make_vec_env(lambda: Free(observations, actions)), most)

    assert chosen(MultiDiscrete([10, 10]), Discrete(2)) is TabulatedPolicy
    assert chosen(MultiDiscrete([10, 11]), Discrete(2)) == "MlpPolicy"
    assert chosen(MultiDiscrete([2**20] * 8), Discrete(2)) == "MlpPolicy"
    assert chosen(Discrete(2), Box(-1, 1, (1,))) == "MlpPolicy"
    assert chosen(Box(0, 1, (1,)), Discrete(2)) == "MlpPolicy"
