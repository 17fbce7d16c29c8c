"""What ``HeadScaling`` computes."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_flatness.functional import scale_head
from lightning_flatness.metrics import HeadScaling
from tests.functional.test_head_scaling import problem

SCALES = (0.5, 1.0, 4.0, 50.0)


def inputs(samples=200):
    head, features, logits, target = problem(samples=samples)
    return {"features": features, "weight": head.weight.detach(), "logits": logits, "target": target}


def part(given, rows):
    return {name: value if name == "weight" else value[rows] for name, value in given.items()}


def updated(given, *parts):
    metric = HeadScaling(SCALES)
    for rows in parts or (slice(None),):
        metric.update(**part(given, rows))
    return metric


def test_values_are_means_of_the_samples():
    given = inputs()
    found, scaled = updated(given).compute(), scale_head(**given, scales=SCALES)
    for name in ("relative_flatness", "loss", "confidence"):
        torch.testing.assert_close(found[name], getattr(scaled, name).mean(1), rtol=1e-12, atol=0)
    assert found["clean_accuracy"].tolist() == [scaled.correct[0].double().mean().item()] * len(SCALES)
    medians = scaled.relative_flatness.sort(1).values[:, 99]
    torch.testing.assert_close(found["relative_flatness_median"], medians, rtol=0.0101, atol=1e-100)
    assert (found["scale"].tolist(), int(found["samples"]), int(found["nonfinite"])) == (list(SCALES), 200, 0)


def test_calibration_error_is_that_of_torchmetrics():
    given = inputs()
    found = updated(given).compute()["calibration_error"]
    for scale, error in zip(SCALES[:3], found, strict=False):  # torchmetrics has a bin of its own for exactly 1
        probs = (scale * given["logits"]).softmax(1)
        expected = multiclass_calibration_error(probs, given["target"], num_classes=5, n_bins=15)
        assert error.item() == pytest.approx(expected.item(), rel=1e-5)


def test_batches_and_tokens_do_not_matter():
    given = inputs()
    whole = updated(given).compute()
    split = updated(given, slice(0, 1), slice(1, 90), slice(90, 90), slice(90, 200)).compute()
    tokens = HeadScaling(SCALES)
    tokens.update(**{name: value if name == "weight" else value.unflatten(0, (50, 4)) for name, value in given.items()})
    for other in (split, tokens.compute()):
        for name, value in whole.items():
            torch.testing.assert_close(other[name], value, rtol=1e-12, atol=0)


def test_ignored_and_nonfinite_samples_do_not_count():
    given = inputs(60)
    expected = updated(given, slice(4, 60)).compute()
    given["target"][:2] = -100
    given["features"][2, 0] = torch.nan
    given["logits"][3, 1] = torch.inf
    found = updated(given).compute()
    assert int(found.pop("nonfinite")) == 2
    expected.pop("nonfinite")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_weight_that_is_not_finite_leaves_out_its_samples():
    given, metric = inputs(7), updated(inputs(60))
    expected = metric.compute()
    metric.update(given["features"], given["weight"].clone().fill_(torch.inf), given["logits"], given["target"])
    found = metric.compute()
    assert int(found.pop("nonfinite")) == expected.pop("nonfinite") + 7
    torch.testing.assert_close(found, expected)


def test_without_samples():
    metric = updated(inputs(), slice(0, 0))
    assert metric.compute().keys() == {"scale", "samples", "nonfinite"}
    assert not metric.plot()[1].lines


def test_plot_shows_flatness_over_the_scale():
    metric = updated(inputs())
    _, axes = metric.plot()
    (line,) = axes.lines
    assert list(line.get_xdata()) == list(SCALES)
    assert list(line.get_ydata()) == pytest.approx(metric.compute()["relative_flatness"].tolist())


def test_wrong_scales():
    with pytest.raises(ValueError, match=r"`scales` must differ, got \[1.0, 1.0\]."):
        HeadScaling([1.0, 1.0])
