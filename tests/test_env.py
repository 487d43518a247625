"""The environments: dynamics with known answers, the split, and batched equals scalar."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

import env
from env.cartpole import CartPoleTask
from env.darkroom import Darkroom, DarkroomPermuted, DarkroomVecEnv
from env.grid import FLOOR, MARKS
from env.key_to_door import DarkKeyToDoor
from utils import DEFAULT_CONFIG, InputError, load_config


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


@pytest.mark.parametrize("env_id", env.REGISTERED)
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
    scalar = DummyVecEnv([lambda task=task: env.ENVIRONMENT[name](**task) for task in tasks])
    assert type(batched) is env.VEC_ENVIRONMENT[name] and batched.action_space == scalar.action_space
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
    """Return of going the shortest way to each of the task's cells in turn, then staying."""
    total, ended, cell = 0.0, False, task.reset()[0]
    targets = [task.key, task.door] if hasattr(task, "key") else [task.goal]
    actions = {tuple(move): action for action, move in enumerate(task.moves)}
    while not ended:
        (row, column), n_found = np.sign(np.array(targets[0]) - cell), total
        cell, reward, terminated, truncated, _ = task.step(actions[(row, 0) if row else (0, column)])
        total, ended = total + reward, terminated or truncated
        if len(targets) > 1 and total > n_found:
            targets.pop(0)
    return total


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("darkroom", 16.54), ("darkroom_large", 43.53), ("darkroom_permuted", 35), ("darkroom_hard", 1),
        ("dark_key_to_door", 2),
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
