"""The environments: dynamics with known answers, the split, and batched equals scalar."""

import re
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv
from toy_envs import Lengths

import env
from config.loading import load_config
from env.cartpole import CartPoleTask
from env.darkroom import Darkroom, DarkroomPermuted, DarkroomVecEnv
from env.endless_key_to_door import EndlessKeyToDoor
from env.grid import FLOOR, MARKS
from env.key_to_door import DarkKeyToDoor
from files import InputError
from scripts import DEFAULT_CONFIG


@pytest.fixture
def config():
    return load_config(DEFAULT_CONFIG)


def test_split_is_the_published_one(config):
    split, tasks = env.split_tasks(config), env.list_tasks(config)
    held_out = [tasks[i]["goal"] for i in split["test"]]
    assert held_out == [(4, 2), (5, 6), (6, 8), (7, 2), (3, 6), (0, 5), (5, 8), (5, 4)]
    assert len(split["train"]) == 73 and sorted(split["train"] + split["test"]) == split["all"] == list(range(81))
    assert np.mean([env.optimal_return(config, tasks[i]) for i in split["test"]]) == 17.25


@pytest.mark.parametrize(("goal", "expected"), [((4, 4), 20), ((4, 5), 20), ((0, 0), 13), ((8, 8), 13), ((4, 2), 19)])
def test_optimal_return_is_reached_by_the_shortest_path(goal, expected):
    task = Darkroom(goal)
    assert task.optimal_return == expected
    cell, _ = task.reset()
    total, truncated = 0.0, False
    while not truncated:
        row, column = np.array(goal) - cell
        action = (0 if row > 0 else 1) if row else (2 if column > 0 else 3) if column else 4
        cell, reward, terminated, truncated, _ = task.step(action)
        total += reward
        assert not terminated
    assert total == expected


@pytest.mark.parametrize(("action", "expected"), [(0, (8, 4)), (1, (0, 4)), (2, (4, 8)), (3, (4, 0)), (4, (4, 4))])
def test_actions_move_as_documented_and_walls_stop_them(action, expected):
    task = Darkroom((0, 0))
    assert tuple(task.reset()[0]) == (4, 4)
    for _ in range(6):
        cell, *_ = task.step(action)
    assert tuple(cell) == expected


@pytest.mark.parametrize("env_id", [record.env_id for record in env.FAMILIES.values()])
def test_gymnasium_accepts_them_without_warnings(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id).unwrapped)  # every render mode included


def family(name: str, **settings) -> dict:
    return load_config(DEFAULT_CONFIG | {"env": f"config/env/{name}.yaml"}) | settings


FAMILIES = {
    "darkroom": family("darkroom", grid_size=5, horizon=7),
    "darkroom_large": family("darkroom_large", grid_size=4, horizon=9),
    "darkroom_permuted": family("darkroom_permuted", grid_size=3, horizon=9, n_tasks=20),
    "darkroom_hard": family("darkroom_hard", grid_size=3, horizon=9),
    "dark_key_to_door": family("dark_key_to_door", grid_size=3, horizon=12, n_tasks=40),
    "endless_key_to_door": family("endless_key_to_door", grid_size=3, horizon=30, n_tasks=40),
}


def assert_same_step(one: tuple, other: tuple) -> None:
    """Observations, rewards, ends and infos of two VecEnvs, with their types."""
    for first, second in zip(one[:3], other[:3]):
        np.testing.assert_array_equal(first, second)
        assert first.dtype == second.dtype
    for first, second in zip(one[3], other[3]):
        assert first.keys() == second.keys() and first["TimeLimit.truncated"] == second["TimeLimit.truncated"]
        if "terminal_observation" in first:
            np.testing.assert_array_equal(first["terminal_observation"], second["terminal_observation"])


@pytest.mark.parametrize("name", FAMILIES)
def test_batched_equals_scalar(name):
    config, tasks = FAMILIES[name], env.list_tasks(FAMILIES[name])
    batched = env.make_vec_env(config, tasks)
    scalar = DummyVecEnv([lambda task=task: env.FAMILIES[name].scalar(**task) for task in tasks])
    assert type(batched) is env.FAMILIES[name].batched and batched.action_space == scalar.action_space
    assert batched.observation_space == scalar.observation_space
    rng = np.random.default_rng(0)
    first, second = batched.reset(), scalar.reset()
    np.testing.assert_array_equal(first, second)
    assert first.dtype == second.dtype and batched.reset_infos == scalar.reset_infos
    n_rewarded, some_ended = 0, False
    for _ in range(100):
        actions = rng.integers(5, size=len(tasks))
        one, other = batched.step(actions), scalar.step(actions)
        assert_same_step(one, other)
        n_rewarded += int(one[1].sum())
        some_ended |= one[2].any() and not one[2].all()
        assert batched.get_attr("cell")[0].tolist() == scalar.get_attr("cell")[0].tolist()
    np.testing.assert_array_equal(batched.reset(), scalar.reset())
    assert_same_step(batched.step(actions), scalar.step(actions))
    assert n_rewarded > 0 and some_ended == (name == "darkroom_hard")  # only there one may end before another


