"""Rows of the result tables, as markdown; the lines that several tables share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from stored import Scores, with_interval

EPISODES = (10, 20, 50, 100, 500)
SOURCE_NAMES = {None: "PPO", "conditioned": "Conditioned", "psrl": "PSRL", "explorer": "explorer"}
HEADER = [
    "seeds",
    "episode 10",
    "20",
    "50",
    "91 to 100 (95 % interval)",
    "share of optimum",
    "worst goal",
    "never found",
]
CONTEXTS = {  # end of a setting's name: its label
    "": "memory", "-two-regions": "two regions",
    "-window": "plain window of equal bytes", "-full": "plain window as long as a training history",
    "-0": "memory without summaries: carried keys alone", "-cleared": "memory, cleared at every region's end",
    "-other-task": "memory, that of another task",
    "-unreached": "memory, tokens without the observation that an episode ended on",
    "-16-asked": "memory, 16 tokens per summary, asked what their regions showed",
    "-asked": "memory, summaries asked what their regions showed",
    "-short": "memory, half the updates",
    "-recall": "memory, half the updates, summaries asked what their regions showed",
}  # fmt: skip
WITH_CONTROLS = ("", "-two-regions", "-window")  # memory, and what it is compared with


def table(header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return f"{header[0]}: not run yet.\n"
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def row(name: str, scores: Scores) -> list[str]:
    """Returns at EPISODES, return and share over 91 to 100, worst goal's share, repeats without the goal."""
    n, late = scores.returns.shape[-1], scores.at(91, 100)
    digits = 1 if scores.optimal.mean() > 2 else 2
    cells = [f"{scores.at(e).mean():.{digits}f}" if e <= n else "" for e in EPISODES[:3]]
    share, worst = with_interval(late / scores.optimal), (late.mean(axis=0) / scores.optimal).min()
    cells += [with_interval(late), share, f"{worst:.2f}", f"{scores.never_found():.1%}"]
    return [name, str(scores.n_seeds), *cells]


def difference(compressed: Scores, standard: Scores) -> str:
    """Compressed minus standard over episodes 91 to 100, over the seeds that both have."""
    one, other = compressed.beside(standard)
    if not one.n_seeds:
        return "no seed in common"
    return with_interval(one.at(91, 100) - other.at(91, 100))


def compare(heading: str, labels: dict[str, str], by_split: dict[str, str] | None = None) -> str:
    """A table of those settings that were run: setting to label, on split 0, and `by_split` on splits 1 and 2.

    A setting's name may be followed by " " and the name of its evaluation.
    """
    found = [(label, Scores(*name.split(" "))) for name, label in labels.items()]
    for split in (1, 2):
        found += [(f"split {split}: {label}", Scores(name, split=split)) for name, label in (by_split or {}).items()]
    return table([heading, *HEADER], [row(label, scores) for label, scores in found if scores.n_seeds])


def rows_with_gains(found: dict[str, tuple[Scores, ...]], columns: list[tuple[int, Callable]]) -> list[list[str]]:
    """A row for each context, and what memory gains on the others over the seeds that both have.

    Args:
        found: label of a context, memory's first, to its scores.
        columns: which of these scores a column is of, and what makes (seeds, tasks) values of them.
    """

    def row(label: str, values: list[np.ndarray]) -> list[str]:
        n_seeds = sorted(set(map(len, values)), reverse=True)  # several numbers where columns differ
        return [label, ", ".join(map(str, n_seeds)), *map(with_interval, values)]

    rows = [row(label, [values(scores[at]) for at, values in columns]) for label, scores in found.items()]
    (_, memory), *others = found.items() if found else [(None, None)]
    for label, scores in others:
        pairs = [(values, *memory[at].beside(scores[at])) for at, values in columns]
        if all(ours.n_seeds for _, ours, _ in pairs):  # they have seeds in common
            rows.append(row(f"memory minus {label}", [values(ours) - values(theirs) for values, ours, theirs in pairs]))
    return rows
