"""Rebuild every result table and figure from the scores in results/scores.

    python results/report.py     # writes tables.md, returns.png, clock.png, goals.png here, docs/contexts.png and docs/regret.png

Intervals are 95 % bootstrap intervals over seeds and goals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from figures import draw_all
from stored import (
    CONTROL,
    DELAYS,
    FAMILIES,
    LIFE,
    ROOT,
    SCORES,
    SHOWN_WINDOWS,
    SPAN,
    STRETCH,
    WINDOW_LABELS,
    WINDOWS,
    Scores,
    after_first_success,
    after_lapses,
    after_misses,
    after_stretches,
    best_standard,
    both_modes,
    source,
    with_interval,
    with_lapses,
    with_memory,
)

EXPLORING = "temperature 1.0 while the context holds no reward"
SOURCE_NAMES = {None: "PPO", "conditioned": "Conditioned", "psrl": "PSRL", "explorer": "explorer"}
EPISODES = (10, 20, 50, 100, 500)
PUBLISHED = [  # mean return on held-out goals of 9x9 Darkroom, horizon 20, 73/8 split, PPO, after 100 episodes
    ("DICP on AD, filtered histories (arXiv:2505.15143)", 16.5),
    ("DPT (arXiv:2306.14892)", 14.4),
    ("DICP on AD (arXiv:2502.19009)", 14.2),
    ("AD (arXiv:2210.14215)", 11.3),
]


def table(header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return f"{header[0]}: not run yet.\n"
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


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


def row(name: str, scores: Scores) -> list[str]:
    """Returns at EPISODES, return and share over 91 to 100, worst goal's share, repeats without the goal."""
    n, late = scores.returns.shape[-1], scores.at(91, 100)
    digits = 1 if scores.optimal.mean() > 2 else 2
    cells = [f"{scores.at(e).mean():.{digits}f}" if e <= n else "" for e in EPISODES[:3]]
    share, worst = with_interval(late / scores.optimal), (late.mean(axis=0) / scores.optimal).min()
    cells += [with_interval(late), share, f"{worst:.2f}", f"{scores.never_found():.1%}"]
    return [name, str(scores.n_seeds), *cells]


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


def difference(compressed: Scores, standard: Scores) -> str:
    """Compressed minus standard over episodes 91 to 100, over the seeds that both have."""
    one, other = compressed.beside(standard)
    return with_interval(one.at(91, 100) - other.at(91, 100))


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


CONTEXTS = {  # end of a setting's name: its label
    "": "memory", "-two-regions": "two regions",
    "-window": "plain window of equal bytes", "-full": "plain window as long as a training history",
    "-0": "memory without summaries: carried keys alone", "-cleared": "memory, cleared at every region's end",
    "-other-task": "memory, that of another task",
}  # fmt: skip
WITH_CONTROLS = ("", "-two-regions", "-window")  # memory, and what it is compared with


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


def compare(heading: str, labels: dict[str, str], by_split: dict[str, str] | None = None) -> str:
    """A table of those settings that were run: setting to label, on split 0, and `by_split` on splits 1 and 2.

    A setting's name may be followed by " " and the name of its evaluation.
    """
    found = [(label, Scores(*name.split(" "))) for name, label in labels.items()]
    for split in (1, 2):
        found += [(f"split {split}: {label}", Scores(name, split=split)) for name, label in (by_split or {}).items()]
    return table([heading, *HEADER], [row(label, scores) for label, scores in found if scores.n_seeds])


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


SPARSE_CONTROL = {"frozen_lake": "psrl", "hidden_goal": "explorer"}  # families with memory, and their sources
EXPLORED = {
    "Darkroom": "explorer", "Darkroom-Large": "large-explorer", "Darkroom-Permuted": "permuted-explorer",
    "Dark Room Hard": "hard-explorer", "Dark Key-to-Door": "key-to-door-explorer",
}  # fmt: skip


