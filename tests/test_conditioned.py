"""Posterior sampling of a task's numbers: its models, its beliefs, and the scripts."""

import h5py
import numpy as np
import pytest
import torch
from conftest import set_flags

import collect
import env
import evaluate
import train
from algorithm import conditioned
from algorithm.conditioned import Conditioned
from algorithm.told import Prepared, TaskModel, Told, ToldPolicy, numbers_of_training_tasks, untrained
from config.loading import load_config
from files import InputError
from history.format import history_path

SMALL = [
    "n_tasks=5", "env_kwargs={max_episode_steps: 20}", "train_env_ratio=0.8", "n_stream=3", "n_steps=20", "batch_size=40",
    "n_epochs=2", "total_source_timesteps=120", "policy_timesteps=160", "net_arch=[8]",
]  # fmt: skip
FILES = {
    "env": "config/env/reacher.yaml",
    "algorithm": "config/algorithm/conditioned_reacher.yaml",
    "model": "config/model/ad_reacher_conditioned.yaml",
}


def arguments(folder, *settings):
    files = ["--env-config", FILES["env"], "--alg-config", FILES["algorithm"]]
    return [*files, "--traj-dir", str(folder), *set_flags(*SMALL, *settings)]


def test_a_model_tells_what_a_step_brings_on_each_task():
    """The first output is minus the distance from the first entry to the task's number; the others are the same on all tasks."""
    torch.manual_seed(0)
    steps, numbers = torch.rand(20_000, 5) * 4 - 2, torch.rand(20_000, 1) * 2 - 1
    outputs = [-(steps[:, 0] - numbers[:, 0]).abs(), steps[:, 1] + 0.1 * torch.randn(20_000), torch.ones(20_000)]
    outputs = torch.stack(outputs, dim=1)
    model = TaskModel(5, 1, 3).fit(steps, outputs, numbers)
    asked, tasks = torch.rand(50, 5) * 4 - 2, torch.linspace(-1, 1, 9)[:, None]
    true = -(asked[:, :1] - tasks[:, 0]).abs()
    with torch.no_grad():
        assert (model(asked, tasks)[..., 0] - true).abs().max() < 0.3
        seen = torch.stack([true[:, 2], *torch.full((2, 50), 9.0)], dim=1)  # of the third task
        assert (model.log_likelihood(asked, seen, tasks).sum(0).argmax()) == 2
    assert model.noise[0] < 0.1 and 0.08 < model.noise[1] < 0.12 and model.tells.tolist() == [1, 0, 0]


def test_beliefs_follow_where_steps_lead_where_rewards_are_alike():
    """Each step adds the task's number to the first of two entries, and pays the same everywhere."""
    torch.manual_seed(0)
    numbers, states, actions = torch.rand(20_000, 1) * 2 - 1, torch.randn(20_000, 2), torch.randn(20_000, 1)
    steps = torch.cat([states, actions, states + torch.cat([numbers, actions], dim=1)], dim=1)
    candidates = torch.linspace(-1, 1, 5)[:, None]
    known = Prepared(ToldPolicy(3, 1, []), TaskModel(5, 1, 1), TaskModel(3, 1, 2), candidates)
    known.fit(steps, -states[:, 0].abs(), numbers)
    assert known.moves.tells.tolist() == [1, 0]
    some = (numbers[:, 0] - 0.5).abs() < 0.02
    with torch.no_grad():
        likely = known.log_likelihood(steps[some], -states[some, 0].abs())
    assert (likely.argmax(dim=1) == 3).all() and likely.shape == (some.sum(), 5)


def test_it_warns_where_nothing_tells_tasks_apart():
    torch.manual_seed(0)
    steps, numbers = torch.randn(20_000, 5), torch.rand(20_000, 1)
    known = Prepared(ToldPolicy(3, 1, []), TaskModel(5, 1, 1), TaskModel(3, 1, 2), numbers[:4])
    with pytest.warns(UserWarning, match="neither rewards nor moves tell training tasks apart"):
        known.fit(steps, steps[:, 0], numbers)


def test_the_same_seed_begins_with_the_same_weights():
    first, second = (untrained(load_config(FILES, SMALL)) for _ in range(2))
    for one, other in ((first.rewards, second.rewards), (first.moves, second.moves)):
        assert all(torch.equal(one.state_dict()[name], other.state_dict()[name]) for name in one.state_dict())


