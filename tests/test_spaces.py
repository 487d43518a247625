"""Environments of other people's: wrappers from YAML alone, every kind of action, and episodes of any length."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_MODEL, set_flags
from gymnasium.spaces import Box, Discrete, MultiBinary
from toy_envs import Lengths

import collect
import env
import evaluate
import inspect_history
import train
from config.loading import load_config
from dataset import ADDataset
from env.checks import FLATTEN, _space_problems
from env.watching import as_its_space
from files import InputError
from history.format import history_path
from history.writer import join_files
from model.acting import RandomActor, run_actor
from model.spaces import ACTIONS, as_torch_type
from plots.frames import FrameRecorder
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
        (
            "minigrid:MiniGrid-Empty-5x5-v0",
            [{"wrapper": "minigrid.wrappers:ViewSizeWrapper", "agent_view_size": 5}, {"wrapper": "minigrid.wrappers:FlatObsWrapper"}],
            5 * 5 * 3 + 96 * 28,
        ),
    ],
)  # fmt: skip
def test_wrappers_bring_in_what_is_no_vector(config, env_id, wrappers, n_entries):
    config |= {"env": env_id, "wrappers": wrappers}
    assert env.config_problems(config) == env.probe_tasks(config) == []
    assert env.describe_spaces(config)["observation_space"]["sizes"] == [n_entries]
    assert env.make_vec_env(config, [{}, {}]).reset().reshape(2, -1).shape == (2, n_entries)


@pytest.mark.parametrize("env_id", ["toy_envs:Buttons-v0", "minigrid:MiniGrid-Empty-5x5-v0"])
def test_a_refused_space_names_the_wrapper_that_helps(config, env_id):
    """What the message says is pasted, and works. MiniGrid's mission is text, and has a class that cannot be flattened."""
    config |= {"env": env_id}
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


def test_an_environment_gets_actions_as_its_space_has_them():
    """PPO draws MultiBinary ones as floats, and models and sources have floats of 32 bits: 0.3 there is more than 0.3."""
    narrow = Box(-0.3, 0.3, (2,), np.float64)
    given = as_its_space(np.full(2, 0.3, np.float32), narrow)
    assert given.dtype == np.float64 and narrow.contains(given)
    given = as_its_space(np.array([1.0, 0.0]), MultiBinary(2))
    assert given.dtype == np.int8 and given.tolist() == [1, 0]
    kept = np.zeros(2, np.float32)
    assert as_its_space(kept, Box(-1, 1, (2,))) is kept and as_its_space(3, Discrete(4)) == 3


@pytest.mark.parametrize(
    ("space", "role", "message"),
    [
        (Box(0, 5, (2,), np.int64), "action", "is of whole numbers, which MultiDiscrete is for"),
        (Box(-1, 1, ()), "observation", "has no axis; this makes it a vector"),
    ],
)
def test_spaces_that_histories_would_not_hold_right_are_refused(space, role, message):
    (problem,) = _space_problems(role, space)
    assert message in problem


def test_numbers_of_16_bits_without_sign_are_acted_on():
    torch.testing.assert_close(
        torch.as_tensor(as_torch_type(np.array([65_535], np.uint16)))[:1], torch.tensor([65_535])
    )
    assert as_torch_type(np.zeros(1, np.uint8)).dtype == np.uint8


# Faults while running ---------------------------------------------------------------------------------


