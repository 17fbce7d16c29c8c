"""The command line and what the repository says of it."""

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

from lightning_flatness import cli
from lightning_flatness.tracking.keys import FLATNESS_KEYS
from tests.processes import finished, run_module, start

ROOT = Path(__file__).parent.parent


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    with pytest.raises(SystemExit, match=r"needs matplotlib: pip install 'matplotlib>=3.8,<4'"):
        cli.main(["fit"])


@pytest.mark.filterwarnings("ignore:.*LightningCLI's args parameter")
def test_help_lists_the_arguments_of_the_monitor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.syspath_prepend(os.devnull)  # puts the search path back afterwards
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "--trainer.callbacks.help=lightning_flatness.RelativeFlatnessMonitor"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "neuronwise" in text
    assert "--trainer.callbacks.head" in text


@pytest.mark.filterwarnings("ignore:.*LightningCLI's args parameter")
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "how flat and how robust"),
        (["--help"], "further commands, each with a --help of its own: compare, dashboard"),
        (["fit", "--help"], "--trainer.callbacks.help=lightning_flatness.AttackMonitor lists the settings of one"),
        (["dashboard", "--help"], "example: lightning-flatness dashboard"),
        (["--version"], version("lightning-flatness")),
    ],
)
def test_help_tells_where_to_begin(
    arguments: list[str], shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.syspath_prepend(os.devnull)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert shown in " ".join(capsys.readouterr().out.split())


@pytest.mark.filterwarnings("ignore:.*LightningCLI's args parameter")
def test_a_tree_that_is_not_installed_has_no_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(cli, "version", missing)
    monkeypatch.syspath_prepend(os.devnull)
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == "lightning-flatness unknown, not installed\n"


@pytest.mark.parametrize(("arguments", "problem"), [([], "say what to do"), (["comprae", "x"], "no command 'comprae'")])
def test_without_a_command_all_of_them_are_listed(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(arguments)
    first, *lines = capsys.readouterr().err.splitlines()
    assert problem in first
    assert [line.split()[0] for line in lines[:-1]] == [*cli.FlatnessCLI.subcommands(), *cli.COMMANDS]


MISTAKES = {
    "class_path: lightning_flatness.RelativeFlatnessMonitor, init_args: {prog_bars: true}": (
        "Parser key \"trainer.callbacks\": Problem with given class_path 'lightning_flatness.RelativeFlatnessMonitor': "
        "Option 'prog_bars' is not accepted"
    ),
    "class_path: lightning_flatness.AttackMonitor, init_args: {epsilon: -1}": "`epsilon` must be > 0, got -1.0.",
    "class_path: lightning_flatness.AttackMonitor, init_args: {epsilon: 0.1, attacks: {PGDD: {}}}": (
        "`attack` 'PGDD' is not in torchattacks; did you mean "
    ),
}


@pytest.mark.filterwarnings("ignore:.*LightningCLI's args parameter")
@pytest.mark.parametrize(("callback", "says"), MISTAKES.items())
def test_a_mistake_in_a_configuration_is_one_line(
    callback: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's calls
    monkeypatch.syspath_prepend(os.devnull)
    file = tmp_path / "config.yaml"
    file.write_text(
        "seed_everything: false\nmodel: lightning.pytorch.demos.boring_classes.BoringModel\n"
        f"trainer: {{callbacks: [{{{callback}}}]}}\n"
    )
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["fit", "--config", str(file)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lightning-flatness: error: {says}")


@pytest.mark.slow
def test_the_package_can_be_run_as_a_module(tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert finished(start(run_module, "lightning_flatness", "--help", output=output)) == 0
    assert output.read_text().startswith("usage: lightning-flatness [")


HEADER = "epoch,val_loss,attack/pgd_robust_accuracy"


@pytest.mark.parametrize(
    ("header", "values", "shown"),
    [
        (HEADER, "0,1.5,0.25", ["curves.png"]),
        (f"{HEADER},scaling/loss_1,scaling/loss_10", "0,1.5,0.25,1.5,3", ["curves.png", "scaling.png"]),
    ],
)
def test_only_what_was_logged_is_shown(
    header: str, values: str, shown: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics_file = tmp_path / "metrics.csv"
    metrics_file.write_text(f"{header}\n{values}\n")
    cli.show_curves(metrics_file)
    text = capsys.readouterr().out
    assert "Loss and accuracy" in text
    assert "1.5" in text.split()
    assert "Robustness within a radius" not in text
    assert sorted(path.name for path in tmp_path.glob("*.png")) == shown
    for name in shown:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"Picture: {tmp_path / name}" in text


def test_readme_explains_every_key() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [key for key in FLATNESS_KEYS if key.split("/")[1] not in readme] == []


def test_a_cause_that_was_never_raised_is_not_ours() -> None:
    error = ValueError("outer")
    error.__cause__ = RuntimeError("made, but never raised")
    assert cli._own_refusal(error) is None
