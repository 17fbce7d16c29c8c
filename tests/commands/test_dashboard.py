"""The command that sets up a dashboard."""

import json
import socket

import pytest

from lightning_flatness import cli
from lightning_flatness.commands import dashboard
from lightning_flatness.tracking import dashboard as tracking
from lightning_flatness.tracking import keys
from tests.processes import finished, start
from tests.tracking.dashboard_keys import config_names, exact_keys, summary_keys

PROJECT = ["--entity", "me", "--project", "robust"]


def failure(capsys, *arguments):
    """The line on stderr of a call that ends with code 2."""
    with pytest.raises(SystemExit) as stop:
        dashboard.main([*PROJECT, *arguments])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def _dry_run_offline():
    def refuse(*arguments):
        raise AssertionError(f"connects to {arguments}")

    socket.socket.connect = socket.getaddrinfo = refuse
    cli.main(["dashboard", *PROJECT, "--report", "--dry-run"])


@pytest.mark.slow
def test_dry_run_needs_neither_account_nor_network(tmp_path):
    """In a process of its own, in which every connection to another machine fails."""
    output = tmp_path / "output"
    place = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    assert finished(start(_dry_run_offline, output=output, folder=tmp_path, environment=place)) == 0, output.read_text()
    views = json.loads(output.read_text())
    assert list(views) == ["workspace", "report"]
    assert exact_keys(views["workspace"]) == exact_keys(views["report"])
    assert keys.ALARM in exact_keys(views["report"])


def test_dry_run_into_a_file_and_the_options(tmp_path, capsys):
    file = tmp_path / "dashboard.json"
    options = ["--attack", "pgd", "--clean-accuracy", "acc", "--hyperparameter", "lr", "--hyperparameter", "decay"]
    cli.COMMANDS["dashboard"]([*PROJECT, "--name", "Mine", "--x-axis", "epoch", *options, "--dry-run", str(file)])
    assert capsys.readouterr() == ("", f"Written to {file}.\n")
    views = json.loads(file.read_text())
    assert list(views) == ["workspace"]
    found = views["workspace"]
    assert (found["entity"], found["project"], found["displayName"]) == ("me", "robust", "Mine")
    assert {"acc", "attack/pgd_robust_accuracy.last"} <= summary_keys(found)
    assert config_names(found) == ["config:lr.value", "config:decay.value"]
    assert found["spec"]["section"]["settings"]["xAxis"] == "epoch"


def test_without_a_key_it_says_so(capsys):
    line = failure(capsys, "--report")
    assert line.startswith("lightning-flatness dashboard: the workspace was not saved: ")
    assert "API key" in line or "api.wandb.ai" in line  # old releases try the server first
    assert "--dry-run needs neither account nor network" in line


@pytest.mark.slow
def test_without_a_server_it_says_so(capsys, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # a port that nobody else takes, and nobody listens to
        host = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", host)
        line = failure(capsys)
    assert line.startswith("lightning-flatness dashboard: the workspace was not saved: ")
    assert host in line


def test_without_the_package_it_is_named(capsys, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    line = failure(capsys, "--dry-run")
    assert line.endswith("needs wandb-workspaces: pip install 'wandb-workspaces>=0.3,<1'\n")


@pytest.mark.parametrize("make", [tracking.workspace, tracking.report])
def test_without_the_package_a_script_is_told_what_to_install(make, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs wandb-workspaces: pip install 'wandb-workspaces>=0.3,<1'"):
        make("me", "robust")


def test_a_key_is_no_label(capsys):
    line = failure(capsys, "--attack", "attack/pgd", "--dry-run")
    assert "`attack` must be a label as in attack/{label}_robust_accuracy, got 'attack/pgd'." in line


def test_a_file_that_cannot_be_written(tmp_path, capsys):
    line = failure(capsys, "--dry-run", str(tmp_path / "missing" / "file"))
    assert line.endswith("file: No such file or directory\n")


def test_what_is_missing_is_named(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        dashboard.main(["--project", "robust"])
    assert "the following arguments are required: --entity" in capsys.readouterr().err
