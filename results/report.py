"""Rebuild every result table and figure from the scores in results/scores.

    python results/report.py     # writes tables.md, returns.png, clock.png and goals.png here, and contexts.png, regret.png and past.png in docs/

Intervals are 95 % bootstrap intervals over seeds and goals.
"""

from __future__ import annotations

import argparse

import numpy as np
from explored import bandits, doors, explorers, lost_stretches
from figures import draw_all
from rows import CONTEXTS, EPISODES, HEADER, SOURCE_NAMES, WITH_CONTROLS, compare, difference, row, table
from stored import (
    CONTROL,
    FAMILIES,
    ROOT,
    SCORES,
    SHOWN_WINDOWS,
    WINDOW_LABELS,
    WINDOWS,
    Scores,
    best_standard,
    both_modes,
    source,
    with_interval,
    with_memory,
)

EXPLORING = "temperature 1.0 while the context holds no reward"
PUBLISHED = [  # mean return on held-out goals of 9x9 Darkroom, horizon 20, 73/8 split, PPO, after 100 episodes
    ("DICP on AD, filtered histories (arXiv:2505.15143)", 16.5),
    ("DPT (arXiv:2306.14892)", 14.4),
    ("DICP on AD (arXiv:2502.19009)", 14.2),
    ("AD (arXiv:2210.14215)", 11.3),
]


def main_table(compressed: Scores, standard: dict[str, Scores]) -> str:
    rows = [row("**two regions, PPO's histories**", compressed)]
    rows += [row(label, scores) for label, scores in with_memory().items()]
    for name in SHOWN_WINDOWS:
        label, causal = f"standard AD, {WINDOW_LABELS[name]}", Scores(f"standard-{name}-causal")
        if name in standard:
            hot = ", temperature 1.0" if standard[name].name[1] == "temperature-1.0" else ""  # all others: 0.6
            rows.append(row(label + hot, standard[name]))
        rows += [row(f"{label}, causal histories", causal)] if causal.n_seeds else []
    rows.append(["source PPO at its end", "", "", "", "", f"{source('darkroom')['returns'][-1]:.2f}", "", "", ""])
    rows.append(["random policy", "", *[f"{compressed.random:.1f}"] * 3, f"{compressed.random:.2f}", "", "", ""])
    rows.append(["optimum", "", *[f"{compressed.optimal.mean():.2f}"] * 4, "1", "1", ""])
    rows += [[f"published: {name}", "", "", "", "", f"{value}", "", "", ""] for name, value in PUBLISHED]
    return table(["return on held-out goals", *HEADER], rows)


def family_table() -> str:
    """The other families, at their shipped settings; one line each."""
    rows = []
    for env, (name, published) in FAMILIES.items():
        compressed, standard = both_modes(env)
        returns = [with_interval(scores.at(91, 100)) for scores in (compressed, standard)]
        optimum, chance = f"{compressed.optimal.mean():.2f}", f"{compressed.random:.2f}"
        seeds = str(min(compressed.n_seeds, standard.n_seeds))
        rows.append([name, seeds, *returns, published, f"{source(env)['returns'][-1]:.2f}", chance, optimum])
    header = ["episodes 91 to 100, held-out tasks", "seeds", "**two regions**", "standard AD", "published"]
    return table([*header, "source PPO at its end", "random policy", "optimum"], rows)


def family_details() -> str:
    """Compressed and standard of each family over episodes, and their difference."""
    rows = []
    for env, (name, _) in FAMILIES.items():
        compressed, standard = both_modes(env)
        rows += [row(f"{name}, compressed", compressed), row(f"{name}, standard AD", standard)]
        rows.append(
            [f"{name}, compressed minus standard", "", "", "", "", difference(compressed, standard), "", "", ""]
        )
    return table(["held-out tasks", *HEADER], rows)


CONTROL_ROWS = {  # end of a setting's name: source of its histories (None: PPO), and context
    "compressed": (None, "two regions"),
    "standard": (None, "standard AD"),
    "conditioned": ("conditioned", "two regions"),
    "conditioned-standard": ("conditioned", "standard AD"),
    **{f"{source}{kind}": (source, CONTEXTS[kind]) for source in ("psrl", "explorer") for kind in WITH_CONTROLS},
}


def end_of(env: str, source_name: str | None = None) -> float:
    """The mean return of a source's last rollouts on the held-out tasks, by default PPO's; NaN where it was not run."""
    name = f"{env}-{source_name}" if source_name else env
    return float(source(name)["returns"][-1]) if (SCORES / f"source_{name}.npz").exists() else np.nan