def best_return(task) -> float:
    """Return of going the shortest way to each of the task's cells in turn; to the last one, or round and round."""
    total, ended, cell = 0.0, False, task.reset()[0]
    targets = [task.key, task.door] if hasattr(task, "key") else [task.goal]
    actions = {tuple(move): action for action, move in enumerate(task.moves)}
    while not ended:
        (row, column), n_found = np.sign(np.array(targets[0]) - cell), total
        cell, reward, terminated, truncated, _ = task.step(actions[(row, 0) if row else (0, column)])
        total, ended = total + reward, terminated or truncated
        if len(targets) > 1 and total > n_found:
            found = targets.pop(0)
            targets += [found] * isinstance(task, EndlessKeyToDoor)
    return total


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("darkroom", 16.54), ("darkroom_large", 43.53), ("darkroom_permuted", 35), ("darkroom_hard", 1),
        ("dark_key_to_door", 2), ("endless_key_to_door", 127.5),
    ],
)  # fmt: skip
def test_the_shortest_way_earns_the_optimal_return(name, mean):
    config = family(name)
    tasks = env.list_tasks(config)
    optimal = [env.optimal_return(config, task) for task in tasks]
    assert np.mean(optimal) == pytest.approx(mean, abs=0.005)
    for task, expected in list(zip(tasks, optimal))[::7]:
        assert best_return(env.make_env(config, task)) == expected


def test_the_families_tasks():
    permuted = env.list_tasks(family("darkroom_permuted"))
    assert len({task["permutation"] for task in permuted}) == 120 and permuted[0]["permutation"] == (0, 1, 2, 3, 4)
    task = env.make_env(family("darkroom_permuted"), permuted[1])  # its last two actions are swapped
    task.reset()
    assert [task.step(action)[0].tolist() for action in (2, 4, 3)] == [[0, 1], [0, 0], [0, 0]]
    large, hard = env.list_tasks(family("darkroom_large")), env.list_tasks(family("darkroom_hard"))
    assert len(large) == 225 and len(hard) == 289 and large[16]["goal"] == (1, 1)
    assert max(abs(r - 8) + abs(c - 8) for r, c in (task["goal"] for task in hard)) == 16  # all within 20 steps
    pairs = [(task["key"], task["door"]) for task in env.list_tasks(family("dark_key_to_door"))]
    assert len(set(pairs)) == len(pairs) == 300
    assert len(env.list_tasks(family("dark_key_to_door", n_tasks=None))) == 6561
    assert len(env.list_tasks(family("endless_key_to_door", n_tasks=None))) == 6480  # key and door differ


def test_a_sample_of_tasks_depends_on_its_seed_alone():
    def sample(**settings):
        return env.list_tasks(family("dark_key_to_door", **settings))

    assert sample() == sample() and sample(n_tasks=7) == sample()[:7] and sample(task_seed=1) != sample()
    assert sample(env_split_seed=1) == sample()  # the split is another thing


def test_the_door_needs_the_key_and_each_pays_once():
    task = DarkKeyToDoor(key=(4, 6), door=(4, 5), horizon=12)
    task.reset()
    rewards = [task.step(action)[1] for action in (2, 2, 4, 3, 4, 2, 3)]
    assert rewards == [0, 1, 0, 1, 0, 0, 0]  # the door first, the key, staying, the door, both again
    same = DarkKeyToDoor(key=(4, 4), door=(4, 4), horizon=3)
    same.reset()
    assert [same.step(4)[1] for _ in range(3)] == [1, 1, 0] and same.optimal_return == 2
    assert same.reset()[0].tolist() == [4, 4] and same.step(4)[1] == 1


def test_key_and_door_again_and_again():
    """From the centre two steps to the key, then one to the door, one back, ...; and after a reset from the start."""
    task = EndlessKeyToDoor(key=(4, 6), door=(4, 5), horizon=7)
    for _ in range(2):
        task.reset()
        rewards = [task.step(action)[1] for action in (2, 2, 3, 4, 2, 3, 2)]
        assert rewards == [0, 1, 1, 0, 1, 1, 1]  # the door is passed without the key; staying at it pays nothing
    assert task.optimal_return == 6  # steps 2, 3, 4, 5, 6 and 7
    assert EndlessKeyToDoor(key=(0, 0), door=(0, 3), horizon=8).optimal_return == 1
    assert EndlessKeyToDoor(key=(0, 0), door=(0, 3), horizon=7).optimal_return == 0
    with pytest.raises(ValueError, match="one cell"):
        EndlessKeyToDoor(key=(1, 1), door=(1, 1))


