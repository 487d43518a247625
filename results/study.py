"""Run the study behind the result tables: train and evaluate every setting, and store its scores.

    python results/study.py                  # all settings; what is already stored is skipped
    python results/study.py compressed       # only the settings named

One run takes 6 to 35 minutes on one core, and two run side by side on 2 cores: more than a day in all. The histories of each
family must have been collected before.
`python results/report.py` makes the tables and figures from the stored scores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
from stored import BANDITS, CONTROL, DELAYS, FAMILIES, LAPSES, LIFE, N_PULLS, PULLS, SCORES, SPAN, STRETCH

from checkpoints import EVALUATION_KEYS, checkpoint_paths, load_checkpoint, save_checkpoint
from config.loading import load_config
from env import split_tasks
from history.format import history_path
from history.origin import open_history, task_group
from history.returns import source_curve
from scripts import DEFAULT_FAMILY, family_paths, run_script

REFERENCES = {"compressed": "ckpt-800.pt", "explorer": "explorer-1600.pt"}  # of seed 0 on split 0
MEMORY = "config/model/ad_dr_memory.yaml"
ADAPTIVE = "config/model/ad_dr_adaptive.yaml"
QUICK = "config/model/ad_dr_explorer_regions.yaml"  # what make run trains
BOUNDARIES = {
    "default": (),
    **{kind: ("--boundaries", kind) for kind in ("fixed", "news")},
    "random": ("--boundaries", "random", "--set", "mean_region=77.0"),  # as long as those that end at news
    "random-45": ("--boundaries", "random", "--set", "mean_region=45.0"),
}
SHORT = "train_timesteps=2000"  # half of the shipped updates
SEARCHING_ON = ("--set", "restart_after=null")
RESTARTING = {"default": (), "searching-on": SEARCHING_ON}
PLAIN = (*SEARCHING_ON, "--set", "exploring_temperature=null")
LONG = ("--episodes", "500", "--repeats", "4")
UNCONTROLLED = (LONG, SEARCHING_ON, PLAIN)  # evaluations for which no controls are run
ONE_LIFE = {"default": ("--episodes", "1", "--set", f"horizon={LIFE}", "--span", f"{SPAN}")}
ALONG_A_LIFE = {"pulls": ("--episodes", "1", "--span", f"{PULLS}")}  # of a bandit
UNREAD = ("memory_regions=8", "varied_room=1.0")  # memory's keys go back to their defaults
CONDITIONED = ("pendulum", "reacher", "half_cheetah_vel", "metaworld_reach")  # families with that source
EXPLORING = {"exploring-1.0": ("--set", "exploring_temperature=1.0")}
CLEARED, OTHER_TASK = ({name: ("--memory", name)} for name in ("cleared", "other-task"))
LAPSED = {  # one random episode each time, or four in a row
    "lapsed": ("--lapses", *map(str, LAPSES)),
    "lapsed-4": ("--lapses", *(str(first + n) for first in LAPSES for n in range(4))),
}
LAPSED_LIFE = {
    name: (*lapses, "--span", f"{STRETCH}", "--set", f"horizon={LIFE + 1000}") for name, lapses in LAPSED.items()
}


@dataclass(frozen=True)
class Setting:
    """One row of a table: the same training with several seeds, evaluated in one or more ways.

    family, source: NAME and `--source` of the scripts' command line. is_standard: whether its model config is that of
    standard AD.
    model: a model config in place of the family's.
    evaluations: name of a score file to further arguments of evaluate.py.
    controls: end of the name of a further setting to arguments of controls.py, for all evaluations but UNCONTROLLED.
    tells_ends: whether ends.py counts the region ends that the first seed predicts.
    """

    name: str
    overrides: tuple[str, ...] = ()
    family: str = DEFAULT_FAMILY
    is_standard: bool = False
    source: str | None = None
    model: str | None = None
    seeds: tuple[int, ...] = (0,)
    splits: tuple[int, ...] = (0,)
    evaluations: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"default": ()})
    controls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tells_ends: bool = False


def standard(name: str, n_transit: int, batch_size: int) -> Setting:
    """Standard AD at the training compute of the compressed one: as many tokens per update."""
    overrides = (f"n_transit={n_transit}", f"train_batch_size={batch_size}")
    evaluations = {f"temperature-{t}": ("--temperature", t) for t in ("0.6", "1.0")}
    return Setting(name, overrides, is_standard=True, seeds=(0, 1, 2), evaluations=evaluations)


def causal_window(name: str, n_transit: int, batch_size: int) -> Setting:
    """The same window on causal histories; one seed."""
    overrides = ("histories=causal", f"n_transit={n_transit}", f"train_batch_size={batch_size}")
    return Setting(name, overrides, is_standard=True)


def explorer(name: str, *overrides: str, family: str = DEFAULT_FAMILY, **more) -> Setting:
    """Trained on the explorer's histories."""
    return Setting(name, overrides, family, source="explorer", **more)


