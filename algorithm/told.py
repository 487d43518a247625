"""One policy for all training tasks, which is told the numbers that tasks differ in, and models of what steps bring.

The numbers are those of `task_ranges`, such as a wanted speed. One PPO is trained on all training tasks at once, and sees them
beside its observations (a universal policy; Schaul et al. 2015, "Universal value function approximators"). The models of what a
step pays and where it leads are fitted to steps on training tasks that were acted as on other ones, so that they know what a wrong
guess brings.

Letters in shapes: E streams, O observation entries, A action entries, P numbers of a task, M candidates, N steps, I inputs and Y
outputs of a model.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from torch import Tensor, nn
from tqdm import tqdm

import env
from algorithm.ppo import PPOSource
from algorithm.source import reached_observations

N_CANDIDATES = 256  # numbers that a task may have, drawn within those of the training tasks
TRIED_STEPS = 100_000  # on training tasks, acting as on others: what the models are fitted to
WIDTH, N_UPDATES, BATCH = 128, 3000, 1024  # of each model
LEAST_NOISE = 0.02  # of rewards and moves, as a share of their deviation: what a model may be wrong by
LEAST_STD = 1e-6  # what deviates by less is constant
CLEARLY = 1.05  # so many times as wrong is a model with the numbers of other tasks, where these tell anything


class Told(VecEnvWrapper):
    """Observations with a task's `numbers` (E, P) behind them."""

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


class TaskModel(nn.Module):
    """What steps bring on each task: (E, I) inputs and (M, P) numbers of tasks to (E, M, Y).

    Attributes:
        noise: (Y,) what it is wrong by. tells: (Y,) 1 where it is clearly more wrong with the numbers of other tasks, else 0.
    """

    def __init__(self, n_inputs: int, n_numbers: int, n_outputs: int):
        super().__init__()
        self.of_steps, self.of_tasks = nn.Linear(n_inputs, WIDTH), nn.Linear(n_numbers, WIDTH, bias=False)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, n_outputs))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.ones(n_inputs))
        for name in ("output_mean", "output_std", "noise", "tells"):
            self.register_buffer(name, torch.ones(n_outputs))

    def forward(self, inputs: Tensor, numbers: Tensor) -> Tensor:
        hidden = self.of_steps((inputs - self.mean) / self.std)[:, None] + self.of_tasks(numbers)
        return self.output_mean + self.output_std * self.rest(hidden)

    def log_likelihood(self, inputs: Tensor, outputs: Tensor, numbers: Tensor) -> Tensor:
        """(E, I) inputs and what followed (E, Y), to (E, M): how well each of (M, P) numbers explains it."""
        if not self.tells.any():
            return torch.zeros(len(inputs), len(numbers))
        misfit = (outputs[:, None] - self(inputs, numbers)) / self.noise
        return -0.5 * (self.tells * misfit.square()).sum(dim=-1)

    def fit(self, inputs: Tensor, outputs: Tensor, numbers: Tensor) -> TaskModel:
        """Fit to N steps (N, I), what followed (N, Y), and the numbers of their tasks (N, P)."""
        self.mean, self.std = inputs.mean(0), inputs.std(0).clamp(min=LEAST_STD)
        self.output_mean, self.output_std = outputs.mean(0), outputs.std(0).clamp(min=LEAST_STD)
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_UPDATES)
        for _ in range(N_UPDATES):
            batch = torch.randint(len(inputs), (BATCH,))
            missed = self(inputs[batch], numbers[batch, None])[:, 0] - outputs[batch]
            loss = (missed / self.output_std).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        some = torch.randint(len(inputs), (10_000,))
        missed = self._missed(inputs[some], outputs[some], numbers[some])
        with_others = self._missed(inputs[some], outputs[some], numbers[some[torch.randperm(len(some))]])
        self.noise = torch.maximum(missed, LEAST_NOISE * self.output_std)
        self.tells = ((with_others > CLEARLY * self.noise) & (self.output_std > LEAST_STD)).float()
        return self

    @torch.no_grad()
    def _missed(self, inputs: Tensor, outputs: Tensor, numbers: Tensor) -> Tensor:
        """(Y,) root mean square of what the model is wrong by."""
        return (self(inputs, numbers[:, None])[:, 0] - outputs).square().mean(0).sqrt()