def test_the_source_sees_what_is_sought_when_it_goes_on():
    """Behind the door it sees the first grid again, at an episode's end too."""
    tasks = [{"key": (2, 3), "door": (2, 2), "grid_size": 5, "horizon": 2}]
    source = env.make_source_env(family("endless_key_to_door", horizon=2, grid_size=5), tasks)
    source.reset()
    assert source.observation_space.nvec.tolist() == [10, 10] and source.step(np.array([2]))[0].tolist() == [[7, 8]]
    assert source.step(np.array([3]))[3][0]["terminal_observation"].tolist() == [2, 2]


def test_the_source_sees_what_was_found_and_histories_do_not():
    """Its cell moves to another grid, the episode's last observation included; `recorded` gives the cell."""
    config = family("dark_key_to_door", horizon=2, grid_size=5, n_tasks=None)
    tasks = [{"key": (2, 3), "door": (2, 2), "grid_size": 5, "horizon": 2}] * 2
    source = env.make_source_env(config, tasks)
    assert source.observation_space.nvec.tolist() == [15, 15] and source.reset().tolist() == [[2, 2], [2, 2]]
    seen, *_ = source.step(np.array([2, 4]))
    assert seen.tolist() == [[7, 8], [2, 2]] and source.recorded(seen).tolist() == [[2, 3], [2, 2]]
    seen, _, ended, infos = source.step(np.array([3, 4]))
    assert ended.all() and [info["terminal_observation"].tolist() for info in infos] == [[12, 12], [2, 2]]
    assert seen.tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_show_the_current_state(name):
    config = FAMILIES[name]
    tasks = env.list_tasks(config)[:6]
    batched = env.make_vec_env(config, tasks, render_mode="rgb_array")
    scalar = DummyVecEnv([lambda task=task: env.make_env(config, task, render_mode="rgb_array") for task in tasks])
    rng = np.random.default_rng(1)
    batched.reset(), scalar.reset()
    for _ in range(10):
        actions = rng.integers(5, size=6)
        batched.step(actions), scalar.step(actions)
        for one, other in zip(batched.get_images(), scalar.get_images()):
            np.testing.assert_array_equal(one, other)
    size = 24 * config["grid_size"]
    assert one.shape == (size, size, 3) and one.dtype == np.uint8
    tiled = batched.render("rgb_array")
    assert tiled.shape[0] % size == tiled.shape[1] % size == 0
    assert env.make_vec_env(config, tasks).get_images() == [None] * 6
    with pytest.raises(ValueError, match="render_mode is 'ansi', expected rgb_array"):
        env.make_vec_env(config, tasks, render_mode="ansi")


def test_text_and_pictures_tell_all_things_apart():
    task = DarkKeyToDoor(key=(1, 2), door=(0, 0), grid_size=3, render_mode="ansi")
    task.reset()
    assert task.render() == "D..\n.AK\n..."
    task.step(2)
    assert task.render() == "D..\n..*\n..."
    for action in (3, 3, 1):
        task.step(action)
    assert task.render() == "*..\n..k\n..."
    assert Darkroom((2, 0), grid_size=3, render_mode="ansi").render() == "...\n.A.\nG.."
    letters, colours, shapes = zip(*MARKS.values())
    assert len(set(letters)) == 3
    for i, j in ((0, 1), (0, 2), (1, 2)):  # they differ in shape, and are brighter than the floor
        assert (shapes[i] != shapes[j]).mean() > 0.2
    assert min(np.mean(colour) for colour in colours) > 2 * np.mean(FLOOR)
    with pytest.raises(ValueError, match="render_mode is 'human'"):
        Darkroom((0, 0), render_mode="human")


def test_any_familys_vec_env_can_draw():
    gym.register("Drawn-v0", lambda render_mode=None: Drawn(render_mode))
    config = family("darkroom", env="Drawn-v0")
    vec_env = env.make_vec_env(config, [{}, {}], render_mode="rgb_array")
    vec_env.reset()
    images = vec_env.get_images()
    assert [image.shape for image in images] == [(2, 2, 3)] * 2