def explores(
    family: str, source: str, kind: str = "", *overrides: str, seeds: tuple[int, ...] = (0, 1, 2), **more
) -> Setting:
    """A family of real-valued or other libraries' environments, on the histories of a source that explores on purpose."""
    evaluations = {"default": ("--episodes", "60", "--repeats", "4" if family == "metaworld_reach" else "8")}
    if family == "metaworld_reach":
        evaluations["success"] = (*evaluations["default"], "--success")
    return Setting(
        f"{family}-{source}{kind}", overrides, family, source=source, seeds=seeds, evaluations=evaluations, **more
    )


def explores_with_memory(family: str, source: str, interval: int, n_slots: int, batch_size: int) -> list[Setting]:
    """The same with memory, and other contexts; the arguments of `explorer_controls`."""
    return [
        explores(family, source),
        explores(family, source, "-two-regions", *two_regions(interval, batch_size), seeds=(0,)),
        explores(family, source, "-window", *plain_window(n_slots, batch_size), seeds=(0,)),
    ]


def explorer_controls(
    family: str, prefix: str, interval: int, n_slots: int, batch_size: int, full: int | None = None, **more
) -> list[Setting]:
    """Other contexts on the same histories, with as many tokens per update.

    n_slots: what memory holds, in tokens. full: steps of a training history, for a window of that length too.
    """
    contexts = {"two-regions": two_regions(interval, batch_size), "window": plain_window(n_slots, batch_size)}
    contexts |= {"full": plain_window(full, batch_size)} if full else {}
    contexts |= {"0": ("memory_regions=0",)}
    return [explorer(f"{prefix}-{name}", *overrides, family=family, **more) for name, overrides in contexts.items()]


def two_regions(interval: int, batch_size: int) -> tuple[str, ...]:
    """Overrides that turn memory into two regions of as many steps, with `batch_size` tokens per update."""
    batch = f"train_batch_size={batch_size // (2 * interval)}"
    return ("context=regions", *UNREAD, f"n_transit={2 * interval}", batch)


def plain_window(n_steps: int, batch_size: int) -> tuple[str, ...]:
    """Overrides that turn memory into a plain window, with `batch_size` tokens per update."""
    batch = f"train_batch_size={batch_size // n_steps}"
    return ("context=window", *UNREAD, "use_compressed_context=false", f"n_transit={n_steps}", batch)


def bandit(
    context: str, *overrides: str, is_standard: bool = False, seeds: tuple[int, ...] = (0,), curve: bool = False, **more
) -> Setting:
    """One life per task and repeat on the delayed bandit, with the delay of training and with others.

    curve: whether its regret is shown along a life too.
    """
    evaluations = {
        f"delay-{delay}": ("--episodes", "1", "--set", f"env_kwargs={{n_pulls: {N_PULLS}, delay: {delay}, noise: 0.3}}")
        for delay in DELAYS
    }
    evaluations |= ALONG_A_LIFE if curve else {}
    return Setting(
        f"delayed-bandit-{context}", overrides, "delayed_bandit", is_standard, seeds=seeds, evaluations=evaluations,
        **more,
    )  # fmt: skip


