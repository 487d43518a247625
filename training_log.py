"""What a training run shows in TensorBoard."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import yaml
from torch.utils.tensorboard import SummaryWriter

import env
from plots.returns import plot_per_task, plot_returns


class TrainingLog:
    """Scalars, figures, hyperparameters and the effective config of one run.

    Args:
        run_dir: where the event files go.
        config: the effective config.
        update: the last one that is kept; what an interrupted run logged after it is not shown.
    """

    def __init__(self, run_dir: Path, config: dict, update: int):
        self.config, self.results = config, {}  # the newest value of each result that hyperparameters are judged by
        self.writer = SummaryWriter(run_dir, purge_step=update + 1)
        text = yaml.safe_dump(config, sort_keys=False)
        self.writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), update)

    def scalars(self, prefix: str, losses: dict, update: int) -> None:
        for name, value in losses.items():
            if not math.isnan(value):  # a batch without the event measured
                self.writer.add_scalar(f"{prefix}/{name}", float(value), update)
        if prefix == "test":
            self.results |= {name: float(losses[name]) for name in ("loss_action", "loss_total") if name in losses}

    def in_context(self, returns: np.ndarray, indices: list[int], update: int) -> None:
        """Log an evaluation on some tasks.

        Args:
            returns: (tasks, repeats, episodes). indices: of these tasks.
        """
        if not returns.shape[-1]:
            print(f"note: {env.no_episode_ended(self.config)}", file=sys.stderr)
            return
        n_last = max(1, returns.shape[-1] // 10)
        last = returns[..., -n_last:].mean(axis=(1, 2))  # (tasks,)
        tasks = env.list_tasks(self.config)
        optimal = env.optimal_returns(self.config, [tasks[i] for i in indices])
        label = f"return over the last {n_last} episodes"
        values = np.full(len(tasks), np.nan)
        values[indices] = last
        if (optimal > 0).all():
            values[indices] /= optimal
            label += ", share of the optimum"
        self.results["return_last_episodes"] = float(last.mean())
        self.writer.add_scalar("test/return_last_episodes", last.mean(), update)
        title = f"{self.config['env']}, {len(indices)} held-out tasks, update {update}"
        self.writer.add_figure("test/return_over_episodes", plot_returns({"AD": returns}, title=title), update)
        self.writer.add_figure("test/return_per_task", plot_per_task(values, tasks, label), update)

    def hyperparameters(self, update: int) -> None:
        """Enter the finished run, with its final results, into TensorBoard's table of hyperparameters."""
        plain = {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in self.config.items()}
        results = {f"result/{name}": value for name, value in self.results.items()}
        self.writer.add_hparams(plain, results, run_name=".", global_step=update)

    def close(self) -> None:
        self.writer.close()
