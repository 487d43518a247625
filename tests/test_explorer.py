"""The explorer: what it reads from histories, its beliefs by hand, and that it knows nothing of held-out tasks."""

import shutil
import warnings

import gymnasium as gym
import h5py
import numpy as np
import pytest
from conftest import TINY_ENV, TINY_MODEL, TINY_SOURCE, set_flags, tiny_config, write_file

import collect
import env
import train
from algorithm.explorer import Beliefs, Explorer
from algorithm.knowledge import (
    READING,
    Knowledge,
    check_countable,
    learn_from,
    plan,
    rewards_before,
    terminations,
)
from algorithm.numbering import Numbers, Product
from config.loading import load_config
from files import InputError
from history.format import history_path
from history.reader import HistoryFile
from history.returns import source_curve
from scripts import DEFAULT_CONFIG

EXPLORER = ["alg=Explorer", "n_stream=6", "n_steps=12", "total_source_timesteps=5000", "explorer_noise=0"]
EXPLORED = tiny_config() | {"alg": "Explorer", "n_steps": 12, "learns_from": "PPO"}
NONE = np.zeros(1)  # noise
YAML = "config/algorithm/explorer_darkroom.yaml"


@pytest.fixture(scope="module")
def explored(tiny_histories, tmp_path_factory):
    """Folder with PPO's and the explorer's histories of the tiny family."""
    folder = tmp_path_factory.mktemp("explored")
    ppo = history_path(tiny_config(), tiny_histories)
    shutil.copy(ppo, folder / ppo.name)
    assert collect.main(arguments(folder)) == 0
    return folder


def arguments(folder, *settings):
    flags = set_flags(*TINY_ENV, *EXPLORER[1:], *settings)
    return ["--alg-config", YAML, "--traj-dir", str(folder), "--log-dir", str(folder / "logs"), *flags]


def test_rewards_before_a_step_count_within_its_episode():
    rewards = np.array([0, 1, 1, 0, -2, 0])[:, None]
    dones = np.array([0, 0, 1, 0, 1, 0])[:, None]
    assert rewards_before(rewards, dones)[:, 0].tolist() == [0, 0, 1, 0, 0, 0]