class Line:
    """Stands for a VecEnv of two streams with one observation entry and one action entry."""

    def __init__(self):
        box = env.spaces(load_config(FILES))[1]
        self.action_space = type(box)(-1, 1, (1,), np.float32)
        self.num_envs = 2

    def seed(self, seed):
        pass


def test_beliefs_follow_the_rewards_and_a_lapse_does_not_follow_them():
    """The policy goes to the number that it is told; true numbers are -0.5 and 0.5."""
    policy, rewards, moves = ToldPolicy(2, 1, []), TaskModel(3, 1, 1), TaskModel(2, 1, 1)
    with torch.no_grad():
        policy.net[0].weight.copy_(torch.tensor([[0.0, 1.0]]))
        policy.net[0].bias.zero_()
        policy.stds.fill_(1e-3)
    rewards.forward = lambda steps, numbers: -(steps[:, -1:] - numbers[:, 0]).abs()[..., None]
    rewards.noise.fill_(0.05)
    moves.tells.fill_(0)
    candidates = torch.linspace(-1, 1, 21)[:, None]
    settings = {"explorer_noise": 0.0, "explorer_lapses": 0.0}
    source = Conditioned(settings, Line(), seed=0, prepared=Prepared(policy, rewards, moves, candidates))
    true, states = np.array([-0.5, 0.5]), np.zeros((2, 1))
    for _ in range(6):
        actions, policy = source.act(states)
        assert np.abs(policy["action_means"] - actions).max() < 0.01
        source.learn(actions, -np.abs(actions[:, 0] - true), actions, np.zeros(2, dtype=bool), [{}] * 2)
    assert np.abs(source.act(states)[1]["action_means"][:, 0] - true).max() < 0.15
    source.config["explorer_lapses"] = 1.0
    source.learn(actions, -np.abs(actions[:, 0] - true), actions, np.ones(2, dtype=bool), [{}] * 2)
    acted = np.stack([source.act(states)[0][:, 0] for _ in range(3)])
    assert np.abs(acted - candidates[source.lost, 0].numpy()).max() < 0.01  # the same one all the time
    assert np.abs(source.act(states)[1]["action_means"][:, 0] - true).max() < 0.15  # what it believes is recorded


def test_a_policy_is_told_the_numbers_also_at_an_episodes_end():
    config = load_config(FILES, SMALL)
    tasks, numbers = env.list_tasks(config), numbers_of_training_tasks(config)
    assert numbers.min() == -1 and numbers.max() == 1 and numbers.shape == (4, 2)
    streams = Told(env.make_source_env(config, [tasks[i] for i in env.split_tasks(config)["train"]]), numbers)
    assert np.allclose(streams.reset()[:, -2:], numbers)
    for _ in range(20):
        after, _, dones, infos = streams.step(np.zeros((4, 2), dtype=np.float32))
    assert dones.all() and np.allclose(after[:, -2:], numbers)
    assert np.allclose([info["terminal_observation"][-2:] for info in infos], numbers)
    streams.close()


def test_it_knows_nothing_of_held_out_tasks(tmp_path, monkeypatch):
    """With other targets in the held-out tasks, its policy is the same, and so is what its models are fitted to."""
    config, list_tasks, learned = load_config(FILES, [*SMALL, "policy_timesteps=80"]), env.list_tasks, []
    held_out = env.split_tasks(config)["test"]

    def others(config):
        return [dict.fromkeys(task, 9.0) if i in held_out else task for i, task in enumerate(list_tasks(config))]

    monkeypatch.setattr("algorithm.told.TRIED_STEPS", 80)
    monkeypatch.setattr(Prepared, "fit", lambda self, *experience: learned.append(experience))
    for listed in (list_tasks, others):
        monkeypatch.setattr(env, "list_tasks", listed)
        folder = tmp_path / listed.__name__
        folder.mkdir()
        known = Conditioned.prepare(config, folder)
        learned.append((*known.policy.state_dict().values(), known.candidates))
    assert len(held_out) == 1 and len(learned) == 4 and others(config) != list_tasks(config)
    for one, other in zip(learned[0] + learned[1], learned[2] + learned[3]):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["reacher", "pendulum", "half_cheetah_vel", "metaworld_reach"])
