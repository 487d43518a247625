"""A source that explores on purpose where observations and actions are real-valued: it samples what the task may be.

Tasks of one family differ in a few numbers, such as a wanted speed. One PPO is trained on all training tasks at once and
is told these numbers (a policy for all of them, as in universal value functions; Schaul et al. 2015). A model of rewards is fitted
to steps on training tasks, given the numbers. A new task's numbers are not told. Each stream keeps beliefs about them, by
how well rewards fit, draws some of them and follows the policy for these (posterior sampling; Osband et al.,
arXiv:1306.0940; drawn anew at each step, since each reward tells something). PPO alone would find another way to act on each task; here they are alike, and a student can see
what a task changes.

Letters in shapes: E streams, O observation entries, A action entries, P numbers of a task, M candidates.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from torch import Tensor, nn
from tqdm import tqdm

import env
from algorithm.exploration import with_exploration_bonus
from algorithm.normalization import with_normalization
from algorithm.source import reached_observations
from algorithm.streams import StreamLearners
from config.loading import recorded_settings
from files import InputError, write_atomically
from history.format import history_path

N_CANDIDATES = 256  # numbers that a task may have, drawn within those of the training tasks
TRIED_STEPS = 100_000  # on training tasks, acting as on others: what the model of rewards is fitted to
WIDTH, N_UPDATES, BATCH = 128, 3000, 1024  # of the model of rewards
OF_STREAMS = (
    "n_stream",
    "total_source_timesteps",
    "explorer_noise",
    "explorer_lapses",
)  # keys that do not concern the policy
LEAST_NOISE = 0.02  # of rewards, as a share of their deviation: what the model may be wrong by


class Told(VecEnvWrapper):
    """Observations with a task's numbers behind them: those of `numbers` (E, P), which may change."""

    def __init__(self, venv: VecEnv, numbers: np.ndarray):
        n_entries = int(np.prod(venv.observation_space.shape)) + numbers.shape[1]
        super().__init__(venv, Box(-np.inf, np.inf, (n_entries,), np.float32))
        self.numbers = numbers.astype(np.float32)

    def reset(self) -> np.ndarray:
        return self._told(self.venv.reset())

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        reached = self._told(reached_observations(observations, dones, infos))
        for stream in np.flatnonzero(dones):
            infos[stream]["terminal_observation"] = reached[stream]
        return self._told(observations), rewards, dones, infos

    def _told(self, observations: np.ndarray) -> np.ndarray:
        return np.concatenate([flat(observations), self.numbers], axis=1)


class ToldPolicy(nn.Module):
    """(E, O + P) observations with a task's numbers to the means of actions, (E, A); `stds` (A,) are the same everywhere."""

    def __init__(self, n_inputs: int, n_actions: int, widths: list[int]):
        super().__init__()
        sizes = [n_inputs, *widths]
        layers = [part for one, other in zip(sizes, sizes[1:]) for part in (nn.Linear(one, other), nn.Tanh())]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], n_actions))
        for name, value in {"mean": 0.0, "std": 1.0}.items():
            self.register_buffer(name, torch.full((n_inputs,), value))
        self.register_buffer("stds", torch.ones(n_actions))
        self.register_buffer("most", torch.tensor(torch.inf))  # scaled inputs are clipped there, as VecNormalize does

    @torch.no_grad()
    def take(self, model: PPO) -> ToldPolicy:
        """Take over what SB3 trained."""
        policy, scaled = model.policy, model.get_env()
        self.net.load_state_dict(nn.Sequential(*policy.mlp_extractor.policy_net, policy.action_net).state_dict())
        if isinstance(scaled, VecNormalize):
            self.mean.copy_(torch.as_tensor(scaled.obs_rms.mean))
            self.std.copy_(torch.as_tensor(np.sqrt(scaled.obs_rms.var + scaled.epsilon)))
            self.most.fill_(scaled.clip_obs)
        self.stds.copy_(policy.log_std.exp())
        return self

    def forward(self, told: Tensor) -> Tensor:
        return self.net(((told - self.mean) / self.std).clamp(-self.most, self.most))