FAULTS = [
    ("nan", r"observation: nan \(entry 1\): expected finite numbers within its Box"),
    ("shape", r"observation: .*: expected the shape \(2,\) of its Box.*, got \(3,\)"),
    ("reward", "reward: None: expected a finite number"),
    ("error", "ZeroDivisionError: division by zero, in "),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_a_late_fault_is_told_with_task_and_step(fault, message, tmp_path, capsys):
    """The first steps are sound, so no check before the work sees it; NaN failed deep inside torch."""
    task = ["env=toy_envs:Late-v0", f"task_kwargs=[{{}}, {{fault: {fault}}}]", "n_process=1"]
    flags = ["--traj-dir", str(tmp_path), "--log-dir", str(tmp_path / "logs"), *set_flags(*task, *SOURCE)]
    assert collect.main(flags) == 1
    told = capsys.readouterr().err
    assert re.search(rf"task 1 failed: .*{message}", told) and "'fault': '" + fault in told
    assert "episode 2, step 5" in told and "task 0 failed" not in told
    traceback = Path(re.search(r"\(traceback in (.*)\)", told)[1]).read_text()
    assert fault != "error" or re.search(r'toy_envs.py", line .* in step', traceback)
    made = env.make_env({"env": "toy_envs:Late-v0"}, {"fault": fault})
    with pytest.raises(Exception, match="expected|division") as caught:  # as acting would meet it
        for _ in range(2):
            made.reset()
            for _ in range(20):
                made.step(0)
    assert "episode 2, step 5" in str(caught.value) + str(getattr(caught.value, "__notes__", ""))


# Episodes of any length -----------------------------------------------------------------------------


N_STEPS, T = 7, 42  # of a region, of a history; episodes of 3, 1, 5, 2 and 4 steps end anywhere in regions


def lengths_config(*overrides: str) -> dict:
    settings = ["env=toy_envs:Lengths-v0", "task_kwargs=[{first: 0}, {first: 2}]", "train_env_ratio=1.0", "n_stream=2"]
    source = [f"n_steps={N_STEPS}", f"total_source_timesteps={2 * T}", "batch_size=14", "n_epochs=1", "net_arch=[4]"]
    model = [f"n_transit={2 * N_STEPS}", "mix_streams=false"]
    return load_config(DEFAULT_CONFIG, [*settings, *source, *model, *overrides])


def life(first: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, 2) observations and (T,) ends of a stream whose first episode has length `LENGTHS[first]`."""
    lengths = [(episode % 5, Lengths.LENGTHS[episode % 5]) for episode in range(first, first + T)]
    steps = [(episode, step, step == length - 1) for episode, length in lengths for step in range(length)][:T]
    return np.array(steps)[:, :2], np.array(steps)[:, 2].astype(bool)


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("lives"), lengths_config()
    parts = {task: folder / f"{task}.hdf5" for task in (0, 1)}
    for task, path in parts.items():
        collect.collect_task(config, task, path, None)
    join_files(history_path(config, folder), parts, config)
    return folder


def test_what_happens_at_episode_ends_is_recorded_as_it_was(lives, capsys):
    path = history_path(lengths_config(), lives)
    with h5py.File(path) as file:
        for task, first in enumerate((0, 2)):
            states, ends = life(first)
            group = file[str(task)]
            for stream in (0, 1):
                np.testing.assert_array_equal(group["states"][:, stream], states)
                np.testing.assert_array_equal(group["next_states"][:, stream], states + [0, 1])
                np.testing.assert_array_equal(group["dones"][:, stream], ends)
            assert np.flatnonzero(group["compress_markers"][()] == 1).tolist() == list(range(0, T, N_STEPS))
            ended_in = np.arange(T)[ends] // N_STEPS
            returns = [states[ends, 1][ended_in == region].mean() + 1 for region in range(T // N_STEPS)]
            np.testing.assert_allclose(group.attrs["mean_return_per_rollout"], returns, rtol=1e-6)
    assert inspect_history.main([str(path)]) == 0
    assert returns != [3.0] * 6 and "6   " in capsys.readouterr().out


@pytest.mark.parametrize("stride", [1, 2])
def test_windows_show_what_led_to_a_step_where_it_did(lives, stride):
    """With stride 2 a region follows another rollout than its own predecessor: only a new episode needs nothing of it."""
    dataset = ADDataset(lengths_config(f"region_stride={stride}", "use_compressed_context=true"), lives, "train")
    seen = set()
    for sample in range(len(dataset)):
        window = dataset[sample]
        task = next(i for i in range(2) if sample < dataset.n_samples[i + 1])
        states, ends = life((0, 2)[dataset.tasks[task]])
        n_before, n_now = window["region_lengths"].tolist()
        place = (sample - dataset.n_samples[task]) // 2  # two streams
        now = N_STEPS * (place + stride - 1 if place else 0)
        times = [*range(now - stride * N_STEPS, now - stride * N_STEPS + n_before), *range(now, now + n_now)]
        held = len(times)
        np.testing.assert_array_equal(window["observations"][:held], states[times])
        np.testing.assert_array_equal(window["dones"][:held], ends[times])
        expected = [True, *([False] * (held - 1))]
        if stride > 1 and n_before:
            own_episode_begins = states[now, 1] == 0
            expected[n_before] = not (ends[times[n_before - 1]] and own_episode_begins)
            seen.add(expected[n_before])
        assert window["starts"][:held].tolist() == expected
    assert stride == 1 or len(seen) == 2


def test_acting_and_films_follow_each_episode_to_its_end():
    config = {"env": "toy_envs:Lengths-v0"}
    recorder = FrameRecorder(env.make_vec_env(config, [{"first": 0}, {"first": 2}], "rgb_array"), [1, 2, 3])
    record = run_actor(RandomActor(recorder.action_space, 2, 0), recorder, n_steps=40, n_episodes=5)
    np.testing.assert_array_equal(record["returns"], [[3, 1, 5, 2, 4], [5, 2, 4, 3, 1]])
    for episode in (1, 2, 3):
        for i, first in enumerate((0, 2)):
            number = (first + episode - 1) % 5
            length = Lengths.LENGTHS[number]
            shown = [int(picture[0, 0, 0]) for picture in recorder.frames[episode][i]]
            assert shown[:length] == [10 * number + step for step in range(length)] and len(shown) == length + 1
            assert recorder.returns[episode][i] == list(range(length + 1))
