"""Every shipped family, and the README's own environment, through the three scripts; tiny, on CPU."""

import re
import shlex

import numpy as np
import pytest
from conftest import set_flags

import collect
import env
import evaluate
import train
from checkpoints import load_checkpoint
from config.loading import load_config
from utils import ROOT

pytestmark = pytest.mark.slow

SOURCE = ["n_stream=4", "n_steps=20", "total_source_timesteps=240", "net_arch=[8]"]
PPO = ["batch_size=80", "n_epochs=1"]
MODEL = [
    "compress_interval=20", "n_transit=40", "region_stride=1", "n_embd=16", "n_layer=1", "train_batch_size=8",
    "train_timesteps=4", "warmup_timesteps=1", "test_interval=4", "eval_interval=4", "eval_episodes=1", "eval_repeats=1",
    "ckpt_interval=4", "log_interval=2",
]  # fmt: skip
FAMILIES = {  # name: what makes its task list and its episodes short
    "darkroom_large": ["grid_size=3", "horizon=8", "n_tasks=3"],
    "darkroom_permuted": ["grid_size=3", "horizon=8", "n_tasks=3"],
    "darkroom_hard": ["grid_size=3", "horizon=8", "n_tasks=3"],
    "dark_key_to_door": ["grid_size=3", "horizon=8", "n_tasks=3"],
    "endless_key_to_door": ["grid_size=3", "horizon=20", "n_tasks=3"],
    "cartpole": ["n_tasks=3"],
    "pendulum": ["n_tasks=3", "env_kwargs={max_episode_steps: 8}"],
    "frozen_lake": ["n_tasks=3", "env_kwargs={size: 3, max_episode_steps: 8}"],
    "hidden_goal": ["n_tasks=3", "env_kwargs={width: 3, max_steps: 8, agent_view_size: 3}"],
    "reacher": ["n_tasks=3", "env_kwargs={max_episode_steps: 8}"],
    "half_cheetah_vel": ["n_tasks=3", "env_kwargs={max_episode_steps: 8}"],
    "metaworld_reach": ["n_tasks=3", "env_kwargs={max_episode_steps: 8}"],
}
WITHOUT_OPTIMUM = ("cartpole", "pendulum", "reacher", "half_cheetah_vel", "metaworld_reach")
BANDIT = ["n_tasks=3", "env_kwargs={n_pulls: 8, delay: 2, noise: 0.3}", "n_stream=4", "n_steps=5"]


def run_scripts(folder, name, alg, models, settings, more=()) -> dict[str, dict[str, np.ndarray]]:
    """Collect, and for each model config train and evaluate; all files in `folder`. Results by model config."""
    files = ["--env-config", f"config/env/{name}.yaml", "--alg-config", f"config/algorithm/{alg}.yaml"]
    histories, results = ["--traj-dir", str(folder)], {}
    flags = set_flags(*settings, "train_env_ratio=0.6")
    assert collect.main([*files, *histories, "--log-dir", str(folder / "logs"), *flags]) == 0
    for model in models:
        run = ["--model-config", f"config/model/{model}.yaml", "--run-dir", str(folder / model), "--device", "cpu"]
        assert train.main([*files, *histories, *run, *flags, *set_flags(*MODEL, *more)]) == 0
        arguments = ["--runs-dir", str(folder / model), "--episodes", "2", "--repeats", "2", "--device", "cpu"]
        assert evaluate.main([*arguments, *histories]) == 0
        with np.load(folder / model / "eval-test-4_episodes-2_repeats-2.npz") as arrays:
            results[model] = dict(arrays)
        assert results[model]["returns"].shape == (1, 2, 2) and np.isfinite(results[model]["returns"]).all()
        assert (folder / model / "eval-test-4_episodes-2_repeats-2.png").read_bytes().startswith(b"\x89PNG")
    return results


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shipped_family_goes_through_all_scripts(name, tmp_path):
    if name == "metaworld_reach":
        pytest.importorskip("metaworld")  # of a requirements file of its own
    models = [f"ad_{name}", f"ad_{name}_compressed"]
    results = run_scripts(tmp_path, name, f"ppo_{name}", models, [*FAMILIES[name], *SOURCE, *PPO])
    for model, is_compressed in zip(models, (False, True)):
        checkpoint = load_checkpoint(tmp_path / model / "ckpt-4.pt")
        assert checkpoint["config"]["use_compressed_context"] == is_compressed
        if name == "pendulum":  # inputs of any scale are standardised, and their scale is kept with the weights
            weights = checkpoint["model"]
            assert weights["reward_mean"] < -1 and weights["actions.std"] != 1
            assert (weights["observation_embedding.std"] != 1).all()
        assert np.isnan(results[model]["optimal"]).all() == (name in WITHOUT_OPTIMUM)