class RewardModel(nn.Module):
    """What steps pay: (E, 2 O + A) observation, action and reached observation, and (M, P) numbers, to (E, M)."""

    def __init__(self, n_inputs: int, n_numbers: int):
        super().__init__()
        self.of_steps, self.of_tasks = nn.Linear(n_inputs, WIDTH), nn.Linear(n_numbers, WIDTH, bias=False)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.ones(n_inputs))
        for name in ("reward_mean", "reward_std", "noise"):
            self.register_buffer(name, torch.ones(()))

    def forward(self, steps: Tensor, numbers: Tensor) -> Tensor:
        hidden = self.of_steps((steps - self.mean) / self.std)[:, None] + self.of_tasks(numbers)
        return self.reward_mean + self.reward_std * self.rest(hidden)[..., 0]

    def fit(self, steps: Tensor, numbers: Tensor, rewards: Tensor) -> RewardModel:
        """Fit to N steps (N, 2 O + A), the numbers of their tasks (N, P) and what they paid (N,)."""
        self.mean, self.std = steps.mean(0), steps.std(0).clamp(min=1e-6)
        self.reward_mean, self.reward_std = rewards.mean(), rewards.std().clamp(min=1e-6)
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_UPDATES)
        for _ in range(N_UPDATES):
            batch = torch.randint(len(steps), (BATCH,))
            loss = ((self(steps[batch], numbers[batch, None])[:, 0] - rewards[batch]) / self.reward_std).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            some = torch.randint(len(steps), (10_000,))
            missed = self(steps[some], numbers[some, None])[:, 0] - rewards[some]
            self.noise = missed.square().mean().sqrt().clamp(min=LEAST_NOISE * float(self.reward_std))
        return self


@dataclass
class Prepared:
    """What the training tasks teach. candidates: (M, P) numbers that a task may have."""

    policy: ToldPolicy
    rewards: RewardModel
    candidates: Tensor