def test_an_end_by_the_time_limit_says_nothing():
    dones = np.array([[0, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]).T
    assert terminations(dones)[:, 1].tolist() == [False, True, False, False, True, False]
    assert terminations(dones)[:, 0].sum() == 2 and not terminations(dones[:, 2:]).any()


def test_planning_takes_the_shortest_way():
    """Four cells in a row, left and right; the rightmost one pays in one model, the leftmost one in the other."""
    numbers = Numbers(Product((4,)), 2)
    cells, actions = np.repeat(np.arange(4), 2), np.tile([0, 1], 4)
    reached = np.clip(cells + 2 * actions - 1, 0, 3)
    steps = np.sort(numbers.steps(cells, actions, reached))
    rewards = np.stack([numbers.places(steps) == 3, numbers.places(steps) == 0]).astype(float)
    policies = plan(numbers, steps, np.ones(rewards.shape), rewards, np.zeros(rewards.shape))
    assert policies[0, :4, 1].tolist() == [1, 1, 1, 1] and policies[1, :4, 0].tolist() == [1, 1, 1, 1]


def test_where_steps_cost_what_was_never_tried_is_not_the_best():
    """A corridor of five cells; each step costs 1, and the last cell ends the episode. A third action was never taken."""
    numbers = Numbers(Product((5,)), 3)
    n_paid, cells, actions = (of.ravel() for of in np.indices((numbers.n_stages, 4, 2)))
    situations = numbers.situations(cells, n_paid)
    steps = np.sort(numbers.steps(situations, actions, np.clip(cells + 2 * actions - 1, 0, 4)))
    ends = (numbers.places(steps) == 4)[None].astype(float)
    policies = plan(numbers, steps, np.ones(ends.shape), -np.ones(ends.shape), ends)
    assert policies[0, :4].tolist() == [[0, 1, 0]] * 4


def one_cell(policies: np.ndarray, rewards: np.ndarray) -> Knowledge:
    """Tasks in one cell, with (K, A) policies and what the actions pay."""
    numbers, K = Numbers(Product((1,)), policies.shape[1]), len(policies)
    steps = np.arange(policies.shape[1])
    everywhere = np.repeat(policies[:, None], numbers.n_situations, axis=1).astype(np.float32)
    ones = np.ones((K, len(steps)))
    return Knowledge(numbers, steps, ones, rewards, 0.1, ones / 2, everywhere, np.zeros((K, 3)))


def test_a_task_that_begins_anew_after_some_rewards():
    """Three rewards are one after two; without rounds they are as many as two."""
    n_paid, cells = np.arange(5), np.zeros(5, dtype=np.int64)
    assert Numbers(Product((4,)), 2, rewards_per_round=2).situations(cells, n_paid).tolist() == [0, 4, 0, 4, 0]
    assert Numbers(Product((4,)), 2).situations(cells, n_paid).tolist() == [0, 4, 8, 8, 8]


def test_a_cell_that_was_a_key_may_be_a_door(tmp_path):
    """Three cells in a row; the left one is the only known key, the right one the only known door. The middle one never
    paid: it may be either. The left one may be a door too, and the right one a key; these say nothing of the other stage.
    """
    path = history(
        tmp_path,
        states=[1, 0, 0, 1, 2, 2],
        actions=[0, 0, 1, 1, 1, 0],
        rewards=[1, 0, 0, 1, 0, 0],
        reached=[0, 0, 1, 2, 2, 1],
    )
    known = learn_from(opened(path, [0]), rewards_per_round=2)
    arrivals = known.numbers.arrivals(known.steps)  # cell + 3 with the key
    assert [np.unique(arrivals[row > 0.5]).tolist() for row in known.rewards] == [[0, 5], [1, 4], [2], [3]]
    assert np.isfinite(known.prior).tolist() == [[True, True], [True, True], [True, False], [False, True]]


def test_a_task_is_met_without_knowing_it(tmp_path):
    """Cells in a row; task 0 pays in cell 0 and task 2 in cell 2. Without task 0, cell 0 is one that may pay."""
    tour = {"states": [1, 0, 1, 2], "actions": [0, 1, 1, 0], "reached": [0, 1, 2, 1]}
    path = history(tmp_path, **tour, rewards=[1, 0, 0, 0])
    with h5py.File(path, "a") as file:
        file.copy("0", file, name="2")
        file["2/rewards"][...] = np.array([0, 0, 1, 0])[:, None]
        file.copy("0", file, name="5")
        file["5/rewards"][...] = 0
    known = learn_from(opened(path, [0, 2, 5]))
    reached = known.numbers.places(known.steps)

    def paying(known):
        return [np.unique(reached[row > 0.5]).tolist() for row in known.rewards]

    assert known.tasks == (0, 2) and paying(known)[:3] == [[0], [2], [1]]
    without = known.without(0)
    assert without.tasks == (2,) and paying(without)[:2] == [[2], [1]] and [0] in paying(without)[2:]
    assert len(without.policies) == len(without.prior) == len(without.rewards) == len(without.chances)
    assert paying(without.without(2))[-1] == [2] and without.without(2).tasks == ()
    assert known.without(5) is known and known.without(7) is known
    assert len(known.suspecting((np.array([], int), np.array([], int))).rewards) == len(known.rewards)


def test_views_that_a_file_holds_few_of_teach_what_cells_do(tmp_path, monkeypatch):
    """Three cells in a row, seen as vectors of real numbers: the same policies, in the order of the vectors."""
    tour = {"states": [1, 0, 1, 2], "actions": [0, 1, 1, 0], "rewards": [1, 0, 0, 0], "reached": [0, 1, 2, 1]}
    cells = learn_from(opened(history(tmp_path, **tour), [0]))
    views, space = np.array([[0.5, 0], [-0.0, 7], [2, 1]], dtype=np.float32), gym.spaces.Box(-9, 9, (2,), np.float32)
    path = history(tmp_path, lambda cells: views[cells], **tour)
    known = learn_from(opened(path, [0], space))
    n, order = known.numbers.n_observations, known.numbers.observations(views)
    assert n == 4 and sorted(order) == [0, 1, 2]
    seen = known.numbers.observations(np.array([[[0.5, 0], [5, 5]], [[0, 7], [0.5, 1]]]))
    assert seen.tolist() == [[order[0], 3], [order[1], 3]]
    assert np.array_equal(known.policies[0, order], cells.policies[0, :3])
    assert known.policies[:, 3].tolist() == [[0.5, 0.5]] * len(known.policies)  # nothing is known of other views
    monkeypatch.setattr("algorithm.knowledge.MOST_OBSERVATIONS", 2)
    assert (
        "task 0: alg: Explorer and PSRL count observations: expected at most 2 different ones in the file, got 3"
        in (refused(lambda: learn_from(opened(path, [0], space))))
    )
    assert "got 3" in refused(lambda: learn_from(opened(history(tmp_path, **tour), [0])))  # as if 3 cells were many


def opened(path, tasks, observations=None, n_actions=2):
    """Three cells, two actions."""
    spaces = observations or gym.spaces.Discrete(3), gym.spaces.Discrete(n_actions)
    return HistoryFile(path, READING | {"compress_interval": 2}, tasks, spaces=spaces)


def history(folder, seen_as=lambda cells: cells[:, None], **values):
    """A new file of one task and one stream of one episode. seen_as: (T,) cells to (T, entries) observations."""
    path = folder / f"history-{len(list(folder.iterdir()))}.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("states", "reached"):
            file[f"0/{name.replace('reached', 'next_states')}"] = seen_as(np.array(values[name]))[:, None]
        for name in ("actions", "rewards"):
            file[f"0/{name}"] = np.array(values[name])[:, None]
        file["0/dones"] = np.array(values["rewards"])[:, None] < 0
    return path


def test_beliefs_rule_out_keep_and_know_what_they_do():
    """Three tasks with an action each that pays there; the second policy takes its action half of the time."""
    policies = np.array([[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]])
    beliefs, cell, end = Beliefs(one_cell(policies, np.eye(3)), 1), np.zeros((1, 1)), np.array([True])
    predict = lambda: beliefs.predict(cell)[0].round(2).tolist()  # noqa: E731
    assert predict() == [0.33, 0.17, 0.5]
    beliefs.learn(np.array([2]), np.array([0.0]), cell, ~end, ~end, NONE)  # within the episode: its policy is 1 or 2
    assert predict() == [0, 0.5, 0.5]  # and task 2 is ruled out
    beliefs.learn(np.array([1]), np.array([0.0]), cell, end, end, NONE)
    assert predict() == [1, 0, 0]  # a new episode; only task 0 is left
    beliefs.learn(np.array([0]), np.array([1.0]), cell, end, end, NONE)
    assert predict() == [1, 0, 0]


@pytest.mark.parametrize(("cost", "n_warnings"), [(0.0, 0), (-0.01, 1)])
def test_rewards_of_different_sizes_are_told(tmp_path, cost, n_warnings):
    rewards = np.full((36, 4), cost, dtype=np.float32)
    rewards[5::6] = 1
    config = tiny_config()
    path = write_file(tmp_path / "costs.hdf5", config, 36, 4, rewards=rewards)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn_from(HistoryFile(path, config | READING, [0, 1, 2]))
    assert sum("rewards of different sizes" in str(warning.message) for warning in caught) == n_warnings


def test_the_explorer_on_a_3x3_grid_by_hand(tmp_path):
    """From the middle it may move up, down, left, right, or stay. The training goals are the cells left and right of it.

    So there are nine hypotheses: a goal in each cell. Two ways to a corner are equally good.
    """
    moves, middle = np.array([[-1, 0], [1, 0], [0, -1], [0, 1], [0, 0]]), np.array([[1, 1]])
    cells = np.repeat(np.array(list(np.ndindex(3, 3))), 5, axis=0)
    actions, times = np.tile(np.arange(5), 9), 200
    reached = np.clip(cells + moves[actions], 0, 2)
    at_goal = {task: (reached == goal).all(axis=1) for task, goal in (("0", (1, 0)), ("1", (1, 2)))}
    tour = {"states": np.arange(45), "actions": actions, "reached": np.arange(45), "rewards": at_goal["0"]}
    path = history(tmp_path, **{name: np.tile(values, times) for name, values in tour.items()})
    with h5py.File(path, "a") as file:
        for name, values in (("states", cells), ("next_states", reached)):
            del file[f"0/{name}"]
            file[f"0/{name}"] = np.tile(values, (times, 1))[:, None]
        file["0/dones"][...] = True  # each step is an episode: none had a reward before
        file.copy("0", file, name="1")
        file["1/rewards"][...] = np.tile(at_goal["1"], times)[:, None]
    known = learn_from(opened(path, [0, 1], gym.spaces.MultiDiscrete([3, 3]), n_actions=5))
    beliefs, no, yes = Beliefs(known, 1), np.array([False]), np.array([True])

    def move(action, cell, ends):
        beliefs.learn(np.array([action]), np.zeros(1), np.array([cell]), ends, no, NONE)

    assert np.allclose(beliefs.predict(middle)[0], np.array([2, 2, 2, 2, 1]) / 9, atol=1e-3)
    move(0, (0, 1), no)  # up; nothing there, so it is on its way to one of the upper corners
    assert np.allclose(beliefs.predict(np.array([[0, 1]]))[0], [0, 0, 0.5, 0.5, 0], atol=1e-2)
    move(2, (0, 0), yes)  # left; nothing there, and the episode ends: seven cells are left
    assert np.allclose(beliefs.predict(middle)[0], np.array([0.5, 2, 1.5, 2, 1]) / 7, atol=1e-3)
    move(3, (1, 2), no)
    assert np.allclose(beliefs.predict(np.array([[1, 2]]))[0], [0.5, 0.5, 0, 0, 0], atol=1e-2)  # a right corner


def test_it_finds_every_goal_of_the_tiny_family(explored):
    config = EXPLORED
    for mode in ("train", "test"):
        _, returns = source_curve(history_path(config, explored), env.split_tasks(config)[mode], config)
        best = np.mean([env.optimal_return(config, env.list_tasks(config)[i]) for i in env.split_tasks(config)[mode]])
        assert returns[-1] > 0.95 * best, mode
    with h5py.File(history_path(config, explored)) as file:
        assert np.allclose(file["0/action_probs"][()].sum(-1), 1, atol=1e-2)


def test_it_explores_other_peoples_environments_by_their_views(tmp_path):
    """Real-valued observations, rounded in the file; of four goals one is held out."""
    tasks = "task_kwargs=[{goal: 0}, {goal: 1}, {goal: 3}, {goal: 4}]"
    family = ["env=toy_envs:Row-v0", tasks, "env_kwargs={max_episode_steps: 6}", "train_env_ratio=0.75"]
    folders = ["--traj-dir", str(tmp_path), "--log-dir", str(tmp_path / "logs")]
    assert collect.main([*folders, *set_flags(*family, *TINY_SOURCE)]) == 0
    more = set_flags(*family, *EXPLORER[1:], "total_source_timesteps=720")
    assert collect.main(["--alg-config", YAML, *folders, *more]) == 0
    config = load_config(DEFAULT_CONFIG | {"algorithm": YAML}, [*family, *EXPLORER[1:]])
    _, returns = source_curve(history_path(config, tmp_path), env.split_tasks(config)["test"], config)
    assert returns[-1] == 1 and len(env.split_tasks(config)["test"]) == 1


def test_lapses_are_acted_at_random_and_not_recorded(explored, tmp_path):
    """In a lapse every action is as likely as any other; what is recorded is what the explorer would have done."""
    path = history_path(EXPLORED, tmp_path)
    shutil.copy(history_path(tiny_config(), explored), tmp_path)
    collect.main(arguments(tmp_path, "explorer_lapses=1"))
    with h5py.File(path) as file, h5py.File(history_path(EXPLORED, explored)) as usual:
        shares = [np.bincount(of["0/actions"][()].ravel(), minlength=5) / of["0/actions"].size for of in (file, usual)]
        likely = [of["0/action_probs"][()][-12:].max(-1).mean() for of in (file, usual)]
    assert np.abs(shares[0] - 0.2).max() < 0.05 < np.abs(shares[1] - 0.2).max()
    assert min(likely) > 0.4  # ties share: uniform would be 0.2


def test_a_lapse_lasts_a_rollout_also_within_an_episode(explored):
    """Ten streams, rollouts of two steps, episodes of five; noise changes with episodes, lapses with rollouts."""
    config = EXPLORED | {"explorer_noise": 0.3, "explorer_lapses": 0.5, "n_steps": 2}
    streams = env.make_source_env(config, env.list_tasks(config)[:1] * 10)
    explorer = Explorer(config, streams, seed=42, prepared=Explorer.prepare(EXPLORED, explored))
    noise, lapsed, states = [], [], explorer.vec_env.reset()
    for step in range(1, 21):
        noise.append(explorer.noise)
        lapsed.append(explorer.lapsed)
        _, drawn_from = explorer.policy(states)
        assert np.allclose(drawn_from[explorer.lapsed], 0.2)
        nothing, dones = np.zeros(10), np.full(10, step % 5 == 0)
        explorer.learn(nothing.astype(int), nothing, states, dones, [{}] * 10)
    lapsed, noise = np.array(lapsed).reshape(10, 2, 10), np.array(noise).reshape(4, 5, 10)
    assert (lapsed[:, 0] == lapsed[:, 1]).all() and (lapsed[1:, 0] != lapsed[:-1, 0]).any()
    assert (noise == noise[:, :1]).all() and (noise[1:, 0] != noise[:-1, 0]).all()


def test_it_knows_nothing_of_held_out_tasks(explored, tmp_path):
    config, path = EXPLORED, history_path(tiny_config(), explored)
    before = Explorer.prepare(config, explored)
    cut = tmp_path / path.name
    shutil.copy(path, cut)
    with h5py.File(cut, "a") as file:
        for task in env.split_tasks(config)["test"]:
            del file[str(task)]
    after = Explorer.prepare(config, tmp_path)
    assert np.array_equal(before.policies, after.policies) and np.array_equal(before.rewards, after.rewards)


def test_another_split_is_refused(explored, capsys):
    """Its training tasks are in the histories: they cannot be held out any more."""
    command = ["--alg-config", YAML, "--traj-dir", str(explored), *set_flags(*TINY_ENV, "env_split_seed=1")]
    assert "split-seed1.hdf5: no such history file" in refused(lambda: train.main(command))
    mine, other = (history_path(EXPLORED | {"env_split_seed": seed}, explored) for seed in (0, 1))
    shutil.copy(mine, other)
    assert "env_split_seed: 0 there, 1" in refused(lambda: train.main(command))
    assert "env_split_seed: 0 there, 1" in refused(lambda: collect.main(arguments(explored, "env_split_seed=1")))


def test_parts_that_learned_from_another_first_pass_are_refused(explored, tmp_path, monkeypatch):
    """An interrupted collection went on with what another PPO file teaches."""
    path = shutil.copy(history_path(tiny_config(), explored), tmp_path)
    config = load_config(DEFAULT_CONFIG | {"algorithm": YAML}, [*TINY_ENV, *EXPLORER[1:]])
    parts = tmp_path / f".{history_path(config, tmp_path).name}.parts"
    collect.prepare_parts(parts, config)
    (parts / "0.hdf5").touch()
    collect.check_parts(parts, config)
    with h5py.File(path, "r+") as file:
        file.attrs["created_utc"] = "2030-01-01T00:00:00+00:00"
    assert "not from those that are there now, of 2030-01-01" in refused(lambda: collect.main(arguments(tmp_path)))
    (parts / collect.SETTINGS).write_text("alg: Explorer\n")  # older parts do not say from which
    collect.prepare_parts(parts, config)


def test_a_first_pass_that_was_collected_again_is_told(explored, tmp_path, capsys):
    path = shutil.copy(history_path(tiny_config(), explored), tmp_path)
    shutil.copy(history_path(EXPLORED, explored), tmp_path)
    for created, n_notes in (("2020-01-01T00:00:00+00:00", 0), ("2030-01-01T00:00:00+00:00", 1)):
        with h5py.File(path, "r+") as file:
            file.attrs["created_utc"] = created
        assert collect.main(arguments(tmp_path)) == 0
        out, err = capsys.readouterr()
        assert "already complete" in out and err.count("were collected again since") == n_notes


def test_streams_that_learn_alone_are_not_mixed_without_a_word(explored, tmp_path, capsys):
    flags = ["--alg-config", YAML, "--traj-dir", str(explored), *set_flags(*TINY_ENV, *EXPLORER[1:], *TINY_MODEL)]
    for name, settings, told in (("mixed", [], 1), ("alone", ["histories=whole", "mix_streams=false"], 0)):
        assert train.main([*flags, *set_flags(*settings), "--run-dir", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out.count("each stream is a learner of its own") == told


def test_a_first_pass_of_other_tasks_or_with_impossible_values_is_refused(explored, tmp_path):
    path = history_path(tiny_config(), explored)
    assert "horizon: 6 there, 9" in refused(lambda: collect.main([*arguments(explored, "horizon=9"), "--overwrite"]))
    for name, value, expected in (("rewards", np.nan, "finite numbers"), ("actions", 9, "whole numbers 0 to 4")):
        shutil.copy(path, tmp_path)
        with h5py.File(tmp_path / path.name, "a") as file:
            file[f"0/{name}"][3, 1] = value
        assert expected in refused(lambda: collect.main(arguments(tmp_path)))


def test_it_says_what_it_needs(tmp_path):
    assert "collect it first" in refused(lambda: collect.main(arguments(tmp_path)))
    assert "expected Discrete" in refused(lambda: check_countable({"kind": "continuous", "sizes": [3]}))


def refused(call) -> str:
    with pytest.raises(InputError) as found:
        call()
    return str(found.value)
