"""Show what is in a history file, and check it: markers, gaps, values, attributes.

Exit code 0 for a sound file, 1 if it has problems, 2 if it cannot be read at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scripts import run_script


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="history file, as collect.py writes it")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_arguments(None)  # --help and mistakes are answered before the long imports

import numpy as np

import env
from history.checks import TaskReport, check_file
from history.origin import Origin


def main(argv: list[str] | None = None) -> int:
    path = parse_arguments(argv).file
    origin, reports, problems = check_file(path)
    print_facts(path, origin, reports)
    print_tasks(reports)
    problems += [problem for report in reports for problem in report.problems]
    problems = list(dict.fromkeys(problems))  # what is wrong with the whole file is found in every task
    for note in dict.fromkeys(note for report in reports for note in report.notes):
        print(f"note: {note}")
    for problem in problems:
        print(f"problem: {problem}")
    print(f"{path}: {f'{len(problems)} problem(s)' if problems else 'sound'}")
    return 1 if problems else 0


def print_facts(path: Path, origin: Origin, reports: list[TaskReport]) -> None:
    """Where the file comes from, and the arrays of its first task with the values of all tasks."""
    names = ("format_version", "created_utc", "git_commit")
    told = [f"{name} {getattr(origin, name)}" for name in names if getattr(origin, name)]
    print(", ".join([f"{path}: {path.stat().st_size / 1e6:.1f} MB", f"{len(reports)} tasks", *told]))
    names = ("env", "alg", "alg_seed", "n_stream", "n_steps", "total_source_timesteps")
    print(", ".join(f"{name} {origin.recorded[name]}" for name in names if name in origin.recorded))
    if origin.versions:
        print(", ".join(origin.versions.replace(":", "").splitlines()))
    print(
        f"\n{'dataset':<18} {'shape of a task':<18} {'dtype':<8} {'lowest to highest, all tasks':<28} bytes in the file, of those in memory"
    )
    for name, (shape, dtype, share) in reports[0].datasets.items():
        lows, highs = np.array([report.ranges.get(name, (np.nan, np.nan)) for report in reports]).T
        values = f"{np.nanmin(lows):g} to {np.nanmax(highs):g}" if np.isfinite(lows).any() else "-"
        print(f"{name:<18} {shape!s:<18} {dtype:<8} {values:<28} {share:.0%}")


def print_tasks(reports: list[TaskReport]) -> None:
    """One line per task."""
    arguments = [report.arguments for report in reports]
    heading, *labels = env.task_labels(arguments, arguments)
    width = max(12, len(heading), *map(len, labels))
    print(
        f"\n{'task':>5}  {heading:<{width}} {'steps':>6} {'streams':>7} {'regions':>7} {'return, first to last':>22} "
        f"{'optimum':>8} {'entropy, first to last':>23} {'problems':>9}"
    )
    for label, report in zip(labels, reports):
        print(
            f"{report.task:>5}  {label:<{width}} {report.shape[0]:>6} {report.shape[1]:>7} {len(report.regions):>7} "
            f"{ends(report.returns):>22} {report.optimum:>8.2f} {ends(report.entropy):>23} {len(report.problems):>9}"
        )
    print()


def ends(values: np.ndarray) -> str:
    """The first and the last finite value."""
    values = values[np.isfinite(values)]
    return f"{values[0]:.2f} to {values[-1]:.2f}" if len(values) else "-"


if __name__ == "__main__":
    run_script(main)