def plain_bandit(context: str, *overrides: str, is_standard: bool = False) -> Setting:
    """One life per task and repeat on the bandit without a delay."""
    evaluations = {"default": ("--episodes", "1"), **ALONG_A_LIFE}
    return Setting(f"bandit-{context}", overrides, "bandit", is_standard, seeds=(0, 1, 2), evaluations=evaluations)


def of_family(family: str, episodes: int = 100) -> list[Setting]:
    """Another family's shipped configs, both modes."""
    evaluations = {"default": ("--episodes", f"{episodes}", "--repeats", "8")}
    return [
        Setting(f"{family}-{mode}", (), family, mode == "standard", seeds=(0, 1, 2), evaluations=evaluations)
        for mode in ("compressed", "standard")
    ]


SETTINGS = [
    Setting(
        "compressed",
        seeds=(0, 1, 2, 3, 4),
        evaluations={
            "default": ("--episodes", "500"),
            "all-goals": ("--mode", "all", "--repeats", "4"),
            "predicted": ("--boundaries", "predicted"),
            **EXPLORING,
            **{f"temperature-{t}": ("--temperature", t) for t in ("0.0", "0.4", "0.8", "1.0")},
        },
    ),
    standard("standard-160", 160, 64),
    standard("standard-full", 480, 21),  # the whole history, thinned by region_stride 3: six rollouts
    standard("standard-320", 320, 32),
    standard("standard-80", 80, 128),
    Setting("compressed-split", seeds=(0, 1), splits=(1, 2), evaluations={"default": (), **EXPLORING}),
    Setting("hard-targets", overrides=("soft_targets=false",)),
    Setting("stride-1", overrides=("region_stride=1",)),
    Setting("stride-2", overrides=("region_stride=2",)),
    Setting("stride-4", overrides=("region_stride=4",)),
    Setting("one-region", overrides=("context_regions=1", "train_batch_size=128")),
    Setting("four-regions", overrides=("context_regions=4", "n_transit=320", "train_batch_size=32")),
    Setting("token-type-weight-0", overrides=("token_type_loss_weight=0",)),
    Setting("token-type-weight-1", overrides=("token_type_loss_weight=1",)),
    Setting("last-step-only", overrides=("dense_supervision=false",)),
    Setting("same-stream", overrides=("mix_streams=false",)),
    Setting("memory", model=MEMORY, seeds=(0, 1, 2, 3, 4), evaluations={"default": ("--episodes", "500")}),
    Setting("memory-split", model=MEMORY, seeds=(0, 1, 2), splits=(1, 2)),
    Setting("memory-every", ("histories=every",), model=MEMORY),
    Setting("memory-0", ("memory_regions=0",), model=MEMORY),
    Setting("compressed-causal", ("histories=causal",)),
    causal_window("standard-80-causal", 80, 128),
    causal_window("standard-160-causal", 160, 64),
    causal_window("standard-320-causal", 320, 32),
    causal_window("standard-full-causal", 480, 21),
    explorer(
        "explorer", seeds=(0, 1, 2, 3, 4), evaluations={"default": (), "long": LONG}, controls=CLEARED | OTHER_TASK
    ),
    explorer("explorer-split", seeds=(0, 1, 2), splits=(1, 2)),
    explorer("quick", model=QUICK, seeds=(0, 1, 2, 3, 4)),
    explorer("quick-split", model=QUICK, seeds=(0, 1, 2), splits=(1, 2)),
    *explorer_controls(DEFAULT_FAMILY, "explorer", interval=40, n_slots=128, batch_size=5888),
    explorer("explorer-16-kept", "memory_regions=16"),
    explorer("explorer-480", *plain_window(480, 5888)),
    explorer("explorer-adaptive", model=ADAPTIVE, evaluations=BOUNDARIES, tells_ends=True),
    explorer(
        "hard-explorer",
        family="darkroom_hard",
        seeds=(0, 1, 2),
        evaluations=RESTARTING | {"plain": PLAIN},
        controls={name: (*control, *PLAIN) for name, control in (CLEARED | OTHER_TASK).items()},
    ),
    *explorer_controls("darkroom_hard", "hard-explorer", interval=40, n_slots=136, batch_size=8832, full=480),
    explorer("hard-explorer-unreached", "reached_observations=false", family="darkroom_hard"),
    explorer(
        "hard-explorer-16-asked",
        "n_summary=16",
        "recall_loss_weight=0.3",
        "train_batch_size=13",
        family="darkroom_hard",
    ),
    explorer("large-explorer", family="darkroom_large", seeds=(0, 1, 2), evaluations=RESTARTING),
    explorer("permuted-explorer", family="darkroom_permuted"),
    bandit("memory", seeds=(0, 1, 2), curve=True),
    bandit("memory-1-tokens", "n_summary=1", controls=CLEARED | OTHER_TASK),
    *(bandit(f"memory-{n}-tokens", f"n_summary={n}") for n in (4, 8)),
    *(bandit(f"memory-{n}-kept", f"memory_regions={n}") for n in (0, 4, 16)),
    bandit("recurrent", "memory_regions=1", "n_summary=16"),  # one summary that every region rewrites
    plain_bandit("memory"),
    plain_bandit("two-regions", "context=regions", "n_summary=4", "n_transit=20", "train_batch_size=200"),
    plain_bandit("window", "train_batch_size=122", is_standard=True),
    explorer("key-to-door-explorer", family="dark_key_to_door", seeds=(0, 1, 2), controls=CLEARED | LAPSED),
    explorer(
        "key-to-door-explorer-asked",
        "recall_loss_weight=0.3",
        family="dark_key_to_door",
        seeds=(0, 1, 2),
        controls=CLEARED | LAPSED,
    ),
    explorer(
        "key-to-door-explorer-recall",
        "recall_loss_weight=0.3",
        SHORT,
        family="dark_key_to_door",
        seeds=(0, 1, 2),
        controls=LAPSED,
    ),
    explorer(
        "key-to-door-explorer-short",
        SHORT,
        family="dark_key_to_door",
        seeds=(0, 1, 2),
        controls=LAPSED,
    ),
    *explorer_controls(
        "dark_key_to_door",
        "key-to-door-explorer",
        interval=50,
        n_slots=152,
        batch_size=8736,
        seeds=(0, 1, 2),
        controls=LAPSED,
    ),
    explorer(
        "endless-explorer", family="endless_key_to_door", seeds=(0, 1, 2), evaluations=ONE_LIFE, controls=LAPSED_LIFE
    ),
    *explorer_controls(
        "endless_key_to_door",
        "endless-explorer",
        interval=50,
        n_slots=136,
        batch_size=8960,
        full=500,
        seeds=(0, 1),
        evaluations=ONE_LIFE,
        controls=LAPSED_LIFE,
    ),
    bandit(
        "two-regions",
        "context=regions",
        "n_summary=4",
        "n_transit=20",
        "train_batch_size=300",
        seeds=(0, 1, 2),
        curve=True,
    ),
    bandit("window", "train_batch_size=184", is_standard=True, seeds=(0, 1, 2), curve=True),
    bandit("full", "n_transit=150", "train_batch_size=49", is_standard=True, seeds=(0, 1, 2), curve=True),
    *(setting for family in FAMILIES for setting in of_family(family)),
    *(setting for family in CONTROL for setting in of_family(family, episodes=60)),
    *(explores(family, "conditioned") for family in CONDITIONED),
    *(explores(family, "conditioned", "-standard", "use_compressed_context=false") for family in CONDITIONED),
    *explores_with_memory("frozen_lake", "psrl", interval=50, n_slots=156, batch_size=10900),
    *explores_with_memory("hidden_goal", "explorer", interval=40, n_slots=136, batch_size=8832),
]


