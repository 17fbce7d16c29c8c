"""The curves of one run, as tables on the terminal."""

import io
import re
from collections import Counter
from itertools import pairwise

import pytest
from rich.console import Console

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.tables import attacks_table, bounds_table, curves_table, fitting
from tests.tracking.test_curves import epochs


def rendered(table, width=120):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def cells(table):
    return {str(column.header).replace("\n", " "): list(column.cells) for column in table.columns}


def epochs_shown(text):
    return [int(match) for match in re.findall(r"^\s*(\d+) +\d", text, flags=re.MULTILINE)]


def test_no_cell_is_cut_at_120_columns():
    text = rendered(curves_table(epochs(20)))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 120
    for header in [
        "epoch",
        "train",
        "loss",
        "val",
        "acc",
        "κ",
        "mean",
        "median",
        "right",
        "wrong",
        "tr",
        "H_z",
        "‖φ‖",
        "‖W‖",
    ]:
        assert header in text.split()


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
    assert cells(table)["epoch"] == ["0", "2", "3"]
    assert cells(table)["κ wrong"] == [f"{rows[0][keys.WRONG]:.3g}", "", f"{rows[3][keys.WRONG]:.3g}"]


def test_loss_and_accuracy_are_shown_without_flatness():
    rows = [{"epoch": 0.0, "val_loss": 1.25, "lr": 0.1}, {"epoch": 1.0, "lr": 0.1}, {"epoch": 2.0, "val_acc": 0.5}]
    table = curves_table(rows)
    assert cells(table) == {"epoch": ["0", "2"], "val loss": ["1.25", ""], "val acc": ["", "0.5"]}
    assert "Loss and accuracy" in rendered(table)


@pytest.mark.parametrize("layout", [curves_table, attacks_table, bounds_table])
@pytest.mark.parametrize("rows", [[], [{"epoch": 0.0, "lr": 1.0}]])
def test_without_values_there_are_no_rows(layout, rows):
    assert layout(rows).row_count == 0


RADII = ["2_255", "0_05", "0_1", "0_2"]


def attacked():
    labels = [f"{norm}_{radius}" for norm in ("linf", "l2") for radius in RADII]
    labels += ["worst_case", "pgd", "square_attack"]
    values = {f"attack/{label}_robust_accuracy": 0.1234 + place for place, label in enumerate(labels)}
    return {"epoch": 0.0, **values, keys.ALARM: 1.0}


def test_no_attack_is_cut_at_100_columns():
    table = attacks_table([attacked()])
    threats = [f"{norm} {radius}" for norm in ("linf", "l2") for radius in ("2/255", "0.05", "0.1", "0.2")]
    expected = ["epoch", *threats, "pgd", "square attack", "worst case", "masking alarm"]
    assert list(cells(table)) == expected
    table.title = None
    text = rendered(table, width=100)
    assert max(map(len, text.splitlines())) <= 100
    for word in " ".join(expected).split():
        assert text.split().count(word) == " ".join(expected).split().count(word)


def bounded(kind):
    values = {f"bound/{kind}_accuracy_{radius}": place / 8 for place, radius in enumerate(reversed(RADII))}
    values |= {f"bound/{kind}_accuracy_0_1_low": 0.9, f"bound/{kind}_radius_median": 0.06}
    checks = {keys.BOUND_LOSS_INCREASE: 4.5, keys.TIGHTNESS: 3.0, keys.VIOLATION_RATE: 0.0}
    return {"epoch": 0.0, **values, **checks, keys.TAYLOR_VIOLATION_RATE: 0.25}


@pytest.mark.parametrize(("kind", "short"), [("certified", "cert."), ("estimated", "est.")])
def test_bounds_are_shown_by_radius(kind, short):
    accuracies = {"2/255": "0.375", "0.05": "0.25", "0.1": "0.125", "0.2": "0"}
    checks = {"loss bound (nats)": "4.5", "bound /rise": "3", "bound violated": "0", "Taylor violated": "0.25"}
    headers = {f"{short} acc {radius}": value for radius, value in accuracies.items()}
    expected = {"epoch": "0", **headers, f"{short} median radius": "0.06", **checks}
    table = bounds_table([bounded(kind)])
    assert cells(table) == {header: [value] for header, value in expected.items()}
    text = rendered(table, width=100)
    assert max(map(len, text.splitlines())) <= 100
    assert all(word in text.split() for header in expected for word in header.split())


def without_title(tables):
    for table in tables:
        table.title = table.caption = None
    return [rendered(table, width=80) for table in tables]


@pytest.mark.parametrize("kind", ["certified", "estimated"])
def test_no_word_of_the_usual_tables_is_broken_at_80_columns(kind):
    row = {name: value + 0.00123 for name, value in bounded(kind).items()} | {"epoch": 19.0}
    usual = {name: value for name, value in attacked().items() if "l2" not in name}
    for table in (bounds_table([row]), attacks_table([usual]), curves_table(epochs(20))):
        words = " ".join(cells(table)).split()
        assert fitting(table, 80) == [table]
        (text,) = without_title([table])
        assert max(map(len, text.splitlines())) <= 80
        assert Counter(words) <= Counter(text.split())


def test_columns_that_do_not_fit_stand_in_tables_below():
    labels = [f"linf_0_{place}" for place in range(10, 26)]
    rows = [
        {"epoch": float(epoch)} | {f"attack/{label}_robust_accuracy": 0.123 + epoch for label in labels}
        for epoch in range(30)
    ]
    table = attacks_table(rows)
    first, last = parts = fitting(table, 80)
    assert (first.title, first.caption, last.title, last.caption) == (table.title, None, None, table.caption)
    assert [*cells(first), *list(cells(last))[1:]] == list(cells(table))
    assert cells(first) | cells(last) == cells(table)
    for part, text in zip(parts, without_title(parts), strict=True):
        assert max(map(len, text.splitlines())) <= 80
        assert Counter(" ".join(cells(part)).split()) <= Counter(text.split())


def test_a_name_longer_than_the_terminal_has_a_table_of_its_own():
    row = {"epoch": 0.0, "val_acc": 0.5, "acc" * 40: 0.25, "train_acc": 0.75}
    assert [list(cells(part)) for part in fitting(curves_table([row]), 80)] == [
        ["epoch", "val acc"],
        ["epoch", "acc" * 40],
        ["epoch", "train acc"],
    ]


@pytest.mark.parametrize(
    ("kinds", "title"),
    [
        (["certified"], "Robustness within a radius: certified"),
        (["estimated"], "Robustness within a radius: estimated (no guarantee)"),
        (["estimated", "certified"], "Robustness within a radius: certified and estimated (no guarantee)"),
    ],
)
def test_title_of_bounds_says_what_they_are(kinds, title):
    row = {name: value for kind in kinds for name, value in bounded(kind).items()}
    assert bounds_table([row]).title == title


def test_titles_are_not_folded():
    row = {"epoch": 0.0, "bound/estimated_radius_median": 0.5}
    assert "Robustness within a radius: estimated (no guarantee)" in rendered(bounds_table([row]))
