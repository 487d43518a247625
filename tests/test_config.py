"""Configs: includes, types, relations, and that every problem is told at once, before any work."""

import importlib
import pickle
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from conftest import TINY_ENV, set_flags

import algorithm
import collect
import env
import evaluate
import train
from checkpoints import checkpoint_paths, load_checkpoint
from config.loading import Config, complete_config, free_in_evaluation, load_config, override_config, recorded_settings
from config.schema import KEYS, REQUIRED
from files import InputError
from model import config_problems as model_problems
from model.acting import Sampling
from scripts import DEFAULT_CONFIG, config_paths, family_paths, sources
from utils import ROOT, get_config

CHECKS = (env.config_problems, algorithm.config_problems, model_problems)


def family_of(path) -> dict:
    """The three files that a shipped one belongs to, by its name; Darkroom's where it has none of its own."""
    parts = path.stem.split("_")
    source = next((part for part in parts if part in sources()), "ppo")
    name = "_".join(part for part in parts if part not in ("ad", "compressed", source))
    own = {
        "env": ROOT / f"config/env/{name}.yaml",
        "algorithm": ROOT / f"config/algorithm/{source}_{name}.yaml",
        "model": ROOT / f"config/model/ad_{name}_compressed.yaml",
    }
    return {section: own[section] if own[section].exists() else DEFAULT_CONFIG[section] for section in own}


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_are_accepted_and_explained(path):
    few = []
    if "metaworld" in path.stem:  # of a requirements file of its own; each of its tasks takes half a second to make
        pytest.importorskip("metaworld")
        few = ["n_tasks=2"]
    section = path.parent.name
    config = load_config(family_of(path) | {section: path}, few, checks=CHECKS)
    assert set(get_config(path)) <= set(KEYS[section])
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "include:")):
            assert "#" in line or line.startswith(("env:", "alg:", "model:")), f"{path}: no meaning given for {line}"
    script, arguments = re.search(r"Used by: python (collect|train)\.py (.+)", path.read_text()).groups()
    args = {"collect": collect, "train": train}[script].parse_arguments(shlex.split(arguments))
    assert config_paths(args)[section] == str(path.relative_to(ROOT)), "the command named there uses another file"
    assert config


def test_every_key_is_read_by_the_code():
    files = list(ROOT.glob("*.py"))
    for room in ("env", "algorithm", "model", "history"):
        files += ROOT.glob(f"{room}/**/*.py")
    code = "".join(path.read_text() for path in files)
    sampling = set(Sampling.__dataclass_fields__)  # read by their names
    for keys in KEYS.values():
        for name in keys:
            assert f'["{name}"]' in code or f'get("{name}"' in code or f', "{name}")' in code or name in sampling, name


def test_the_defaults_are_those_of_the_shipped_files():
    shipped = {**{s: get_config(DEFAULT_CONFIG[s]) for s in KEYS}, "standard": get_config("config/model/ad_dr.yaml")}
    for section, values in shipped.items():
        for name, value in values.items():
            default = KEYS.get(section, KEYS["model"])[name].default
            if name not in ("use_compressed_context", "horizon") and default is not REQUIRED:
                assert default == value, name


def test_a_key_that_nothing_reads_is_refused():
    standard = DEFAULT_CONFIG | {"model": "config/model/ad_dr.yaml"}
    for paths, setting in ((standard, "boundaries=predicted"), (DEFAULT_CONFIG, "kept_fraction=0.3")):
        with pytest.raises(InputError, match=f"{setting.partition('=')[0]}: .* does not read it, only "):
            load_config(paths, [setting])
    load_config(standard, ["boundaries=fixed"])  # what it would be anyway is no contradiction
    config = complete_config(load_config(standard) | {"observation_space": {}}, "ckpt-1.pt")
    with pytest.raises(InputError, match="boundaries: window does not read it"):
        override_config(config, ["boundaries=predicted"], free_in_evaluation(), ())


def test_a_whole_number_that_another_program_recorded_stands_for_a_real_one():
    """A model was trained on such a file, and could then not be evaluated."""
    config = load_config(DEFAULT_CONFIG) | {"observation_space": {}, "action_space": {}}
    assert repr(complete_config(config | {"gamma": 1, "lr": "3e-4"}, "ckpt-1.pt")["gamma"]) == "1.0"
    assert recorded_settings(config | {"ent_coef": 0, "gamma": "9e-1"})["gamma"] == 0.9


