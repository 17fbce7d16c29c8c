"""What ``RobustAccuracy`` and ``RobustAccuracyCurve`` compute."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_flatness.metrics import RobustAccuracy, RobustAccuracyCurve
from tests.metrics.outcomes import (
    ATTACKS,
    EPSILONS,
    arguments,
    curve_by_hand,
    outcomes,
    plain,
    robust_accuracy_by_hand,
    samples,
    share,
)

TRUE = torch.tensor([True])


def accuracy(*batches):
    metric = RobustAccuracy(ATTACKS)
    for rows in batches:
        metric.update(**arguments(rows, "successes", "initially_correct"))
    return metric


def curve(*batches, **settings):
    metric = RobustAccuracyCurve(EPSILONS, **settings)
    for rows in batches:
        metric.update(**arguments(rows, "index", "initially_correct"))
    return metric


@given(st.lists(samples, max_size=30))
def test_accuracies_are_counted_one_by_one(rows):
    result = plain(accuracy(rows).compute())
    assert result == pytest.approx(robust_accuracy_by_hand(rows), rel=1e-12)
    if rows:
        assert result["worst_case"] <= min(result[name] for name in ATTACKS)
        assert max(result[name] for name in ATTACKS) <= result["clean_accuracy"]


@given(st.lists(samples, max_size=30))
def test_curve_is_counted_one_by_one_and_never_rises(rows):
    result = plain(curve(rows).compute())
    assert result["epsilon"] == [0, *EPSILONS]
    expected = curve_by_hand(rows)
    assert result.keys() == {*expected[0], "epsilon", "samples"}
    for name in expected[0]:
        assert result[name] == pytest.approx([point[name] for point in expected], rel=1e-12)
        assert all(large >= small for large, small in pairwise(result[name]))
    assert result["samples"] == len(rows)


@settings(max_examples=20)
@given(rows=st.lists(samples, min_size=2, max_size=30), data=st.data())
@pytest.mark.parametrize("make", [accuracy, curve])
def test_is_exact_under_any_batching_and_order(make, rows, data):
    shuffled = data.draw(st.permutations(rows))
    cuts = data.draw(st.sets(st.integers(0, len(rows)), max_size=6))
    parts = make(*(shuffled[start:stop] for start, stop in pairwise([0, *sorted(cuts), len(rows)])))
    assert plain(parts.compute()) == plain(make(rows).compute())


@pytest.mark.parametrize("make", [accuracy, curve])
def test_no_sample_has_no_accuracy(make):
    assert make([]).compute().keys() == ({"samples"} if make is accuracy else {"epsilon", "samples"})
    assert plain(make(outcomes(), []).compute()) == plain(make(outcomes()).compute())


def test_nothing_correct_is_robust_to_nothing():
    rows = [row._replace(initially_correct=False) for row in outcomes()]
    assert accuracy(rows).compute()["worst_case"] == 0
    assert plain(curve(rows).compute())["robust_accuracy"] == [0, 0, 0, 0]


def test_index_of_a_sample_that_is_wrong_from_the_start_does_not_matter():
    rows = [row._replace(initially_correct=k > 9) for k, row in enumerate(outcomes())]
    changed = [row._replace(index=-7) if k <= 9 else row for k, row in enumerate(rows)]
    assert plain(curve(changed).compute()) == plain(curve(rows).compute())


def test_confidence_sets_the_width_of_the_intervals():
    expected = share("worst_case", 1, 2, 0.5)
    metric = RobustAccuracy(["pgd"], confidence=0.5)
    metric.update({"pgd": torch.tensor([True, False])}, torch.tensor([True, True]))
    assert {name: float(metric.compute()[name]) for name in expected} == pytest.approx(expected)
    metric = RobustAccuracyCurve([0.1], confidence=0.5)
    metric.update(torch.tensor([0, 1]), torch.tensor([True, True]))
    assert metric.compute()["robust_accuracy_low"][1].item() == pytest.approx(expected["worst_case_low"])


@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_index_out_of_range_is_told_by_compute(bad):
    metric = RobustAccuracyCurve(EPSILONS)
    metric.update(torch.tensor([0, bad, 3]), torch.tensor([True, True, True]))
    with pytest.raises(ValueError, match=r"`index` must be in \[0, 3\], but 1 are out of range\."):
        metric.compute()


@pytest.mark.parametrize(
    ("successes", "words"),
    [
        ({"pgd": TRUE}, r"`successes` must hold pgd, apgd, got pgd\."),
        ({}, r"`successes` must hold pgd, apgd, got none\."),
        ({"pgd": TRUE, "apgd": TRUE, "fab": TRUE}, r"`successes` must hold pgd, apgd, got pgd, apgd, fab\."),
        ({"pgd": TRUE, "apgd": torch.ones(1)}, r"`successes\['apgd'\]` must be boolean, got torch\.float32\."),
        (
            {"pgd": TRUE[:0], "apgd": TRUE},
            r"`successes\['pgd'\]` must hold one value per sample, shape \(1,\), got \(0,\)",
        ),
    ],
)
def test_successes_that_are_refused(successes, words, unchecked_shapes):
    with unchecked_shapes, pytest.raises(ValueError, match=words):
        RobustAccuracy(["pgd", "apgd"]).update(successes, TRUE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.tensor([0, 1]), TRUE), r"`index` must hold one value per sample, shape \(1,\), got \(2,\)\."),
        ((torch.tensor([0]), torch.ones(1)), r"`initially_correct` must be boolean, got torch\.float32\."),
    ],
)
def test_indices_that_are_refused(arguments, words, unchecked_shapes):
    with unchecked_shapes, pytest.raises(ValueError, match=words):
        RobustAccuracyCurve(EPSILONS).update(*arguments)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RobustAccuracy([]), r"`attacks` must be a list of at least one name, got \[\]\."),
        (lambda: RobustAccuracy("pgd"), r"`attacks` must be a list of at least one name, got 'pgd'\."),
        (lambda: RobustAccuracy(["pgd", "pgd"]), "`attacks` must have names of their own, got 'pgd' twice"),
        (lambda: RobustAccuracy(["pgd", "pgd_low"]), "`attacks` must have names of their own, got 'pgd_low' twice"),
        (lambda: RobustAccuracy(["samples"]), "`attacks` must have names of their own, got 'samples' twice"),
        (lambda: RobustAccuracy(["pgd"], confidence=0.0), r"`confidence` must be between 0 and 1, got 0\.0\."),
        (lambda: RobustAccuracyCurve([0.1], confidence=0.0), r"`confidence` must be between 0 and 1, got 0\.0\."),
    ],
)
def test_configurations_there_are_not(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "epsilons", [[], [0.0, 0.1], [0.2, 0.1], [0.1, 0.1], [-0.1], [0.1, float("nan")], [float("inf")]]
)
def test_epsilons_that_are_no_growing_radii(epsilons):
    with pytest.raises(ValueError, match=r"`epsilons` must be > 0, finite and strictly increasing, got \["):
        RobustAccuracyCurve(epsilons)


def test_attack_may_bear_any_other_name():
    metric = RobustAccuracy(["initially_correct", "PGD-20"])
    metric.update({"initially_correct": TRUE, "PGD-20": ~TRUE}, TRUE)
    result = metric.compute()
    assert (result["initially_correct"], result["PGD-20"], result["worst_case"]) == (0, 1, 0)
