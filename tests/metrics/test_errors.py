"""Every error of the metrics, in the words it is read in."""

import pytest
import torch

from lightning_flatness.metrics import HeadTopEigenvalue, RelativeFlatness

FEATURES, WEIGHT, LOGITS, TARGET = torch.ones(4, 6), torch.ones(5, 6), torch.ones(4, 5), torch.tensor([0, 1, 4, 2])


@pytest.mark.parametrize("bad", [-1, 5])
def test_target_out_of_range_is_told_by_update(bad):
    target = torch.tensor([0, bad, -100, 1])
    with pytest.raises(ValueError, match=rf"`target` must be in \[0, 5\) or ignore_index=-100, got {bad}\."):
        RelativeFlatness().update(FEATURES, WEIGHT, LOGITS, target)


@pytest.mark.parametrize("variant", ["neuronwise", "maxeig"])
@pytest.mark.parametrize("loss", ["cross_entropy", "focal", torch.nn.CrossEntropyLoss(weight=torch.ones(5))])
def test_target_out_of_range_is_told_by_compute_without_validate_args(loss, variant):
    metric = RelativeFlatness(variant, loss, validate_args=False)
    metric.update(FEATURES, WEIGHT, LOGITS, torch.tensor([0, -1, -100, 5]))
    metric.update(FEATURES, WEIGHT, LOGITS, TARGET + 4)
    words = r"must hold classes of the head, but 5 targets are out of range; pass loss=\w+\(ignore_index=\.\.\.\)"
    with pytest.raises(ValueError, match=words):
        metric.compute()


def test_reset_forgets_targets_out_of_range():
    metric = RelativeFlatness(validate_args=False)
    metric.update(FEATURES, WEIGHT, LOGITS, TARGET + 4)
    metric.reset()
    metric.update(FEATURES, WEIGHT, LOGITS, TARGET)
    assert "relative_flatness" in metric.compute()


def test_missing_bias():
    with pytest.raises(ValueError, match=r"`bias` must be given with include_bias=True, got None\."):
        RelativeFlatness(include_bias=True).update(FEATURES, WEIGHT, LOGITS)


@pytest.mark.parametrize(
    ("loss", "target", "shown"),
    [
        ("cross_entropy", None, "None"),
        ("huber", torch.zeros_like(LOGITS), rf"torch.float32 \({len(LOGITS)}, {LOGITS.shape[1]}\)"),
    ],
)
def test_means_per_class_need_classes(loss, target, shown):
    metric = RelativeFlatness(loss=loss, num_classes=LOGITS.shape[1])
    with pytest.raises(ValueError, match=rf"`target` must hold one class index per sample with .*, got {shown}\."):
        metric.update(FEATURES, WEIGHT, LOGITS, target)


@pytest.mark.parametrize("max_samples", [0, -3])
def test_room_for_no_sample(max_samples):
    with pytest.raises(ValueError, match=rf"`max_samples` must be >= 1, got {max_samples}\."):
        HeadTopEigenvalue(max_samples)


@pytest.mark.parametrize("metric", [RelativeFlatness("maxeig", "focal"), RelativeFlatness(loss="huber")])
def test_missing_target_is_told_by_update(metric):
    with pytest.raises(
        ValueError, match=r"`target` must be given for (Focal|Huber), whose Hessian needs it, got None\."
    ):
        metric.update(FEATURES, WEIGHT, LOGITS)


def test_missing_target_is_told_by_compute_of_the_eigenvalue():
    metric = HeadTopEigenvalue(loss="huber")
    metric.update(FEATURES, LOGITS)
    with pytest.raises(ValueError, match=r"`target` must be given for Huber, whose Hessian needs it, got None\."):
        metric.compute()


def test_target_out_of_range_is_told_by_compute_of_the_eigenvalue():
    metric = HeadTopEigenvalue()
    metric.update(FEATURES, LOGITS, TARGET + 4)
    with pytest.raises(ValueError, match=r"`target` must be in \[0, 5\) or ignore_index=-100, got 5\."):
        metric.compute()


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ((torch.ones(3, 6), WEIGHT, LOGITS), r"same leading dimensions, got \(3, 6\) and \(4, 5\)\."),
        ((torch.ones(2, 2, 6), WEIGHT, LOGITS), r"same leading dimensions, got \(2, 2, 6\) and \(4, 5\)\."),
        ((FEATURES, WEIGHT, LOGITS, TARGET[:3]), r"`target` must have shape \(4,\) or \(4, 5\), got \(3,\)\."),
        ((FEATURES, WEIGHT, LOGITS, TARGET.unsqueeze(1)), r"`target` must have shape \(4,\) or \(4, 5\), got \(4, 1\)"),
        ((FEATURES, torch.ones(5, 7), LOGITS), r"`features` must have as many columns as `weight` \(7\), got 6\."),
        ((FEATURES, torch.ones(3, 6), LOGITS), r"`logits` must have one column per row of `weight` \(3\), got 5\."),
        ((FEATURES, torch.ones(30), LOGITS), r"`weight` must have 2 dimensions, got shape \(30,\)"),
        ((FEATURES.long(), WEIGHT, LOGITS), r"`features` must be floating point, got torch.int64\."),
        ((FEATURES, WEIGHT, LOGITS, TARGET, torch.ones(4)), r"`bias` must have shape \(5,\), got \(4,\)\."),
        (
            (FEATURES, WEIGHT, LOGITS, LOGITS.long()),
            r"one class index per sample, shape \(4,\), got torch.int64 \(4, 5",
        ),
    ],
)
def test_shapes_that_do_not_fit(update, words, unchecked_shapes):
    metric = RelativeFlatness(include_bias=len(update) == 5)
    with unchecked_shapes, pytest.raises(ValueError, match=words):
        metric.update(*update)


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ((torch.ones(3, 6), LOGITS), r"same leading dimensions, got \(3, 6\) and \(4, 5\)\."),
        ((FEATURES, LOGITS, TARGET[:3]), r"`target` must have shape \(4,\) or \(4, 5\), got \(3,\)\."),
    ],
)
def test_shapes_that_do_not_fit_the_eigenvalue(update, words, unchecked_shapes):
    with unchecked_shapes, pytest.raises(ValueError, match=words):
        HeadTopEigenvalue().update(*update)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variant": "sharp"}, "`variant` must be one of neuronwise, layerwise, maxeig, got 'sharp'"),
        ({"loss": "hinge"}, "`loss` must be one of cross_entropy, .* got 'hinge'"),
        ({"loss": torch.nn.L1Loss()}, "`loss` does not support torch.nn.L1Loss"),
        ({"loss": 3}, r"`loss` must be a name, a torch.nn loss or a function, got 3\."),
    ],
)
def test_configurations_there_are_not(arguments, words, unchecked_shapes):
    with unchecked_shapes, pytest.raises(ValueError, match=words):
        RelativeFlatness(**arguments)