def wanted(setting: Setting, split: int, seed: int) -> dict[Path, tuple[str, ...]]:
    """Where each score of one seed goes, without .npz, to the script that makes it and its arguments."""
    scores = {}
    for evaluation, arguments in setting.evaluations.items():
        scores[score_path(setting.name, split, seed, evaluation)] = ("evaluate.py", *arguments)
        for control, more in setting.controls.items() if arguments not in UNCONTROLLED else ():
            path = score_path(f"{setting.name}-{control}", split, seed, evaluation)
            scores[path] = ("results/controls.py", *arguments, *more)
    if setting.tells_ends and (split, seed) == (0, 0):
        scores[SCORES / f"ends_{setting.name}"] = ("results/ends.py",)
    return scores


def run(setting: Setting, split: int, seed: int, device: str = "cpu") -> None:
    """Train one seed and store its scores."""
    scores = wanted(setting, split, seed)
    missing = {path: command for path, command in scores.items() if not Path(f"{path}.npz").exists()}
    if not missing:
        return
    run_dir = ROOT / "runs" / "study" / f"{setting.name}_split-{split}_seed-{seed}"
    sets = [*setting.overrides, f"train_seed={seed}", f"env_split_seed={split}", "eval_interval=1000000"]
    flags = [flag for item in sets for flag in ("--set", item)]
    mode = ["--standard"] if setting.is_standard else ["--model-config", setting.model] if setting.model else []
    mode += ["--source", setting.source] if setting.source else []
    call("train.py", setting.family, *mode, "--run-dir", str(run_dir), "--device", device, *flags)
    newest = checkpoint_paths(run_dir)[-1]
    if setting.name in REFERENCES and (split, seed) == (0, 0):
        store_reference(newest, ROOT / "results" / "reference" / REFERENCES[setting.name])
    for path, (script, *arguments) in missing.items():
        chosen = ["--ckpt", str(newest.relative_to(ROOT)), "--out", str(path)]
        chosen += ["--device", device] if script == "evaluate.py" else []
        call(script, *chosen, *arguments)
        Path(f"{path}.png").unlink(missing_ok=True)  # the report draws its own
        print(f"stored {path.relative_to(ROOT)}.npz", flush=True)


