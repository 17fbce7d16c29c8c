"""The sweeps of configs/sweeps, as Weights & Biases reads them and as they run without it."""

import math
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from examples import compare_runs, local_sweep
from examples.local_sweep import Result, best, combinations, command
from lightning_flatness.cli import main
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.csv_log import read_epochs
from lightning_flatness.tracking.directions import extreme_is

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
    assert extreme_is(sweep["metric"]["name"]) == "max"


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


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_the_best_score_is_a_finite_one(goal, bad):
    results = [Result({"a": index}, score, 1.0, alarm=False) for index, score in enumerate([bad, 0.5, bad])]
    assert best({"metric": {"name": "robust", "goal": goal}}, results) is results[1]
    assert best({"metric": {"name": "robust", "goal": goal}}, results[:1]) is None


SCRIPT = """\
import pathlib, sys
given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
if float(given["lr"]) > 1:
    sys.exit(3)
log = pathlib.Path(given["trainer.logger.save_dir"], given["trainer.logger.name"], "version_0")
log.mkdir(parents=True)
(log / "metrics.csv").write_text("epoch,score\\n0," + given["lr"] + "\\n")
"""


@pytest.fixture
def quick(tmp_path):
    """File of a sweep whose runs log the learning rate, and fail if it is above 1."""

    def write(*rates):
        sweep = {
            "method": "grid",
            "metric": {"name": "score", "goal": "maximize"},
            "parameters": {"lr": {"values": list(rates)}},
            "command": [sys.executable, "-c", SCRIPT, "${args}"],
        }
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(sweep))
        return str(file)

    return write


def test_each_run_has_a_folder_of_its_own(quick, tmp_path, capsys):
    local_sweep.main([quick(0.123451, 0.123452, 0.123451), "--folder", str(tmp_path / "runs")])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["lr=0.123451", "lr=0.123452"]
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert [line.endswith("best") for line in lines] == [False, True]


def test_a_run_that_fails_leaves_the_others(quick, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^1 of 3 runs failed\.$"):
        local_sweep.main([quick(0.5, 2.0, 0.75), "--folder", str(tmp_path / "runs")])
    out, err = capsys.readouterr()
    assert [line.split()[1:] for line in out.splitlines()[1:-1]] == [
        ["0.5", "-", "off"],
        ["-", "-", "failed"],
        ["0.75", "-", "off", "best"],
    ]
    assert err.startswith("lr=2.0 failed: ")
    assert "exit status 3" in err


@pytest.mark.parametrize("command_of", [local_sweep, compare_runs], ids=["local_sweep", "compare_runs"])
def test_a_folder_with_something_in_it_is_refused(command_of, quick, tmp_path, capsys):
    full = tmp_path / "full"
    (full / "plain").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"^2$"):
        command_of.main([*([quick(0.5)] if command_of is local_sweep else []), "--folder", str(full)])
    words = f"argument --folder: must be new or empty, got {str(full)!r}; take another folder."
    assert capsys.readouterr().err.rstrip().endswith(words)
    assert [path.name for path in full.rglob("*")] == ["plain"]


@pytest.mark.slow
def test_a_local_sweep_leaves_a_log_of_each_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    file = ROOT / "configs" / "sweeps" / "label_smoothing.yaml"
    local_sweep.main([str(file), "--folder", str(tmp_path), "--max-runs", "1", "--", *TINY])
    _, line, _ = capsys.readouterr().out.splitlines()
    log = tmp_path / "label_smoothing=0.0" / "version_0"
    (epoch,) = read_epochs(log / "metrics.csv")
    assert line.split()[0] == "label_smoothing=0.0"
    assert float(line.split()[1]) == pytest.approx(epoch[load(file)["metric"]["name"]], abs=1e-3)
    assert keys.ALARM in epoch
    assert yaml.safe_load((log / "config.yaml").read_text())["model"]["init_args"]["label_smoothing"] == 0
