"""What holds for every problem, whatever the numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lightning_flatness.functional import relative_flatness
from lightning_flatness.functional.losses import BinaryCrossEntropy, CrossEntropy
from tests.functional.oracles import CASE, VARIANTS, flatness_of_hessian, head_hessian
from tests.functional.strategies import confident_problems, matrices, problems

every_variant = pytest.mark.parametrize("variant", VARIANTS)
some_examples = settings(max_examples=25)
CLOSE = {"rtol": 1e-9, "atol": 1e-300}


@given(confident_problems())
@some_examples
def test_neuronwise_and_maxeig_are_at_most_layerwise(problem):
    features, weight, _, logits, _ = problem
    value = {variant: relative_flatness(features, weight, logits, variant=variant) for variant in VARIANTS}
    assert (value["neuronwise"] <= value["layerwise"] * (1 + 1e-9)).all()
    assert (value["maxeig"] <= value["layerwise"] * (1 + 1e-9)).all()


@every_variant
@given(confident_problems())
@some_examples
def test_cross_entropy_is_never_negative_in_float32(variant, problem):
    arguments = (tensor.float() for tensor in (problem.features, problem.weight, problem.logits))
    assert (relative_flatness(*arguments, variant=variant) >= 0).all()


@given(problem=confident_problems(), shift=matrices(1, 3, bound=4.0))
@some_examples
def test_neuronwise_does_not_see_a_vector_added_to_all_rows(problem, shift):
    features, weight, _, logits, _ = problem
    moved = weight + shift[:, : weight.shape[1]]
    # atol: adding rounds the rows themselves, by 1e-15 of their length
    expected = relative_flatness(features, weight, logits)
    assert_close(relative_flatness(features, moved, logits), expected, rtol=1e-6, atol=1e-20)


def test_layerwise_sees_a_vector_added_to_all_rows():
    features, weight, logits = torch.randn(1, 3), torch.randn(4, 3), torch.randn(1, 4)
    before, after = (relative_flatness(features, w, logits, variant="layerwise") for w in (weight, weight + 9))
    assert after > 2 * before


@every_variant
@given(problem=confident_problems(), scale=st.floats(1e-3, 1e3))
@some_examples
def test_no_variant_sees_a_scale_moved_from_weight_to_features(variant, problem, scale):
    features, weight, _, logits, _ = problem
    moved = relative_flatness(scale * features, weight / scale, logits, variant=variant)
    assert_close(moved, relative_flatness(features, weight, logits, variant=variant), **CLOSE)


@every_variant
@given(problem=confident_problems(), scale=st.floats(1e-3, 1e3))
@some_examples
def test_every_variant_grows_with_the_square_of_the_features(variant, problem, scale):
    features, weight, _, logits, _ = problem
    scaled = relative_flatness(scale * features, weight, logits, variant=variant)
    assert_close(scaled, scale**2 * relative_flatness(features, weight, logits, variant=variant), **CLOSE)


@every_variant
@given(confident_problems())
@some_examples
def test_cross_entropy_does_not_see_the_target(variant, problem):
    features, weight, _, logits, raw_target = problem
    expected = relative_flatness(features, weight, logits, variant=variant)
    loss = CrossEntropy(label_smoothing=0.3)
    for target in (raw_target.argmax(1), raw_target.softmax(1)):
        value = relative_flatness(features, weight, logits, target, variant=variant, loss=loss)
        assert_close(value, expected, rtol=0, atol=0)


@every_variant
@given(problem=confident_problems(), data=st.data())
@some_examples
def test_order_of_the_classes_does_not_matter(variant, problem, data):
    features, weight, _, logits, _ = problem
    order = data.draw(st.permutations(range(len(weight))))
    permuted = relative_flatness(features, weight[order], logits[:, order], variant=variant)
    assert_close(permuted, relative_flatness(features, weight, logits, variant=variant), rtol=1e-8, atol=1e-200)


@every_variant
@given(confident_problems())
@some_examples
def test_log_is_the_logarithm(variant, problem):
    features, weight, _, logits, _ = problem
    log = relative_flatness(features, weight, logits, variant=variant, log=True)
    assert_close(log, relative_flatness(features, weight, logits, variant=variant).log())


@pytest.mark.parametrize("name", ["cross_entropy", "class_weights", "mse_sum", "focal_2"])
@given(problem=problems())
@settings(max_examples=10)
def test_mean_over_samples_is_the_value_of_the_mean_loss(name, problem):
    features, weight, bias, logits, raw_target = problem
    case = CASE[name]
    target = case.target(raw_target)
    mean_block = sum(head_hessian(case, x, weight, bias, y) for x, y in zip(features, target, strict=True)) / len(
        target
    )
    expected = flatness_of_hessian(mean_block, weight)
    loss = case.loss(len(weight))
    for variant in ("neuronwise", "layerwise"):
        value = relative_flatness(features, weight, logits, target, variant=variant, loss=loss).mean()
        assert value.item() == pytest.approx(expected[variant], rel=1e-8, abs=1e-9)
    value = relative_flatness(features, weight, logits, target, variant="maxeig", loss=loss).mean()
    assert value.item() >= expected["maxeig"] - 1e-9


@every_variant
@pytest.mark.parametrize(
    "name", ["cross_entropy", "class_weights", "mse_mean", "bce_pos_weight", "focal_2", "brier_function"]
)
def test_a_sample_does_not_see_its_batch(name, variant):
    """3000 samples are several internal chunks."""
    case = CASE[name]
    features, weight, logits = torch.randn(3000, 5), torch.randn(4, 5), 5 * torch.randn(3000, 4)
    target, loss = case.target(torch.randn(3000, 4)), case.loss(4)
    whole = relative_flatness(features, weight, logits, target, variant=variant, loss=loss)
    for rows in (slice(0, 1), slice(1020, 1030), slice(2999, 3000)):
        part = relative_flatness(features[rows], weight, logits[rows], target[rows], variant=variant, loss=loss)
        assert_close(whole[rows], part, rtol=1e-6, atol=1e-12)


def test_a_sample_with_the_ignored_target_counts_nothing():
    features, weight, logits = torch.randn(3, 5), torch.randn(4, 5), torch.randn(3, 4)
    target = torch.tensor([0, -100, 3])
    assert_close(
        relative_flatness(features, weight, logits, target),
        relative_flatness(features, weight, logits) * torch.tensor([1, 0, 1]),
    )
    assert relative_flatness(features, weight, logits, target, log=True)[1] == -torch.inf


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_more_classes_than_one_tile_holds(reduction):
    """Elementwise losses cut the classes into tiles."""
    classes, weights = 3000, torch.rand(3000, dtype=torch.float64)
    features, weight, logits = torch.randn(1000, 1), torch.randn(classes, 1), torch.randn(1000, classes)
    value = relative_flatness(features, weight, logits, loss=BinaryCrossEntropy(weight=weights, reduction=reduction))
    curvature = weights * logits.double().sigmoid() * (-logits.double()).sigmoid()
    expected = (curvature * weight.double().squeeze(1).square()).sum(1) * features.double().squeeze(1).square()
    assert_close(value, expected / (classes if reduction == "mean" else 1), rtol=1e-6, atol=0)
