"""What the histories of training tasks teach: where steps lead, what they pay, and how to act if one knew the task.

Read from a history file alone. For Discrete actions, and observations that are counted: Discrete ones, or any that take few
values in the file, such as the views of a grid world. Situations and steps: see algorithm/numbering.py.

Letters in shapes: K tasks or hypotheses, X situations, P stages, A actions, U different steps, T steps per stream, E streams.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np

import env
from algorithm.numbering import Listed, Numbers, Product, rows_of
from files import InputError
from history.reader import HistoryFile

MOST_OBSERVATIONS = 1_000  # each may be one hypothesis more, and each hypothesis has a policy for all of them
PRIOR_STEPS = 1.0  # so many imagined steps stand for what the rest of the experience says
LEAST_NOISE = 0.1  # standard deviation of rewards, as a share of their range
DISCOUNT = 0.98
TIE = 0.002  # actions within this share of the best value are equally good
NEEDED = ("states", "actions", "rewards", "next_states", "dones")
READING = {  # config keys with which a history file is opened to learn from it, one task after the other
    "reached_observations": True, "soft_targets": False, "use_compressed_context": False, "in_memory": "never"
}  # fmt: skip


@dataclass
class Counts:
    """What happened on K tasks: (U,) numbers of steps, ascending; (K, U) how often each was taken, and sums over these."""

    steps: np.ndarray
    taken: np.ndarray
    rewards: np.ndarray
    squares: np.ndarray
    ends: np.ndarray

    def only(self, which: np.ndarray) -> Counts:
        """Those of some tasks, (K,) bool."""
        return Counts(self.steps, *(of[which] for of in (self.taken, self.rewards, self.squares, self.ends)))


@dataclass
class Usual:
    """What all tasks together say: (U,) how probable a step's outcome is, and that it ends the episode; what a reward pays."""

    chances: np.ndarray
    ends: np.ndarray
    reward: float

    @classmethod
    def of(cls, counts: Counts, tries: np.ndarray) -> Usual:
        """`tries`: (K, U) how often the situation and action of each step came up."""
        paid = counts.rewards != 0
        reward = np.median((counts.rewards / np.maximum(counts.taken, 1))[paid]) if paid.any() else 1.0
        return cls(counts.taken.sum(0) / tries.sum(0), _task_mean(counts.ends, counts.taken), float(reward))


