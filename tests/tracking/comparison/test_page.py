"""The page as a text: what it says, what it holds, and that nothing in it is run that should be read."""

import re
import sys
from collections import Counter
from math import inf, isnan, nan

import pytest

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.comparison import page as page_module
from lightning_flatness.tracking.comparison.page import MOST_BYTES, comparison_page
from lightning_flatness.tracking.runs import Run
from tests.tracking.comparison.made_runs import HOSTILE, hostile_runs, many_runs, six_runs
from tests.tracking.comparison.reading_pages import Elements, curves, data_of, numbers

PLAIN = "L∞ 8/255, robust accuracy"
PLAIN_KEY = "attack/linf_8_255_robust_accuracy"


@pytest.fixture(scope="module")
def six():
    return comparison_page(six_runs())


@pytest.fixture(scope="module")
def hostile():
    return comparison_page(hostile_runs())


def test_the_run_that_is_not_robust_is_named_first(six):
    text = "".join(Elements(six).text)
    alarm = text.index("head × 50: do not trust its robustness")
    assert alarm < text.index("Last logged value")
    assert f"{PLAIN}, rank 1 of 6" in text
    assert "worst case, robust accuracy, rank 6 of 6" in text
    assert "the margin loss fools a further 58%" in text
    assert "No alarm in 5 of 6 runs." in text


def test_its_row_has_a_badge_and_its_marker_is_a_cross(six):
    warned = re.findall(r'<tr data-run="(\d)" class="warned"><th scope="row" data-value="([^"]*)".*?</th>', six)
    assert set(warned) == {("3", "head × 50")}
    assert six.count('<span class="badge">not trustworthy</span>') == 1
    looks = {run["name"]: (run["symbol"], run["colour"], run["alarmed"]) for run in data_of(six)["runs"]}
    assert looks.pop("head × 50") == ("x", "alarm", True)
    assert all(symbol != "x" and colour != "alarm" and not alarmed for symbol, colour, alarmed in looks.values())


def test_runs_that_nobody_checked_are_no_calm():
    text = "".join(Elements(comparison_page([Run("a", "", [{"epoch": 0.0, "val_acc": 0.5}])])).text)
    assert "None was checked for gradient masking: robust accuracies may be too high." in text


def test_every_curve_is_what_was_logged(six):
    data = data_of(six)
    for key, title in ((keys.RELATIVE_FLATNESS, "relative flatness κ, mean"), ("val_loss", "val_loss")):
        drawn = curves(data, title)
        for run in six_runs():
            assert drawn[run.name] == ([row["epoch"] for row in run.epochs], [row[key] for row in run.epochs])


def test_every_key_has_a_figure(six):
    logged = {name for run in six_runs() for row in run.epochs for name in row} - {"epoch"}
    assert set(data_of(six)["axes"]) == logged
    assert len(data_of(six)["figures"]) == len(logged) + 1 + 5  # the path, and five quantities over the scale


def test_cells_hold_the_exact_numbers(six):
    cells = [attrs for attrs in Elements(six).all("td") if "title" in attrs]
    assert all(attrs["data-value"] == attrs["title"] for attrs in cells)
    shown = Counter(float(attrs["data-value"]) for attrs in cells)
    for run in six_runs():
        values = [row[keys.RELATIVE_FLATNESS] for row in run.epochs]
        assert shown[values[-1]] >= 1
        assert shown[min(values)] >= 1


def test_trajectories_are_those_of_the_last_measurement(six):
    drawn = curves(data_of(six), "κ along the path of the attack")
    for run in six_runs():
        row = run.epochs[-1]
        expected = [row[key] for key in (keys.CLEAN_FLATNESS, keys.PEAK_FLATNESS, keys.FINAL_FLATNESS)]
        assert drawn[run.name] == ([0.0, 1.0, 2.0], expected)


def test_scaling_is_drawn_over_the_scale(six):
    drawn = curves(data_of(six), "loss over the scale of the head")
    scales, losses = drawn["sam"]
    assert scales == [0.1, 0.5, 1.0, 2.0, 10.0, 50.0]
    assert losses == [six_runs()[2].epochs[-1][keys.scaling_key("loss", scale)] for scale in scales]


