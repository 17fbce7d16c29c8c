"""Every loss and variant against the literal Hessian of one sample's loss, in float64."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.functional import hessian
from torch.testing import assert_close

from lightning_flatness.functional import feature_hessian_trace, flatness_factors, relative_flatness
from lightning_flatness.functional.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    Huber,
    MeanSquaredError,
    PoissonNLL,
    TrueClassLoss,
    resolve_loss,
)
from tests.functional.oracles import CASE, CASES, VARIANTS, brier, flatness_of_hessian, head_hessian
from tests.functional.strategies import Problem, problems

TOLERANCE = {"rtol": 1e-8, "atol": 1e-9}  # what the autograd Hessian is worth at e^-24, the least q drawn

every_loss = pytest.mark.parametrize("case", CASES, ids=str)
few_examples = settings(max_examples=6)  # each takes a dozen backward passes per sample


def away_from_kinks(case, problem):
    """Return the target, of which no residual lies where the loss has no second derivative."""
    target = case.target(problem.raw_target)
    if case.kink is not None:
        assume(((problem.logits - target).abs() - case.kink).abs().min() > 1e-6)
    return target


@every_loss
@given(problem=problems(), bias_counts=st.booleans())
@few_examples
def test_every_variant_is_what_its_definition_says(case, problem, bias_counts):
    features, weight, bias, logits, _ = problem
    target = away_from_kinks(case, problem)
    if bias_counts:
        block_weight = torch.cat([weight, bias.unsqueeze(1)], dim=1)
        inputs, shift = torch.cat([features, torch.ones(len(features), 1)], dim=1), torch.zeros_like(bias)
    else:
        block_weight, inputs, shift = weight, features, bias
    expected = [
        flatness_of_hessian(head_hessian(case, row, block_weight, shift, label), block_weight)
        for row, label in zip(inputs, target, strict=True)
    ]
    for variant in VARIANTS:
        value = relative_flatness(
            features,
            weight,
            logits,
            target,
            variant=variant,
            loss=case.loss(len(weight)),
            bias=bias if bias_counts else None,
        )
        assert_close(value, torch.tensor([row[variant] for row in expected], dtype=torch.float64), **TOLERANCE)


@every_loss
@given(problem=problems())
@few_examples
def test_feature_hessian_trace_is_the_trace_of_the_hessian_in_the_features(case, problem):
    features, weight, bias, logits, _ = problem
    target = away_from_kinks(case, problem)
    expected = [
        hessian(lambda x, y=y: case.reference((weight @ x + bias).unsqueeze(0), y.unsqueeze(0)), row).trace()
        for row, y in zip(features, target, strict=True)
    ]
    value = feature_hessian_trace(weight, logits, target, loss=case.loss(len(weight)))
    assert_close(value, torch.stack(expected), **TOLERANCE)


@pytest.mark.parametrize(
    "name", ["cross_entropy", "ignore_index", "mse_sum", "bce_pos_weight", "focal_2", "brier_function"]
)
@given(problem=problems())
@few_examples
def test_factors_multiply_to_both_flatnesses(name, problem):
    case = CASE[name]
    features, weight, _, logits, _ = problem
    target, loss = case.target(problem.raw_target), case.loss(len(weight))
    factors = flatness_factors(features, weight, logits, target, loss=loss)
    assert_close(factors.feature_norm, features.norm(dim=1))
    assert_close(factors.weight_norm, weight.norm())
    neuronwise = relative_flatness(features, weight, logits, target, loss=loss)
    assert_close(factors.neuronwise().linear(), neuronwise)
    assert_close(feature_hessian_trace(weight, logits, target, loss=loss) * features.square().sum(1), neuronwise)
    layerwise = relative_flatness(features, weight, logits, target, loss=loss, variant="layerwise")
    assert_close(factors.layerwise().linear(), layerwise)


def problem_of(batch=4, classes=3, dim=2):
    features, weight = torch.randn(batch, dim, dtype=torch.float64), torch.randn(classes, dim, dtype=torch.float64)
    bias = torch.randn(classes, dtype=torch.float64)
    raw_target = torch.randn(batch, classes, dtype=torch.float64)
    return Problem(features, weight, bias, features @ weight.T + bias, raw_target)


CLASS_WEIGHT = torch.tensor([0.3, 1.7, 2.2])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("module", "loss", "kind"),
    [
        (nn.CrossEntropyLoss(), CrossEntropy(), "cross_entropy"),
        (
            nn.CrossEntropyLoss(CLASS_WEIGHT, ignore_index=1, label_smoothing=0.2),
            CrossEntropy(CLASS_WEIGHT, 1, 0.2),
            "class_weights",
        ),
        (nn.NLLLoss(CLASS_WEIGHT, ignore_index=1), CrossEntropy(CLASS_WEIGHT, 1), "class_weights"),
        (nn.MSELoss(), MeanSquaredError(), "mse_mean"),
        (nn.MSELoss(reduction="sum"), MeanSquaredError("sum"), "mse_sum"),
        (
            nn.BCEWithLogitsLoss(CLASS_WEIGHT, pos_weight=1 / CLASS_WEIGHT, reduction="sum"),
            BinaryCrossEntropy(1 / CLASS_WEIGHT, CLASS_WEIGHT, "sum"),
            "bce",
        ),
        (nn.HuberLoss(delta=0.5), Huber(0.5), "huber"),
        (nn.SmoothL1Loss(beta=0.5), Huber(0.5, scale=2.0), "huber"),
        (nn.PoissonNLLLoss(reduction="sum", full=True), PoissonNLL("sum"), "poisson_sum"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_torch_module_is_the_loss_it_computes(module, loss, kind, variant):
    problem = problem_of()
    arguments = problem.features, problem.weight, problem.logits, CASE[kind].target(problem.raw_target)
    expected = relative_flatness(*arguments, variant=variant, loss=loss)
    assert_close(relative_flatness(*arguments, variant=variant, loss=module), expected, rtol=0, atol=0)


def test_a_subclass_of_a_torch_loss_with_its_own_forward_is_not_taken_for_its_parent():
    class Doubled(nn.CrossEntropyLoss):
        def forward(self, logits, target):
            return 2 * super().forward(logits, target)

    features, weight, _, logits, raw_target = problem_of()
    value = relative_flatness(features, weight, logits, raw_target.argmax(1), loss=Doubled(reduction="none"))
    assert_close(value, 2 * relative_flatness(features, weight, logits))


def test_a_module_with_parameters_in_float32_is_evaluated_in_float64():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0))

        def forward(self, logits, target):
            return self.scale * brier(logits, target)

    features, weight, _, logits, raw_target = problem_of()
    module, target = Scaled(), raw_target.argmax(1)
    value = relative_flatness(features, weight, logits, target, loss=module)
    assert_close(value.detach(), 3 * relative_flatness(features, weight, logits, target, loss=brier))
    assert module.scale.dtype == torch.float32
    assert module.scale.grad is None


def test_targets_of_one_class_may_lack_the_class_dimension():
    features, weight, logits = torch.randn(4, 2), torch.randn(1, 2), torch.randn(4, 1)
    target = torch.tensor([0.0, 1.0, 1.0, 0.0])
    loss = BinaryCrossEntropy(pos_weight=[3.0])
    expected = relative_flatness(features, weight, logits, target.unsqueeze(1), loss=loss)
    assert_close(relative_flatness(features, weight, logits, target, loss=loss), expected)


def test_a_loss_is_resolved_once():
    loss = resolve_loss("focal")
    assert resolve_loss(loss) is loss


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_logit_is_no_softmax(variant):
    with pytest.raises(ValueError, match=r'at least 2 columns .* got 1; pass loss="binary_cross_entropy"'):
        relative_flatness(torch.randn(2, 3), torch.randn(1, 3), torch.randn(2, 1), variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["cross_entropy", "focal_2", "mse_mean", "brier_function"])
def test_no_sample_gives_no_value(name, variant):
    target = CASE[name].target(torch.empty(0, 5))
    loss = CASE[name].loss(5)
    value = relative_flatness(
        torch.empty(0, 3), torch.randn(5, 3), torch.empty(0, 5), target, variant=variant, loss=loss
    )
    assert value.shape == (0,)


@pytest.mark.parametrize(
    "loss", [CrossEntropy(), CrossEntropy(weight=[1.0] * 200), "focal"], ids=["ce", "weighted", "focal"]
)
def test_byte_targets_are_classes_as_they_are_for_torch(loss):
    features, weight, logits = torch.randn(2, 3), torch.randn(200, 3), torch.randn(2, 200)
    target = torch.tensor([3, 156])
    value = relative_flatness(features, weight, logits, target.to(torch.uint8), loss=loss)
    assert_close(value, relative_flatness(features, weight, logits, target, loss=loss))


def test_a_true_class_loss_may_be_linear_with_a_learnt_slope():
    slope = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    features, weight, _, logits, raw_target = problem_of()
    loss = TrueClassLoss(lambda log_prob, _: -slope * log_prob)
    value = relative_flatness(features, weight, logits, raw_target.argmax(1), loss=loss)
    assert_close(value.detach(), 2 * relative_flatness(features, weight, logits))


@pytest.mark.parametrize(
    "make",
    [
        CrossEntropy,
        lambda weight: BinaryCrossEntropy(pos_weight=weight),
        lambda weight: BinaryCrossEntropy(weight=weight),
        lambda weight: Focal(alpha=weight),
    ],
    ids=["cross_entropy", "pos_weight", "bce_weight", "focal_alpha"],
)
def test_weights_given_as_numbers_are_not_rounded(make):
    features, weight, _, logits, raw_target = problem_of()
    loss, same = make([0.1, 0.2, 0.3]), make(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    target = raw_target.sigmoid() if isinstance(loss, BinaryCrossEntropy) else raw_target.argmax(1)
    value = relative_flatness(features, weight, logits, target, loss=loss)
    assert_close(value, relative_flatness(features, weight, logits, target, loss=same), rtol=1e-12, atol=0)