@dataclass
class Knowledge:
    """What is known of K hypotheses: the training tasks, and imagined ones.

    steps: (U,) numbers of all steps that were ever taken, ascending. chances: (K, U) how probable the step's outcome
    is. rewards: (K, U) what it pays in the mean; noise: their deviation from that. ends: (K, U) the chance that it ends the
    episode. policies: (K, X, A) best ways to act. prior: (K, P) log-weight by the stage, 0 or -inf.
    """

    numbers: Numbers
    steps: np.ndarray
    chances: np.ndarray
    rewards: np.ndarray
    noise: float
    ends: np.ndarray
    policies: np.ndarray
    prior: np.ndarray
    tasks: tuple[int, ...] = ()
    counts: Counts | None = None
    usual: Usual | None = None

    def without(self, task: int) -> Knowledge:
        """The same without the hypothesis of one training task, so that it is met as a held-out one is."""
        if task not in self.tasks:
            return self
        others = np.array(self.tasks) != task
        kept = np.concatenate([others, np.ones(len(self.prior) - len(others), dtype=bool)])
        counts = self.counts.only(others)
        before, now = (_unexplained(of, self.numbers) for of in (self.counts, counts))
        rest = replace(
            self,
            **{name: getattr(self, name)[kept] for name in ("chances", "rewards", "ends", "policies", "prior")},
            tasks=tuple(np.array(self.tasks)[others].tolist()),
            counts=counts,
        )
        return rest.suspecting(tuple(map(np.setdiff1d, now, before)))

    def suspecting(self, unexplained: tuple[np.ndarray, np.ndarray]) -> Knowledge:
        """With one hypothesis more for each of these places and arrivals; see `_unexplained`."""
        more, prior = _imagined_rewards(self.steps, self.numbers, unexplained, self.usual.reward)
        chances, ends = (np.broadcast_to(of_steps, more.shape) for of_steps in (self.usual.chances, self.usual.ends))
        added = {"chances": chances, "rewards": more, "ends": ends, "prior": prior}
        added["policies"] = plan(self.numbers, self.steps, chances, more, ends)
        return replace(self, **{name: np.concatenate([getattr(self, name), new]) for name, new in added.items()})

    def find(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(E,) numbers of steps to their places in `steps`, and whether they are there."""
        places = np.minimum(np.searchsorted(self.steps, numbers), len(self.steps) - 1)
        return places, self.steps[places] == numbers

    def fit(self, places: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, rare: float) -> np.ndarray:
        """(E, K) log-likelihoods of what steps paid and whether they ended the episode; (E,) each, steps as `find` gives them.

        rare: the chance of an end where none was ever seen.
        """
        misfit = (rewards[:, None] - self.rewards[:, places].T) / self.noise
        ends = np.clip(self.ends[:, places].T, rare, 1 - rare)
        return np.log(np.where(terminated[:, None], ends, 1 - ends)) - 0.5 * misfit**2


def check_countable(action_space: dict) -> None:
    """Raise InputError where actions cannot be counted; of a space as `env.describe_spaces` gives it."""
    if action_space["kind"] != "discrete":
        raise InputError("alg: Explorer and PSRL count actions: expected Discrete ones; use PPO, A2C or Conditioned")


def learn_from(history: HistoryFile, rewards_per_round: int | None = None) -> Knowledge:
    """Read what the tasks of a history teach. Tasks on which nothing ever paid are left out.

    Args:
        history: with what `READING` asks for.
        rewards_per_round: see `Numbers`.

    Raises:
        InputError: the file lacks something, or holds what cannot be.
    """
    if missing := [name for name in NEEDED if name not in history.arrays]:
        raise InputError(
            f"{history.path}: lacks {', '.join(missing)}, which a source that explores learns from; collect it again"
        )
    tasks, n_actions = history.tasks, int(env.entry_sizes(history.action_space)[0])
    numbers = Numbers(_observations(history), n_actions, rewards_per_round)
    counts = _count([_read_task(history, number, numbers) for number in range(len(tasks))])
    _tell_sizes(history, counts)
    tries = _group_sums(numbers.pairs(counts.steps), counts.taken)
    usual = Usual.of(counts, tries)
    chances = (counts.taken + PRIOR_STEPS * usual.chances) / (tries + PRIOR_STEPS)
    rewards, noise = _expected_rewards(counts, numbers)
    ends = (counts.ends + PRIOR_STEPS * usual.ends) / (counts.taken + PRIOR_STEPS)
    paid = (counts.rewards != 0).any(axis=1)
    policies = plan(numbers, counts.steps, *(of_tasks[paid] for of_tasks in (chances, rewards, ends)))
    known = Knowledge(
        numbers,
        counts.steps,
        chances[paid],
        rewards[paid],
        noise,
        ends[paid],
        policies,
        prior=np.zeros((paid.sum(), numbers.n_stages)),
        tasks=tuple(np.array(tasks)[paid].tolist()),
        counts=counts.only(paid),
        usual=usual,
    )
    return known.suspecting(_unexplained(counts, numbers))


def _tell_sizes(history: HistoryFile, counts: Counts) -> None:
    """Warn where rewards are not all of one size, which `plan` takes for granted."""
    paid = counts.rewards != 0
    sizes = counts.squares[paid] / np.abs(counts.rewards[paid])
    if sizes.size and sizes.min() < sizes.max() / 2:
        warnings.warn(
            f"{history.path}: has rewards of different sizes: Explorer and PSRL take a small one for a large one that is rare, "
            "and begin anew after each; give the environment rewards of one size, or use another source",
            stacklevel=2,
        )


def _observations(history: HistoryFile) -> Product | Listed:
    """Numbers for the observations: all that are possible where these are few, else those that the file holds."""
    sizes = env.entry_sizes(history.observation_space)
    if sizes is not None and np.prod(sizes, dtype=float) <= MOST_OBSERVATIONS:
        return Product(sizes.tolist())
    seen = set()
    for number, task in enumerate(history.tasks):
        for name in ("states", "next_states"):
            seen.update(rows_of(history.arrays[name].read(number, 0, int(history.task_steps[number]))))
        if len(seen) > MOST_OBSERVATIONS:
            raise InputError(
                f"{history.path}, task {task}: alg: Explorer and PSRL count observations: expected at most "
                f"{MOST_OBSERVATIONS} different ones in the file, got {len(seen)} up to this task; use PPO, A2C or Conditioned"
            )
    return Listed(seen)


def _read_task(history: HistoryFile, number: int, numbers: Numbers) -> tuple[np.ndarray, ...]:
    """The different steps of the `number`-th task, and what `Counts` keeps of each; (U',) all."""
    n_steps = int(history.task_steps[number])
    states, actions, rewards, reached, dones = (history.arrays[name].read(number, 0, n_steps) for name in NEEDED)
    situations = numbers.situations(numbers.observations(states), rewards_before(rewards, dones))
    taken = numbers.steps(situations, actions.astype(np.int64), numbers.observations(reached))
    steps, which, n_taken = np.unique(taken.ravel(), return_inverse=True, return_counts=True)
    paid = rewards.astype(np.float64)
    sums = [np.bincount(which, values.ravel()) for values in (paid, paid**2, terminations(dones))]
    return steps, n_taken, *sums


def rewards_before(rewards: np.ndarray, dones: np.ndarray) -> np.ndarray:
    """(T, E) rewards and ends of episodes to (T, E): how many steps of the episode have paid before each one."""
    paid = (rewards != 0).cumsum(axis=0)
    before = np.concatenate([np.zeros_like(paid[:1]), paid[:-1]])
    return before - np.maximum.accumulate(np.where(begins(dones), before, 0), axis=0)


def begins(dones: np.ndarray) -> np.ndarray:
    """(T, E) True at the first steps of episodes."""
    return np.concatenate([np.ones_like(dones[:1]), dones[:-1]]).astype(bool)


def terminations(dones: np.ndarray) -> np.ndarray:
    """(T, E) ends of episodes that are not the time limit's: those of the longest episodes are, which say nothing of the step."""
    step = np.arange(len(dones))[:, None]
    length = step + 1 - np.maximum.accumulate(np.where(begins(dones), step, 0), axis=0)
    ended = dones.astype(bool)
    return ended & (length < length.max(initial=0, where=ended))


def _count(tasks: list[tuple[np.ndarray, ...]]) -> Counts:
    steps = np.unique(np.concatenate([of_task[0] for of_task in tasks]))
    sums = np.zeros((4, len(tasks), len(steps)))
    for k, (of_task, *values) in enumerate(tasks):
        sums[:, k, np.searchsorted(steps, of_task)] = values
    return Counts(steps, *sums)


def _group_sums(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(K, U) values to the sums over all entries of the same group, in each entry's place."""
    _, which = np.unique(groups, return_inverse=True)
    return np.stack([np.bincount(which, row)[which] for row in values])


def _task_mean(sums: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(K, U) each to (U,): the mean over tasks of sums / times. Each task counts once, however long it stayed there."""
    of_tasks = np.divide(sums, times, out=np.zeros_like(sums), where=times > 0)
    return of_tasks.sum(axis=0) / (times > 0).sum(axis=0)


def _expected_rewards(counts: Counts, numbers: Numbers) -> tuple[np.ndarray, float]:
    """(K, U) mean rewards, and their noise.

    Where a task is short of experience, other steps of its that led to the same place speak for it, and where there
    are none either, the other tasks.
    """
    places, arrivals = numbers.places(counts.steps), numbers.arrivals(counts.steps)
    visits = _group_sums(places, counts.taken)
    usual = _task_mean(_group_sums(places, counts.rewards), visits)
    paid, times = _group_sums(arrivals, counts.rewards), _group_sums(arrivals, counts.taken)
    usual = (paid + PRIOR_STEPS * usual) / (times + PRIOR_STEPS)
    means = counts.rewards / np.maximum(counts.taken, 1)
    within = (counts.squares - counts.taken * means**2).sum() / counts.taken.sum()
    noise = max(float(np.sqrt(max(within, 0))), LEAST_NOISE * float(np.ptp(means)), 1e-6)
    return (counts.rewards + PRIOR_STEPS * usual) / (counts.taken + PRIOR_STEPS), noise


def _unexplained(counts: Counts, numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Where no task pays, but one that is not known might: places at which none pays, and arrivals (`Numbers.arrivals`) at
    places where tasks pay, but never in a stage in which they pay elsewhere: a cell that was a key, and never a door.
    """
    places, arrivals, stages = (of(counts.steps) for of in (numbers.places, numbers.arrivals, numbers.n_paid))
    rewarded = (counts.rewards != 0).any(axis=0)
    may_pay = np.isin(places, places[rewarded]) & np.isin(stages, stages[rewarded])
    return np.setdiff1d(places, places[rewarded]), np.setdiff1d(arrivals[may_pay], arrivals[rewarded])


def _imagined_rewards(
    steps: np.ndarray, numbers: Numbers, unexplained: tuple[np.ndarray, np.ndarray], reward: float
) -> tuple[np.ndarray, np.ndarray]:
    """(more, U) what steps pay if one of these places, or arrivals, pays `reward`, and (more, P) `prior`. So no place is
    beyond suspicion. Of other stages than its own an arrival's hypothesis says nothing, so it is not followed there.
    """
    everywhere, in_a_stage = (of[:, None] for of in unexplained)
    pays = np.concatenate([numbers.places(steps) == everywhere, numbers.arrivals(steps) == in_a_stage])
    prior = np.zeros((len(pays), numbers.n_stages))
    own = in_a_stage // numbers.n_observations
    prior[len(everywhere) :] = np.where(np.arange(numbers.n_stages) == own, 0, -np.inf)
    return reward * pays, prior


def plan(numbers: Numbers, steps: np.ndarray, chances: np.ndarray, rewards: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Value iteration in K models, (K, U) each: (K, X, A) best policies, with equal chances for equally good actions."""
    pairs, firsts = np.unique(numbers.pairs(steps), return_index=True)
    places, n_paid = numbers.places(steps), numbers.n_paid(steps)
    unpaid, paid = numbers.situations(places, n_paid), numbers.situations(places, n_paid + 1)
    largest = np.abs(rewards).max(initial=1e-9)
    pays = np.abs(rewards) / largest  # the chance of a reward, where all are of one size
    # What was never tried is worth nothing; or where steps cost something, no more than the costliest for ever
    untried = min(0.0, rewards.min(initial=0)) / (1 - DISCOUNT)
    values = np.full((len(rewards), numbers.n_situations), untried)
    q = np.full((*values.shape, numbers.n_actions), untried)
    of_pairs = q.reshape(len(q), numbers.n_situations * numbers.n_actions)
    for _ in range(1000):
        ahead = (1 - pays) * values[:, unpaid] + pays * values[:, paid]
        outcomes = chances * (rewards + DISCOUNT * (1 - ends) * ahead)
        of_pairs[:, pairs] = np.add.reduceat(outcomes, firsts, axis=1)
        before, values = values, q.max(axis=2)
        if np.abs(values - before).max(initial=0) < 1e-3 * largest:
            break
    best = values[:, :, None]
    is_best = q >= best - TIE * np.abs(best)
    return (is_best / is_best.sum(axis=2, keepdims=True)).astype(np.float32)