def test_swapped_files_are_told():
    swapped = DEFAULT_CONFIG | {"env": DEFAULT_CONFIG["algorithm"], "algorithm": DEFAULT_CONFIG["env"]}
    with pytest.raises(InputError) as caught:
        load_config(swapped, checks=CHECKS)
    assert "ppo_darkroom.yaml: is no env config, but one of: algorithm" in str(caught.value)
    assert "object at" not in str(caught.value)


def test_the_effective_config_can_only_be_read():
    config = Config(load_config(DEFAULT_CONFIG))
    for change in (lambda: config.update(lr=1), lambda: config.__setitem__("lr", 1), lambda: config.pop("lr")):
        with pytest.raises(TypeError, match="can only be read"):
            change()
    assert pickle.loads(pickle.dumps(config)) == config and (config | {"lr": 1})["lr"] == 1


def test_families_are_completed_by_name():
    assert family_paths("cartpole", standard=True)["model"] == "config/model/ad_cartpole.yaml"
    assert family_paths()["model"] == "config/model/ad_dr_compressed.yaml"
    with pytest.raises(
        InputError, match="NAME nowhere: no such task family; there are bandit, cartpole, dark_key_to_door"
    ):
        train.main(["nowhere"])
    with pytest.raises(InputError, match="--standard and --model-config"):
        train.main(["--standard", "--model-config", "x.yaml"])


def test_a_missing_lock_module_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    monkeypatch.delitem(sys.modules, "files")
    with pytest.raises(ImportError, match="runs on Linux and macOS only"):
        importlib.import_module("files")


def test_include_resolves_from_the_repository_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("include: config/model/ad_dr.yaml\nn_layer: 7\n")
    config = get_config(tmp_path / "mine.yaml")
    assert config["n_layer"] == 7 and config["n_embd"] == get_config("config/model/ad_dr.yaml")["n_embd"]
    assert "include" not in config


def test_a_config_without_the_newer_keys_means_standard_ad(tmp_path):
    (tmp_path / "old.yaml").write_text("model: AD\nn_transit: 100\ntrain_timesteps: 10\n")
    config = load_config(DEFAULT_CONFIG | {"model": tmp_path / "old.yaml"})
    assert config["use_compressed_context"] is False and config["token_type_loss_weight"] == 0.1


def test_overrides_are_typed_like_the_values_they_replace():
    settings = ["lr=3e-4", "train_timesteps=7", "soft_targets=false", "n_process=null", "net_arch=[8, 8]", "dropout=0"]
    config = load_config(DEFAULT_CONFIG, settings)
    assert (config["lr"], config["train_timesteps"], config["soft_targets"]) == (3e-4, 7, False)
    assert config["n_process"] is None and config["net_arch"] == [8, 8] and isinstance(config["dropout"], float)


