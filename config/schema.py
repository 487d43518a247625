"""Every config key, once: its type, range and default, what it decides, and when it is read.

A config is a flat dict: the keys of one env, one algorithm and one model YAML file together. The YAML
files explain the keys to users.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from utils import HIGHEST_SEED


class Required:
    """The default of a key that has none."""

    def __repr__(self) -> str:
        return "(missing)"


REQUIRED = Required()


class Decides(Enum):
    """What changes with a key's value, and so who may change it afterwards.

    SOURCE and TASKS are recorded in the history file. Another value of TASKS and SPLIT may be given when
    a model is evaluated, and of EVALUATION, LOGGING and RUNNING also when a training run is resumed.
    """

    SOURCE = "what is in a history file"
    TASKS = "which tasks there are, in a history file or an evaluation"
    SPLIT = "which of the tasks are held out"
    TRAINING = "what the model learns"
    EVALUATION = "how the model acts"
    LOGGING = "what is logged and kept, and how often"
    RUNNING = "how the work is done, not what comes out"


@dataclass(frozen=True)
class Key:
    """What a config key may hold.

    `low` and `high` are inclusive; `above` is exclusive. A nullable key also takes null.
    `word` is text that is taken too. `only` says when a key is read: ("context", "regions", "memory") is where `context`
    is one of these two; None is always.
    """

    kind: type
    decides: Decides
    default: Any = REQUIRED
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple | None = None
    nullable: bool = False
    word: str | None = None
    only: tuple[str, ...] | None = None

    def is_read(self, config: dict) -> bool:
        return self.only is None or config.get(self.only[0]) in self.only[1:]

    def problem(self, value: Any) -> str | None:
        """Why `value` does not fit, as 'expected ...', or None."""
        if (value is None and self.nullable) or (value == self.word and self.word):
            return None
        wrong_type = not isinstance(value, self.kind) or (self.kind is not bool and isinstance(value, bool))
        if wrong_type:
            others = [*([self.word] if self.word else []), *(["null"] if self.nullable else [])]
            return f"expected {' or '.join([self.kind.__name__, *others])}, got {type(value).__name__}"
        if self.choices and value not in self.choices:
            return f"expected one of {', '.join(map(str, self.choices))}"
        if self.kind is float and not math.isfinite(value):
            return "expected a finite number"
        if self.low is not None and value < self.low:
            return f"expected at least {self.low}"
        if self.high is not None and value > self.high:
            return f"expected at most {self.high}"
        if self.above is not None and value <= self.above:
            return f"expected more than {self.above}"
        return None


SOURCE, TASKS, SPLIT = Decides.SOURCE, Decides.TASKS, Decides.SPLIT
TRAINING, EVALUATION, LOGGING, RUNNING = Decides.TRAINING, Decides.EVALUATION, Decides.LOGGING, Decides.RUNNING
PPO, ON_POLICY = ("alg", "PPO", "Conditioned"), ("alg", "PPO", "A2C", "Conditioned")
EXPLORER, CONDITIONED = ("alg", "Explorer", "PSRL"), ("alg", "Conditioned")
EXPLORING = (*EXPLORER, "Conditioned")
WINDOW, REGIONS, MEMORY = ("context", "window"), ("context", "regions"), ("context", "memory")
MARKED = ("context", "regions", "memory")

KEYS: dict[str, dict[str, Key]] = {
    "env": {
        "env": Key(str, SOURCE),
        "grid_size": Key(int, SOURCE, 9, low=2),
        "horizon": Key(int, TASKS, None, low=1, nullable=True),
        "env_kwargs": Key(dict, TASKS, {}),
        "wrappers": Key(list, SOURCE, []),
        "task_kwargs": Key(list, TASKS, []),
        "task_ranges": Key(dict, TASKS, {}),
        "task_number": Key(str, TASKS, None, nullable=True),
        "n_tasks": Key(int, TASKS, None, low=1, nullable=True),
        "task_seed": Key(int, TASKS, 0, low=0, high=HIGHEST_SEED),
        "source_sees_progress": Key(bool, SOURCE, False),
        "env_split_seed": Key(int, SPLIT, 0, low=0, high=HIGHEST_SEED),
        "train_env_ratio": Key(float, SPLIT, 0.9, above=0, high=1),
    },
    "algorithm": {
        "alg": Key(str, SOURCE),
        "alg_seed": Key(int, TASKS, 42, low=0, high=HIGHEST_SEED),
        "n_stream": Key(int, SOURCE, low=1),
        "n_steps": Key(int, SOURCE, low=2),
        "total_source_timesteps": Key(int, SOURCE, low=1),
        "batch_size": Key(int, SOURCE, low=2, only=PPO),
        "n_epochs": Key(int, SOURCE, low=1, only=PPO),
        "source_lr": Key(float, SOURCE, above=0, only=ON_POLICY),
        "net_arch": Key(list, SOURCE, [64], only=ON_POLICY),
        "gamma": Key(float, SOURCE, 0.99, low=0, high=1, only=ON_POLICY),
        "gae_lambda": Key(float, SOURCE, 0.95, low=0, high=1, only=ON_POLICY),
        "clip_range": Key(float, SOURCE, 0.2, above=0, only=PPO),
        "ent_coef": Key(float, SOURCE, 0.01, low=0, only=ON_POLICY),
        "exploration_bonus": Key(float, SOURCE, 0.0, low=0, only=ON_POLICY),
        "normalize": Key(bool, SOURCE, False, only=ON_POLICY),
        "vf_coef": Key(float, SOURCE, 0.5, low=0, only=ON_POLICY),
        "max_grad_norm": Key(float, SOURCE, 0.5, above=0, only=ON_POLICY),
        "learns_from": Key(str, SOURCE, "PPO", only=EXPLORING),
        "policy_timesteps": Key(int, SOURCE, 2_000_000, low=1, only=CONDITIONED),
        "rewards_per_round": Key(int, SOURCE, None, low=1, nullable=True, only=EXPLORER),
        "explorer_noise": Key(float, SOURCE, 0.3, low=0, high=1, only=EXPLORING),
        "explorer_lapses": Key(float, SOURCE, 0.0, low=0, high=1, only=EXPLORING),
        "n_process": Key(int, RUNNING, None, low=1, nullable=True),
    },
    "model": {
        "model": Key(str, TRAINING, "AD"),
        "use_compressed_context": Key(bool, TRAINING, False),
        "context": Key(str, TRAINING, None, nullable=True),
        "compress_interval": Key(int, TRAINING, None, low=2, nullable=True, word="auto"),
        "context_regions": Key(int, TRAINING, 2, low=1, only=REGIONS),
        "currents_per_previous": Key(int, TRAINING, 1, low=1, only=REGIONS),
        "n_summary": Key(int, TRAINING, 4, low=1, only=MEMORY),
        "memory_regions": Key(int, TRAINING, 8, low=0, only=MEMORY),
        "varied_room": Key(float, TRAINING, 1.0, low=0, high=1, only=MEMORY),
        "recall_loss_weight": Key(float, TRAINING, 0.0, low=0, only=MEMORY),
        "history_regions": Key(int, TRAINING, 12, low=2),
        "region_ends": Key(str, TRAINING, "fixed", choices=("fixed", "news"), only=MARKED),
        "shortest_region": Key(int, TRAINING, 1, low=1, only=MARKED),
        "histories": Key(str, TRAINING, "every", choices=("every", "causal", "whole")),
        "repeat_last_region": Key(bool, TRAINING, False, only=("histories", "whole")),
        "n_transit": Key(int, TRAINING, low=2),
        "kept_fraction": Key(float, TRAINING, 0.5, above=0, high=0.999, only=WINDOW),
        "region_stride": Key(int, TRAINING, 3, low=1),
        "mix_streams": Key(bool, TRAINING, True),
        "reached_observations": Key(bool, TRAINING, False),
        "in_memory": Key(str, RUNNING, "auto", choices=("auto", "always", "never")),
        "soft_targets": Key(bool, TRAINING, True),
        "dense_supervision": Key(bool, TRAINING, True),
        "token_type_loss_weight": Key(float, TRAINING, 0.1, low=0, only=MARKED),
        "n_embd": Key(int, TRAINING, 64, low=1),
        "n_layer": Key(int, TRAINING, 4, low=1),
        "n_head": Key(int, TRAINING, 2, low=1),
        "dropout": Key(float, TRAINING, 0.0, low=0, high=0.999),
        "train_seed": Key(int, TRAINING, 0, low=0, high=HIGHEST_SEED),
        "train_timesteps": Key(int, TRAINING, low=1),
        "train_source_timesteps": Key(int, TRAINING, None, low=1, nullable=True),
        "train_batch_size": Key(int, TRAINING, 64, low=1),
        "lr": Key(float, TRAINING, 3e-3, above=0),
        "warmup_timesteps": Key(int, TRAINING, 100, low=0),
        "weight_decay": Key(float, TRAINING, 0.01, low=0),
        "grad_clip": Key(float, TRAINING, 1.0, above=0),
        "compile": Key(bool, RUNNING, False),
        "autocast": Key(bool, TRAINING, True),
        "log_interval": Key(int, LOGGING, 20, low=1),
        "test_interval": Key(int, LOGGING, 200, low=1),
        "eval_interval": Key(int, LOGGING, 400, low=1),
        "eval_episodes": Key(int, LOGGING, 40, low=1),
        "eval_repeats": Key(int, LOGGING, 4, low=1),
        "ckpt_interval": Key(int, LOGGING, 400, low=1),
        "keep_checkpoints": Key(int, LOGGING, 3, low=1),
        "temperature": Key(float, EVALUATION, 0.6, low=0),
        "exploring_temperature": Key(float, EVALUATION, None, low=0, nullable=True),
        "exploring_patience": Key(float, EVALUATION, None, above=0, nullable=True),
        "restart_after": Key(int, EVALUATION, None, low=1, high=10**12, nullable=True),
        "boundaries": Key(str, EVALUATION, "fixed", choices=("fixed", "predicted", "news", "random"), only=MARKED),
        "mean_region": Key(float, EVALUATION, None, low=1, nullable=True, only=("boundaries", "random")),
    },
}
ALL_KEYS = {name: key for section in KEYS.values() for name, key in section.items()}
DEFAULTS = {name: key.default for name, key in ALL_KEYS.items() if key.default is not REQUIRED}


def keys_of(chooser: str, name: str) -> dict[str, Key]:
    """The keys that only the choice `name` of `chooser` reads, or it among others: `alg` and "PPO", `context` and "memory".

    A shipped class has them as its `keys`, so that a class of the user's that builds on it reads them too.
    """
    read = {key_name: key for key_name, key in ALL_KEYS.items() if key.only and key.only[0] == chooser}
    return {key_name: replace(key, only=None) for key_name, key in read.items() if name in key.only[1:]}


def names(*decisions: Decides, section: str | None = None) -> tuple[str, ...]:
    """The keys that decide one of these things, of one section or of all."""
    return tuple(name for name, key in (KEYS[section] if section else ALL_KEYS).items() if key.decides in decisions)