def store_reference(path: Path, reference: Path) -> None:
    """Keep a checkpoint in the repository, without what only training needs."""
    checkpoint = load_checkpoint(path)
    reference.parent.mkdir(exist_ok=True)
    save_checkpoint(reference, {name: checkpoint[name] for name in EVALUATION_KEYS})


def store_source(family: str, source: str | None = None) -> None:
    """A source's mean return on the held-out tasks of split seed 0, for comparison; by default PPO's, on bandits UCB's."""
    config = load_config(family_paths(family, source=source))
    path, stored = (
        history_path(config, ROOT / "datasets"),
        SCORES / f"source_{family}{f'-{source}' if source else ''}.npz",
    )
    if stored.exists() and not path.is_file():
        return  # a setting with another source may need no file of PPO
    held_out = split_tasks(config)["test"]
    episodes, returns = source_curve(path, held_out, config)
    curve = {"pulls": rewards_per_span(path, held_out, config)} if family in BANDITS else {}
    SCORES.mkdir(exist_ok=True)
    np.savez(stored, episodes=episodes, returns=returns, **curve)


def rewards_per_span(path: Path, tasks: list[int], config: dict) -> np.ndarray:
    """(tasks, spans) what a source's streams got in the mean in every PULLS steps."""
    with open_history(path, config) as file:
        rewards = np.stack([task_group(file, path, task, config)["rewards"][()] for task in tasks])  # (tasks, T, E)
    return rewards.mean(axis=2).reshape(len(tasks), -1, PULLS).sum(axis=2)


def score_path(name: str, split: int, seed: int, evaluation: str) -> Path:
    return SCORES / f"{name}_split-{split}_seed-{seed}_{evaluation}"


def call(*arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [setting.name for setting in SETTINGS]
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which settings to run: {', '.join(names)} (default: all)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="of training and evaluation (default: %(default)s)")
    args = parser.parse_args()
    if unknown := set(args.names) - set(names):
        parser.error(f"no setting is named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [setting for setting in SETTINGS if setting.name in (args.names or names)]
    for family in sorted({setting.family for setting in chosen}):
        store_source(family)
    for family, source in sorted({(setting.family, setting.source) for setting in chosen if setting.source}):
        store_source(family, source)
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(run, s, split, seed, args.device) for s in chosen for split in s.splits for seed in s.seeds]
        for job in jobs:
            job.result()


if __name__ == "__main__":
    run_script(main)
