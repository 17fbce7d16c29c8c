"""The command ``compare``, on folders that loggers have left."""

import csv
import json
import os
import sys
from contextlib import redirect_stdout
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2 as pb

from lightning_flatness import cli
from lightning_flatness.commands import compare
from lightning_flatness.tracking.comparison import page
from tests.tracking.runs.test_csv import folder
from tests.tracking.runs.test_wandb_offline import history, written


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """Three runs, of which the last has crashed; the working directory is beside them."""
    for version, metrics in enumerate(["epoch,val_loss\n0,0.5\n", "epoch,val_loss\n0,0.25\n", "epoch,val_loss\n0,"]):
        folder(tmp_path / "logs" / f"version_{version}", metrics, hparams=f"lr: {version}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failing(arguments, capsys):
    """The line on stderr."""
    with pytest.raises(SystemExit) as stop:
        compare.main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("lightning-flatness compare: ").rstrip("\n")


@pytest.mark.parametrize(("name", "form"), [("all.md", None), ("all.MARKDOWN", None), ("all.txt", "md")])
def test_markdown(name, form, logs, capsys):
    compare.main(["logs", "--output", name, *(["--format", form] if form else [])])
    out, err = capsys.readouterr()
    assert out == f"Comparison of 3 runs: {name}\n"
    assert err == (
        "version_2: The last line has no end and was left out: the run crashed or still runs.\n"
        "version_2: metrics.csv holds no values.\n"
    )
    text = (logs / name).read_text()
    assert "| val_loss | 0.5 (↓ 0.5, 0) | 0.25 (↓ 0.25, 0) |  |" in text
    assert "| lr | 0 | 1 | 2 |" in text


def test_a_page_needs_plotly(logs, capsys, monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: None)  # noqa: ARG005 - its signature
    assert "pip install 'plotly>=6,<7'" in failing(["logs"], capsys)
    assert not (logs / "report.html").exists()


@pytest.mark.parametrize("arguments", [["--format", "csv"], ["--format", "csv", "--output", "-"]])
def test_the_terminal_gets_nothing_but_the_table(arguments, logs, capsys):
    compare.main(["logs", *arguments])
    rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert [row[:4] for row in rows[1:]] == [
        ["version_0", "logs/version_0", "val_loss", "0.5"],
        ["version_1", "logs/version_1", "val_loss", "0.25"],
    ]
    assert sorted(path.name for path in logs.iterdir()) == ["logs"]


def test_json_by_the_suffix(logs):
    compare.main(["logs/version_1", "logs/version_0", "--output", "all.json"])
    content = json.loads((logs / "all.json").read_text())
    assert [run["name"] for run in content["runs"]] == ["logs/version_1", "logs/version_0"]
    assert content["runs"][0]["epochs"] == [{"epoch": 0, "val_loss": 0.25}]


def test_markdown_if_only_the_terminal_is_named(logs, capsys):
    compare.main(["logs", "--output", "-"])
    assert capsys.readouterr().out.startswith("# Comparison of 3 runs\n")
    assert logs.exists()


def test_no_run_is_one_line(logs, capsys):
    (logs / "empty").mkdir()
    words = failing(["logs", "empty", "missing", "--format", "md"], capsys)
    assert words.startswith("No run in `empty`, `missing` (no such path); a run is a folder with `metrics.csv`")


def test_a_suffix_that_says_nothing(logs, capsys):
    words = failing(["logs", "--output", "all.txt"], capsys)
    assert words == (
        "`--output` must end in .html, .htm, .md, .markdown, .csv, .json, got 'all.txt'; or pass `--format`."
    )
    assert not (logs / "all.txt").exists()


def test_a_run_is_not_written_over(logs, capsys):
    file = logs / "logs" / "version_0" / "metrics.csv"
    before = file.read_text()
    words = failing(["logs", "--output", str(file)], capsys)
    assert words == f"`--output` must not be a file of a run, got {str(file)!r}; take another name."
    assert file.read_text() == before


@pytest.mark.parametrize("name", ["hparams.yaml", "metrics.csv", "run-a.wandb", "files/summary.json", "linked.json"])
def test_no_file_of_a_run_is_written_over(name, logs, capsys):
    run = logs / "logs" / "version_0"
    file = run / name
    file.parent.mkdir(exist_ok=True)
    if name == "linked.json":
        (run / "kept.json").write_text("kept")
        file = logs / name
        file.symlink_to(run / "kept.json")
    elif not file.exists():
        file.write_text("kept")
    before = file.read_text()
    words = failing(["logs/version_0/metrics.csv", "--format", "json", "--output", str(file)], capsys)
    assert words == f"`--output` must not be a file of a run, got {str(file)!r}; take another name."
    assert file.read_text() == before


def test_settings_elsewhere_are_not_written_over(logs, capsys):
    (logs / "settings.yaml").write_text("kept")
    words = failing(["logs", "--format", "md", "--output", "settings.yaml"], capsys)
    assert words.startswith("`--output` must not be a file of a run, got 'settings.yaml'")
    assert (logs / "settings.yaml").read_text() == "kept"


def test_an_older_comparison_is_replaced_as_a_whole(logs, capsys):
    old, link = logs / "old.md", logs / "all.md"
    old.write_text("old")
    old.chmod(0o640)
    link.symlink_to(old)
    with old.open() as opened:
        compare.main(["logs", "--output", "all.md"])
        assert opened.read() == "old"
    assert link.is_symlink()
    assert old.read_text().startswith("# Comparison of 3 runs\n")
    assert old.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in logs.iterdir()) == ["all.md", "logs", "old.md"]
    assert "all.md" in capsys.readouterr().out


