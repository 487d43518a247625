"""Environments of other people's: wrappers from YAML alone, every kind of action, and episodes of any length."""

import h5py
import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_MODEL, set_flags

import collect
import env
import evaluate
import inspect_history
import train
from config.loading import load_config
from env.checks import FLATTEN
from files import InputError
from model.spaces import ACTIONS
from scripts import DEFAULT_CONFIG

SOURCE = ["n_stream=4", "n_steps=12", "total_source_timesteps=480", "batch_size=48", "n_epochs=1", "net_arch=[8]"]
FLAT = yaml.safe_load(f"[{FLATTEN}]")


@pytest.fixture
def config():
    return load_config(DEFAULT_CONFIG)


# Wrappers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "wrappers", "n_entries"),
    [
        ("Blackjack-v1", FLAT, 32 + 11 + 2),  # a tuple
        ("toy_envs:Buttons-v0", FLAT, 5 + 4),  # a dict
        ("toy_envs:Buttons-v0", [{"wrapper": "gymnasium.wrappers:FilterObservation", "filter_keys": ["lamps"]}, *FLAT], 4),
        ("FrozenLake-v1", [*FLAT, {"wrapper": "gymnasium.wrappers:TimeAwareObservation"}], 17),  # the first is innermost
        ("CartPole-v1", [{"wrapper": "gymnasium.wrappers:FrameStackObservation", "stack_size": 3}], 12),  # two axes
    ],
)  # fmt: skip
def test_wrappers_bring_in_what_is_no_vector(config, env_id, wrappers, n_entries):
    config |= {"env": env_id, "wrappers": wrappers}
    assert env.config_problems(config) == env.probe_tasks(config) == []
    assert env.describe_spaces(config)["observation_space"]["sizes"] == [n_entries]
    assert env.make_vec_env(config, [{}, {}]).reset().reshape(2, -1).shape == (2, n_entries)


def test_a_refused_space_names_the_wrapper_that_helps(config):
    """What the message says is pasted, and works."""
    config |= {"env": "toy_envs:Buttons-v0"}
    (problem,) = env.config_problems(config)
    wrappers = yaml.safe_load(problem.partition("wrappers: ")[2])
    assert env.config_problems(config | {"wrappers": wrappers}) == []


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("FlattenObservation", r"wrappers: entry 1: 'FlattenObservation': expected a module, a class and its arguments"),
        ({"wrapper": "FlattenObservation"}, r"entry 1: {.*}: expected a module, a class and its arguments, as in {wrapper: "),
        ({"wrapper": "gymnasium.wrappers:Flatten"}, "entry 1: 'gymnasium.wrappers:Flatten' cannot be imported: .*traceback in"),
        ({"wrapper": "nowhere:Flat"}, "'nowhere:Flat' cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        (
            {"wrapper": "gymnasium.wrappers:FrameStackObservation", "size": 3},
            "'gymnasium.wrappers:FrameStackObservation' takes other arguments: .*; it takes stack_size, padding_type",
        ),
        (
            {"wrapper": "gymnasium.wrappers:FrameStackObservation", "stack_size": -3},
            "'Blackjack-v1' cannot be made: task 0, .*stack_size.*traceback in",
        ),
    ],
)  # fmt: skip
def test_a_wrong_wrapper_is_told_in_one_message(config, wrapper, message):
    config = dict(config) | {"env": "Blackjack-v1"}
    overrides = [f"wrappers={yaml.safe_dump([*FLAT, wrapper], default_flow_style=True)}", "env=Blackjack-v1"]
    with pytest.raises(InputError, match=message) as caught:
        load_config(DEFAULT_CONFIG, overrides, checks=(env.config_problems,))
    assert str(caught.value).count("\n") == 1


def test_a_batched_family_refuses_wrappers_and_its_id_takes_them(config):
    (problem,) = env.config_problems(config | {"wrappers": FLAT})
    assert problem == "wrappers: env 'darkroom' is stepped in batches, without wrappers; use env: Darkroom-v0"
    wrapped = config | {"env": "Darkroom-v0", "wrappers": FLAT}
    assert env.config_problems(wrapped) == [] and "wrappers" in env.keys_read(wrapped)
    assert env.describe_spaces(wrapped)["observation_space"]["sizes"] == [18]
    assert env.optimal_return(wrapped, {"goal": (4, 4)}) == 20


# Actions --------------------------------------------------------------------------------------------


