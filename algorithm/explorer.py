"""A source that explores on purpose: a posterior sampler over what the training tasks teach.

The histories of a first pass, PPO's, tell what the training tasks are like (algorithm/knowledge.py). The explorer
meets a task without knowing which it is. Its hypotheses are the training tasks, and a reward at each place where none
of them pays. Until the episode ends, or pays, it follows the best policy of one hypothesis, drawn by how well that explains what
the stream has seen (posterior sampling; Osband et al., arXiv:1306.0940). It never computes which one it drew: given its
actions so far, the mixture of all policies that may be in use has the same distribution, and is what an ideal student
of its histories would predict. So the mixture is what `action_probs` hold. Some actions are random, so that histories
show how to go on after a wrong step (as DART does, arXiv:1703.09327); `action_probs` leave that out.

Letters in shapes: E streams, K hypotheses, A actions.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

import env
from algorithm.knowledge import MOST_OBSERVATIONS, READING, Knowledge, check_countable, learn_from
from algorithm.source import as_held
from algorithm.streams import StreamLearners
from config.schema import keys_of
from files import InputError
from history.format import history_path
from history.reader import HistoryFile

ELSEWHERE = 0.3  # weight of evidence from situations of other numbers of rewards: a key tells a little of the door
RARE = 0.01  # chance of an episode's end where none was ever seen
LEAST_NOISE = 1e-3  # no hypothesis is given up for one action


class Explorer(StreamLearners):
    """Every stream keeps beliefs of its own.

    Args:
        config, vec_env, seed, log_dir: those of `Source`.
        prepared: what the training tasks' histories teach.
    """

    keys = keys_of("alg", "Explorer")

    def __init__(self, config: dict, vec_env: VecEnv, seed: int, log_dir: str | None = None, *, prepared: Knowledge):
        super().__init__(config, vec_env, seed, log_dir)
        known = prepared.without(seed - config["alg_seed"])  # task i has seed alg_seed + i
        self.beliefs, self.n_steps_taken = self.make_beliefs(known), 0
        self.noise, self.lapsed = self._draw_noise()

    def make_beliefs(self, known: Knowledge) -> Beliefs:
        return Beliefs(known, self.vec_env.num_envs)

    @staticmethod
    def first_pass(config: dict) -> dict:
        """The config of the histories that it learns from."""
        return config | {"alg": config["learns_from"], "learns_from": None}

    @staticmethod
    def prepare(config: dict, traj_dir: Path) -> Knowledge:
        """Learn from the first pass, training tasks only."""
        first_pass = Explorer.first_pass(config)
        path = history_path(first_pass, traj_dir)
        check_countable(env.describe_spaces(config)["action_space"])
        if not path.is_file():
            raise InputError(
                f"{path}: not found; alg: {config['alg']} learns from it, so collect it first, with the same "
                f"env and an algorithm config of alg: {config['learns_from']}. It counts observations: expected at "
                f"most {MOST_OBSERVATIONS} different ones on all training tasks together"
            )
        tasks = env.split_tasks(config)["train"]
        history = HistoryFile(path, first_pass | READING, tasks, region_length=config["n_steps"])
        with closing(history.file):
            return learn_from(history, config["rewards_per_round"])

    def policy(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mixture is recorded; what is acted from has noise."""
        probs, share = self.beliefs.predict(as_held(self.vec_env, states, n_axes=1)), self._random_share()[:, None]
        return probs, (1 - share) * probs + share / probs.shape[1]

    def learn(
        self, actions: np.ndarray, rewards: np.ndarray, reached: np.ndarray, dones: np.ndarray, infos: list[dict]
    ) -> None:
        terminated = dones & ~np.array([info.get("TimeLimit.truncated", False) for info in infos])
        self.beliefs.learn(
            actions, rewards, as_held(self.vec_env, reached, n_axes=1), dones, terminated, self._random_share()
        )
        self.n_steps_taken += 1
        noise, lapsed = self._draw_noise()
        self.noise = np.where(dones, noise, self.noise)
        if self.n_steps_taken % self.config["n_steps"] == 0:
            self.lapsed = lapsed

    def _random_share(self) -> np.ndarray:
        """(E,) shares of random actions: all of them in a lapse."""
        return np.where(self.lapsed, 1.0, self.noise)

    def _draw_noise(self) -> tuple[np.ndarray, np.ndarray]:
        """(E,) shares of random actions, of one episode each; and (E,) which streams' next rollout is a lapse."""
        n = self.vec_env.num_envs
        noise = self.rng.uniform(0, self.config["explorer_noise"], n)
        return noise, self.rng.random(n) < self.config["explorer_lapses"]


