"""Lanczos on the head's Hessian of the mean loss, against the dense matrix."""

import pytest
import torch
from torch.testing import assert_close

from lightning_flatness.functional import _lanczos, head_top_eigenvalue, relative_flatness
from lightning_flatness.functional.losses import CrossEntropy
from tests.functional.oracles import CASE, head_hessian

EXACT = {"tolerance": 1e-9, "max_iterations": 500}
LOSSES = [
    "cross_entropy",
    "temperature",
    "class_weights",
    "ignore_index",
    "mse_mean",
    "mse_sum",
    "bce",
    "bce_pos_weight",
    "huber",
    "poisson_mean",
    "focal_2",
    "focal_ignore_index",
    "brier_function",
]


def make_problem(batch=8, classes=4, dim=3, scale=1.5):
    features, weight = (
        torch.randn(batch, dim, dtype=torch.float64),
        scale * torch.randn(classes, dim, dtype=torch.float64),
    )
    return features, weight, features @ weight.T, torch.randn(batch, classes, dtype=torch.float64)


def dense_top_eigenvalue(case, features, weight, target, kept):
    nothing = torch.zeros(len(weight), dtype=weight.dtype)
    blocks = [head_hessian(case, x, weight, nothing, y) for x, y in zip(features, target, strict=True)]
    mean = sum(blocks).reshape(weight.numel(), weight.numel()) / kept
    return torch.linalg.eigvalsh(mean)[-1]


@pytest.mark.parametrize("include_bias", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_that_of_the_dense_hessian(name, include_bias):
    case = CASE[name]
    features, weight, logits, raw_target = make_problem()
    target, loss = case.target(raw_target), case.loss(4)
    ignored = getattr(loss, "ignore_index", None)
    kept = len(target) if ignored is None else int((target != ignored).sum())
    inputs = features
    if include_bias:
        inputs = torch.cat([features, torch.ones(8, 1)], dim=1)
        weight = torch.cat([weight, torch.zeros(4, 1)], dim=1)
    expected = dense_top_eigenvalue(case, inputs, weight, target, kept)
    value = head_top_eigenvalue(features, logits, target, loss=loss, include_bias=include_bias, **EXACT)
    assert_close(value, expected, rtol=1e-8, atol=1e-12)


def test_ignored_samples_were_among_those_of_the_dense_test():
    *_, raw_target = make_problem()
    assert {0, 1} <= set(raw_target.argmax(1).tolist())


@pytest.mark.parametrize("name", LOSSES)
def test_default_tolerance_holds(name):
    features, _, logits, raw_target = make_problem(batch=64, classes=10, dim=6)
    case = CASE[name]
    if name in {"class_weights", "ignore_index", "bce_pos_weight"}:
        logits, raw_target = logits[:, :4], raw_target[:, :4]
    target, loss = case.target(raw_target), case.loss(logits.shape[1])
    exact = head_top_eigenvalue(features, logits, target, loss=loss, **EXACT)
    assert_close(head_top_eigenvalue(features, logits, target, loss=loss), exact, rtol=1e-4, atol=0)


def test_one_sample_is_its_maxeig_over_the_weight():
    features, weight, logits, _ = make_problem(batch=1)
    expected = relative_flatness(features, weight, logits, variant="maxeig").squeeze() / weight.square().sum()
    assert_close(head_top_eigenvalue(features, logits, **EXACT), expected)


def test_mean_of_single_samples_bounds_it_from_above():
    features, weight, logits, _ = make_problem(batch=100)
    single = relative_flatness(features, weight, logits, variant="maxeig") / weight.square().sum()
    assert head_top_eigenvalue(features, logits) < single.mean()


@pytest.mark.parametrize("doubt", [1e-8, 1e-30])
def test_confident_heads_in_float32(doubt):
    gap = -torch.tensor(doubt, dtype=torch.float64).log()
    features, logits = torch.randn(6, 3), torch.randn(6, 4)
    logits[torch.arange(6), torch.arange(6) % 4] += gap.float()
    value = head_top_eigenvalue(features, logits, tolerance=1e-6)
    assert_close(value.double(), head_top_eigenvalue(features.double(), logits.double(), **EXACT), rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_no_curvature_at_all(loss):
    _, _, logits, _ = make_problem()
    assert head_top_eigenvalue(torch.zeros(8, 3), logits, loss=loss) == 0


def test_no_curvature_far_from_the_targets_of_huber():
    features, _, logits, _ = make_problem()
    assert head_top_eigenvalue(features, logits, logits + 5, loss="huber") == 0


def test_too_few_products_warn_and_give_a_lower_bound():
    features, _, logits, _ = make_problem(batch=200, classes=10, dim=20)
    exact = head_top_eigenvalue(features, logits, **EXACT)
    with pytest.warns(UserWarning, match=r"only known to be in \[.*\] after 3 products; raise `max_iterations`"):
        value = head_top_eigenvalue(features, logits, max_iterations=3)
    assert 0 < value < exact


def test_restarts_when_the_basis_is_full(monkeypatch):
    features, _, logits, _ = make_problem(batch=200, classes=10, dim=20)
    expected = head_top_eigenvalue(features, logits, **EXACT)
    monkeypatch.setattr(_lanczos, "_BASIS_ELEMENTS", 1)  # four vectors, the fewest there can be
    with pytest.warns(UserWarning, match="only known to be in"):
        head_top_eigenvalue(features, logits, tolerance=1e-9, max_iterations=4)
    assert_close(head_top_eigenvalue(features, logits, **EXACT), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_read_as_float32(dtype):
    features, _, logits, _ = make_problem()
    features, logits = features.to(dtype), logits.to(dtype)
    value = head_top_eigenvalue(features, logits)
    assert value.dtype == torch.float64
    assert_close(value, head_top_eigenvalue(features.float(), logits.float()))


def test_inputs_that_require_gradients_are_welcome():
    features, _, logits, _ = make_problem()
    expected = head_top_eigenvalue(features, logits)
    assert_close(head_top_eigenvalue(features.requires_grad_(), logits.requires_grad_()), expected)


def test_weighted_samples_are_averaged_over_their_number():
    """Unlike torch, which divides by the summed class weights."""
    features, _, logits, _ = make_problem()
    target = torch.zeros(8, dtype=torch.int64)
    doubled = head_top_eigenvalue(features, logits, target, loss=CrossEntropy(weight=[2.0, 1.0, 1.0, 1.0]), **EXACT)
    assert_close(doubled, 2 * head_top_eigenvalue(features, logits, **EXACT))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"tolerance": 0.0}, r"`tolerance` must be > 0, got 0\.0\."),
        ({"tolerance": float("nan")}, r"`tolerance` must be > 0, got nan\."),
        ({"max_iterations": 0}, r"`max_iterations` must be >= 1, got 0\."),
    ],
)
def test_when_to_stop_is_checked(arguments, text):
    features, _, logits, _ = make_problem()
    with pytest.raises(ValueError, match=text):
        head_top_eigenvalue(features, logits, **arguments)
