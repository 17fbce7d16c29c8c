"""The curves of one run, as a picture and as a table."""

import io
import re
from itertools import pairwise

import pytest
from rich.console import Console

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.curves import curves_figure, curves_table


def epochs(count, **changes):
    """A run in which every value is different, but for the keys in ``changes``."""
    names = ["train_loss", "val_loss", "val_acc", *keys.FLATNESS_KEYS]
    rows = [
        {"epoch": float(epoch), "step": 10.0 * epoch}
        | {name: (index + 1) / (epoch + 1.5) for index, name in enumerate(names)}
        for epoch in range(count)
    ]
    return [{**row, **changes} for row in rows]


def drawn(figure):
    """Label → points of every line of the figure."""
    return {
        line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for axes in figure.axes
        for line in axes.lines
    }


def points(rows, name):
    return [(row["epoch"], row[name]) for row in rows if name in row]


LABELS = {
    "mean": keys.RELATIVE_FLATNESS,
    "90th percentile": keys.P90,
    "median": keys.MEDIAN,
    "geometric mean": keys.GEOMETRIC_MEAN,
    "correctly classified": keys.CORRECT,
    "wrongly classified": keys.WRONG,
    "confidence factor tr H_z": keys.CONFIDENCE_FACTOR,
    "feature norm ‖φ‖": keys.FEATURE_NORM,
    "weight norm ‖W‖": keys.WEIGHT_NORM,
    "train_loss": "train_loss",
    "val_loss": "val_loss",
    "val_acc": "val_acc",
}


def test_lines_hold_exactly_the_numbers_given():
    rows = epochs(5)
    assert drawn(curves_figure(rows)) == {label: points(rows, name) for label, name in LABELS.items()}


@pytest.mark.parametrize("label", LABELS)
def test_epochs_without_a_value_are_skipped(label):
    rows = epochs(6)
    for epoch in (0, 3):
        del rows[epoch][LABELS[label]]
    lines = drawn(curves_figure(rows))
    assert [epoch for epoch, _ in lines[label]] == [1, 2, 4, 5]
    assert lines[label] == points(rows, LABELS[label])


@pytest.mark.parametrize("label", LABELS)
def test_what_was_never_logged_is_not_drawn(label):
    rows = [{name: value for name, value in row.items() if name != LABELS[label]} for row in epochs(3)]
    assert drawn(curves_figure(rows)).keys() == LABELS.keys() - {label}


def test_panels_say_what_they_show():
    figure = curves_figure(epochs(3))
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == [
        "Relative flatness κ (small is flat)",
        "κ by answer",
        "What κ is made of",
        "Loss and accuracy",
    ]
    assert {axes.get_yscale() for axes in panels.values()} == {"log"}
    for title in ("What κ is made of", "Loss and accuracy"):
        assert panels[title].get_xlabel() == "epoch"
    assert {axes.get_ylabel() for axes in figure.axes} >= {"loss", "accuracy (dashed)"}


def test_legends_name_every_line():
    figure = curves_figure(epochs(3))
    named = [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().texts]
    assert sorted(named) == sorted(LABELS)


def test_losses_and_accuracies_are_told_by_their_names():
    rows = [{"epoch": 0.0, "nll_Loss": 2.0, "MulticlassAccuracy": 0.5, "lr": 0.1, "attack/linf_loss_increase": 1.0}]
    assert drawn(curves_figure(rows)).keys() == {"nll_Loss", "MulticlassAccuracy"}


@pytest.mark.parametrize(
    "rows",
    [[], [{"epoch": 0.0}], epochs(1), epochs(3, **dict.fromkeys(keys.FLATNESS_KEYS, 0.0)), epochs(3, train_loss=-1.0)],
    ids=["no epoch", "no value", "one epoch", "zeros", "negative loss"],
)
def test_any_run_can_be_saved_as_a_picture(rows, tmp_path):
    curves_figure(rows).savefig(tmp_path / "curves.png", dpi=30)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def rendered(table, width=120):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def epochs_shown(text):
    return [int(match) for match in re.findall(r"^\s*(\d+) +\d", text, flags=re.MULTILINE)]


def test_no_cell_is_cut_at_120_columns():
    text = rendered(curves_table(epochs(20)))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 120
    for header in ("epoch", "train loss", "val loss", "val acc", "κ mean", "κ median", "κ right", "κ wrong", "‖W‖"):
        assert header in text


def test_numbers_are_whole_at_80_columns():
    rows = epochs(5)
    text = rendered(curves_table(rows), width=80)
    assert max(map(len, text.splitlines())) <= 80
    for name in ("train_loss", "val_acc", keys.MEDIAN, keys.WEIGHT_NORM):
        for row in rows:
            assert f"{row[name]:.3g}" in text.split()


def test_cells_hold_the_numbers():
    (row,) = epochs(1)
    columns = ["train_loss", "val_loss", "val_acc", keys.RELATIVE_FLATNESS, keys.MEDIAN, keys.CORRECT, keys.WRONG]
    columns += [keys.CONFIDENCE_FACTOR, keys.FEATURE_NORM, keys.WEIGHT_NORM]
    table = curves_table([row])
    assert [list(column.cells) for column in table.columns] == [["0"], *([f"{row[name]:.3g}"] for name in columns)]


@pytest.mark.parametrize(("count", "most_rows"), [(21, 20), (100, 20), (1000, 7), (5, 2), (40, 39)])
def test_long_runs_are_thinned_out_evenly_and_say_so(count, most_rows):
    text = rendered(curves_table(epochs(count), most_rows))
    shown = epochs_shown(text)
    gaps = {later - earlier for earlier, later in pairwise(shown)}
    assert len(shown) == most_rows
    assert (shown[0], shown[-1]) == (0, count - 1)
    assert max(gaps) - min(gaps) <= 1
    assert f"{most_rows} of {count} epochs; all of them are in metrics.csv" in " ".join(text.split())


@pytest.mark.parametrize("count", [1, 19, 20])
def test_short_runs_are_shown_whole(count):
    text = rendered(curves_table(epochs(count)))
    assert epochs_shown(text) == list(range(count))
    assert "metrics.csv" not in text


def test_epochs_without_a_measurement_are_left_out_and_missing_cells_are_empty():
    rows = epochs(4)
    del rows[1][keys.RELATIVE_FLATNESS]
    del rows[2][keys.WRONG]
    table = curves_table(rows)
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["epoch"] == ["0", "2", "3"]
    assert cells["κ wrong"] == [f"{rows[0][keys.WRONG]:.3g}", "", f"{rows[3][keys.WRONG]:.3g}"]


def test_a_run_without_measurements_has_an_empty_table():
    assert curves_table([{"epoch": 0.0, "val_loss": 1.0}]).row_count == 0