def test_all_problems_are_listed_at_once(tmp_path):
    (tmp_path / "model.yaml").write_text(
        "include: config/model/ad_dr_compressed.yaml\nn_transitt: 1\nlr: fast\nn_layer: 1.5\n"
    )
    paths = DEFAULT_CONFIG | {"model": tmp_path / "model.yaml"}
    with pytest.raises(InputError) as caught:
        load_config(
            paths,
            checks=CHECKS,
            overrides=["n_streams=3", "soft_targets=1", "nonsense", "env=nope", "dropout=1", "n_head=0"],
        )
    for expected in (
        "unknown key 'n_transitt'; did you mean 'n_transit'?", "lr: 'fast': expected float, got str",
        "n_layer: 1.5: expected int, got float", "unknown key 'n_streams'; did you mean 'n_stream'?",
        "soft_targets: 1: expected bool, got int", "--set nonsense: expected key=value",
        "env: 'nope' is neither", "dropout: 1.0: expected at most 0.999", "n_head: 0: expected at least 1",
    ):  # fmt: skip
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["n_steps=40", "compress_interval=60"], "compress_interval 60 must be n_steps 40, or be a multiple of it"),
        (["n_steps=40", "compress_interval=160"], "is 4 rollouts of n_steps 40: with region_stride 3 regions overlap"),
        (["n_steps=40", "compress_interval=80", "histories=causal"], "histories causal a region is within one rollout"),
        (["n_transit=159"], "n_transit 159 is too small.*2 regions of compress_interval 80 steps, at least 160"),
        (["n_steps=1", "compress_interval=1"], "n_steps: 1: expected at least 2"),
        (["n_embd=65"], "n_embd 65 must be a multiple of n_head 2"),
        (["batch_size=8001"], "batch_size 8001 is larger than one rollout, n_steps . n_stream = 80 . 100 = 8000"),
        (["net_arch=[0]"], "net_arch"),
        (["env=lightroom"], "env: 'lightroom' is neither one of darkroom, .* nor a registered"),
        (["env=nowhere:Env-v0"], "env: the module of 'nowhere:Env-v0' cannot be imported: ModuleNotFoundError"),
        (["task_kwargs=[{}]"], "task_kwargs: env 'darkroom' has its own list of tasks"),
        (["source_sees_progress=true"], "source_sees_progress: env 'darkroom' has nothing to show"),
        (["env=CartPole-v1", "exploration_bonus=0.1"], "exploration_bonus: counts visits, but 'CartPole-v1' has real"),
        (["env=CartPole-v1", "task_kwargs=[3]"], "task_kwargs: expected a list of mappings"),
        (["env=Pendulum-v1", "task_ranges={g: [4, 12]}"], "n_tasks is missing: how many tasks to draw"),
        (
            ["env=Pendulum-v1", "n_tasks=2", "task_ranges={g: [12, 4]}"],
            r"task_ranges: g: \[12, 4\]: expected \[low, high\]",
        ),
        (["env=Pendulum-v1", "n_tasks=2", "task_ranges={g: 4}"], "task_ranges: g: 4: expected"),
        (["env=Pendulum-v1", "n_tasks=2", "task_ranges={g: [4, .inf]}"], "task_ranges: g: .4, inf.: expected"),
        (
            ["env=Pendulum-v1", "n_tasks=2", "task_ranges={g: [4, 12]}", "task_kwargs=[{}]", "env_kwargs={g: 3}"],
            "task_kwargs and task_ranges are both given(.|\\n)*task_ranges: g is in env_kwargs too",
        ),
        (["env=dark_key_to_door", "n_tasks=6562"], "n_tasks 6562 is more than the 6561 tasks there are"),
        (
            ["context=json:JSONDecoder"],
            "context: 'json:JSONDecoder' is no class that builds on model.context.base.Context",
        ),
        (["model=json:JSONDecoder"], "model: 'json:JSONDecoder' is no class that builds on model.interface.Model"),
        (["alg=SARSA"], "alg: unknown algorithm 'SARSA', expected one of PPO, A2C"),
        (["alg=DQN"], "alg: DQN is off-policy: .* no rollouts that could be regions; use one of PPO, A2C"),
        (["alg=SAC"], "alg: SAC is off-policy"),
        (
            ["alg=A2C"],
            "batch_size: A2C does not read it, only PPO and Conditioned do; leave it out(.|\\n)*n_epochs: A2C.*\\n.*clip_range: A2C",
        ),
        (["lr=.nan"], "lr: nan: expected a finite number"),
        (["boundaries=random", "mean_region=2", "shortest_region=5"], "mean_region 2.0 is below shortest_region 5"),
        (["restart_after=99999999999999999999"], "restart_after: 99999999999999999999"),
        (["exploring_patience=1.0"], "exploring_patience 1.0 says when exploring_temperature applies, which is null"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        load_config(DEFAULT_CONFIG, settings, CHECKS)


def test_standard_mode_does_not_care_about_the_interval():
    load_config(DEFAULT_CONFIG, ["use_compressed_context=false", "n_steps=40", "n_transit=30"], CHECKS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 'key: value' lines, found nothing"),
        ("- a\n- b\n", "found list"),
        ("a: [1\n", "not readable as YAML"),
        ("a: " + 5000 * "[", "not readable as YAML"),
        ("lr: ..e5\n", "lr: '..e5': expected float, got str"),
        ("lr: !!python/object/apply:os.system ['true']\n", "not readable as YAML"),
        ("include: nowhere.yaml\n", "no such config file"),
        ("include: [3]\n", "expected the path of a YAML file"),
        ("include:\n", "expected the path of a YAML file"),
        ("n_layer: 2\nn_head: 2\nn_layer: 4\n", "n_layer is there twice in .*line 3"),
    ],
)
def test_broken_yaml_is_refused(tmp_path, text, message):
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(DEFAULT_CONFIG | {"model": tmp_path / "model.yaml"})


