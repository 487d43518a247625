"""A source that explores on purpose where observations and actions are real-valued: it samples what the task may be.

It holds one policy for all training tasks, which is told the numbers that tasks differ in, and models of what steps pay and where they
lead (algorithm/told.py). A new task's numbers are not told. Each stream keeps beliefs about them, by how well what it sees fits,
draws some of them and follows the policy for these (posterior sampling; Osband et al., arXiv:1306.0940; drawn anew at each step,
since each step tells something). PPO alone would find another way to act on each task. Here they are alike, and a student can see
what a task changes.

Letters in shapes: E streams, O observation entries, A action entries, M candidates.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.vec_env import VecEnv

import env
from algorithm.streams import StreamLearners
from algorithm.told import Prepared, as_step, draw, flat, means_for, train, untrained
from checkpoints import DAMAGE, read_saved
from config.loading import recorded_settings
from config.schema import keys_of
from files import InputError, one_line, write_atomically
from history.format import history_path

OF_STREAMS = ("n_stream", "total_source_timesteps", "explorer_noise", "explorer_lapses")  # they change no policy
PARTS = ("policy", "rewards", "moves")  # of Prepared, that are trained


class Conditioned(StreamLearners):
    """Every stream keeps beliefs of its own.

    What is recorded is the policy for numbers drawn from the beliefs of the moment. That is what it acts by, with noise;
    in a lapse it acts by the policy for random numbers. So histories show how to go on after a mistake (as DART does,
    arXiv:1703.09327).

    Args:
        config, vec_env, seed, log_dir: those of `Source`.
        prepared: what the training tasks teach.
    """

    keys = keys_of("alg", "Conditioned")

    def __init__(self, config: dict, vec_env: VecEnv, seed: int, log_dir: str | None = None, *, prepared: Prepared):
        super().__init__(config, vec_env, seed, log_dir)
        self.known, self.n_streams = prepared, vec_env.num_envs
        self.evidence = np.zeros((vec_env.num_envs, len(prepared.candidates)))
        self.noise, self.lapsed, self.lost = self._begin()

    @staticmethod
    def prepare(config: dict, traj_dir: Path) -> Prepared:
        """Train on the training tasks, or read what was trained before with the same settings; it is kept beside the histories."""
        check(config)
        path = history_path(config, traj_dir).with_suffix(".policy.pt")
        settings = {name: value for name, value in recorded_settings(config).items() if name not in OF_STREAMS}
        settings |= env.describe_spaces(config)
        if (kept := read(path, config, settings)) is not None:
            return kept
        prepared = untrained(config)
        train(config, prepared)
        kept = {"settings": settings, **{name: getattr(prepared, name).state_dict() for name in PARTS}}
        write_atomically(path, lambda temporary: torch.save(kept, temporary))
        return prepared

    @torch.no_grad()
    def act(self, states: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        self.states = flat(states)
        likely = self.evidence + self.rng.gumbel(size=self.evidence.shape)  # the largest is a draw from the posterior
        believed = likely.argmax(axis=1)
        means, acted = (
            means_for(self.known, self.states, followed)
            for followed in (believed, np.where(self.lapsed, self.lost, believed))
        )
        stds = np.broadcast_to(self.known.policy.stds.numpy(), means.shape)
        actions = draw(acted, np.hypot(stds, self.noise), self.vec_env, self.rng)
        return actions, {"action_means": means, "action_stds": stds}

    @torch.no_grad()
    def learn(
        self, actions: np.ndarray, rewards: np.ndarray, reached: np.ndarray, dones: np.ndarray, infos: list[dict]
    ) -> None:
        steps = as_step(self.states, actions, flat(reached))
        self.evidence += self.known.log_likelihood(steps, torch.as_tensor(rewards, dtype=torch.float)).numpy()
        noise, lapsed, lost = self._begin()
        self.noise = np.where(dones[:, None], noise, self.noise)
        self.lapsed, self.lost = np.where(dones, lapsed, self.lapsed), np.where(dones, lost, self.lost)

    def _begin(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of an episode: (E, A) deviations of noise, and (E,) whether it is a lapse, and for which candidate it then acts."""
        space, n = self.vec_env.action_space, self.n_streams
        largest = self.config["explorer_noise"] * (space.high - space.low).reshape(-1) / 2
        lapsed = self.rng.random(n) < self.config["explorer_lapses"]
        return self.rng.random((n, 1)) * largest, lapsed, self.rng.integers(len(self.known.candidates), size=n)


def read(path: Path, config: dict, settings: dict) -> Prepared | None:
    """What was trained before with these settings; None where there is nothing of it that can be read."""
    if not path.is_file():
        return None
    try:
        kept = read_saved(path)
        if kept["settings"] != settings:
            return None
        prepared = untrained(config)
        for name in PARTS:
            getattr(prepared, name).load_state_dict(kept[name])
        print(
            f"its policy was trained before: {path}; delete this file where the env's code has changed since",
            flush=True,
        )
        return prepared
    except DAMAGE as error:
        warnings.warn(f"{path}: cannot be read ({one_line(error, 200)}); it is trained anew", stacklevel=3)
        return None


def check(config: dict) -> None:
    """Raise InputError where a family has not what this source needs."""
    if not config["task_ranges"]:
        raise InputError("alg: Conditioned is told what tasks differ in: expected task_ranges in the env config")
    if (n_tasks := len(env.split_tasks(config)["train"])) < 2:
        raise InputError(
            f"alg: Conditioned learns from differing tasks: expected 2 training tasks at least, got {n_tasks}"
        )
    if config["learns_from"] != "PPO":
        raise InputError(
            f"learns_from: {config['learns_from']}: alg: Conditioned trains its policy by PPO; leave it out"
        )
    spaces = env.spaces(config)
    if not all(isinstance(space, Box) for space in spaces):
        raise InputError(
            f"alg: Conditioned expects real-valued observations and actions (Box), got {spaces[0]}, {spaces[1]}; use PPO, or "
            "Explorer where they can be counted"
        )