@pytest.mark.parametrize("name", ["bandit", "delayed_bandit"])
def test_a_bandit_goes_through_all_scripts(name, tmp_path):
    settings, model = (
        [*BANDIT, "total_source_timesteps=200"],
        ["history_regions=2", "compress_interval=5", "n_transit=10"],
    )
    models = {f"ad_{name}": "window", f"ad_{name}_compressed": "memory"}
    run_scripts(tmp_path, name, f"ucb_{name}", models, settings, model)
    for model, context in models.items():
        assert load_checkpoint(tmp_path / model / "ckpt-4.pt")["config"]["context"] == context


@pytest.mark.parametrize(
    ("name", "alg", "model"),
    [
        ("darkroom_large", "explorer_darkroom_large", "ad_darkroom_large_explorer"),
        ("darkroom_permuted", "explorer_darkroom_permuted", "ad_darkroom_permuted_explorer"),
        ("darkroom_hard", "explorer_darkroom_hard", "ad_darkroom_hard_explorer"),
        ("dark_key_to_door", "explorer_dark_key_to_door", "ad_dark_key_to_door_explorer"),
        ("endless_key_to_door", "explorer_endless_key_to_door", "ad_endless_key_to_door_explorer"),
        ("hidden_goal", "explorer_hidden_goal", "ad_hidden_goal_explorer"),
        ("frozen_lake", "psrl_frozen_lake", "ad_frozen_lake_psrl"),
    ],
)
def test_a_source_that_learns_from_ppo_goes_through_all_scripts(name, alg, model, tmp_path):
    """Where episodes end at the goal, where PPO sees more than the histories show, and where a life is one episode."""
    small = [*FAMILIES[name], "train_env_ratio=0.6"]
    files = ["--env-config", f"config/env/{name}.yaml", "--alg-config", f"config/algorithm/ppo_{name}.yaml"]
    assert collect.main([*files, "--traj-dir", str(tmp_path), *set_flags(*small, *SOURCE, *PPO)]) == 0
    settings = [*small[:-1], "n_stream=4", "n_steps=20", "total_source_timesteps=240"]
    run_scripts(tmp_path, name, alg, [model], settings, ["history_regions=2"])
    config = load_checkpoint(tmp_path / model / "ckpt-4.pt")["config"]
    assert config["histories"] == "whole" and config["learns_from"] == "PPO"
    assert config["reached_observations"] == (name in ("darkroom_hard", "hidden_goal", "frozen_lake"))


def test_a2c_goes_through_all_scripts(tmp_path):
    settings = ["grid_size=3", "horizon=8", "n_tasks=3", *SOURCE]
    run_scripts(tmp_path, "darkroom", "a2c_darkroom", ["ad_dr_compressed"], settings)
    assert (tmp_path / "history_darkroom_A2C_alg-seed42.hdf5").is_file()


def test_the_readmes_own_environment_works_as_written(tmp_path, monkeypatch, capsys):
    """Its file, its YAML and its three commands, with smaller settings."""
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Your own environment") : text.index("## Where the rest is")]
    assert len(section.splitlines()) < 40
    (tmp_path / "corridor.py").write_text(re.search("```python\n(.*?)```", section, re.DOTALL)[1])
    indented = [line.strip() for line in section[section.index("corridor.yaml") :].splitlines() if line[:4] == "    "]
    (tmp_path / "corridor.yaml").write_text("\n".join(line for line in indented if not line.startswith("python")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    small = {collect: [*SOURCE, *PPO], train: [*SOURCE, *PPO, *MODEL], evaluate: []}
    commands = [shlex.split(line) for line in indented if line.startswith("python")]
    assert [command[1] for command in commands] == ["collect.py", "train.py", "evaluate.py"]
    for (_, _, *arguments), (script, settings) in zip(commands, small.items()):
        assert script.main([*arguments, *set_flags(*settings)]) == 0
    assert "goal" in capsys.readouterr().out
    assert (tmp_path / "datasets" / "history_corridor-Corridor-v0_PPO_alg-seed42.hdf5").is_file()


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"endless_key_to_door"}))  # its one episode is a life
def test_two_regions_hold_whole_episodes(name):
    """A region is as long as a rollout, and at least as long as an episode."""
    paths = {"env": f"config/env/{name}.yaml", "algorithm": f"config/algorithm/ppo_{name}.yaml"}
    config = load_config(paths | {"model": f"config/model/ad_{name}_compressed.yaml"})
    assert config["compress_interval"] in (None, config["n_steps"])
    assert config["n_steps"] >= env.max_episode_steps(config)
    assert config["n_transit"] == 2 * config["n_steps"]