def test_include_circle_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text(f"include: {tmp_path}/b.yaml\n")
    (tmp_path / "b.yaml").write_text(f"include: {tmp_path}/a.yaml\n")
    with pytest.raises(InputError, match="includes itself"):
        get_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("script", [collect, train])
def test_a_wrong_config_stops_before_any_work(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="n_step"):
        script.main(["--set", "n_step=3", *set_flags(*TINY_ENV)])
    assert list(tmp_path.iterdir()) == []


def test_missing_files_are_told(tmp_path):
    with pytest.raises(InputError, match="no such config file"):
        train.main(["--model-config", str(tmp_path / "none.yaml")])
    with pytest.raises(InputError, match="python collect.py"):
        train.main(["--traj-dir", str(tmp_path), "--run-dir", str(tmp_path / "run")])
    with pytest.raises(InputError, match="python train.py"):
        evaluate.main(["--runs-dir", str(tmp_path)])
    with pytest.raises(InputError, match="no such checkpoint"):
        evaluate.main(["--ckpt", str(tmp_path / "ckpt-1.pt")])
    assert not (tmp_path / "run").exists()


def test_the_message_is_all_a_user_sees(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--set", "n_transit=3", "--set", "lr=x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    first, *problems = done.stderr.splitlines()
    assert first == "error: the configuration has problems:"
    assert problems == [
        "  - config/model/ad_dr_compressed.yaml: lr: 'x': expected float, got str",
        "  - n_transit 3 is too small: it must hold 2 regions of compress_interval 80 steps, at least 160",
    ]


def test_checkpoints_are_ordered_by_number(tmp_path):
    for name in ("ckpt-9000.pt", "ckpt-100000.pt", "ckpt-10.pt", "ckpt-x.pt", ".ckpt-200000.pt.tmp1"):
        (tmp_path / name).touch()
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["ckpt-10.pt", "ckpt-9000.pt", "ckpt-100000.pt"]


def test_a_strangers_checkpoint_runs_no_code(tmp_path):
    import torch

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"config": Attack()}, tmp_path / "ckpt-1.pt")
    with pytest.raises(InputError, match="not readable as a checkpoint"):
        load_checkpoint(tmp_path / "ckpt-1.pt")
    assert not (tmp_path / "owned").exists()
    (tmp_path / "ckpt-2.pt").write_bytes(b"")
    with pytest.raises(InputError, match="not readable as a checkpoint"):
        load_checkpoint(tmp_path / "ckpt-2.pt")
    torch.save({"weights": 1}, tmp_path / "ckpt-3.pt")
    with pytest.raises(InputError, match="lacks config, model, update"):
        load_checkpoint(tmp_path / "ckpt-3.pt")


def test_help_names_every_default():
    for script in (collect, train, evaluate):
        with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
            shown = []
            patch.setattr("sys.stdout.write", shown.append)
            script.main(["--help"])
        options = "".join(shown).split("\n  --")[1:]
        assert len(options) >= 6 and all("default:" in option or option.startswith("help") for option in options)


@pytest.mark.parametrize("script", ["collect", "train", "evaluate", "inspect_history", "tune"])
def test_help_is_answered_before_the_long_imports(script):
    command = [sys.executable, "-X", "importtime", f"{script}.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "yaml" in imported
    assert not imported & {"torch", "stable_baselines3", "matplotlib", "h5py", "numpy"}


def test_effective_config_survives_yaml():
    config = load_config(DEFAULT_CONFIG) | env.describe_spaces(load_config(DEFAULT_CONFIG))
    assert yaml.safe_load(yaml.safe_dump(config)) == config