def test_table_marks_the_smallest_or_largest_value_and_calls_none_the_best(six):
    head, body = re.search(r'<table class="sortable">.*?</table>', six, re.DOTALL)[0].split("</thead>")
    assert re.findall(r'class="sort">([^<]*)<', head)[:4] == ["run", "last", "min / max", "in epoch"]
    assert "best" not in head
    row = next(run for run in six_runs() if run.name == "sam").epochs
    first = re.search(r'data-value="sam".*?</tr>', body, re.DOTALL)[0]
    kappa, accuracy = ([one[key] for one in row] for key in (keys.RELATIVE_FLATNESS, PLAIN_KEY))
    for arrow, extreme in (("↓", min(kappa)), ("↑", max(accuracy))):
        assert f'title="{extreme!r}"><span class="cell">{arrow} <span>{extreme:.4g}</span>' in first


def test_alarms_and_interval_ends_have_a_last_value_only():
    for key in (keys.ALARM, "attack/linf_8_255_robust_accuracy_low", "attack/linf_8_255_steps_to_fool"):
        page = comparison_page([Run("a", "", [{"epoch": 0.0, key: 1.0}, {"epoch": 1.0, key: 0.5}])])
        values = [attrs.get("data-value") for attrs in Elements(page).all("td")][:3]
        assert values == ["0.5", None, None]


def rates(*labels, success=()):
    row = {keys.attack_key(label, keys.ROBUST_ACCURACY): 0.5 for label in labels}
    return row | {keys.attack_key(label, keys.SUCCESS_RATE): 0.5 for label in success}


@pytest.mark.parametrize(
    ("row", "label"),
    [
        (rates("linf_0_025", "linf_0_1", "linf_0_2", success=["linf_0_1"]), "linf_0_1"),
        (rates("linf_0_01", "linf_0_02", "linf_0_03", "linf_0_1", success=["linf_0_1"]), "linf_0_1"),
        (rates("linf_0_025", "linf_0_1", "worst_case", success=["linf_0_1"]), "worst_case"),
        (rates("linf_0_025", "linf_0_1"), "linf_0_025"),
    ],
    ids=["main radius", "not among the columns", "worst case", "neither"],
)
def test_first_scatter_shows_the_worst_case_or_else_the_main_attack(row, label):
    ends = {f"{key}_low": value for key, value in row.items()}
    run = Run("a", "", [{"epoch": 0.0, keys.RELATIVE_FLATNESS: 2.0, **ends, **row}])
    scatters = data_of(comparison_page([run]))["scatters"]
    assert scatters == [[keys.RELATIVE_FLATNESS, keys.attack_key(label, keys.ROBUST_ACCURACY)]]


@pytest.mark.parametrize(
    ("key", "values", "share"),
    [
        ("val_acc", [0.5, 0.977], True),
        ("val_MulticlassAccuracy", [0.5], True),
        ("val_acc", [50.0, 97.7], False),
        ("attack/linf_0_1_robust_accuracy", [0.5, nan], True),
        ("masking/loss_gap", [-0.1, 0.5], False),
        ("val_loss", [0.5], False),
        ("flat/basin_width", [0.5], False),
    ],
)
def test_axes_of_shares_are_told(key, values, share):
    rows = [{"epoch": float(epoch), key: value} for epoch, value in enumerate(values)]
    data = data_of(comparison_page([Run("a", "", rows)]))
    assert (data["axes"][key]["share"], data["figures"][0]["share"]) == (share, share)


def test_first_scatters_show_flatness_over_the_worst_case_and_the_clean_accuracy(six):
    data = data_of(six)
    assert data["scatters"] == [
        [keys.RELATIVE_FLATNESS, "attack/worst_case_robust_accuracy"],
        [keys.RELATIVE_FLATNESS, "val_acc"],
    ]
    last = numbers(data, data["axes"][keys.RELATIVE_FLATNESS]["values"])
    assert last == [run.epochs[-1][keys.RELATIVE_FLATNESS] for run in six_runs()]


