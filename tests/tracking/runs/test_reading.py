"""Finding runs and telling them apart."""

import os
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_flatness.tracking.runs import Run, read_runs
from lightning_flatness.tracking.runs._names import told_apart
from tests.tracking.runs.test_csv import folder
from tests.tracking.runs.test_wandb_offline import ended, history, written

SEVERAL = ["logs/version_2", "logs/version_10", "logs/version_1", "other"]


def names(*paths):
    return [run.name for run in read_runs([str(path) for path in paths])]


@pytest.fixture
def several(tmp_path):
    for name in SEVERAL:
        folder(tmp_path / "root" / name)
    return tmp_path / "root"


@pytest.mark.slow
class TestKept:
    def test_a_run_is_found_once_whatever_links_to_it(self, kept):
        assert (kept.wandb.parent.parent / "latest-run").is_symlink()
        assert names(kept.place) == ["steep"]
        assert names(kept.place, kept.csv, kept.wandb, kept.place / "wandb" / "latest-run") == ["steep"]

    def test_a_fit_that_both_loggers_have_kept_is_one_run(self, kept):
        (both,) = read_runs([str(kept.place)])
        (by_csv,), (by_wandb,) = read_runs([str(kept.csv)]), read_runs([str(kept.wandb)])
        assert both.epochs == [old | new for old, new in zip(by_csv.epochs, by_wandb.epochs, strict=True)]
        assert both.config == {**by_csv.config, **by_wandb.config}
        assert both.texts == by_wandb.texts
        assert both.notes[-1].startswith("The same values are in ")

    def test_another_value_makes_two_runs(self, kept, tmp_path):
        text = (kept.csv / "metrics.csv").read_text()
        header, first, *others = text.splitlines()
        column = header.split(",").index("flatness/median")
        changed = [line.split(",") for line in (first, *others)]
        place = next(i for i, cells in enumerate(changed) if cells[column])
        changed[place][column] = repr(2 * float(changed[place][column]) + 1)
        (tmp_path / "metrics.csv").write_text("\n".join([header, *map(",".join, changed), ""]))
        assert len(names(tmp_path, kept.wandb)) == 2

    def test_repeated_fits_of_one_logger_are_all_there(self, kept, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "metrics.csv").write_text((kept.csv / "metrics.csv").read_text())
        assert names(tmp_path) == ["a", "b"]
        assert names(tmp_path, kept.wandb) == ["b", "steep"]

    def test_the_link_alone_is_the_run(self, kept):
        assert names(kept.wandb.parent.parent / "latest-run") == ["steep"]


def test_folders_are_found_in_natural_order(several):
    assert names(several) == ["logs/version_1", "logs/version_2", "logs/version_10", "other"]


def test_the_name_is_what_follows_what_was_given(several):
    assert names(several / "logs") == ["version_1", "version_2", "version_10"]
    assert names(several / "logs" / "version_2", several / "other") == ["logs/version_2", "other"]
    assert names(several / "other" / "metrics.csv") == ["other"]


def test_from_inside(several, monkeypatch):
    monkeypatch.chdir(several / "logs" / "version_1")
    assert names(".") == ["logs/version_1"]
    monkeypatch.chdir(several)
    assert names("other", "logs") == ["other", "version_1", "version_2", "version_10"]
    assert [run.source for run in read_runs(["other"])] == ["other"]


def test_order_is_that_of_the_arguments(several):
    assert names(several / "other", several / "logs" / "version_1", several) == [
        "other", "logs/version_1", "logs/version_2", "logs/version_10",
    ]  # fmt: skip


def test_links_in_a_circle_end(several):
    (several / "logs" / "up").symlink_to(several)
    (several / "logs" / "self").symlink_to(several / "logs" / "self")
    (several / "a_link").symlink_to(several / "other")
    assert names(several) == ["logs/version_1", "logs/version_2", "logs/version_10", "other"]


def test_linked_folders_outside_are_read(several, tmp_path):
    folder(tmp_path / "far" / "version_0")
    (several / "far").symlink_to(tmp_path / "far")
    assert names(several)[-1] == "far/version_0"