def explorers() -> str:
    """Trained on the explorer's histories."""
    more = {
        "quick": "two regions, 500 updates instead of 1,600",
        "explorer-16-kept": "memory of 16 summaries", "explorer-480": "plain window of 480 steps",
        "explorer-adaptive": "regions that end at news: predicted ends", "explorer-adaptive news": "the same, ends by the rule",
        "explorer-adaptive random": "the same, random ends of the same mean length, 77 steps",
        "explorer-adaptive random-45": "the same, random ends after 45 steps in the mean",
        "explorer-adaptive fixed": "the same, regions of 80 steps",
    }  # fmt: skip
    parts = [
        compare(
            family,
            {f"{prefix}{kind}": label for kind, label in CONTEXTS.items()} | (more if prefix == "explorer" else {}),
            {"explorer-split": "memory", "quick-split": "two regions, 500 updates"} if prefix == "explorer" else None,
        )
        for family, prefix in EXPLORED.items()
        if Scores(prefix).n_seeds
    ]
    of_doors = {f"key-to-door-explorer{kind}": label for kind, label in CONTEXTS.items()}
    of_doors["dark_key_to_door-compressed"] = "PPO's histories: two regions"
    missed = [
        [label, *[f"{after_misses(scores, n):.2f}" for n in (0, 1, 3)]]
        for name, label in of_doors.items()
        if (scores := Scores(name)).n_seeds
    ]
    after = [f"after {words}" for words in ("an opened one", "one miss", "three misses")]
    return "\n".join(
        [
            *parts,
            gains(),
            predicted_ends(),
            repeats(),
            table(["Dark Key-to-Door: share of episodes that open the door", *after], missed),
            lapses(),
        ]
    )


def repeats() -> str:
    """How often the first success is repeated at once, on families whose rewards are sparse."""
    labels = {f"hard-explorer{kind}": f"Dark Room Hard, explorer: {label}" for kind, label in CONTEXTS.items()}
    for mode, label in {"compressed": "two regions", "standard": "standard AD"}.items():
        labels |= {f"{env}-{mode}": f"{name}, PPO: {label}" for env, (name, _) in FAMILIES.items()}
    labels |= {"compressed": "Darkroom, PPO: two regions", "memory": "Darkroom, PPO: memory"}
    labels |= {"explorer": "Darkroom, explorer: memory", "quick": "Darkroom, explorer: two regions"}
    for env, alg in SPARSE_CONTROL.items():
        for kind in WITH_CONTROLS:
            label = f"{CONTROL[env]}, {SOURCE_NAMES[alg]}: {CONTEXTS[kind]}"
            labels[f"{env}-{alg}{kind}"] = label
    labels |= {f"key-to-door-explorer{kind}": f"Dark Key-to-Door, explorer: {CONTEXTS[kind]}" for kind in WITH_CONTROLS}
    rows = []
    for name, label in labels.items():
        if (scores := Scores(name)).n_seeds:
            opened = {"wanted": 2.0} if "Key-to-Door" in label else {}  # a key alone is none
            rows.append([label, str(scores.n_seeds), f"{after_first_success(scores, **opened):.2f}"])
    return table(["held-out tasks", "seeds", "success in the episode after the first one"], rows)


