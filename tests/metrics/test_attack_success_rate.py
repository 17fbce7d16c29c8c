"""What ``AttackSuccessRate`` computes."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_flatness.attacks import ThreatModel, pgd
from lightning_flatness.attacks.losses import cross_entropy
from lightning_flatness.metrics import AttackSuccessRate
from tests.metrics.outcomes import ARGUMENTS, NUM_CLASSES, Sample, arguments, outcomes, plain, samples, share
from tests.metrics.outcomes import success_rate_by_hand as by_hand

ALL = ARGUMENTS["AttackSuccessRate"]
TRUE, FALSE = torch.tensor([True]), torch.tensor([False])


def updated(rows, *names, **settings):
    metric = AttackSuccessRate(**settings)
    metric.update(**arguments(rows, *(names or ALL)))
    return metric


@given(st.lists(samples, max_size=30), st.sampled_from([0.0, math.log(2), 3.0]))
def test_is_the_definition_counted_one_by_one(rows, threshold):
    result = plain(updated(rows, loss_threshold=threshold).compute())
    assert result == pytest.approx(by_hand(rows, threshold), rel=1e-12, abs=1e-12)
    assert all(map(math.isfinite, result.values()))


@given(st.lists(samples, max_size=30))
def test_per_class_is_the_definition_for_each_class_alone(rows):
    metric = updated(rows, num_classes=NUM_CLASSES)
    metric.compute()
    if not rows:
        assert metric.per_class.keys() == {"samples"}
    for label in range(NUM_CLASSES):
        expected = by_hand([row for row in rows if row.target == label])
        values = {name: column[label].item() for name, column in metric.per_class.items()}
        for name, value in values.items():
            if name.endswith(("_low", "_high")) and name not in expected:
                assert value == float(name.endswith("_high"))
            else:
                assert value == pytest.approx(expected.get(name, math.nan), nan_ok=True), name


@settings(max_examples=20)
@given(rows=st.lists(samples, min_size=2, max_size=30), data=st.data())
def test_is_exact_under_any_batching_and_order(rows, data):
    whole, parts = updated(rows, num_classes=NUM_CLASSES), AttackSuccessRate(num_classes=NUM_CLASSES)
    rows = data.draw(st.permutations(rows))
    cuts = data.draw(st.sets(st.integers(0, len(rows)), max_size=6))
    for start, stop in pairwise([0, *sorted(cuts), len(rows)]):
        parts.update(**arguments(rows[start:stop], *ALL))
    assert plain(parts.compute()) == pytest.approx(plain(whole.compute()), rel=1e-12, abs=1e-12)
    for name, column in whole.per_class.items():
        torch.testing.assert_close(parts.per_class[name], column, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_in_lower_precision_are_taken_as_they_are(dtype):
    columns = arguments(outcomes(), *ALL, dtype=dtype)
    rows = [
        row._replace(clean_loss=clean, adv_loss=adv)
        for row, clean, adv in zip(
            outcomes(), columns["clean_loss"].tolist(), columns["adv_loss"].tolist(), strict=True
        )
    ]
    metric = AttackSuccessRate()
    for _ in range(300):  # a float16 sum of so many numbers has few digits left
        metric.update(**columns)
    assert plain(metric.compute())["loss_increase"] == pytest.approx(by_hand(rows)["loss_increase"], rel=1e-10)


def test_threshold_of_log_2_is_a_halved_probability():
    clean = torch.tensor([0.9, 0.9], dtype=torch.float64)
    metric = AttackSuccessRate()
    adversarial = clean * torch.tensor([0.499, 0.501], dtype=torch.float64)
    both = torch.tensor([True, True])
    metric.update(~both, both, clean_loss=-clean.log(), adv_loss=-adversarial.log())
    assert metric.compute()["loss_success_rate"] == 0.5


def test_what_is_not_given_has_no_entry():
    result = updated(outcomes(), "success", "initially_correct").compute()
    absent = {"loss_increase", "loss_success_rate", "steps_to_fool", "steps_to_fool_mean"}
    expected = {name: value for name, value in by_hand(outcomes()).items() if name not in absent}
    assert plain(result) == pytest.approx(expected | {"nonfinite": 0, "rejected": 0}, rel=1e-12)
    assert AttackSuccessRate().per_class == {}


def test_losses_may_be_given_for_some_batches_only():
    metric = updated(outcomes(), "success", "initially_correct")
    other = outcomes(seed=1)
    metric.update(**arguments(other, *ALL))
    result, expected = plain(metric.compute()), by_hand(other)
    for name in ("loss_increase", "loss_success_rate", "steps_to_fool", "steps_to_fool_mean", "nonfinite"):
        assert result[name] == pytest.approx(expected[name], rel=1e-12)
    assert result["samples"] == 80


def test_nothing_correct_leaves_no_success_rate():
    rows = [row._replace(initially_correct=False) for row in outcomes()]
    result = updated(rows).compute()
    assert result["robust_accuracy"] == result["clean_accuracy"] == 0
    assert result.keys().isdisjoint({"success_rate", "success_rate_low", "loss_success_rate", "steps_to_fool"})


def test_empty_batch_adds_nothing():
    metric = updated(outcomes(), num_classes=NUM_CLASSES)
    metric.update(**arguments([], *ALL))
    assert plain(metric.compute()) == plain(updated(outcomes()).compute())
    assert plain(updated([]).compute()) == {"samples": 0, "nonfinite": 0, "rejected": 0}


def test_nothing_seen_gives_counts_alone_and_torchmetrics_warns():
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert plain(AttackSuccessRate().compute()) == {"samples": 0, "nonfinite": 0, "rejected": 0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["clean_loss", "adv_loss"])
def test_losses_that_are_not_finite_are_counted_and_left_out(which, bad):
    rows = [row._replace(nonfinite=False) for row in outcomes()]
    spoilt = [row._replace(**{which: bad}) if k < 3 else row for k, row in enumerate(rows)]
    result, clean = plain(updated(spoilt).compute()), plain(updated(rows[3:]).compute())
    assert result["nonfinite"] == 3
    for name in ("loss_increase", "loss_success_rate"):
        assert result[name] == pytest.approx(clean[name], rel=1e-12)
    assert result["success_rate"] == plain(updated(rows).compute())["success_rate"]


def test_confidence_sets_the_width_of_the_intervals():
    result = plain(updated(outcomes(), confidence=0.8).compute())
    correct = [row for row in outcomes() if row.initially_correct]
    expected = share("success_rate", sum(row.success for row in correct), len(correct), 0.8)
    assert {name: result[name] for name in expected} == pytest.approx(expected)


def test_takes_the_outcome_of_an_attack():
    model = torch.nn.Linear(2, 2)
    model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    inputs, target = torch.tensor([[0.6, 0.5], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 0])
    attack = pgd(model, inputs, target, ThreatModel(epsilon=0.1))
    metric = AttackSuccessRate(num_classes=2)
    metric.update(
        attack.success,
        attack.initially_correct,
        target,
        cross_entropy(model(inputs), target),
        attack.loss,
        attack.steps_to_fool,
        attack.nonfinite,
    )
    result = plain(metric.compute())
    assert (result["success_rate"], result["robust_accuracy"]) == (0.5, pytest.approx(1 / 3))
    assert result["loss_increase"] > 0
    assert metric.per_class["robust_accuracy"].tolist() == pytest.approx([1 / 3, math.nan], nan_ok=True)


def test_states_do_not_grow():
    metric = AttackSuccessRate(num_classes=NUM_CLASSES)
    empty = {name: state.shape for name, state in metric.metric_state.items()}
    for seed in range(3):
        metric.update(**arguments(outcomes(seed=seed), *ALL))
    assert {name: state.shape for name, state in metric.metric_state.items()} == empty


@pytest.mark.parametrize("bad", [-1, NUM_CLASSES, 2**40])
def test_target_out_of_range_is_told_by_compute(bad):
    metric = updated([row._replace(target=bad) if k < 2 else row for k, row in enumerate(outcomes())], num_classes=4)
    with pytest.raises(ValueError, match=r"`target` must be in \[0, 4\), but 2 targets are out of range; pass num_cl"):
        metric.compute()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"success": FALSE[:0]}, r"`success` must hold one value per sample, shape \(1,\), got \(0,\)\."),
        ({"success": torch.ones(1)}, r"`success` must be boolean, got torch\.float32\."),
        ({"initially_correct": torch.ones(1)}, r"`initially_correct` must be boolean, got torch\.float32\."),
        ({"nonfinite": torch.tensor([[True]])}, r"`nonfinite` must hold one value per sample, .* got \(1, 1\)\."),
        ({"rejected": torch.ones(1).long()}, r"`rejected` must be boolean, got torch\.int64\."),
        ({"target": torch.zeros(2)}, r"`target` must hold one value per sample, shape \(1,\), got \(2,\)\."),
        ({"steps_to_fool": torch.tensor(3)}, r"`steps_to_fool` must hold one value per sample, .* got \(\)\."),
        ({"clean_loss": torch.ones(1)}, r"`adv_loss` must be given with `clean_loss`, got None\."),
        ({"adv_loss": torch.ones(1)}, r"`clean_loss` must be given with `adv_loss`, got None\."),
        ({"adv_loss": torch.ones(2), "clean_loss": torch.ones(1)}, r"`adv_loss` must hold one value per sample"),
    ],
)
def test_outcomes_that_are_refused_leave_the_metric_as_it_was(changes, words, unchecked_shapes):
    metric = updated(outcomes())
    before = {name: state.clone() for name, state in metric.metric_state.items()}
    with unchecked_shapes, pytest.raises(ValueError, match=words):
        metric.update(**{"success": TRUE, "initially_correct": TRUE} | changes)
    for name, state in metric.metric_state.items():
        assert torch.equal(state, before[name])


def test_missing_target():
    with pytest.raises(ValueError, match=r"`target` must be given with num_classes=3, got None\."):
        AttackSuccessRate(num_classes=3).update(TRUE, TRUE)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss_threshold": -0.1}, r"`loss_threshold` must be >= 0 and finite, got -0\.1\."),
        ({"loss_threshold": math.nan}, r"`loss_threshold` must be >= 0 and finite, got nan\."),
        ({"num_classes": 0}, r"`num_classes` must be >= 1 or None, got 0\."),
        ({"confidence": 1.0}, r"`confidence` must be between 0 and 1, got 1\.0\."),
    ],
)
def test_configurations_there_are_not(settings, words):
    with pytest.raises(ValueError, match=words):
        AttackSuccessRate(**settings)


def test_a_median_beyond_the_last_bin_is_its_edge():
    rows = [Sample(success=True, initially_correct=True, target=0, clean_loss=0.0, adv_loss=1.0, steps_to_fool=9000,
                   nonfinite=False, rejected=False, successes=(), index=0)]  # fmt: skip
    result = plain(updated(rows).compute())
    assert (result["steps_to_fool"], result["steps_to_fool_mean"]) == (4096, 9000.0)