def test_it_goes_through_all_scripts(family, tmp_path, capsys, monkeypatch):
    if family == "metaworld_reach":
        pytest.importorskip("metaworld")  # of a requirements file of its own
    monkeypatch.setattr("algorithm.told.N_UPDATES", 20)  # what is fitted in so few, to so little, is of no use here
    monkeypatch.setattr("algorithm.told.TRIED_STEPS", 400)
    files = {section: path.replace("reacher", family) for section, path in FILES.items()}
    monkeypatch.setitem(globals(), "FILES", files)
    tmp_path = tmp_path / "new"  # the folder of the histories is made before the policy is trained
    assert collect.main(arguments(tmp_path)) == 0
    config = load_config(FILES, SMALL)
    path = history_path(config, tmp_path)
    with h5py.File(path) as file:
        assert file["0/action_means"].shape[:2] == (40, 3) and "action_probs" not in file["0"]
    assert "training one policy on 4 tasks" in capsys.readouterr().out
    before = path.with_suffix(".policy.pt").read_bytes()
    assert collect.main([*arguments(tmp_path), "--overwrite"]) == 0  # what was trained is kept
    assert (
        "training one policy" not in capsys.readouterr().out and path.with_suffix(".policy.pt").read_bytes() == before
    )
    run = ["--model-config", FILES["model"], "--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    small = [
        "compress_interval=20",
        "n_transit=40",
        "n_embd=16",
        "n_layer=1",
        "train_batch_size=8",
        "train_timesteps=2",
    ]
    assert train.main([*arguments(tmp_path), *run, *set_flags(*small, "eval_episodes=1", "eval_repeats=1")]) == 0
    evaluated = ["--runs-dir", str(tmp_path / "run"), "--traj-dir", str(tmp_path), "--device", "cpu"]
    assert evaluate.main([*evaluated, "--episodes", "2", "--repeats", "1"]) == 0


def test_a_policy_that_cannot_be_read_or_does_not_fit_is_trained_anew(tmp_path, monkeypatch):
    config = load_config(FILES, SMALL)
    path = history_path(config, tmp_path).with_suffix(".policy.pt")
    trained = []
    monkeypatch.setattr(conditioned, "train", lambda config, prepared: trained.append(prepared))
    Conditioned.prepare(config, tmp_path)
    Conditioned.prepare(config, tmp_path)
    assert len(trained) == 1
    whole = path.read_bytes()
    for damaged in (b"hello", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], whole[:-100]):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="policy.pt: cannot be read .* it is trained anew"):
            Conditioned.prepare(config, tmp_path)
        assert path.read_bytes() != damaged
    monkeypatch.setattr(env, "describe_spaces", lambda config: {"observation_space": "others"})
    Conditioned.prepare(config, tmp_path)
    assert len(trained) == 5


def test_parts_of_other_settings_are_told_before_the_policy_is_trained(tmp_path, monkeypatch):
    path = history_path(load_config(FILES, SMALL), tmp_path)
    parts = tmp_path / f".{path.name}.parts"
    collect.prepare_parts(parts, load_config(FILES, [*SMALL, "n_stream=2"]))
    (parts / "0.hdf5").touch()  # without a finished task nothing would be lost
    monkeypatch.setattr(Conditioned, "prepare", lambda *_: pytest.fail("trained"))
    with pytest.raises(InputError, match="n_stream: 2 there, 3 now"):
        collect.main(arguments(tmp_path))
    assert (parts / "settings.yaml").exists()


def test_it_says_what_it_needs(tmp_path):
    def refused(*files) -> str:
        with pytest.raises(InputError) as found:
            collect.main([*files, "--alg-config", FILES["algorithm"], "--traj-dir", str(tmp_path)])
        return str(found.value)

    assert "expected task_ranges in the env config" in refused("darkroom")
    assert "learns_from: A2C: alg: Conditioned trains its policy by PPO" in refused(
        "pendulum", "--set", "learns_from=A2C"
    )
    assert "expected 2 training tasks at least, got 1" in refused(
        "pendulum", "--set", "n_tasks=2", "--set", "train_env_ratio=0.5"
    )
    assert "expects real-valued observations and actions (Box)" in refused("cartpole")