class Conditioned(StreamLearners):
    """Every stream keeps beliefs of its own.

    What is recorded is the policy for numbers drawn from the beliefs of the moment. That is what it acts by, with noise;
    in a lapse it acts by the policy for random numbers. So histories show how to go on after a mistake (as DART does,
    arXiv:1703.09327).

    Args:
        config, vec_env, seed, log_dir: those of `Source`.
        prepared: what the training tasks teach.
    """

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
        prepared, kept = untrained(config), read(path)
        parts = {"policy": prepared.policy, "rewards": prepared.rewards}
        if kept.get("settings") == settings:
            for name, part in parts.items():
                part.load_state_dict(kept[name])
            return prepared
        train(config, prepared)
        kept = {"settings": settings, **{name: part.state_dict() for name, part in parts.items()}}
        write_atomically(path, lambda temporary: torch.save(kept, temporary))
        return prepared

    @torch.no_grad()
    def act(self, states: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        self.states = flat(states)
        likely = self.evidence + self.rng.gumbel(size=self.evidence.shape)  # the largest is a draw from the posterior
        believed = likely.argmax(axis=1)
        means = self._means(believed)
        acted = np.where(self.lapsed[:, None], self._means(np.where(self.lapsed, self.lost, believed)), means)
        stds = np.broadcast_to(self.known.policy.stds.numpy(), means.shape)
        actions = draw(acted, np.hypot(stds, self.noise), self.vec_env, self.rng)
        return actions, {"action_means": means, "action_stds": stds}

    @torch.no_grad()
    def learn(
        self, actions: np.ndarray, rewards: np.ndarray, reached: np.ndarray, dones: np.ndarray, infos: list[dict]
    ) -> None:
        model = self.known.rewards
        expected = model(as_step(self.states, actions, flat(reached)), self.known.candidates).numpy()
        self.evidence -= 0.5 * ((rewards[:, None] - expected) / model.noise.item()) ** 2
        noise, lapsed, lost = self._begin()
        self.noise = np.where(dones[:, None], noise, self.noise)
        self.lapsed, self.lost = np.where(dones, lapsed, self.lapsed), np.where(dones, lost, self.lost)

    def _means(self, followed: np.ndarray) -> np.ndarray:
        return means_for(self.known, self.states, followed)

    def _begin(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of an episode: (E, A) deviations of noise, and (E,) whether it is a lapse, and for which candidate it then acts."""
        space, n = self.vec_env.action_space, self.n_streams
        largest = self.config["explorer_noise"] * (space.high - space.low).reshape(-1) / 2
        lapsed = self.rng.random(n) < self.config["explorer_lapses"]
        return self.rng.random((n, 1)) * largest, lapsed, self.rng.integers(len(self.known.candidates), size=n)


def read(path: Path) -> dict:
    """What was trained before; {} where there is nothing that can be read."""
    try:
        return torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return {}


def check(config: dict) -> None:
    """Raise InputError where a family has not what this source needs."""
    if not config["task_ranges"]:
        raise InputError("alg: Conditioned is told what tasks differ in: expected task_ranges in the env config")
    spaces = env.spaces(config)
    if not all(isinstance(space, Box) for space in spaces):
        raise InputError(
            f"alg: Conditioned expects real-valued observations and actions (Box), got {spaces[0]}, {spaces[1]}; use PPO, or "
            "Explorer where they can be counted"
        )


def untrained(config: dict) -> Prepared:
    n_observed, n_actions = (int(np.prod(space.shape)) for space in env.spaces(config))
    n_numbers = len(config["task_ranges"])
    policy = ToldPolicy(n_observed + n_numbers, n_actions, config["net_arch"])
    candidates = np.random.default_rng(config["alg_seed"]).uniform(-1, 1, (N_CANDIDATES, n_numbers))
    rewards = RewardModel(2 * n_observed + n_actions, n_numbers)
    return Prepared(policy, rewards, torch.as_tensor(candidates, dtype=torch.float))


def numbers_of_training_tasks(config: dict) -> np.ndarray:
    """(tasks, P) what tells the training tasks apart, scaled so that all lie within -1 and 1."""
    tasks = env.list_tasks(config)
    numbers = np.array([[tasks[i][name] for name in config["task_ranges"]] for i in env.split_tasks(config)["train"]])
    low, high = numbers.min(axis=0), numbers.max(axis=0)
    return 2 * (numbers - low) / np.maximum(high - low, 1e-9) - 1


def train(config: dict, prepared: Prepared) -> None:
    """Train the policy with PPO on all training tasks at once, each in a stream of its own; then fit the model of rewards."""
    tasks, numbers = env.list_tasks(config), numbers_of_training_tasks(config)
    torch.manual_seed(config["alg_seed"])
    streams = env.make_source_env(config, [tasks[i] for i in env.split_tasks(config)["train"]])
    scaled = with_normalization(with_exploration_bonus(Told(streams, numbers), config), config)
    print(f"training one policy on {len(numbers)} tasks", flush=True)
    model = PPO(
        "MlpPolicy", scaled, learning_rate=config["source_lr"], n_steps=config["n_steps"], batch_size=config["batch_size"],
        n_epochs=config["n_epochs"], gamma=config["gamma"], gae_lambda=config["gae_lambda"], clip_range=config["clip_range"],
        ent_coef=config["ent_coef"], vf_coef=config["vf_coef"], max_grad_norm=config["max_grad_norm"],
        policy_kwargs={"net_arch": list(config["net_arch"])}, seed=config["alg_seed"], device="cpu",
    )  # fmt: skip
    with tqdm(total=config["policy_timesteps"], desc="policy", unit="step", mininterval=10) as bar:
        model.learn(config["policy_timesteps"], callback=lambda *_: bar.update(len(numbers)) or True)
    prepared.policy.take(model)
    prepared.rewards.fit(*try_out(config, streams, prepared, numbers))
    print(f"its model of rewards is off by {prepared.rewards.noise:.3g} per step", flush=True)
    streams.close()


@torch.no_grad()
def try_out(config: dict, streams: VecEnv, prepared: Prepared, numbers: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Steps on the training tasks, acted as the policy would on other ones; the arguments of `RewardModel.fit`."""
    rng = np.random.default_rng(config["alg_seed"])
    states, steps, rewards = flat(streams.reset()), [], []
    followed = rng.integers(N_CANDIDATES, size=len(numbers))
    stds = prepared.policy.stds.numpy()
    for _ in range(max(env.max_episode_steps(config), -(-TRIED_STEPS // len(numbers)))):
        actions = draw(means_for(prepared, states, followed), stds, streams, rng)
        after, earned, dones, infos = streams.step(actions)
        steps.append(as_step(states, actions, flat(reached_observations(after, dones, infos))))
        rewards.append(torch.as_tensor(earned, dtype=torch.float))
        states, followed = flat(after), np.where(dones, rng.integers(N_CANDIDATES, size=len(numbers)), followed)
    of_tasks = torch.as_tensor(numbers, dtype=torch.float).repeat(len(steps), 1)
    return torch.cat(steps), of_tasks, torch.cat(rewards)


def means_for(known: Prepared, states: np.ndarray, followed: np.ndarray) -> np.ndarray:
    """Mean actions (E, A) in (E, O) states, as on tasks of the candidates `followed` (E,)."""
    return known.policy(torch.cat([torch.as_tensor(states), known.candidates[followed]], dim=1)).numpy()


def draw(means: np.ndarray, stds: np.ndarray, streams: VecEnv, rng: np.random.Generator) -> np.ndarray:
    """(E, A) Gaussians to actions (E, ...) within their bounds."""
    space = streams.action_space
    drawn = (means + stds * rng.standard_normal(means.shape)).reshape(-1, *space.shape)
    return np.clip(drawn, space.low, space.high).astype(space.dtype)


def as_step(states: np.ndarray, actions: np.ndarray, reached: np.ndarray) -> Tensor:
    """(E, O), (E, ...) and (E, O) to (E, 2 O + A)."""
    return torch.as_tensor(np.concatenate([states, flat(actions), reached], axis=1))


def flat(values: np.ndarray) -> np.ndarray:
    """(E, ...) to (E, entries) of float32."""
    return values.reshape(len(values), -1).astype(np.float32)
