"""A source that explores on purpose: a posterior sampler over the training tasks' policies.

A first pass of PPO solves the training tasks. The explorer meets a task without knowing which it is. In each
episode it follows the policy of one training task, drawn by how well that task explains what the stream has
seen (posterior sampling, also named Thompson sampling; Osband et al., arXiv:1306.0940). It never computes which
one it drew: given its actions so far, the mixture of all policies that may be in use has the same distribution,
and is what an ideal student of its histories would predict. So the mixture is what `action_probs` hold.

Letters in shapes: E streams, K training tasks, A actions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

import env
from algorithm.knowledge import MOST_PAID, Knowledge, learn_from, plan
from algorithm.source import Recorder, reached_observations
from files import InputError
from history.format import history_path

ELSEWHERE = 0.3  # weight of evidence from situations of other numbers of rewards: a key tells a little of the door
UNKNOWN_TASK = -30.0  # log-likelihood that the task is none of the known ones: less than one contradiction costs
SURPRISE = 3.0  # deviations
UNLIKELY = 1e-4  # chance of an action that a policy never takes: no task is given up for one action


class Explorer:
    """Every stream is a learner of its own.

    Args:
        config, vec_env, seed, log_dir: those of `Source`.
        prepared: what the training tasks' histories teach.
    """

    def __init__(self, config: dict, vec_env: VecEnv, seed: int, log_dir: str | None = None, *, prepared: Knowledge):
        self.config, self.vec_env, self.known = config, vec_env, prepared
        self.rng = np.random.default_rng(seed)
        vec_env.seed(seed)

    @staticmethod
    def prepare(config: dict, traj_dir: Path) -> Knowledge:
        """Learn from the first pass: the history file of `learns_from`, training tasks only."""
        path = history_path(config | {"alg": config["learns_from"]}, traj_dir)
        if not path.is_file():
            raise InputError(
                f"{path}: not found; alg: Explorer follows policies that it holds, so collect it first, with the same "
                f"env and an algorithm config of alg: {config['learns_from']}"
            )
        return learn_from(path, env.split_tasks(config)["train"], **env.describe_spaces(config))

    def run(self) -> dict[str, np.ndarray]:
        n_steps, E = self.config["n_steps"], self.vec_env.num_envs
        recorder, beliefs = Recorder(self.vec_env, n_steps), Beliefs(self.known, E)
        states = self.vec_env.reset()
        for step in range(-(-self.config["total_source_timesteps"] // (n_steps * E)) * n_steps):
            if step % n_steps == 0:
                recorder.start_region()
            probs = beliefs.predict(states.reshape(E, -1))
            actions = (probs.cumsum(axis=1) < self.rng.random((E, 1))).sum(axis=1).clip(max=probs.shape[1] - 1)
            after, rewards, dones, infos = self.vec_env.step(actions)
            reached = reached_observations(after, dones, infos)
            beliefs.learn(actions, rewards, reached.reshape(E, -1), dones)
            recorder.step(states, actions, rewards, reached, dones, {"action_probs": probs})
            states = after
        return recorder.history()


class Beliefs:
    """Which training task each stream is likely to be in, and which one's policy it is likely to follow.

    Letters: P numbers of rewards that an episode may have brought so far.

    evidence: (E, P, K + 1) log-likelihood of what the stream has seen after so many rewards. intent: (E, K + 1)
    that of the episode's actions since the last reward. The last entry is for none of the training tasks: it pays where
    it has paid to this stream before.
    """

    def __init__(self, known: Knowledge, n_streams: int):
        self.known, self.numbers = known, known.numbers
        K, X, A = known.policies.shape
        self.everyone = np.arange(n_streams)
        self.evidence = np.zeros((n_streams, MOST_PAID + 1, K + 1))
        self.prior = np.append(np.zeros(K), UNKNOWN_TASK)
        self.intent = np.zeros((n_streams, K + 1))
        self.own_policies = np.full((n_streams, X, A), 1 / A, dtype=np.float32)
        self.own_rewards = np.zeros((n_streams, X))  # the newest one by where a step led
        self.n_paid = np.zeros(n_streams, dtype=np.int64)  # rewards of the episode so far

    def predict(self, states: np.ndarray) -> np.ndarray:
        """(E, entries) observations to the mixture of the policies, (E, A)."""
        self.situations = self.numbers.situations(self.numbers.observations(states), self.n_paid)
        policies = self.known.policies[:, self.situations].swapaxes(0, 1)
        own = self.own_policies[self.everyone, self.situations]
        self.policies = np.concatenate([policies, own[:, None]], axis=1)  # (E, K + 1, A)
        here = self.evidence[self.everyone, np.minimum(self.n_paid, MOST_PAID)]
        weights = self.prior + ELSEWHERE * self.evidence.sum(axis=1) + (1 - ELSEWHERE) * here + self.intent
        weights = np.exp(weights - weights.max(axis=1, keepdims=True))
        return np.einsum("ek,eka->ea", weights / weights.sum(axis=1, keepdims=True), self.policies)

    def learn(self, actions: np.ndarray, rewards: np.ndarray, reached: np.ndarray, dones: np.ndarray) -> None:
        """Take what followed, (E,) each; `reached` (E, entries)."""
        known, phase = self.known, np.minimum(self.n_paid, MOST_PAID)
        numbers = self.numbers.steps(self.situations, actions, self.numbers.observations(reached))
        places, seen = known.find(numbers)
        misfit = (rewards[:, None] - known.rewards[:, places].T) / known.noise
        gain = np.where(seen[:, None], np.log(known.chances[:, places].T) - 0.5 * misfit**2, 0)
        arrivals = self.numbers.arrivals(numbers)
        own_misfit = (rewards - self.own_rewards[self.everyone, arrivals]) / known.noise
        is_new = np.abs(own_misfit) > SURPRISE
        own_gain = np.where(is_new, 0, np.log(known.usual_chances[places]) - 0.5 * own_misfit**2)
        self.evidence[self.everyone, phase] += np.concatenate([gain, own_gain[:, None]], axis=1)
        self.intent += np.log(np.maximum(self.policies[self.everyone, :, actions], UNLIKELY))
        self.intent[dones | (rewards != 0)] = 0
        self.n_paid = np.where(dones, 0, self.n_paid + (rewards != 0))
        self.own_rewards[self.everyone, arrivals] = rewards
        if is_new.any():
            self._plan_own(np.flatnonzero(is_new))

    def _plan_own(self, streams: np.ndarray) -> None:
        """What is best where the rewards are those that these streams have met."""
        known, shape = self.known, (len(streams), len(self.known.steps))
        rewards = self.own_rewards[streams][:, self.numbers.arrivals(known.steps)]
        chances, goes_on = np.broadcast_to(known.usual_chances, shape), np.ones(shape)
        self.own_policies[streams] = plan(self.numbers, known.steps, chances, rewards, goes_on)