class Beliefs:
    """Which hypothesis is likely to be true in each stream, and which one's policy it is likely to follow.

    Letters: P stages, of `Numbers.stages`.

    evidence: (E, P, K) log-likelihood of what the stream has seen in each stage. intent: (E, K) that of the
    episode's actions since the last reward.
    """

    def __init__(self, known: Knowledge, n_streams: int):
        self.known, self.numbers, self.everyone = known, known.numbers, np.arange(n_streams)
        self.evidence = np.zeros((n_streams, known.numbers.n_stages, len(known.policies)))
        self.intent = np.zeros((n_streams, len(known.policies)))
        self.n_paid = np.zeros(n_streams, dtype=np.int64)  # rewards of the episode so far

    def predict(self, states: np.ndarray) -> np.ndarray:
        """(E, entries) observations to the mixture of the policies, (E, A)."""
        self.situations = self.numbers.situations(self.numbers.observations(states), self.n_paid)
        self.policies = self.known.policies[:, self.situations].swapaxes(0, 1)  # (E, K, A)
        stages = self.numbers.stages(self.n_paid)
        here, prior = self.evidence[self.everyone, stages], self.known.prior[:, stages].T
        weights = ELSEWHERE * self.evidence.sum(axis=1) + (1 - ELSEWHERE) * here + self.intent + prior
        return mixture(weights, self.policies)

    def learn(
        self,
        actions: np.ndarray,
        rewards: np.ndarray,
        reached: np.ndarray,
        dones: np.ndarray,
        terminated: np.ndarray,
        noise: np.ndarray,
    ) -> None:
        """Take what followed, (E,) each.

        Args:
            reached: (E, entries). terminated: where an episode ended for another reason than its length.
            noise: the chance that the action was a random one.
        """
        reached = self.numbers.observations(reached)
        steps, seen = self.known.find(self.numbers.steps(self.situations, actions, reached))
        self.intent += log_chances(self.policies, actions, noise)
        self._weigh(steps, seen, rewards, terminated)
        self.n_paid = np.where(dones, 0, self.n_paid + (rewards != 0))
        self._begin_anew(np.flatnonzero(dones | (rewards != 0)))

    def _weigh(self, steps: np.ndarray, seen: np.ndarray, rewards: np.ndarray, terminated: np.ndarray) -> None:
        """Take what steps tell of the hypotheses; (E,) each, `steps` and `seen` as `Knowledge.find` gives them."""
        fit = np.log(self.known.chances[:, steps].T) + self.known.fit(steps, rewards, terminated, RARE)
        self.evidence[self.everyone, self.numbers.stages(self.n_paid)] += np.where(seen[:, None], fit, 0)

    def _begin_anew(self, streams: np.ndarray) -> None:
        """After an episode's end or a reward some streams may follow another hypothesis."""
        self.intent[streams] = 0


def mixture(log_weights: np.ndarray, policies: np.ndarray) -> np.ndarray:
    """(E, K) and (E, K, A) to the policies' mean, (E, A)."""
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    return np.einsum("ek,eka->ea", weights / weights.sum(axis=1, keepdims=True), policies)


def log_chances(policies: np.ndarray, actions: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """(E, K) log-likelihoods of (E,) actions under (E, K, A) policies, of which a share (E,) was random."""
    chosen, noise = np.take_along_axis(policies, actions[:, None, None], axis=2)[..., 0], noise[:, None]
    noise = np.maximum(noise, LEAST_NOISE)
    return np.log((1 - noise) * chosen + noise / policies.shape[2])