@dataclass
class Prepared:
    """What the training tasks teach. candidates: (M, P) numbers that a task may have."""

    policy: ToldPolicy
    rewards: TaskModel
    moves: TaskModel
    candidates: Tensor

    def log_likelihood(self, steps: Tensor, rewards: Tensor) -> Tensor:
        """(E, 2 O + A) steps and (E,) what they paid, to (E, M): how well each candidate explains it, and where they led."""
        paid = self.rewards.log_likelihood(steps, rewards[:, None], self.candidates)
        return paid + self.moves.log_likelihood(*as_move(steps, len(self.moves.noise)), self.candidates)

    def fit(self, steps: Tensor, rewards: Tensor, numbers: Tensor) -> None:
        """Fit both models to N steps (N, 2 O + A), what they paid (N,) and the numbers of their tasks (N, P)."""
        self.rewards.fit(steps, rewards[:, None], numbers)
        self.moves.fit(*as_move(steps, len(self.moves.noise)), numbers)
        print(f"its model of rewards is off by {self.rewards.noise.item():.3g} per step", flush=True)
        if not self.rewards.tells.any() and not self.moves.tells.any():
            warnings.warn(
                "neither rewards nor moves tell training tasks apart: beliefs stay as wide as they begin", stacklevel=2
            )


def untrained(config: dict) -> Prepared:
    n_observed, n_actions = (int(np.prod(space.shape)) for space in env.spaces(config))
    n_numbers = len(config["task_ranges"])
    torch.manual_seed(config["alg_seed"])
    policy = ToldPolicy(n_observed + n_numbers, n_actions, config["net_arch"])
    candidates = np.random.default_rng(config["alg_seed"]).uniform(-1, 1, (N_CANDIDATES, n_numbers))
    return Prepared(
        policy,
        rewards=TaskModel(2 * n_observed + n_actions, n_numbers, n_outputs=1),
        moves=TaskModel(n_observed + n_actions, n_numbers, n_outputs=n_observed),
        candidates=torch.as_tensor(candidates, dtype=torch.float),
    )


def numbers_of_training_tasks(config: dict) -> np.ndarray:
    """(tasks, P) what tells the training tasks apart, scaled so that all lie within -1 and 1."""
    tasks = env.list_tasks(config)
    numbers = np.array([[tasks[i][name] for name in config["task_ranges"]] for i in env.split_tasks(config)["train"]])
    low, high = numbers.min(axis=0), numbers.max(axis=0)
    return 2 * (numbers - low) / np.maximum(high - low, 1e-9) - 1


def train(config: dict, prepared: Prepared) -> None:
    """Train the policy with PPO on all training tasks at once, each in a stream of its own; then fit the models."""
    tasks, numbers = env.list_tasks(config), numbers_of_training_tasks(config)
    streams = env.make_source_env(config, [tasks[i] for i in env.split_tasks(config)["train"]])
    print(f"training one policy on {len(numbers)} tasks", flush=True)
    model = PPOSource(config, Told(streams, numbers), config["alg_seed"])
    with tqdm(total=config["policy_timesteps"], desc="policy", unit="step", mininterval=10) as bar:
        model.learn(config["policy_timesteps"], callback=lambda *_: bar.update(len(numbers)) or True)
    prepared.policy.take(model)
    prepared.fit(*try_out(config, streams, prepared, numbers))
    streams.close()


@torch.no_grad()
def try_out(config: dict, streams: VecEnv, prepared: Prepared, numbers: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Steps on the training tasks, acted as the policy would on other ones; the arguments of `Prepared.fit`."""
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
    return torch.cat(steps), torch.cat(rewards), of_tasks


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


def as_move(steps: Tensor, n_observed: int) -> tuple[Tensor, Tensor]:
    """(E, 2 O + A) steps to (E, O + A) what they were taken from and how, and (E, O) by how much observations changed."""
    return steps[:, :-n_observed], steps[:, -n_observed:] - steps[:, :n_observed]


def flat(values: np.ndarray) -> np.ndarray:
    """(E, ...) to (E, entries) of float32."""
    return values.reshape(len(values), -1).astype(np.float32)