def control_row(scores: Scores, source_name: str | None, context: str, ends: tuple[float, float]) -> list[str]:
    """`ends`: the mean return of the histories' source at its end, and that of PPO, NaN where there is none."""
    end = ends[-1]
    last = scores.returns.shape[-1]
    first, late = scores.at(1, 3), scores.at(last - last // 10 + 1, last)
    starts = (first.mean(), scores.random)
    ways = [(late.mean() - start) / (end - start) if start < end else np.nan for start in starts]
    cells = [SOURCE_NAMES[source_name], context, str(scores.n_seeds), f"{scores.random:.2f}"]
    cells += [f"{first.mean():.2f}", f"{scores.at(10).mean():.2f}", with_interval(late)]
    return cells + ["" if np.isnan(value) else f"{value:.2f}" for value in (*ends, *ways)]


def control_table() -> str:
    """The families with 60 episodes in context; those that were run.

    The gap is what the first three episodes, or a random policy, return less than PPO, run on these tasks themselves, at its
    end; the last tenth of the episodes closes a share of it.
    """
    rows = []
    for env, name in CONTROL.items():
        for kind, labels in CONTROL_ROWS.items():
            for evaluation, counted in {"default": "", "success": ", success"}.items():
                scores = Scores(f"{env}-{kind}", evaluation)
                if scores.n_seeds:
                    ends = tuple(np.nan if counted else end_of(env, source) for source in (labels[0], None))
                    rows.append([name + counted, *control_row(scores, *labels, ends)])
    header = ["held-out tasks, 60 episodes", "source", "context", "seeds", "random policy", "episodes 1 to 3", "10"]
    header += [
        "55 to 60 (95 % interval)",
        "its source at its end",
        "PPO at its end",
        "share of the gap closed since 1 to 3",
        "since random",
    ]
    return table(header, rows)


def ablations() -> str:
    rows = [row("as shipped: stride 3, soft targets, two regions, weight 0.1, temperature 0.6", Scores("compressed"))]
    for name, label in {
        "hard-targets": "hard targets: the action taken", "stride-1": "region stride 1", "stride-2": "region stride 2",
        "stride-4": "region stride 4", "one-region": "one region", "four-regions": "four regions",
        "token-type-weight-0": "token-type weight 0", "token-type-weight-1": "token-type weight 1",
        "last-step-only": "one target per window, equal compute", "same-stream": "both regions of one stream",
    }.items():  # fmt: skip
        scores = Scores(name)
        if scores.n_seeds:
            rows.append(row(label, scores))
    for evaluation, label in {
        **{f"temperature-{t}": f"temperature {t}" for t in ("0.0", "0.4", "0.8", "1.0")},
        "exploring-1.0": EXPLORING, "predicted": "predicted boundaries",
    }.items():  # fmt: skip
        scores = Scores("compressed", evaluation)
        if scores.n_seeds:
            rows.append(row(label, scores))
    return table(["change", *HEADER], rows)


def memories() -> str:
    labels = {
        "compressed": "two regions", "compressed-causal": "two regions, causal histories",
        **{f"standard-{name} temperature-0.6": f"plain window of {n} steps" for name, n in WINDOWS.items()},
        **{f"standard-{name}-causal": f"plain window of {n} steps, causal histories" for name, n in WINDOWS.items()}, "memory": "memory, causal histories",
        "memory-every": "memory, every third rollout", "memory-0": "memory without summaries: carried keys alone",
    }  # fmt: skip
    by_split = {"compressed-split": "two regions", "memory-split": "memory, causal histories"}
    return compare("Darkroom, PPO's histories", labels, by_split) + "\n" + long_lives()


def long_lives() -> str:
    """Five hundred episodes in context, many times what training histories have."""
    found = {
        "two regions, PPO's histories": Scores("compressed"), "memory, PPO's causal histories": Scores("memory"),
        "memory, explorer's histories": Scores("explorer", "long"),
    }  # fmt: skip
    rows = [
        [
            label,
            str(scores.n_seeds),
            *[with_interval(scores.at(*at) / scores.optimal) for at in ((91, 100), (401, 500))],
        ]
        for label, scores in found.items()
        if scores.n_seeds
    ]
    return table(["Darkroom, share of the optimum", "seeds", "episodes 91 to 100", "401 to 500"], rows)


def text() -> str:
    """All tables, as tables.md holds them."""
    compressed, standard = Scores("compressed"), best_standard()
    parts = ["# Results\n\nMade by `python results/report.py`; what each line means is in README.md here.\n"]
    parts.append("## Darkroom, held-out goals of split seed 0\n\n" + main_table(compressed, standard))
    shown = [episode for episode in EPISODES if episode <= compressed.returns.shape[-1]]
    curve = [
        ["return", *[with_interval(compressed.at(e)) for e in shown]],
        ["share of the optimum", *[f"{compressed.at(e).mean() / compressed.optimal.mean():.3f}" for e in shown]],
    ]
    parts.append("## Compressed context over episodes\n\n" + table(["episode", *map(str, shown)], curve))
    parts.append(f"Over episodes 281 to 300: {with_interval(compressed.at(281, 300))}.\n")
    if standard:
        best = max(standard, key=lambda name: standard[name].at(91, 100).mean())
        words = difference(compressed, standard[best])
        parts.append(f"Compressed minus the best standard AD ({WINDOW_LABELS[best]}), episodes 91 to 100: {words}.\n")
    others = [
        row(f"split seed {split}{label}", scores)
        for split in (1, 2)
        for evaluation, label in {"default": "", "exploring-1.0": f", {EXPLORING}"}.items()
        if (scores := Scores("compressed-split", evaluation, split)).n_seeds
    ]
    if others:
        parts.append("## Other splits, compressed\n\n" + table(["held-out goals", *HEADER], others))
    parts.append("## One change at a time\n\n" + ablations())
    parts.append("## Memory and causal histories\n\n" + memories())
    parts.append("## Histories of the explorer\n\n" + explorers())
    parts.append("## Key-to-Door that goes on\n\n" + doors() + "\n" + lost_stretches())
    parts.append("## Bandits\n\n" + bandits())
    parts.append("## Other families\n\n" + family_table())
    parts.append(family_details())
    parts.append("## Control, and families of other libraries\n\n" + control_table())
    return "\n".join(parts)


def main() -> None:
    (ROOT / "results" / "tables.md").write_text(text())
    draw_all()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()  # --help; there are no arguments
    main()