def test_nothing_is_loaded_from_anywhere(six):
    elements = Elements(six)
    assert not [attrs for attrs in elements.all("script") if "src" in attrs]
    assert [attrs["href"] for attrs in elements.all("link")] == ["data:,"]
    policy = next(attrs["content"] for attrs in elements.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


def test_names_that_are_markup_are_text(hostile):
    elements = Elements(hostile)
    assert not elements.all("img")
    assert len(elements.all("script")) == 3
    assert "onerror" not in {name for _, attrs in elements.tags for name in attrs}
    printed = " ".join(HOSTILE.split())
    text = "".join(elements.text)
    assert text.count(printed) >= 6  # alarm, table, switch, setting and its value, note
    data = re.search(r'id="data">(.*?)</script>', hostile, re.DOTALL)[1]
    assert not {"<", ">", "&", "\u2028"} & set(data)
    assert f"own/{HOSTILE}" in data_of(hostile)["axes"]


def test_runs_of_one_name_without_rows_or_numbers_are_all_there(hostile):
    data = data_of(hostile)
    names = [run["name"] for run in data["runs"]]
    assert len(set(names)) == 5
    assert names[1:] == ["twice (a)", "twice (b)", "run", "nothing but NaN"]
    kappa = curves(data, "relative flatness κ, mean")["nothing but NaN"][1]
    assert len(kappa) == 3
    assert all(map(isnan, kappa))
    assert curves(data, "val_loss") == {"nothing but NaN": ([0.0, 1.0, 2.0], [inf] * 3)}
    text = "".join(Elements(hostile).text)
    assert "nothing but NaN: flatness/relative_flatness was NaN in epochs 0–2." in text
    assert "nothing but NaN: val_loss was infinite in epochs 0–2." in text
    assert "run: nothing was logged." in text


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{}],
        [{"epoch": 0.0}],
        [{"epoch": 3.0, "a": nan}],
        [{"a": 0.0}, {"a": -1.0}],
        [{"epoch": 0.0, "\ud800": 1.0}],
    ],
    ids=["none", "empty", "epoch only", "NaN", "no epochs", "half a character"],
)
def test_one_run_with_next_to_nothing(rows):
    page = comparison_page([Run("alone", "", rows)])
    assert page.encode("utf-8", "replace").endswith(b"</html>\n")
    logged = {name for row in rows for name in row} - {"epoch"}
    assert set(data_of(page)["axes"]) == logged


def test_a_row_without_an_epoch_gets_its_number():
    drawn = curves(data_of(comparison_page([Run("a", "", [{"val_loss": 2.0}, {"val_loss": 1.0}])])), "val_loss")
    assert drawn == {"a": ([0.0, 1.0], [2.0, 1.0])}


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match=r"`runs` must hold at least one run, got none\."):
        comparison_page([])


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ModuleNotFoundError, match=r"The page needs plotly: pip install 'plotly>=6,<7'"):
        comparison_page(six_runs())


def test_settings_that_differ_are_a_table(six):
    text = "".join(Elements(six).text)
    assert "model.head_scale" in text
    assert "trainer.max_epochs" not in text


@pytest.mark.slow
def test_a_hundred_runs_fit_without_thinning(hundred):
    runs, page = hundred
    assert len(page.encode()) <= 15_000_000
    assert "The curves show all 800,000 numbers, none is left out." in page
    run = runs[-1]
    drawn = curves(data_of(page), "worst case, robust accuracy")[run.name]
    assert drawn[1] == [row["attack/worst_case_robust_accuracy"] for row in run.epochs]


def test_what_does_not_fit_is_thinned_and_said(monkeypatch):
    runs = many_runs(10, 400, 20)
    whole = len(comparison_page(runs).encode())
    monkeypatch.setattr(page_module, "MOST_BYTES", whole - 500_000)
    page = comparison_page(runs)
    assert len(page.encode()) <= whole - 500_000
    said = re.search(r"The curves show ([\d,]+) of 80,000 numbers", page)
    data = data_of(page)
    kept = sum(len(numbers(data, y)) for figure in data["figures"] for _, _, y in figure["curves"])
    assert int(said[1].replace(",", "")) == kept < 80_000
    for title, key in (("val_loss", "val_loss"), ("relative flatness κ, mean", keys.RELATIVE_FLATNESS)):
        for run in runs:
            x, y = curves(data, title)[run.name]
            values = {row["epoch"]: row[key] for row in run.epochs}
            assert [values[epoch] for epoch in x] == y
            assert (min(y), max(y), y[-1]) == (min(values.values()), max(values.values()), run.epochs[-1][key])
    assert MOST_BYTES == 15_000_000
