"""Relative flatness as something to differentiate, and where nothing can be recorded."""

import pytest
import torch
from hypothesis import assume, given, settings
from torch.autograd import gradcheck
from torch.testing import assert_close

from lightning_flatness.functional import head_top_eigenvalue, relative_flatness
from lightning_flatness.functional.losses import Focal
from tests.functional.oracles import CASES, VARIANTS
from tests.functional.strategies import problems

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_loss = pytest.mark.parametrize("case", CASES, ids=str)


def leaves(*shapes, scale=1.0):
    return tuple((scale * torch.randn(shape, dtype=torch.float64)).requires_grad_() for shape in shapes)


def naive_flatness(features, weight, logits, variant):
    p = logits.softmax(1)
    hessian = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    if variant == "neuronwise":
        curvature = torch.einsum("bjk,jd,kd->b", hessian, weight, weight)
    elif variant == "layerwise":
        curvature = weight.square().sum() * torch.einsum("bkk->b", hessian)
    else:
        curvature = weight.square().sum() * torch.linalg.eigvalsh(hessian)[:, -1]
    return features.square().sum(1) * curvature


@every_variant
@given(problem=problems())
@settings(max_examples=20)
def test_gradients_of_cross_entropy_are_those_of_the_naive_formula(variant, problem):
    values = problem.logits.sort(dim=1).values
    assume((values[:, -1] - values[:, -2] > 1e-3).all())  # the eigenvector needs two different largest logits
    inputs = tuple(tensor.clone().requires_grad_() for tensor in (problem.features, problem.weight, problem.logits))
    weights = torch.arange(1.0, 1 + len(problem.features), dtype=torch.float64)
    value = relative_flatness(*inputs, variant=variant)
    gradients = torch.autograd.grad(value @ weights, inputs)
    expected = torch.autograd.grad(naive_flatness(*inputs, variant) @ weights, inputs)
    assert_close(gradients, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("log_probs", [[0.4, 0.4, 0.2], [0.3, 0.3, 0.2, 0.2], [0.5, 0.5]], ids=str)
def test_gradient_of_maxeig_where_the_two_largest_logits_are_equal(log_probs):
    features, weight = leaves((1, 2), (len(log_probs), 2))
    logits = torch.tensor([log_probs], dtype=torch.float64).log().requires_grad_()
    (gradient,) = torch.autograd.grad(relative_flatness(features, weight, logits, variant="maxeig").sum(), logits)
    (expected,) = torch.autograd.grad(naive_flatness(features, weight, logits, "maxeig").sum(), logits)
    assert_close(gradient, expected)


@pytest.mark.parametrize("variant", ["neuronwise", "maxeig"])
@every_loss
def test_gradients_are_those_of_finite_differences(case, variant):
    inputs = leaves((2, 2), (3, 2), (2, 3))
    target, loss = case.target(torch.randn(2, 3, dtype=torch.float64)), case.loss(3)

    def value(features, weight, logits):
        return relative_flatness(features, weight, logits, target, variant=variant, loss=loss)

    assert gradcheck(value, inputs)


def test_gradient_in_the_bias_of_the_block():
    features, weight, logits, bias = leaves((2, 2), (3, 2), (2, 3), (3,))
    assert gradcheck(lambda *inputs: relative_flatness(*inputs[:3], bias=inputs[3]), (features, weight, logits, bias))


def test_gradient_through_the_pass_in_float64_of_doubtful_rows():
    """Two top rows nearly alike, and three far ahead in probability: float32 is not enough."""
    weight = torch.randn(6, 2)
    weight[1:3] = weight[0] + 1e-3 * torch.randn(2, 2)
    inputs = torch.randn(1, 2), weight, torch.tensor([[20.0, 19, 19, 0, 0, 0]])
    narrow = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    wide = tuple(tensor.double().requires_grad_() for tensor in inputs)
    gradients = torch.autograd.grad(relative_flatness(*narrow).sum(), narrow)
    expected = torch.autograd.grad(relative_flatness(*wide).sum(), wide)
    for gradient, exact in zip(gradients, expected, strict=True):
        assert_close(gradient.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


@every_variant
@pytest.mark.parametrize("gap", [0.0, 30.0, 100.0, 1000.0])
@pytest.mark.parametrize("loss", ["cross_entropy", Focal(0.5), "focal"], ids=["cross_entropy", "focal_half", "focal_2"])
def test_gradients_are_finite_at_every_confidence(loss, gap, variant):
    features, weight, _ = inputs = leaves((1, 2), (3, 2), (1, 3))
    logits = torch.tensor([[gap, 0.3, 0.0]], dtype=torch.float64, requires_grad=True)
    inputs = features, weight, logits
    value = relative_flatness(*inputs, torch.tensor([0]), variant=variant, loss=loss)
    for gradient in torch.autograd.grad(value.sum(), inputs):
        assert gradient.isfinite().all()


@every_variant
@every_loss
def test_values_are_the_same_where_nothing_can_be_recorded(case, variant):
    loss = case.loss(3)

    def value():
        generator = torch.Generator().manual_seed(1)
        features, weight, logits, raw = (
            torch.randn(shape, generator=generator) for shape in ((4, 2), (3, 2), (4, 3), (4, 3))
        )
        return relative_flatness(features, weight, logits, case.target(raw), variant=variant, loss=loss)

    expected = value()
    with torch.no_grad():
        assert_close(value(), expected)
    with torch.inference_mode():
        assert_close(value(), expected)


@every_loss
def test_top_eigenvalue_is_the_same_where_nothing_can_be_recorded(case):
    loss = case.loss(3)

    def value():
        generator = torch.Generator().manual_seed(1)
        features, logits, raw = (torch.randn(shape, generator=generator) for shape in ((4, 2), (4, 3), (4, 3)))
        return head_top_eigenvalue(features, logits, case.target(raw), loss=loss)

    expected = value()
    with torch.inference_mode():
        assert_close(value(), expected)


def test_inputs_gather_no_gradient_of_their_own():
    features, weight, logits = leaves((2, 2), (3, 2), (2, 3))
    relative_flatness(features, weight, logits, torch.tensor([0, 1]), loss="focal")
    assert features.grad is None
    assert weight.grad is None
    assert logits.grad is None
