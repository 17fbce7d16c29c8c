"""What ``HeadTopEigenvalue`` computes."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_flatness.functional import head_top_eigenvalue
from lightning_flatness.functional.losses import CrossEntropy
from lightning_flatness.metrics import HeadTopEigenvalue
from tests.metrics.problems import head_inputs, of_samples, without


def samples(count=40):
    return without(head_inputs(count), "weight", "bias")


def dense_top_eigenvalue(inputs, scale=1.0):
    """Of the mean cross-entropy's Hessian in the weight of the head, written out."""
    hessian = 0
    for features, logits in zip(inputs["features"], inputs["logits"], strict=True):
        probs = (logits / scale).softmax(0)
        hessian += torch.kron(torch.diag(probs) - torch.outer(probs, probs), torch.outer(features, features))
    return float(torch.linalg.eigvalsh(hessian / len(inputs["logits"]))[-1]) / scale**2


@pytest.mark.parametrize("include_bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_is_the_largest_eigenvalue_of_the_dense_hessian(temperature, include_bias):
    inputs = samples()
    metric = HeadTopEigenvalue(loss=CrossEntropy(temperature=temperature), include_bias=include_bias)
    metric.update(**inputs)
    if include_bias:
        inputs["features"] = torch.cat([inputs["features"], torch.ones(40, 1, dtype=torch.float64)], 1)
    assert float(metric.compute()) == pytest.approx(dense_top_eigenvalue(inputs, temperature), rel=2e-4)


@pytest.mark.parametrize(
    ("loss", "soft"), [("focal", False), ("binary_cross_entropy", True), ("mse", True), ("huber", True)]
)
def test_is_the_functional_value(loss, soft):
    inputs = samples()
    if soft:
        inputs["target"] = inputs["logits"].softmax(1)
    metric = HeadTopEigenvalue(loss=loss)
    metric.update(**inputs)
    assert float(metric.compute()) == pytest.approx(float(head_top_eigenvalue(**inputs, loss=loss)), rel=2e-4)


@settings(max_examples=10)
@given(cuts=st.sets(st.integers(1, 39), max_size=12), max_samples=st.integers(1, 50))
def test_is_the_same_under_any_batching(cuts, max_samples):
    whole, parts = HeadTopEigenvalue(max_samples), HeadTopEigenvalue(max_samples)
    whole.update(**samples())
    for start, stop in pairwise([0, *sorted(cuts), 40]):
        parts.update(**of_samples(samples(), slice(start, stop)))
    assert torch.equal(parts.compute(), whole.compute())


def test_order_of_the_samples_does_not_matter():
    forward, backward = HeadTopEigenvalue(), HeadTopEigenvalue()
    forward.update(**samples())
    backward.update(**of_samples(samples(), torch.arange(39, -1, -1)))
    assert float(backward.compute()) == pytest.approx(float(forward.compute()), rel=2e-4)


def test_looks_at_the_first_samples_that_count_only():
    inputs = samples()
    inputs["target"][::2] = -100
    metric = HeadTopEigenvalue(max_samples=7)
    for rows in torch.arange(40).split(9):
        metric.update(**of_samples(inputs, rows))
    expected = dense_top_eigenvalue(of_samples(inputs, slice(1, 15, 2)))
    assert float(metric.compute()) == pytest.approx(expected, rel=2e-4)


def test_keeps_no_more_than_max_samples():
    metric = HeadTopEigenvalue(max_samples=7)
    for rows in torch.arange(40).split(5):
        metric.update(**of_samples(samples(), rows))
    columns = sum(part.shape[1] if part.ndim > 1 else 1 for part in of_samples(samples(), torch.arange(1)).values())
    assert sum(map(len, metric.samples)) == 7 * columns


@pytest.mark.parametrize("soft", [False, True])
def test_leading_dimensions_are_samples(soft):
    inputs = samples()
    if soft:
        inputs["target"] = inputs["logits"].softmax(1)
    tokens = {name: value.unflatten(0, (8, 5)) for name, value in inputs.items()}
    flat, nested = HeadTopEigenvalue(), HeadTopEigenvalue()
    flat.update(**inputs)
    nested.update(**tokens)
    assert torch.equal(nested.compute(), flat.compute())


def test_no_target_is_needed_for_cross_entropy():
    metric = HeadTopEigenvalue()
    metric.update(**without(samples(), "target"))
    assert float(metric.compute()) == pytest.approx(dense_top_eigenvalue(samples()), rel=2e-4)


@pytest.mark.parametrize("name", ["features", "logits"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_samples_that_are_not_finite_are_left_out(name, bad):
    inputs = samples()
    inputs[name][3, 2] = bad
    metric, clean = HeadTopEigenvalue(), HeadTopEigenvalue()
    metric.update(**inputs)
    clean.update(**of_samples(samples(), torch.arange(40) != 3))
    assert torch.equal(metric.compute(), clean.compute())


@pytest.mark.parametrize("target", [None, torch.full((4,), -100)])
def test_cannot_be_had_where_no_sample_counts(target):
    metric = HeadTopEigenvalue()
    metric.update(torch.full((4, 6), torch.nan if target is None else 1.0), torch.ones(4, 5), target)
    assert metric.compute().isnan()