def gains() -> str:
    """Memory minus other contexts, on the same histories, over the seeds that both have."""
    rows = []
    of_libraries = {CONTROL[env]: f"{env}-{alg}" for env, alg in SPARSE_CONTROL.items()}
    for family, prefix in (EXPLORED | of_libraries).items():
        memory = Scores(prefix)
        for kind in WITH_CONTROLS[1:]:
            if memory.n_seeds and (other := Scores(prefix + kind)).n_seeds:
                ours, theirs = memory.beside(other)
                last = memory.returns.shape[-1]
                spans = (10,), (last - last // 10 + 1, last)
                gained = [with_interval(ours.at(*at) - theirs.at(*at)) for at in spans]
                rows.append([f"{family}, {CONTEXTS[kind]}", str(ours.n_seeds), *gained])
    return table(["memory minus", "seeds", "episode 10", "the last tenth"], rows)


def lapses() -> str:
    """Who comes back to the door after episodes of random actions, made by results/controls.py --lapses."""
    found = with_lapses("key-to-door-explorer", CONTEXTS)
    columns = [(lost, partial(after_lapses, n_lost=n_lost, n=n)) for lost, n_lost in ((0, 1), (1, 4)) for n in (1, 5)]
    header = [
        "seeds",
        "after one: the next",
        "the fifth",
        "after four in a row: the next",
        "the fifth",
    ]
    heading = "Dark Key-to-Door: share of episodes that open the door, after random ones"
    return table([heading, *header], rows_with_gains(found, columns))


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
        rows.append(row(f"memory minus {label}", [values(ours) - values(theirs) for values, ours, theirs in pairs]))
    return rows


def predicted_ends() -> str:
    """How well the token-type head tells where regions end on held-out tasks."""
    rows = []
    for name, label in {"explorer-adaptive": "Darkroom, regions that end at news"}.items():
        if (path := SCORES / f"ends_{name}.npz").exists():
            n = {key: int(value) for key, value in np.load(path).items()}
            ratios = n["found"] / n["predicted"], n["found"] / n["ends"], n["found_early"] / n["early"]
            rows.append([label, str(n["ends"]), str(n["early"]), *[f"{ratio:.3f}" for ratio in ratios]])
    header = [
        "predicted ends",
        "true ends",
        "of them before a region is full",
        "precision",
        "recall",
        "recall of the early ones",
    ]
    return table(header, rows)


def doors() -> str:
    """Doors opened per SPAN steps over a life of Key-to-Door that goes on; in training a life has SPAN steps."""
    spans, rows = (1, 2, 4, LIFE // SPAN), []
    for kind, label in CONTEXTS.items():
        scores = Scores(f"endless-explorer{kind}")
        if scores.n_seeds:
            share = with_interval(scores.at(spans[-1]) / scores.optimal)
            counts = [f"{scores.at(span).mean() / 2:.1f}" for span in spans]
            rows.append([label, str(scores.n_seeds), *counts, share])
            others = [scores.random, scores.optimal.mean()]
    if rows:
        for label, mean in zip(("random policy", "optimum"), others):
            rows.append([label, "", *[f"{mean / 2:.1f}"] * len(spans), ""])
    steps = [f"steps {SPAN * (span - 1) + 1:,} to {SPAN * span:,}" for span in spans]
    return table(["doors opened, held-out tasks", "seeds", *steps, "share of optimum in the last"], rows)


def lost_stretches() -> str:
    """The same lives with stretches of STRETCH random steps, made by results/controls.py --lapses --span."""
    found = with_lapses("endless-explorer", CONTEXTS)
    columns = [
        (lost, partial(after_stretches, n_lost=n_lost, n=n)) for lost, n_lost in ((0, 1), (1, 4)) for n in (1, 2)
    ]
    header = [
        f"after {lost * STRETCH} random steps: {which} {STRETCH}"
        for lost in (1, 4)
        for which in ("the next", "the second")
    ]
    return table(["share of the optimum, held-out tasks", "seeds", *header], rows_with_gains(found, columns))


BANDIT_CONTEXTS = {  # end of a setting's name: its label
    "memory": "memory: 8 summaries of 2 tokens", "two-regions": "two regions of 10 steps",
    "window": "plain window of 40 steps", "full": "full history (150 steps)",
    **{f"memory-{n}-tokens": f"summaries of {n} token{'s' * (n > 1)}" for n in (1, 4, 8)},
    "memory-1-tokens-cleared": "summaries of 1 token, cleared at every region's end",
    "memory-1-tokens-other-task": "summaries of 1 token, those of another task",
    **{f"memory-{n}-kept": f"{n} summaries" for n in (4, 16)}, "memory-0-kept": "no summaries: carried keys alone",
    "recurrent": "recurrent: one summary of 16 tokens, rewritten by every region",
}  # fmt: skip


def bandits() -> str:
    """Regret over a life of 100 pulls: with the delay of training, 50, and with others; and without any in training."""
    delays = {f"delay {delay}": f"delay-{delay}" for delay in DELAYS}
    return regrets("delayed_bandit", delays) + "\n" + regrets("bandit", {"trained without a delay": "default"})


def regrets(env: str, evaluations: dict[str, str]) -> str:
    """What each context loses to the best arm, and what memory gains on it over the seeds that both have.

    Args:
        evaluations: heading of a column to the name of its evaluation.
    """
    found = {}  # kind: scores per column
    for kind in BANDIT_CONTEXTS:
        scores = [Scores(f"{env.replace('_', '-')}-{kind}", name) for name in evaluations.values()]
        if all(of.n_seeds for of in scores):
            found[kind] = scores
    rows = [
        [BANDIT_CONTEXTS[kind], str(scores[0].n_seeds), *[with_interval(of.optimal - of.at(1)) for of in scores]]
        for kind, scores in found.items()
    ]
    for kind in ("two-regions", "window"):
        if kind in found and "memory" in found:
            pairs = [ours.beside(theirs) for ours, theirs in zip(found["memory"], found[kind])]
            gains = [with_interval(ours.at(1) - theirs.at(1)) for ours, theirs in pairs]
            rows.append([f"regret saved by memory over {BANDIT_CONTEXTS[kind]}", str(pairs[0][0].n_seeds), *gains])
    if rows:  # UCB's regret does not depend on a delay
        best = next(iter(found.values()))[0].optimal.mean()
        rows.append(["UCB", "", *[f"{best - source(env)['returns'][-1]:.2f}"] * len(evaluations)])
    return table(["regret, held-out bandits", "seeds", *evaluations], rows)


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
    main()