def test_a_vector_of_one_choice_is_that_choice():
    """The same outputs give the same losses, accuracies and actions."""
    one, several = (ACTIONS[kind]({"kind": kind, "sizes": [4]}, 8) for kind in ("discrete", "multi_discrete"))
    outputs, actions, noise = torch.randn(50, 4), torch.randint(4, (50,)), torch.rand(50)
    probs = torch.rand(50, 4).softmax(-1)
    assert torch.equal(one.loss(outputs, actions), several.loss(outputs, actions[:, None]))
    assert torch.equal(one.loss(outputs, actions, probs), several.loss(outputs, actions[:, None], probs))
    assert torch.equal(one.accuracy(outputs, actions), several.accuracy(outputs, actions[:, None]))
    for temperature in (0.0, 0.7, torch.rand(50)):
        drawn = several.sample(outputs, temperature, noise[:, None])
        assert torch.equal(one.sample(outputs, temperature, noise), drawn[:, 0])


def test_each_choice_has_its_own_part_of_the_outputs():
    actions = ACTIONS["multi_discrete"]({"kind": "multi_discrete", "sizes": [3, 2]}, 8)
    outputs = torch.tensor([[0.0, 5.0, 0.0, 0.0, 9.0]])
    assert actions.sample(outputs, 0.0, torch.zeros(1, 2)).tolist() == [[1, 1]]
    expected = sum(-part.log_softmax(-1)[0, at] for part, at in zip(outputs.split([3, 2], -1), (2, 0)))
    assert torch.allclose(actions.loss(outputs, torch.tensor([[2, 0]])), expected[None])
    hard = torch.tensor([[0.0, 0, 1, 1, 0]])
    assert torch.allclose(actions.loss(outputs, torch.tensor([[2, 0]]), hard), expected[None])
    assert actions.accuracy(outputs, torch.tensor([[1, 0]])).item() == 0.5
    with torch.no_grad():
        embedded = actions(torch.tensor([[2, 1], [0, 0]]), torch.tensor([False, True]))
    weights = actions.embedding.weight
    assert torch.equal(embedded, torch.stack([weights[2] + weights[4], weights[5]]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shape", "n_values"),
    [("multi_discrete", (2,), [3, 2]), ("multi_binary", (3,), [2, 2, 2]), ("box", (4,), None)],
)
def test_other_actions_go_through_all_scripts(kind, shape, n_values, tmp_path, capsys):
    """Dict observations and such actions: collected, checked, trained on, evaluated and filmed."""
    (tmp_path / "buttons.yaml").write_text(
        f"env: toy_envs:Buttons-v0\nhorizon: 4\nwrappers: [{FLATTEN}]\nenv_kwargs: {{kind: {kind}}}\n"
        "task_kwargs: [{wanted: 0}, {wanted: 1}, {wanted: 0.5}]\ntrain_env_ratio: 0.6\n"
    )
    files = ["--env-config", str(tmp_path / "buttons.yaml"), "--traj-dir", str(tmp_path)]
    assert collect.main([*files, "--log-dir", str(tmp_path / "logs"), *set_flags(*SOURCE)]) == 0
    path = next(tmp_path.glob("*.hdf5"))
    with h5py.File(path) as file:
        actions = file["0/actions"][()]
        assert actions.shape == (120, 4, *shape) and file["0/states"].shape == (120, 4, 9)
        if n_values is None:
            assert file["0/action_means"].shape == (120, 4, 4)
        else:
            assert actions.dtype == np.uint8 and (actions.max(axis=(0, 1)) < n_values).all()
            probs = file["0/action_probs"][()].astype(float)
            assert probs.shape == (120, 4, sum(n_values))
            for entry in np.split(probs, np.cumsum(n_values)[:-1], axis=-1):
                np.testing.assert_allclose(entry.sum(-1), 1, atol=0.01)
    assert inspect_history.main([str(path)]) == 0
    run = ["--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    assert train.main([*files, *run, *set_flags(*SOURCE, *TINY_MODEL, "eval_episodes=2", "eval_repeats=1")]) == 0
    options = ["--episodes", "3", "--repeats", "2", "--device", "cpu", "--render", "--out", str(tmp_path / "result")]
    assert evaluate.main(["--runs-dir", str(tmp_path / "run"), *options]) == 0
    assert (tmp_path / "result.gif").stat().st_size > 100
    with np.load(tmp_path / "result.npz") as results:
        assert results["returns"].shape == (1, 2, 3) and (results["returns"] >= 0).all()