class Drawn(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}
    observation_space = action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode):
        self.render_mode = render_mode

    def reset(self, seed=None, options=None):
        return 0, {}

    def render(self):
        return np.zeros((2, 2, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Darkroom((0, 9)), r"goal \(0, 9\) lies outside the 9x9 grid"),
        (lambda: Darkroom((0, 0), start=(9, 0)), "start"),
        (lambda: DarkKeyToDoor((0, 0), (-1, 0)), "door"),
        (lambda: DarkroomPermuted((0, 0, 1, 2, 3)), "expected each of 0 to 4 once"),
        (lambda: DarkroomVecEnv([{"goal": (0, 0)}, {"goal": (0, 0), "horizon": 3}]), "same grid_size and horizon"),
        (lambda: CartPoleTask(length=0), "must be above 0"),
    ],
)
def test_impossible_tasks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_cartpole_is_gymnasiums_and_follows_its_arguments():
    original, ours = gym.make("CartPole-v1"), gym.make("CartPoleTask-v0")
    original.reset(seed=0), ours.reset(seed=0)
    for action in (0, 1, 1):
        np.testing.assert_array_equal(original.step(action)[0], ours.step(action)[0])

    task = CartPoleTask(gravity=5, length=2.0)
    task.reset()
    task.state = np.zeros(4)
    _, speed, _, turn = task.step(1)[0]  # from rest, upright, pushed by 10 N; cart and pole weigh 1 and 0.1 kg
    turn_acceleration = -(10 / 1.1) / (2.0 * (4 / 3 - 0.1 / 1.1))
    assert turn == pytest.approx(0.02 * turn_acceleration)
    assert speed == pytest.approx(0.02 * (10 / 1.1 - 0.1 * 2.0 * turn_acceleration / 1.1))
    task.state = np.array([0, 0, 0.1, 0])
    falls = task.step(1)[0][3]
    task.state, task.gravity = np.array([0, 0, 0.1, 0]), 9.8
    assert task.step(1)[0][3] > falls  # with more gravity it falls faster


def test_tasks_are_drawn_from_ranges():
    config = family("cartpole")
    tasks = env.list_tasks(config)
    assert len(tasks) == 40 and tasks == env.list_tasks(config)
    for name, (low, high) in config["task_ranges"].items():
        values = np.array([task[name] for task in tasks])
        assert (values >= low).all() and (values <= high).all() and np.ptp(values) > 0.8 * (high - low)
    assert env.list_tasks(config | {"n_tasks": 5}) == tasks[:5]
    assert env.list_tasks(config | {"task_seed": 1}) != tasks
    turned = dict(reversed(config["task_ranges"].items()))
    assert env.list_tasks(config | {"task_ranges": turned}) == tasks
    made = env.make_env(config, tasks[3])
    assert made.unwrapped.gravity == tasks[3]["gravity"] and made.unwrapped.length == tasks[3]["length"]


def test_kwargs_that_gymnasium_itself_takes():
    config = family("pendulum")
    assert env.max_episode_steps(config) == 100 and env.list_tasks(config)[0]["max_episode_steps"] == 100


def test_results_of_a_step_are_not_overwritten_by_the_next():
    vec_env = DarkroomVecEnv([{"goal": (0, 0)}])
    before = vec_env.reset()
    after, *_ = vec_env.step(np.array([0]))
    assert before.tolist() == [[4, 4]] and after.tolist() == [[5, 4]]


def test_any_gymnasium_environment_is_a_family(config):
    config |= {"env": "CartPole-v1", "env_kwargs": {"sutton_barto_reward": True}, "task_kwargs": [{}, {}]}
    assert env.config_problems(config) == []
    vec_env = env.make_vec_env(config, env.list_tasks(config))
    assert isinstance(vec_env, DummyVecEnv) and vec_env.reset().shape == (2, 4)
    assert env.max_episode_steps(config) == 500 and env.optimal_return(config, {}) is None
    assert env.describe_spaces(config)["observation_space"]["kind"] == "continuous"


def test_what_cannot_be_stepped_is_told(config):
    assert "neither" in env.config_problems(config | {"env": "Nowhere-v0"})[0]
    wrong = config | {"env": "CartPole-v1", "env_kwargs": {"wheels": 4}}
    assert "cannot be made" in env.config_problems(wrong)[0]
    gym.register("TupleSpace-v0", lambda: TupleSpace())
    assert "observation space" in env.config_problems(config | {"env": "TupleSpace-v0", "env_kwargs": {}})[0]
    with pytest.raises(InputError, match="Nowhere"):
        load_config(DEFAULT_CONFIG, ["env=Nowhere-v0"], checks=(env.config_problems,))
    image = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    gym.register("ImageSpace-v0", lambda: TupleSpace(image))
    assert "is an image" in env.config_problems(config | {"env": "ImageSpace-v0", "env_kwargs": {}})[0]


class TupleSpace(gym.Env):
    action_space = gym.spaces.Discrete(2)

    def __init__(self, observation_space=None):
        self.observation_space = observation_space or gym.spaces.Tuple([gym.spaces.Discrete(2)])

    def reset(self, seed=None, options=None):
        return (0,), {}


def test_what_ppo_cannot_take_is_told_before_any_work(config):
    class Odd(gym.Env):
        observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Box(-np.inf, np.inf, (1,))

        def __init__(self, size=2):
            self.observation_space = gym.spaces.MultiDiscrete(np.full((2, size), 3))

    gym.register("Odd-v0", Odd)
    problems = " ".join(env.config_problems(config | {"env": "Odd-v0", "task_kwargs": [{}, {"size": 3}]}))
    assert "several axes" in problems and "no finite bounds" in problems and "task 1: its observations" in problems


def test_an_environments_own_horizon_is_known(config):
    large = config | {"env": "DarkroomLarge-v0", "task_kwargs": [{"goal": (0, 0)}, {"goal": (1, 1), "horizon": 60}]}
    assert env.max_episode_steps(large) == 60