def test_hidden_folders_and_what_is_in_a_run_are_passed_over(several):
    folder(several / ".cache" / "version_0")
    written(several / "other" / "run-a.wandb", ended())
    folder(several / "other" / "files")
    both = [f"other ({several}/other)", "other (2)"]
    assert names(several) == ["logs/version_1", "logs/version_2", "logs/version_10", *both]


def test_no_run_anywhere_is_one_error_that_names_all(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    folder(tmp_path / "good")
    places = [str(tmp_path / name) for name in ("empty", "good", "missing", "notes.txt")]
    message = (
        f"No run in `{places[0]}`, `{places[2]}` (no such path), `{places[3]}`; a run is a folder with `metrics.csv` "
        "(CSVLogger) or `run-….wandb` (Weights & Biases, offline), or `entity/project/run` on a Weights & Biases "
        "server."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_runs(places)


def test_nothing_given():
    with pytest.raises(ValueError, match=r"^`paths` must name at least one run; a run is a folder with `metrics.csv`"):
        read_runs([])


def test_a_server_is_not_asked_without_a_key(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    message = "`a/b/c` is no path here, and Weights & Biases needs a key: run `wandb login`."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_runs(["a/b/c"])


def test_what_the_server_says_is_one_line(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")  # refused before anything is sent
    message = "`a/b/c` is no path here, and Weights & Biases does not give it: WANDB_API_KEY invalid"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as stop:
        read_runs(["a/b/c"])
    assert "\n" not in str(stop.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_file_that_cannot_be_opened_is_told(tmp_path):
    (folder(tmp_path / "run") / "metrics.csv").chmod(0)
    (run,) = read_runs([str(tmp_path)])
    assert run.notes == ["metrics.csv cannot be opened: Permission denied."]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_folder_that_may_only_be_listed_is_passed_over(several):
    locked = several / "logs" / "version_1"
    locked.chmod(0o400)
    try:
        assert names(several) == ["logs/version_2", "logs/version_10", "other"]
    finally:
        locked.chmod(0o700)


def test_the_home_of_nobody_is_no_path():
    with pytest.raises(ValueError, match=r"^No run in `~nosuchuser/x` \(no such path\); a run is a folder"):
        read_runs(["~nosuchuser/x"])


class TestNames:
    def test_of_two_roots(self, tmp_path):
        for root in ("a", "b"):
            folder(tmp_path / root / "version_0")
        assert names(tmp_path / "a", tmp_path / "b") == [f"version_0 ({tmp_path}/{root}/version_0)" for root in "ab"]

    def test_hostile_ones_are_one_line(self, tmp_path):
        record = history(epoch="0")
        start = record.__class__()
        start.run.display_name = "a\x1b[31m\u202eb\n\r\tc\x00\u2028d "
        written(tmp_path / "run-a.wandb", start, record, ended())
        assert names(tmp_path) == ["a[31mb c d"]

    def test_a_folder_whose_name_is_no_text(self, tmp_path):
        folder(tmp_path / os.fsdecode(b"bad\xff\n"))
        (run,) = read_runs([str(tmp_path)])
        assert run.name == "bad"
        assert (run.name + run.source).isprintable()

    @given(st.lists(st.tuples(st.text(max_size=4), st.sampled_from(["s", "t", ""])), max_size=12))
    def test_no_two_are_alike(self, pairs):
        runs = told_apart([Run(name, source, []) for name, source in pairs])
        assert len({run.name for run in runs}) == len(pairs)
        assert all(run.name for run in runs)
        assert not [letter for run in runs for letter in run.name if unicodedata.category(letter)[0] == "C"]

    def test_a_counted_name_is_not_taken_twice(self):
        runs = [Run(name, "s", []) for name in ("a", "a", "a (s)", "a (2)")]
        assert [run.name for run in told_apart(runs)] == ["a (3)", "a (4)", "a (s)", "a (2)"]
