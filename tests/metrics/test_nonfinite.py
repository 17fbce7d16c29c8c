"""Samples that are not finite, and numbers at the ends of the range."""

import math

import pytest
import torch

from lightning_flatness.metrics import RelativeFlatness
from tests.metrics.problems import head_inputs, of_samples, scalars, without

VARIANTS = pytest.mark.parametrize("variant", ["neuronwise", "layerwise", "maxeig"])
NONFINITE = pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
EVERYTHING = {
    "geometry_factor",
    *("relative_flatness", "geometric_mean", "median", "p90", "p99", "layerwise", "confidence_factor"),
    *("feature_norm", "weight_norm", "correct", "wrong", "nonfinite"),
}


@VARIANTS
@NONFINITE
@pytest.mark.parametrize("name", ["features", "logits"])
def test_samples_that_are_not_finite_are_counted_and_left_out(name, bad, variant):
    spoilt = torch.tensor([0, 7, 8, 39])
    inputs = without(head_inputs(), "bias")
    metric, clean = RelativeFlatness(variant), RelativeFlatness(variant)
    clean.update(**of_samples(inputs, [sample for sample in range(40) if sample not in spoilt]))
    inputs[name][spoilt, 2] = bad
    metric.update(**inputs)
    expected = scalars(clean.compute()) | {"nonfinite": 4}
    assert scalars(metric.compute()) == pytest.approx(expected, rel=1e-12, abs=0)
    assert metric.histograms == clean.histograms


@VARIANTS
@NONFINITE
def test_a_weight_that_is_not_finite_spoils_its_batch_only(bad, variant):
    inputs = without(head_inputs(), "bias")
    metric, clean = RelativeFlatness(variant), RelativeFlatness(variant)
    metric.update(**inputs)
    clean.update(**inputs)
    weight = inputs["weight"].clone()
    weight[1, 2] = bad
    metric.update(**inputs | {"weight": weight})
    assert scalars(metric.compute()) == scalars(clean.compute()) | {"nonfinite": 40}


@pytest.mark.parametrize("name", ["features", "weight", "logits"])
def test_nothing_but_the_count_where_all_samples_are_bad(name):
    inputs = head_inputs()
    metric = RelativeFlatness()
    metric.update(**inputs | {name: inputs[name] * torch.nan})
    assert scalars(metric.compute()) == {"nonfinite": 40}
    assert metric.histograms == {}


def test_ignored_samples_are_not_counted_as_bad():
    inputs = head_inputs()
    metric = RelativeFlatness()
    metric.update(**inputs | {"features": inputs["features"] * torch.nan, "target": torch.full((40,), -100)})
    assert scalars(metric.compute()) == {"nonfinite": 0}


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_an_empty_batch_adds_nothing(shape):
    metric = RelativeFlatness()
    metric.update(torch.ones(*shape, 6), torch.ones(5, 6), torch.ones(*shape, 5), torch.ones(shape, dtype=torch.long))
    assert scalars(metric.compute()) == {"nonfinite": 0}


def test_nothing_seen_gives_the_count_alone_and_torchmetrics_warns():
    metric = RelativeFlatness()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert scalars(metric.compute()) == {"nonfinite": 0}


@VARIANTS
@pytest.mark.parametrize("rest", [1e-30, 1e-200, 1e-300])
def test_geometric_mean_of_confident_samples_does_not_underflow(rest, variant):
    """Of two classes, with q the probability of the wrong one and p = 1: κ is q times 2·2, 2·4 and 2·4."""
    logits = torch.tensor([[0.0, -math.log(rest)]], dtype=torch.float64)
    metric = RelativeFlatness(variant)
    weight = torch.eye(2, dtype=torch.float64)
    metric.update(torch.ones(1, 2, dtype=torch.float64), weight, logits)
    factor = {"neuronwise": 4, "layerwise": 8, "maxeig": 8}[variant]
    assert float(metric.compute()["geometric_mean"]) == pytest.approx(factor * rest, rel=1e-10, abs=0)


def test_geometric_mean_uses_logarithms_where_the_values_themselves_underflow():
    logits = torch.tensor([[0.0, 1000.0], [0.0, 0.0]], dtype=torch.float64)
    metric = RelativeFlatness()
    metric.update(torch.ones(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), logits)
    expected = math.exp((-1000 + math.log(4) + math.log(1)) / 2)
    assert float(metric.compute()["geometric_mean"]) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("scale", [1e-100, 1e-20, 1e20, 1e70])
def test_huge_and_small_features_only_scale_the_result(scale):
    inputs = without(head_inputs(), "bias")
    metric, plain = RelativeFlatness(), RelativeFlatness()
    plain.update(**inputs)
    metric.update(**inputs | {"features": inputs["features"] * scale})
    result, expected = scalars(metric.compute()), scalars(plain.compute())
    for name in ("relative_flatness", "geometric_mean", "layerwise", "correct", "wrong"):
        assert result[name] == pytest.approx(expected[name] * scale**2, rel=1e-9, abs=0), name
    assert result["nonfinite"] == 0


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_features_in_single_precision_are_measured_at_every_size(scale):
    inputs = without(head_inputs(dtype=torch.float32), "bias")
    metric, plain = RelativeFlatness(), RelativeFlatness()
    plain.update(**inputs)
    metric.update(**inputs | {"features": inputs["features"] * scale})
    result = scalars(metric.compute())
    assert result["nonfinite"] == 0
    assert result["feature_norm"] == pytest.approx(float(plain.compute()["feature_norm"]) * scale, rel=1e-5, abs=0)


@VARIANTS
def test_head_of_zeros_is_perfectly_flat_and_finite(variant):
    inputs = without(head_inputs(), "bias")
    metric = RelativeFlatness(variant)
    metric.update(**inputs | {"weight": torch.zeros_like(inputs["weight"])})
    result = scalars(metric.compute())
    assert result.keys() == EVERYTHING
    zeros = EVERYTHING - {"confidence_factor", "feature_norm"}
    assert {name: result[name] for name in zeros} == dict.fromkeys(zeros, 0.0)
    assert min(result["confidence_factor"], result["feature_norm"]) > 0
    assert {sum(histogram.counts) for histogram in metric.histograms.values()} == {0}


def test_samples_of_no_flatness_are_left_out_of_the_geometric_mean():
    inputs = without(head_inputs(), "bias")
    metric, part = RelativeFlatness(), RelativeFlatness()
    part.update(**of_samples(inputs, slice(20, 40)))
    inputs["features"][:20] = 0
    metric.update(**inputs)
    assert float(metric.compute()["geometric_mean"]) == pytest.approx(float(part.compute()["geometric_mean"]))
    assert float(metric.compute()["relative_flatness"]) == pytest.approx(
        float(part.compute()["relative_flatness"]) / 2, rel=1e-12
    )
    assert float(metric.compute()["median"]) == 0.0