# What is told before any work -------------------------------------------------------------------------


class Faulty(gym.Env):
    """Counts its steps; on the third one of an episode, and where `at_reset` in the reset, it gives what it is told to."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, space=None, at_reset=False, **given):
        self.observation_space = space or gym.spaces.Box(-1, 1, (2,))
        self.at_reset, self.given, self.sound = at_reset, given, np.zeros(self.observation_space.shape, np.float32)
        if self.observation_space.dtype.kind == "i":
            self.sound = self.sound.astype(int)
        if "wheels" in given:
            raise ValueError("no such wheels")

    def reset(self, seed=None, options=None):
        self.n_steps = 0
        return self.given["observation"] if self.at_reset else self.sound, {}

    def step(self, action):
        self.n_steps += 1
        given = self.given if self.n_steps == 3 else {}
        if "error" in given:
            raise given["error"] if isinstance(given["error"], SystemExit) else RuntimeError(given["error"])
        sound = {"observation": self.sound, "reward": 0.0, "terminated": False, "truncated": False, "info": {}}
        return tuple(given.get(name, value) for name, value in sound.items())


@pytest.fixture(autouse=True)
def tracebacks_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def faulty(config):
    """A function from task_kwargs to a config of `Faulty` environments."""
    gym.register("Faulty-v0", Faulty, max_episode_steps=50)
    yield lambda *task_kwargs: config | {"env": "Faulty-v0", "task_kwargs": list(task_kwargs)}
    del gym.registry["Faulty-v0"]


GRID, COUNT, REAL = (
    gym.spaces.MultiDiscrete([3, 3]),
    gym.spaces.Discrete(3),
    gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"observation": np.array([0, np.nan])}, r"step 3: observation: nan \(entry 1\): expected finite .* Box\("),
        (
            {"observation": np.array([0, 1000.0])},
            r"step 3: observation: 1000.0 \(entry 1\): expected .* Box\(-1.0, 1.0",
        ),
        ({"observation": np.array([np.inf, 0])}, r"observation: inf \(entry 0\)"),
        ({"observation": np.zeros(3)}, r"observation: \[0.0, 0.0, 0.0\]: expected the shape \(2,\) .* got \(3,\)"),
        ({"observation": [[0], [0, 0]]}, r"observation: \[\[0\], \[0, 0\]\]: expected one array"),
        ({"observation": None}, "observation: None: expected numbers"),
        ({"observation": "up", "at_reset": True}, "task 1, .*, reset: observation: 'up': expected numbers"),
        ({"observation": np.array([0, 3]), "space": GRID}, r"observation: 3 \(entry 1\): expected .* MultiDiscrete"),
        ({"observation": np.array([0, -1]), "space": GRID}, r"observation: -1 \(entry 1\)"),
        ({"observation": np.array([0, 1.5]), "space": GRID}, "expected whole numbers, .* got float64"),
        ({"observation": 3, "space": COUNT}, r"observation: 3: expected finite numbers within its Discrete\(3\)"),
        ({"observation": np.array([1]), "space": COUNT}, r"expected the shape \(\)"),
        ({"reward": None}, "step 3: reward: None: expected a finite number"),
        ({"reward": np.float32(np.nan)}, "reward: nan: expected a finite number"),
        ({"reward": "much"}, "reward: 'much'"),
        ({"reward": np.zeros(1)}, r"reward: \[0.0\]"),
        ({"reward": 1e39}, r"reward: 1e\+39: expected a finite number, as float32 holds it"),
        ({"observation": np.array([0, -1e39]), "space": REAL}, r"observation: -1e\+39 \(entry 1\): expected finite"),
        ({"info": None}, "step 3: info: None: expected a dict"),
        ({"error": SystemExit(3)}, r"step 3: it called sys.exit\(3\)"),
        ({"terminated": None}, "step 3: terminated: None: expected True or False"),
        ({"truncated": 2}, "truncated: 2: expected True or False"),
        (
            {"error": "the wheel came off"},
            r"task 1, RuntimeError: the wheel came off, in {.*}, episode 1, step 3 \(traceback in ",
        ),
    ],
)
def test_what_an_environment_gives_is_told_before_any_worker_starts(faulty, task, message):
    """Such values failed deep inside torch, or were kept: 1000 in Box(-1, 1) was 'sound'."""
    config = faulty({"space": task.get("space")}, task)
    assert env.config_problems(config) == []
    (problem,) = env.probe_tasks(config)
    assert problem.startswith("env: 'Faulty-v0': task 1, ") and re.search(message, problem)


def test_sound_environments_pass_the_probe(faulty, monkeypatch):
    """Whatever number type they give, over episode ends, and however many tasks there are."""
    tasks = [
        {"observation": np.array([-1, 1])}, {"observation": [0.5, np.float64(1)]}, {"reward": 1}, {"reward": np.int8(1)},
        {"space": gym.spaces.Box(-np.inf, np.inf, (1,)), "observation": np.array([1e30])},
        {"reward": np.bool_(True), "terminated": np.bool_(True)}, {"terminated": 1}, {"truncated": True},
        {"space": COUNT, "observation": np.int64(2)}, {"space": GRID, "observation": np.array([2, 0], np.uint8)},
    ]  # fmt: skip
    assert env.probe_tasks(faulty(*tasks)) == []
    steps = []
    original = Faulty.step
    monkeypatch.setattr(Faulty, "step", lambda self, action: steps.append(0) or original(self, action))
    assert env.probe_tasks(faulty(*({"size": i} for i in range(1000)))) == [] and len(steps) == 2000
    assert (
        "task 999"
        in env.probe_tasks(faulty(*[{"size": i} for i in range(999)], {"at_reset": True, "observation": 0}))[0]
    )


def test_of_a_shipped_family_one_task_is_stepped(monkeypatch):
    made = []
    original = DarkKeyToDoor.__init__
    monkeypatch.setattr(DarkKeyToDoor, "__init__", lambda self, **task: made.append(0) or original(self, **task))
    config = family("dark_key_to_door", n_tasks=None)
    assert env.probe_tasks(config) == env.config_problems(config) == [] and len(made) == 2


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("2020-01-01", "datetime.date"), (".nan", "nan"), ("1e400", "'1e400'"), ("100000000000000000000", "1000000"),
        ('"a\\0b"', "a.*b"), ("[1, {b: !!binary aaaa}]", "b'i"), ("{off: 1}", "False"), ("!!set {a}", "{'a'}"),
    ],
)  # fmt: skip
def test_arguments_that_no_file_can_keep_are_refused(faulty, argument, shown):
    """A date went into checkpoints, which could then not be read."""
    problems = env.config_problems(faulty({"size": yaml.safe_load(argument)}))
    if shown == "'1e400'":  # text, as YAML 1.1 has it
        assert problems == []
    else:
        assert re.match(rf"task_kwargs: .*{shown}.*: expected text, numbers", problems[0])


def test_an_optimum_that_is_none_is_told(faulty):
    class Own(Faulty):
        optimal_return = property(lambda self: self.given["best"] if self.given else self.no_such_attribute)

    gym.registry["Faulty-v0"].entry_point = Own
    for task, message in (
        ({"best": float("inf")}, "optimal_return is inf, expected a finite"),
        ({}, "no_such_attribute"),
    ):
        assert message in env.config_problems(faulty(task))[0]
    assert env.config_problems(faulty({"best": None})) == []


def test_an_array_that_is_used_again_is_kept_at_an_episodes_end(config):
    class Reusing(Lengths):
        observation_space = gym.spaces.Box(0, 9, (2,))

        def _observe(self):
            self.array = getattr(self, "array", np.zeros(2, np.float32))
            self.array[:] = self.episode % 5, self.n_steps
            return self.array

    gym.register("Reusing-v0", Reusing)
    vec_env = env.make_vec_env(config | {"env": "Reusing-v0"}, [{}])
    vec_env.reset()
    ends = [
        info["terminal_observation"].tolist()
        for *_, (info,) in (vec_env.step([0]) for _ in range(4))
        if "episode" in info
    ]
    del gym.registry["Reusing-v0"]
    assert ends == [[0, 3], [1, 1]]


def test_identical_tasks_are_refused(faulty):
    (problem,) = env.probe_tasks(faulty({"a": 1, "b": 2}, {"a": 1}, {"b": 2, "a": 1}))
    assert problem.startswith("task_kwargs: entries 0 and 2 are the same task, {'a': 1, 'b': 2}")
    (problem,) = env.probe_tasks(faulty({"a": 1}, {"a": 1.0}))
    assert "entries 0 and 1 are the same task" in problem
    (problem,) = env.probe_tasks(faulty({"a": 1}, {}) | {"env_kwargs": {"a": 1}})
    assert "entries 0 and 1 are the same task" in problem


def test_an_environment_may_change_its_arguments(config):
    class Shuffling(Lengths):
        def __init__(self, boxes):
            super().__init__()
            boxes.append(len(boxes))
            self.boxes = boxes

    gym.register("Shuffling-v0", Shuffling)
    config = config | {"env": "Shuffling-v0", "task_kwargs": [{"boxes": [0]}]}
    tasks = env.list_tasks(config)
    held = env.make_vec_env(config, tasks * 3).get_attr("boxes")
    del gym.registry["Shuffling-v0"]
    assert held == [[0, 1]] * 3 and tasks == [{"boxes": [0]}]


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        (gym.spaces.Box(-1, 1, (0,)), "has no entries"),
        (gym.spaces.Discrete(2**40), "has entries of more than 1,000,000 values"),
        (gym.spaces.Discrete(1_000_000), None),
    ],
)
def test_spaces_that_nothing_can_be_learned_from_are_refused(config, space, problem):
    gym.register("Sized-v0", type("Sized", (Lengths,), {"observation_space": space}))
    problems = env.config_problems(config | {"env": "Sized-v0"})
    del gym.registry["Sized-v0"]
    assert (problem in problems[0]) if problem else not problems


def test_an_action_without_an_axis_is_an_array(config):
    class Asking(Lengths):
        action_space = gym.spaces.Box(-1, 1, (), np.float32)

        def step(self, action):
            assert isinstance(action, np.ndarray) and action.shape == () and abs(action) <= 1
            return super().step(action)

    gym.register("Asking-v0", Asking)
    with env.make_env(config | {"env": "Asking-v0"}, {}) as made:
        made.reset()
        for action in (np.float32(0.5), np.array(1, np.float32), np.float64(-3)):
            made.step(action)
    del gym.registry["Asking-v0"]


@pytest.mark.parametrize("place", ["module", "__init__"])
def test_a_script_is_not_ended_by_what_an_environment_calls(config, tmp_path, monkeypatch, place):
    text = (
        "import sys\nimport gymnasium as gym\n\n\ndef make():\n    sys.exit(0)\n\n\ngym.register('Leaves-v0', make)\n"
    )
    (tmp_path / "leaving.py").write_text(text if place == "__init__" else "raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    (problem,) = env.config_problems(config | {"env": "leaving:Leaves-v0", "horizon": 5})
    gym.registry.pop("Leaves-v0", None)
    sys.modules.pop("leaving", None)
    assert "called sys.exit(0)" in problem


def test_a_bad_argument_is_reported_with_its_tasks_number_and_traceback(faulty):
    (problem,) = env.config_problems(faulty({}, {"wheels": 4}))
    assert problem.startswith("env: 'Faulty-v0' cannot be made: task 1, {'wheels': 4}: ValueError: no such wheels")
    assert re.search(r'test_env.py", line .* in __init__\n +raise ValueError', traceback_of(problem))


def test_a_modules_own_exception_keeps_its_traceback(config, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("limit = 0\nshare = 1 / limit\n")
    monkeypatch.syspath_prepend(tmp_path)
    (problem,) = env.config_problems(config | {"env": "broken_module:Env-v0"})
    assert "cannot be imported: ZeroDivisionError: division by zero" in problem
    assert 'broken_module.py", line 2' in traceback_of(problem)


def traceback_of(problem: str) -> str:
    return Path(re.search(r"\(traceback in (.*)\)", problem)[1]).read_text()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Taxi-v3", "there is Taxi-v4"),
        ("os:Taxi-v3", "there is os:Taxi-v4"),
        ("Pendulum", "there is Pendulum-v1"),
        ("FrozenLakes-v1", "did you mean FrozenLake-v1"),
        ("os:FrozenLakes-v1", "did you mean os:FrozenLake-v1"),
        ("darkrom", "did you mean darkroom"),
        ("Zzz-v0", "id; module:id"),
    ],
)
def test_unknown_ids_get_a_hint(config, name, hint):
    (problem,) = env.config_problems(config | {"env": name})
    assert hint in problem and problem.startswith(f"env: '{name}' is neither one of darkroom, ")


@pytest.mark.parametrize(
    ("env_id", "problem"),
    [
        ("Taxi-v4", None),
        ("FrozenLake-v1", None),
        ("MountainCar-v0", None),
        ("Blackjack-v1", r"its observation space is Tuple.* expected one of .*wrappers: .*FlattenObservation"),
    ],
)
def test_gymnasiums_own_environments(config, env_id, problem):
    config |= {"env": env_id}
    found = env.config_problems(config)
    if problem is None:
        assert found == env.probe_tasks(config) == []
    else:
        assert len(found) == 1 and re.search(problem, found[0])


def test_an_environment_without_a_limit_asks_for_the_horizon(config):
    gym.register("Endless-v0", Faulty)
    config |= {"env": "Endless-v0", "task_kwargs": [{"size": 1}, {"size": 2}]}
    assert env.config_problems(config) == [] and env.max_episode_steps(config) == 20  # it is given
    config["horizon"] = None
    (problem,) = env.config_problems(config)
    assert problem.startswith("horizon: missing, and 'Endless-v0' has no step limit of its own")
    for remedy in ({"horizon": 30}, {"env_kwargs": {"max_episode_steps": 30}}):
        assert env.config_problems(config | remedy) == [] and env.max_episode_steps(config | remedy) == 30
    assert "horizon" in env.keys_read(config)
    assert "horizon" not in env.keys_read(config | {"env_kwargs": {"max_episode_steps": 30}})


def test_only_what_an_env_reads_decides_its_tasks(config):
    """Files of a Gymnasium id were refused when `horizon` or `grid_size` differed, which it does not read."""
    assert env.keys_read(config) == ("env", "grid_size", "horizon", "n_tasks")
    assert env.keys_read(family("dark_key_to_door"))[-2:] == ("task_seed", "source_sees_progress")
    listed = ("env", "env_kwargs", "wrappers", "task_kwargs", "task_ranges", "task_number", "n_tasks")
    assert env.keys_read(config | {"env": "CartPole-v1"}) == listed
    assert env.keys_read(config | {"env": "CartPole-v1", "env_kwargs": {"max_episode_steps": -1}})[1] == "horizon"
    assert env.keys_read(config | {"env": "DarkroomLarge-v0"}) == listed  # its limit is its own attribute
    gym.register("Steps-v0", WithSteps)
    assert env.keys_read(config | {"env": "Steps-v0"}) == listed  # as Minigrid's environments have it
    assert env.max_episode_steps(config | {"env": "Steps-v0", "horizon": 144}) == 64


def test_settings_that_an_env_does_not_get_are_told(config):
    """`env: Darkroom-v0` with `grid_size: 13` collected on a 9x9 grid without a word."""
    other = config | {"env": "DarkroomLarge-v0", "grid_size": 13, "horizon": 5}
    size, horizon = env.unread_notes(other)
    assert "grid_size: 13: DarkroomLarge-v0 does not read it" in size and "env_kwargs" in size
    assert "horizon: 5: DarkroomLarge-v0 does not read it" in horizon
    assert env.unread_notes(config | {"grid_size": 13, "horizon": 5}) == []
    assert env.unread_notes(other | {"grid_size": 9, "horizon": None}) == []


def test_a_remedy_repeats_the_env_kwargs_that_it_replaces(config):
    """Followed as it stood, it dropped all of them, and another environment was evaluated."""
    config |= {"env": "DarkroomLarge-v0", "env_kwargs": {"start": [0, 1]}, "horizon": 5}
    with pytest.raises(InputError) as caught:
        env.check_horizon(config, ["horizon=5"])
    (flag,) = re.findall(r"--set '(env_kwargs=.*?)'", str(caught.value))
    assert yaml.safe_load(flag.partition("=")[2]) == {"start": [0, 1], "max_episode_steps": 5}


class WithSteps(Faulty):
    max_steps = 64


def test_no_environment_is_made_for_a_limit_that_gymnasium_knows(config, monkeypatch):
    made = []
    original = WithSteps.__init__
    monkeypatch.setattr(WithSteps, "__init__", lambda self, **given: made.append(0) or original(self, **given))
    gym.register("Known-v0", WithSteps, max_episode_steps=9)
    tasks = {"task_kwargs": [{"size": 1}, {"size": 2, "max_episode_steps": 11}]}
    assert env.max_episode_steps(config | {"env": "Known-v0"} | tasks) == 11 and made == []
    gym.register("Hidden-v0", WithSteps)
    assert {env.max_episode_steps(config | {"env": "Hidden-v0"} | tasks) for _ in range(3)} == {64} and made == [0]


def test_a_horizon_of_null_is_the_classs_own(config):
    for name, expected in (("darkroom", 20), ("darkroom_permuted", 50), ("dark_key_to_door", 50)):
        own = config | {"env": name, "horizon": None, "n_tasks": 3}
        assert env.config_problems(own) == [] and env.max_episode_steps(own) == expected
        assert (
            "horizon" not in env.list_tasks(own)[0] and env.make_vec_env(own, env.list_tasks(own)).horizon == expected
        )


def test_a_family_is_one_record(config, monkeypatch):
    """A class without a batched form, and with keys of its own, is stepped by everything that steps a family."""

    class Corridor(Faulty):
        horizon = 7

        @staticmethod
        def tasks(config):
            return [{"size": i} for i in range(config["grid_size"])]

    monkeypatch.setitem(env.FAMILIES, "corridor", env.Family(Corridor, "Corridor-v0", {}, keys=("grid_size",)))
    config |= {"env": "corridor", "horizon": None}
    assert env.config_problems(config) == env.probe_tasks(config) == [] and env.max_episode_steps(config) == 7
    assert env.keys_read(config) == ("env", "grid_size", "n_tasks")
    assert isinstance(env.make_source_env(config, env.list_tasks(config)), DummyVecEnv)


def test_values_of_a_wrong_type_are_left_to_the_one_who_told_them(config):
    for wrong in ({"env": None}, {"n_tasks": "many"}, {"task_ranges": [1]}, {"env": 3, "task_kwargs": None}):
        assert env.config_problems(config | wrong) == []
    assert env.config_problems({"env": "darkroom"}) == []
    swapped = {"env": DEFAULT_CONFIG["algorithm"], "algorithm": DEFAULT_CONFIG["env"]}
    with pytest.raises(InputError, match="ppo_darkroom.yaml: is no env config, but one of: algorithm") as caught:
        load_config(swapped, checks=(env.config_problems,))
    assert "object at" not in str(caught.value)
