"""Tables of models trained on histories of sources that explore on purpose: the explorer, PSRL, UCB."""

from __future__ import annotations

from functools import partial

import numpy as np
from rows import CONTEXTS, SOURCE_NAMES, WITH_CONTROLS, compare, rows_with_gains, table
from stored import (
    CONTROL,
    DELAYS,
    FAMILIES,
    LIFE,
    SCORES,
    SPAN,
    STRETCH,
    Scores,
    after_first_success,
    after_lapses,
    after_misses,
    after_stretches,
    share_missed,
    ucb_regret,
    with_interval,
    with_lapses,
)

EXPLORED = {
    "Darkroom": "explorer", "Darkroom-Large": "large-explorer", "Darkroom-Permuted": "permuted-explorer",
    "Dark Room Hard": "hard-explorer", "Dark Key-to-Door": "key-to-door-explorer",
}  # fmt: skip
RESTARTING = ("large-explorer", "hard-explorer")  # shown without `restart_after` too
SPARSE_CONTROL = {"frozen_lake": "psrl", "hidden_goal": "explorer"}  # families with memory, and their sources
BANDIT_CONTEXTS = {  # end of a setting's name: its label
    "memory": "memory: 8 summaries of 2 tokens", "two-regions": "two regions of 10 steps",
    "window": "plain window of 40 steps", "full": "full history (150 steps)",
    **{f"memory-{n}-tokens": f"summaries of {n} token{'s' * (n > 1)}" for n in (1, 4, 8)},
    "memory-1-tokens-cleared": "summaries of 1 token, cleared at every region's end",
    "memory-1-tokens-other-task": "summaries of 1 token, those of another task",
    **{f"memory-{n}-kept": f"{n} summaries" for n in (4, 16)}, "memory-0-kept": "no summaries: carried keys alone",
    "recurrent": "recurrent: one summary of 16 tokens, rewritten by every region",
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
    further = {"explorer": more} | {
        prefix: {f"{prefix} searching-on": "memory, no search begins anew"} for prefix in RESTARTING
    }
    further["hard-explorer"]["hard-explorer plain"] = "memory, no search begins anew, always temperature 0.6"
    parts = [
        compare(
            family,
            {f"{prefix}{kind}": label for kind, label in CONTEXTS.items()} | further.get(prefix, {}),
            {"explorer-split": "memory", "quick-split": "two regions, 500 updates"} if prefix == "explorer" else None,
        )
        for family, prefix in EXPLORED.items()
        if Scores(prefix).n_seeds
    ]
    return "\n".join([*parts, gains(), predicted_ends(), repeats(), misses(), lapses()])


def misses() -> str:
    """Who comes back to the door after episodes that missed it, and how many do."""
    labels = {f"key-to-door-explorer{kind}": label for kind, label in CONTEXTS.items()}
    labels["dark_key_to_door-compressed"] = "PPO's histories: two regions"
    rows = [
        [label, *[f"{after_misses(scores, n):.2f}" for n in (0, 1, 3)], f"{share_missed(scores):.2%}"]
        for name, label in labels.items()
        if (scores := Scores(name)).n_seeds
    ]
    header = [
        "after an opened one",
        "after one miss",
        "after three misses",
        "episodes that miss it after an opened one",
    ]
    return table(["Dark Key-to-Door: share of episodes that open the door", *header], rows)


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
            ours, theirs = memory.beside(Scores(prefix + kind))
            if ours.n_seeds:
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


def predicted_ends() -> str:
    """How well the token-type head tells where regions end on held-out tasks."""
    rows = []
    for name, label in {"explorer-adaptive": "Darkroom, regions that end at news"}.items():
        if (path := SCORES / f"ends_{name}.npz").exists():
            n = {key: int(value) for key, value in np.load(path).items()}
            ratios = n["found"] / max(1, n["predicted"]), n["found"] / n["ends"], n["found_early"] / max(1, n["early"])
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
            if not all(ours.n_seeds for ours, _ in pairs):
                continue
            gains = [with_interval(ours.at(1) - theirs.at(1)) for ours, theirs in pairs]
            rows.append([f"regret saved by memory over {BANDIT_CONTEXTS[kind]}", str(pairs[0][0].n_seeds), *gains])
    if found:
        of_ucb = ucb_regret(env, next(iter(found.values()))[0])
        rows.append(["UCB", "", *[f"{of_ucb:.2f}"] * len(evaluations)])
    return table(["regret, held-out bandits", "seeds", *evaluations], rows)
