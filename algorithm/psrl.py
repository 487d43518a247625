"""A source that explores where tasks differ in many places at once: posterior sampling of whole models.

The explorer (algorithm/explorer.py) takes a new task for one of the training tasks. That fails where each place differs on
its own: a map on which any cell may be a hole. Here every place has beliefs of its own. What it pays, and whether it ends
the episode, is as on one of the training tasks, which may be another one for each place. Each episode draws models of
this kind and plans in them (posterior sampling for reinforcement learning; Osband et al., arXiv:1306.0940, section 3, with
a prior that the training tasks teach). Steps are taken to lead where they lead on the training tasks.

Letters in shapes: E streams, K training tasks, X situations, U different steps, A actions, N models per stream.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from algorithm.explorer import Beliefs, Explorer, mixture
from algorithm.knowledge import Knowledge, plan
from files import InputError

RARE = 0.001  # chance of an episode's end where none was ever seen; one fall has to tell a hole
UNKNOWN = -20.0  # log-weight of a task that tells nothing of a place
N_MODELS = 16  # drawn per stream and episode; the mean of their policies stands for that of all models


class PSRL(Explorer):
    """The explorer with beliefs of each place's own."""

    @staticmethod
    def prepare(config: dict, traj_dir: Path) -> Knowledge:
        """What the explorer learns from the first pass.

        Raises:
            InputError: as there, or too few tasks of it paid: each one is met by what the others teach.
        """
        known = Explorer.prepare(config, traj_dir)
        if len(known.tasks) < 2:
            raise InputError(
                f"alg: PSRL takes each place for one of the training tasks: expected at least 2 of them on which the first "
                f"pass ever got a reward, got {len(known.tasks)}; list more tasks, or train the first pass for longer"
            )
        return known

    def make_beliefs(self, known: Knowledge) -> Beliefs:
        return PlaceBeliefs(known, self.vec_env.num_envs, self.rng)


class PlaceBeliefs(Beliefs):
    """What each place may be, in each stream, and which of the models drawn is likely to be the one it follows.

    evidence: (E, X, K) log-likelihood of what the stream has seen on arrival there. drawn: (E, N, X) the hypothesis that
    each model holds of each arrival. plans: (E, N, X, A) the models' policies. intent: (E, N) log-likelihood of the
    models, by actions and arrivals since they were drawn.
    """

    def __init__(self, known: Knowledge, n_streams: int, rng: np.random.Generator):
        self.known, self.numbers, self.everyone, self.rng = known, known.numbers, np.arange(n_streams), rng
        K, (_, X, A) = len(known.tasks), known.policies.shape
        self.evidence = np.zeros((n_streams, X, K), dtype=np.float32)
        self.drawn = np.zeros((n_streams, N_MODELS, X), dtype=np.int64)
        self.plans = np.zeros((n_streams, N_MODELS, X, A), dtype=np.float32)
        self.intent = np.zeros((n_streams, N_MODELS))
        self.n_paid = np.zeros(n_streams, dtype=np.int64)  # rewards of the episode so far
        self.arrivals = self.numbers.arrivals(known.steps)
        self.prior = np.where(known_arrivals(known), 0, UNKNOWN)  # (X, K)
        self._begin_anew(self.everyone)

    def predict(self, states: np.ndarray) -> np.ndarray:
        """(E, entries) observations to the mixture of the models' policies, (E, A)."""
        self.situations = self.numbers.situations(self.numbers.observations(states), self.n_paid)
        self.policies = self.plans[self.everyone, :, self.situations]  # (E, N, A)
        return mixture(self.intent, self.policies)

    def _weigh(self, steps: np.ndarray, seen: np.ndarray, rewards: np.ndarray, terminated: np.ndarray) -> None:
        arrivals = self.arrivals[steps]
        fit = self.known.fit(steps, rewards, terminated, RARE)[:, : len(self.known.tasks)]
        fit = np.where(seen[:, None], fit, 0)
        self.evidence[self.everyone, arrivals] += fit
        held = self.drawn[self.everyone, :, arrivals]  # (E, N)
        self.intent += np.take_along_axis(fit, held, axis=1)

    def _begin_anew(self, streams: np.ndarray) -> None:
        """Draw models for some streams, and plan in them."""
        if not len(streams):
            return
        self.intent[streams] = 0
        for stream in streams:
            self.drawn[stream] = draw_each(self.evidence[stream] + self.prior, N_MODELS, self.rng)
        held = self.drawn[streams][:, :, self.arrivals].reshape(-1, len(self.arrivals))  # (models, U)
        steps = np.arange(len(self.arrivals))
        rewards, ends = self.known.rewards[held, steps], self.known.ends[held, steps]
        chances = np.broadcast_to(self.known.usual.chances, rewards.shape)
        self.plans[streams] = plan(self.numbers, self.known.steps, chances, rewards, ends).reshape(
            len(streams), *self.plans.shape[1:]
        )


def known_arrivals(known: Knowledge) -> np.ndarray:
    """(X, K) whether each task's history tells of each arrival."""
    visits = np.zeros((len(known.tasks), known.numbers.n_situations))
    np.add.at(visits.T, known.numbers.arrivals(known.steps), known.counts.taken.T)
    return visits.T > 0


def draw_each(log_weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """(X, K) unnormalised log-probabilities to (n, X) draws: for each X, n independent ones of K."""
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True), dtype=np.float64)
    cumulative = weights.cumsum(axis=1)
    rows, K = np.arange(len(weights)), weights.shape[1]
    flat = (cumulative / cumulative[:, -1:] + rows[:, None]).ravel()  # ascending over all rows
    places = np.searchsorted(flat, rows + rng.random((n, len(rows))), side="right")
    return np.clip(places - rows * K, 0, K - 1)
