"""Last, smallest or largest values, and settings that differ."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_flatness.tracking.comparison.summary import KeySummary, config_text, differing_config, summarise
from lightning_flatness.tracking.runs import Run


def run_of(key, values, start=0):
    """One epoch for each value; None where it was not logged."""
    rows = [
        {"epoch": float(epoch)} | ({} if value is None else {key: value}) for epoch, value in enumerate(values, start)
    ]
    return Run("run", "source", rows)


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("val_loss", [3.0, 1.0, 2.0], KeySummary(2.0, 2, 1.0, 1)),
        ("val_acc", [0.3, 0.1, 0.2], KeySummary(0.2, 2, 0.3, 0)),
        ("val_loss", [None, 1.0, 1.0, None], KeySummary(1.0, 2, 1.0, 1)),
        ("val_loss", [math.inf, 2.0], KeySummary(2.0, 1, 2.0, 1)),
        ("trajectory/peak_step", [3.0, 1.0], KeySummary(1.0, 1, None, None)),
        ("test_attack/linf_8_255_robust_accuracy", [None, 0.5], KeySummary(0.5, 1, 0.5, 1)),
    ],
)
def test_last_and_extreme(key, values, expected):
    assert summarise(run_of(key, values)) == {key: expected}


def test_nan_is_the_last_but_never_the_extreme():
    (summary,) = summarise(run_of("val_loss", [math.nan, 2.0, math.nan])).values()
    assert math.isnan(summary.last)
    assert summary[1:] == (2, 2.0, 1)


def test_nothing_but_nan_has_no_extreme():
    (summary,) = summarise(run_of("val_loss", [math.nan])).values()
    assert math.isnan(summary.last)
    assert summary[2:] == (None, None)


@given(
    st.lists(st.none() | st.floats(allow_nan=False), max_size=8).filter(any), st.sampled_from(["val_loss", "val_acc"])
)
def test_the_extreme_is_one_of_the_values_and_none_lies_beyond(values, key):
    run = run_of(key, values, start=5)
    summary = summarise(run)[key]
    logged = [value for value in values if value is not None]
    assert summary.last == logged[-1]
    assert summary.extreme == (min if key == "val_loss" else max)(logged)
    assert next(row for row in run.epochs if row.get(key) == summary.extreme)["epoch"] == summary.epoch_of_extreme


def test_epoch_and_step_are_no_results():
    row = {"epoch": 0.0, "step": 3.0, "trainer/global_step": 3.0, "lr-Adam": 0.1}
    assert list(summarise(Run("run", "", [row]))) == ["lr-Adam"]


def test_an_empty_run_has_no_summary():
    assert summarise(Run("run", "", [])) == {}


def settings(*configs):
    return differing_config([Run(str(index), "", [], config) for index, config in enumerate(configs)])


def test_only_settings_that_differ_are_listed_and_a_missing_one_does():
    found = settings({"lr": 0.1, "seed": 0, "b": None}, {"lr": 0.2, "seed": 0}, {"lr": 0.1, "seed": 0, "b": "null"})
    assert found == {"b": ["null", None, "null"], "lr": ["0.1", "0.2", "0.1"]}


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        (1, 1.0, False),
        (1, True, True),
        (math.nan, math.nan, False),
        (0.1, math.nextafter(0.1, 1), True),
        (2**53, 2.0**53, False),
        ([0.9, 1], [0.9, 1.0], False),
        (None, 0, True),
        ("a", "b", True),
    ],
)
def test_which_settings_differ(one, other, differ):
    assert bool(settings({"x": one}, {"x": other})) == differ


def test_a_run_differs_from_itself_in_nothing():
    config = {"a": 1, "b": [1, "x"], "c": None}
    assert settings(config, dict(config)) == {}
    assert settings(config) == {}


@given(st.floats(), st.floats())
def test_different_numbers_have_different_texts(one, other):
    assert (config_text(one) == config_text(other)) == (one == other or (math.isnan(one) and math.isnan(other)))
