"""The search for how strongly to compress, on the tiny family."""

import re

import optuna
import pytest
import yaml
from conftest import TINY_ENV, TINY_MODEL, TINY_SOURCE, set_flags

import train
import tune
from config.loading import Config
from files import InputError
from utils import get_config

pytestmark = pytest.mark.slow
SMALL = [*TINY_MODEL[1:], "history_regions=4", "train_batch_size=8", "n_embd=16", "n_layer=1", "eval_repeats=1"]


def arguments(histories, out, *more) -> list[str]:
    settings = set_flags(*TINY_ENV, *TINY_SOURCE, *SMALL)
    return ["--traj-dir", str(histories), "--out", str(out), "--updates", "4", "--device", "cpu", *settings, *more]


def trials_told(text: str) -> list[str]:
    return re.findall(r"^trial \d+: .*", text, re.MULTILINE)


def test_a_search_goes_on_and_its_model_config_trains(tiny_histories, tmp_path, capsys, monkeypatch):
    assert tune.main(arguments(tiny_histories, tmp_path / "one", "--trials", "5")) == 0
    straight = capsys.readouterr().out
    assert len(trials_told(straight)) == 5 and "config's own" in straight

    run_trial, left = tune.run_trial, [3]

    def interrupted(trial, search):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return run_trial(trial, search)

    monkeypatch.setattr(tune, "run_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune.main(arguments(tiny_histories, tmp_path / "two", "--trials", "5"))
    first = capsys.readouterr().out
    assert (tmp_path / "two" / "model.yaml").is_file()  # what was finished is not lost
    monkeypatch.setattr(tune, "run_trial", run_trial)
    assert tune.main(arguments(tiny_histories, tmp_path / "two", "--trials", "5")) == 0
    both = trials_told(first) + trials_told(capsys.readouterr().out)
    without_number = [line.partition(":")[2] for line in both]
    assert without_number == [line.partition(":")[2] for line in trials_told(straight)]

    journal = tmp_path / "two" / "trials.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 9, "wor')  # a command was killed while it wrote
    assert tune.main(arguments(tiny_histories, tmp_path / "two", "--trials", "5")) == 0
    assert journal.read_bytes().startswith(whole) and b"wor{" not in journal.read_bytes()
    for damaged in (b"junk\n" + whole, whole + b"junk\n", whole + b'{"op_code": 99}\n', b"\xff\xfe\n"):
        journal.write_bytes(damaged)
        with pytest.raises(InputError, match="trials.journal: damaged"):
            tune.main(arguments(tiny_histories, tmp_path / "two", "--trials", "5"))
    journal.write_bytes(whole)

    with pytest.raises(InputError, match="holds a search with other settings .updates: 4 there, 5 now"):
        tune.main(arguments(tiny_histories, tmp_path / "two", "--updates", "5"))

    path = tmp_path / "one" / "model.yaml"
    found = get_config(path)
    assert {"compress_interval", "n_summary", "memory_regions", "region_stride"} <= set(found)
    assert found["context"] == "memory" and found["histories"] == "causal"
    for line in path.read_text().splitlines():
        assert line.startswith(("#", "include:")) or "  # " in line
    flags = ["--traj-dir", str(tiny_histories), "--run-dir", str(tmp_path / "run"), "--model-config", str(path)]
    assert train.main([*flags, *set_flags(*TINY_ENV, *TINY_SOURCE)]) == 0
    effective = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert all(effective[name] == value for name, value in found.items())


def test_settings_that_were_tried_are_not_trained_again(tiny_histories, tmp_path, monkeypatch):
    search = tune.prepare_search(tune.parse_arguments(arguments(tiny_histories, tmp_path)))
    study = optuna.create_study(direction="maximize")
    for _ in range(2):
        study.enqueue_trial(search.starts["config's own"])
    study.optimize(lambda trial: tune.run_trial(trial, search), n_trials=1)
    monkeypatch.setattr(tune, "ADDataset", None)  # nothing is trained without
    study.optimize(lambda trial: tune.run_trial(trial, search), n_trials=1)
    first, again = study.get_trials()
    assert first.value == again.value and first.user_attrs == again.user_attrs


def test_every_trial_has_as_many_tokens_per_update(tiny_histories, tmp_path):
    args = tune.parse_arguments(arguments(tiny_histories, tmp_path, "--set", "train_batch_size=64"))
    search = tune.prepare_search(args)
    assert search.choices["compress_interval"] == [6, 12] and search.starts["config's own"]["compress_interval"] == 12
    for interval in (6, 12):
        for n_summary in (1, 8):
            params = search.starts["config's own"] | {"compress_interval": interval, "n_summary": n_summary}
            settings = tune.settings_of(params, search)
            tokens = settings["train_batch_size"] * tune.history_tokens(Config(search.config | settings))
            assert abs(tokens / search.tokens - 1) < 0.03
            assert settings["history_regions"] * interval == 48


@pytest.mark.parametrize(
    "changes",
    [["region_stride=6"], ["history_regions=3", "train_batch_size=4"], ["compress_interval=24", "region_stride=4"]],
)
def test_the_configs_own_settings_are_tried_as_they_are(tiny_histories, tmp_path, changes):
    args = tune.parse_arguments(
        arguments(tiny_histories, tmp_path, *set_flags("context=memory", "histories=every", *changes))
    )
    search = tune.prepare_search(args)
    settings = tune.settings_of(search.starts["config's own"], search)
    assert settings == {name: search.config[name] for name in settings} and "region_stride" in settings


@pytest.mark.parametrize(
    "flags, message",
    [
        (["nowhere"], "NAME nowhere: no such task family"),
        (["--standard"], "a plain window does not compress"),
        (["--set", "n_summry=2"], "did you mean 'n_summary'"),
        (["--traj-dir", "nowhere"], "no such history file"),
        (["--updates", "3"], "--updates 3: expected 4 at least"),
    ],
)
def test_what_is_wrong_is_told_before_any_work(tiny_histories, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        tune.main(arguments(tiny_histories, tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists()