def test_a_device_is_not_replaced(logs, capsys):
    compare.main(["logs", "--format", "md", "--output", os.devnull])
    assert not Path(os.devnull).is_file()
    assert os.devnull in capsys.readouterr().out
    assert logs.exists()


def test_a_user_who_does_not_exist(logs, capsys):
    assert failing(["~nosuchuser/x"], capsys).startswith("No run in `~nosuchuser/x` (no such path);")
    assert logs.exists()


@pytest.mark.parametrize("form", ["md", "json", "html"])
def test_a_whole_number_too_large_to_be_written(form, logs, capsys):
    (logs / "logs" / "version_1" / "hparams.yaml").write_text(f"lr: 0x{'f' * 5000}\n? 0x{'e' * 5000}\n: 1")
    compare.main(["logs", "--format", form, "--output", "all"])
    assert "0xffffffffffffffffff…" in (logs / "all").read_text().replace("\\u2026", "…")
    assert "3 runs: all" in capsys.readouterr().out


def test_a_terminal_that_is_only_text(logs):
    with redirect_stdout(StringIO()) as text:
        compare.main(["logs", "--format", "md"])
        compare.main(["logs", "--output", "κ.md"])
    assert text.getvalue().startswith("# Comparison of 3 runs\n")
    assert text.getvalue().endswith("Comparison of 3 runs: κ.md\n")
    assert logs.exists()


def test_a_terminal_that_knows_no_greek(logs):
    with redirect_stdout(TextIOWrapper(BytesIO(), encoding="ascii")) as terminal:
        compare.main(["logs", "--output", "κ.md"])
        terminal.flush()
    assert terminal.buffer.getvalue() == b"Comparison of 3 runs: \\u03ba.md\n"
    assert (logs / "κ.md").exists()


def test_an_error_of_the_program_is_no_line(logs, monkeypatch):
    def broken(runs):
        raise ValueError(len(runs))

    monkeypatch.setattr(compare, "as_markdown", broken)
    with pytest.raises(ValueError, match=r"^3$"):
        compare.main(["logs", "--format", "md"])
    assert logs.exists()


def test_a_file_that_cannot_be_written(logs, capsys):
    assert "No such file or directory: 'missing/all.md'" in failing(["logs", "--output", "missing/all.md"], capsys)
    (logs / "folder.md").mkdir()
    assert "Is a directory: 'folder.md'" in failing(["logs", "--output", "folder.md"], capsys)


def test_half_characters_in_a_setting_are_written(tmp_path, capsys):
    config = pb.Record()
    config.config.update.add(key="name", value_json='"\\ud800κ"')
    written(tmp_path / "run-a.wandb", config, history(epoch="0", a="1"))
    compare.main([str(tmp_path), str(folder(tmp_path / "other", hparams="name: x")), "--format", "md"])
    assert "κ | x |" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "says"), [([], "required: RUN"), (["x", "--format", "pdf"], "'pdf'")])
def test_wrong_usage(arguments, says, capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main(arguments)
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main(["--help"])
    assert stop.value.code == 0
    assert "lightning-flatness compare lightning_logs wandb --output all.html" in capsys.readouterr().out


def test_a_command_needs_no_other_extra(logs, capsys, monkeypatch):
    monkeypatch.syspath_prepend(os.devnull)  # puts the search path back afterwards
    monkeypatch.setattr(cli, "find_spec", lambda name: None)  # noqa: ARG005 - its signature
    cli.main(["compare", "logs/version_0", "--format", "md"])
    assert "val_loss" in capsys.readouterr().out
    assert logs.exists()


@pytest.mark.filterwarnings("ignore:.*LightningCLI's args parameter")
def test_help_of_the_command_line_names_it(monkeypatch, capsys):
    monkeypatch.syspath_prepend(os.devnull)
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    words = " ".join(capsys.readouterr().out.split())  # lines are as long as the terminal is wide
    assert "further commands, each with a --help of its own: compare, dashboard" in words


@pytest.mark.parametrize("form", ["md", "csv", "json"])
def test_tables_need_no_plotly(form, logs, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    compare.main(["logs", "--format", form])
    assert "val_loss" in capsys.readouterr().out
    assert logs.exists()


def test_the_page_of_a_run_can_be_written_again(logs):
    pytest.importorskip("plotly")
    for _ in range(2):
        compare.main(["logs/version_0", "--output", "logs/version_0/report.html"])
    page = logs / "logs" / "version_0" / "report.html"
    assert page.read_text(encoding="utf-8").lower().startswith("<!doctype html>")


def test_runs_without_values_are_no_comparison(tmp_path, capsys):
    folder(tmp_path / "version_0", "epoch,val_loss\n")
    words = failing([str(tmp_path), "--output", str(tmp_path / "all.md")], capsys)
    assert words == "Nothing to compare. metrics.csv holds no values."
    assert not (tmp_path / "all.md").exists()
