"""Posterior sampling with beliefs of each place's own: its draws, and a task that is a mixture of the training tasks."""

from pathlib import Path

import numpy as np
import pytest

from algorithm.knowledge import Counts, Knowledge, Usual, plan
from algorithm.numbering import Numbers, Product
from algorithm.psrl import PSRL, PlaceBeliefs, draw_each
from files import InputError

NONE = np.zeros(1)  # noise
START, GOAL = 0, 4  # and three cells between them


def three_ways() -> Knowledge:
    """Action a leads from the start to cell a + 1, and on to the goal. In task 0 cell 1 is a hole, in task 1 cell 2."""
    numbers = Numbers(Product((5,)), 3)
    cells, actions = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    reached = np.where(cells == START, actions + 1, GOAL)
    steps = np.sort(numbers.steps(cells, actions, reached))
    places, chances = numbers.places(steps), np.ones((2, len(steps)))
    rewards = np.broadcast_to(places == GOAL, chances.shape).astype(float)
    ends = rewards + (places == np.array([[1], [2]]))
    policies = plan(numbers, steps, chances, rewards, ends)
    more = {"tasks": (0, 1), "counts": Counts(steps, *[chances] * 4), "usual": Usual(chances[0], ends.mean(0), 1.0)}
    return Knowledge(numbers, steps, chances, rewards, 0.1, ends, policies, np.zeros((2, 3)), **more)


def test_too_few_tasks_are_told(monkeypatch):
    """Each training task is met by what the others teach: with one there are none."""
    known = three_ways().without(0)
    monkeypatch.setattr("algorithm.psrl.Explorer.prepare", lambda *_: known)
    with pytest.raises(InputError, match="expected at least 2 of them on which .* got 1"):
        PSRL.prepare({}, Path())


def test_draws_are_independent_and_as_likely_as_asked():
    weights = np.array([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0], [0.1, 0.1, 0.8]])
    with np.errstate(divide="ignore"):
        drawn = draw_each(np.log(weights) + 7, 20_000, np.random.default_rng(0))
    shares = np.stack([np.bincount(column, minlength=3) for column in drawn.T]) / len(drawn)
    assert np.allclose(shares, weights, atol=0.02)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 2])[0, 1]) < 0.03


def test_it_learns_a_task_with_the_holes_of_two():
    beliefs, end = PlaceBeliefs(three_ways(), 1, np.random.default_rng(0)), np.array([True])
    at_start = lambda: beliefs.predict(np.array([[START]]))[0]  # noqa: E731
    assert at_start()[2] == at_start().max()  # this way was always safe
    for action in (0, 1):
        at_start()
        beliefs.learn(np.array([action]), np.zeros(1), np.array([[action + 1]]), end, end, NONE)
    for _ in range(20):
        assert at_start()[2] > 0.8
        beliefs._begin_anew(np.array([0]))
    assert beliefs.evidence[0, 1].argmax() == 0 and beliefs.evidence[0, 2].argmax() == 1


def test_what_follows_tells_which_model_is_in_use():
    """A safe step on the first way makes models that hold a hole there unlikely, within the same episode."""
    beliefs, go_on = PlaceBeliefs(three_ways(), 1, np.random.default_rng(0)), np.array([False])
    beliefs.predict(np.array([[START]]))
    beliefs.learn(np.array([0]), np.zeros(1), np.array([[1]]), go_on, go_on, NONE)
    holds_a_hole = beliefs.drawn[0, :, 1] == 0
    assert holds_a_hole.any() and beliefs.intent[0, holds_a_hole].max() < beliefs.intent[0, ~holds_a_hole].min() - 2
