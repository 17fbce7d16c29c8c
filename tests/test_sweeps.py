"""The sweeps of configs/sweeps, as Weights & Biases reads them and as they run without it."""

import math
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from examples import local_sweep
from examples.local_sweep import Result, best, combinations, command
from lightning_flatness.cli import main
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.csv_log import read_epochs
from lightning_flatness.tracking.directions import best_is

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
TINY = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
GRID = {"method": "grid", "parameters": {"a.b": {"values": [0.0, 0.5]}, "c": {"value": "x"}}}


def load(file):
    return yaml.safe_load(file.read_text(encoding="utf-8"))


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def sweep(request):
    return load(request.param)


def test_there_is_one_for_each_of_three_parameters():
    assert [file.stem for file in FILES] == ["adversarial_epsilon", "label_smoothing", "weight_decay"]


def test_the_command_is_the_one_of_the_agent(sweep):
    combination = combinations(sweep)[0]
    filled = create_sweep_command_args({"args": {name: {"value": value} for name, value in combination.items()}})
    filled |= {"program": [sweep["program"]], "env": []}
    words = [word for part in create_sweep_command(sweep["command"]) for word in filled.get(part[2:-1], [part])]
    assert words[0] == "lightning-flatness"
    assert command(sweep, combination) == [sys.executable, "-m", "lightning_flatness.cli", *words[1:]]


def test_the_first_values_are_accepted_by_the_command_line(sweep, capsys, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's calls
    monkeypatch.chdir(ROOT)
    (combination,) = combinations(sweep)[:1]
    arguments = command(sweep, combination)[3:]
    monkeypatch.setattr(sys, "argv", ["lightning-flatness", *arguments, "--print_config"])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    read = yaml.safe_load(capsys.readouterr().out)
    for name, value in combination.items():
        assert reduce(getitem, name.split("."), read) == pytest.approx(value)


def test_the_metric_is_a_robust_accuracy_to_be_maximised(sweep):
    assert sweep["metric"] == {"name": keys.attack_key(keys.WORST_CASE, keys.ROBUST_ACCURACY), "goal": "maximize"}
    assert best_is(sweep["metric"]["name"]) == "max"


def test_a_grid_holds_every_combination():
    assert combinations(GRID) == [{"a.b": 0.0, "c": "x"}, {"a.b": 0.5, "c": "x"}]


def test_random_values_follow_their_distributions_and_the_seed():
    parameters = {
        "log": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1.0},
        "uniform": {"min": 1.0, "max": 2.0},
        "whole": {"min": 1, "max": 3},
        "one_of": {"values": ["x", "y"]},
        "fixed": {"value": 7},
    }
    sweep = {"method": "random", "run_cap": 400, "parameters": parameters}
    drawn = combinations(sweep, seed=1)
    assert drawn == combinations(sweep, seed=1) != combinations(sweep, seed=2)
    assert len(drawn) == 400
    exponents = [math.log10(one["log"]) for one in drawn]
    assert -6 <= min(exponents) < -5.8
    assert -0.2 < max(exponents) <= 0
    assert sum(exponents) / 400 == pytest.approx(-3, abs=0.3)
    assert {one["whole"] for one in drawn} == {1, 2, 3}
    assert {one["one_of"] for one in drawn} == {"x", "y"}
    assert {one["fixed"] for one in drawn} == {7}
    uniform = [one["uniform"] for one in drawn]
    assert (min(uniform), max(uniform)) == pytest.approx((1, 2), abs=0.05)


def test_a_random_sweep_without_a_cap_ends():
    assert len(combinations({"method": "random", "parameters": {"a": {"min": 0.0, "max": 1.0}}})) == 10


def test_what_needs_the_server_is_refused():
    with pytest.raises(ValueError, match=r"^`method` must be grid or random, got 'bayes'; bayes needs the server\.$"):
        combinations({**GRID, "method": "bayes"})


def test_an_unknown_distribution_is_refused():
    options = {"distribution": "normal", "min": 0.0, "max": 1.0}
    with pytest.raises(ValueError, match=r"^`a` must be uniform, int_uniform or log_uniform_values, got 'normal'\.$"):
        combinations({"method": "random", "parameters": {"a": options}})


@pytest.mark.parametrize(("goal", "winner"), [("maximize", 1), ("minimize", 2)])
def test_runs_with_an_alarm_do_not_count(goal, winner):
    sweep = {"metric": {"name": "robust", "goal": goal}}
    scores = [(0.9, True), (0.5, False), (0.4, False), (0.1, True), (None, False)]
    results = [Result({"a": index}, score, 1.0, alarm) for index, (score, alarm) in enumerate(scores)]
    assert best(sweep, results) is results[winner]
    lines = local_sweep.table(sweep, results).splitlines()[1:]
    assert [line.endswith("best") for line in lines] == [index == winner for index in range(5)]
    assert best(sweep, [results[0], results[4]]) is None


@pytest.mark.slow
def test_a_local_sweep_leaves_a_log_of_each_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    file = ROOT / "configs" / "sweeps" / "label_smoothing.yaml"
    local_sweep.main([str(file), "--folder", str(tmp_path), "--max-runs", "1", "--", *TINY])
    _, line, _ = capsys.readouterr().out.splitlines()
    log = tmp_path / "label_smoothing=0" / "version_0"
    (epoch,) = read_epochs(log / "metrics.csv")
    assert line.split()[0] == "label_smoothing=0"
    assert float(line.split()[1]) == pytest.approx(epoch[load(file)["metric"]["name"]], abs=1e-3)
    assert keys.ALARM in epoch
    assert yaml.safe_load((log / "config.yaml").read_text())["model"]["init_args"]["label_smoothing"] == 0
