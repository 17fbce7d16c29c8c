"""Softmax cross-entropy from float32 inputs, against mpmath and float64 sums in which nothing cancels."""

import math

import mpmath
import pytest
import torch
from torch.testing import assert_close

from lightning_flatness.functional import flatness_factors, relative_flatness
from lightning_flatness.functional.losses import Focal
from tests.functional.oracles import (
    VARIANTS,
    mp_focal_hessian,
    mp_hessian,
    mp_top_eigenvalue,
    mp_trace,
    mp_variance,
    pairwise_variance,
    peeled_variance,
    plain_trace,
    power_top_eigenvalue,
)

REQUIRED = 1e-5  # relative error at every confidence
DOUBTS = [0.3, 1e-2, 1e-4, 1e-7, 1e-12, 1e-37, 1e-100]  # 1 - p of the top class
DIM = 4


def near_duplicates(count, gap):
    def change(rows):
        rows[1:count] = rows[0] + gap * torch.randn_like(rows[1:count])
        return rows

    return change


def clusters(rows):
    return rows[torch.arange(len(rows)) % 3 % len(rows)] + 1e-3 * torch.randn_like(rows)


def outlier(index):
    def change(rows):
        rows[index] *= 1e4
        return rows

    return change


HEADS = {  # what happens to random rows; the three largest logits belong to the first three
    "random": lambda rows: rows,
    "two_top_rows_apart_by_1e-2": near_duplicates(2, 1e-2),
    "two_top_rows_apart_by_1e-4": near_duplicates(2, 1e-4),
    "two_top_rows_apart_by_1e-6": near_duplicates(2, 1e-6),
    "two_top_rows_identical": near_duplicates(2, 0.0),
    "three_top_rows_apart_by_1e-2": near_duplicates(3, 1e-2),
    "three_top_rows_apart_by_1e-4": near_duplicates(3, 1e-4),
    "three_top_rows_apart_by_1e-6": near_duplicates(3, 1e-6),
    "three_top_rows_identical": near_duplicates(3, 0.0),
    "clusters": clusters,
    "outlier_at_the_top": outlier(0),
    "outlier_behind": outlier(-1),
    "offset_1e3": lambda rows: rows + 1e3,
    "offset_1e5": lambda rows: rows + 1e5,
}
AHEAD = [0.0, 10.0, 25.0]  # by how much the second and the third logit stand out from those behind them

every_head = pytest.mark.parametrize("head", HEADS)
few_classes = pytest.mark.parametrize("classes", [2, 3, 10])
many_classes = pytest.mark.parametrize("classes", [1000, 50257])
every_lead = pytest.mark.parametrize("ahead", AHEAD)


def make_weight(head, classes):
    return HEADS[head](torch.randn(classes, DIM, dtype=torch.float64)).float()


def make_logits(classes, ahead, offset=0.0, doubts=DOUBTS):
    """One row for each of ``doubts``."""
    rows = []
    for doubt in doubts:
        others = 2 * torch.randn(classes - 1, dtype=torch.float64).sort(descending=True).values
        others[:2] += ahead
        top = others.logsumexp(0) + math.log((1 - doubt) / doubt)
        rows.append(torch.cat([top.unsqueeze(0), others]) + offset)
    return torch.stack(rows).float()


def per_feature(weight, logits, target=None, **arguments):
    """Relative flatness of features of length 1."""
    features = torch.zeros(len(logits), weight.shape[1])
    features[:, 0] = 1
    return relative_flatness(features, weight, logits, target, **arguments)


def sq_norm(weight):
    return weight.double().square().sum()


def largest_error(values, expected):
    """Largest relative error, where ``expected`` is 0 infinite unless the value is 0, too."""
    errors = []
    for value, exact in zip(values.tolist(), expected, strict=True):
        if exact == 0:
            errors.append(0.0 if value == 0 else math.inf)
        else:
            errors.append(float(abs(mpmath.mpf(value) / exact - 1)))
    return max(errors)


@every_lead
@every_head
@few_classes
def test_neuronwise_few_classes(classes, head, ahead):
    weight = make_weight(head, classes)
    for offset in (0.0, 1e3):
        logits = make_logits(classes, ahead, offset)
        expected = [mp_variance(weight, row) for row in logits]
        assert largest_error(per_feature(weight, logits), expected) <= REQUIRED


@every_lead
@every_head
def test_neuronwise_1000_classes(head, ahead):
    weight, logits = make_weight(head, 1000), make_logits(1000, ahead)
    assert_close(per_feature(weight, logits), pairwise_variance(weight, logits), rtol=REQUIRED, atol=0)


@every_lead
@pytest.mark.parametrize(
    "head",
    ["random", "two_top_rows_identical", "three_top_rows_apart_by_1e-4", "clusters", "outlier_behind", "offset_1e5"],
)
def test_neuronwise_50257_classes(head, ahead):
    weight, logits = make_weight(head, 50257), make_logits(50257, ahead, doubts=[0.3, 1e-7, 1e-100])
    assert_close(per_feature(weight, logits), peeled_variance(weight, logits), rtol=REQUIRED, atol=0)


@pytest.mark.parametrize("ahead", [0.0, 10.0])
@every_head
def test_both_float64_references_agree_with_mpmath(head, ahead):
    weight, logits = make_weight(head, 10), make_logits(10, ahead)
    expected = [mp_variance(weight, row) for row in logits]
    assert largest_error(pairwise_variance(weight, logits), expected) < 1e-12
    assert largest_error(peeled_variance(weight, logits), expected) < 1e-9
    assert largest_error(plain_trace(logits), [mp_trace(row) for row in logits]) < 1e-12


@every_lead
@few_classes
def test_layerwise_and_maxeig_few_classes(classes, ahead):
    weight = make_weight("random", classes)
    for offset in (0.0, 1e3):
        logits = make_logits(classes, ahead, offset)
        layerwise = per_feature(weight, logits, variant="layerwise") / sq_norm(weight)
        assert largest_error(layerwise, [mp_trace(row) for row in logits]) <= REQUIRED
        maxeig = per_feature(weight, logits, variant="maxeig") / sq_norm(weight)
        assert largest_error(maxeig, [mp_top_eigenvalue(mp_hessian(row)) for row in logits]) <= REQUIRED


@every_lead
@many_classes
def test_layerwise_and_maxeig_many_classes(classes, ahead):
    weight, logits = make_weight("random", classes), make_logits(classes, ahead, doubts=[0.3, 1e-7, 1e-100])
    layerwise = per_feature(weight, logits, variant="layerwise") / sq_norm(weight)
    assert_close(layerwise, plain_trace(logits), rtol=REQUIRED, atol=0)
    maxeig = per_feature(weight, logits, variant="maxeig") / sq_norm(weight)
    assert_close(maxeig, power_top_eigenvalue(logits), rtol=REQUIRED, atol=0)


def exact_flatness(variant, weight, hessian):
    """Any variant from an mpmath Hessian in the logits, divided by the squared norm of the features."""
    size = range(hessian.rows)
    if variant == "neuronwise":
        rows = [mpmath.matrix(row) for row in weight.tolist()]
        return mpmath.fsum(hessian[j, k] * mpmath.fdot(rows[j], rows[k]) for j in size for k in size)
    trace_or_eigenvalue = (
        mp_top_eigenvalue(hessian) if variant == "maxeig" else mpmath.fsum(hessian[k, k] for k in size)
    )
    return mpmath.mpf(sq_norm(weight).item()) * trace_or_eigenvalue


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("gap", [0.0, 10.0, 100.0, 700.0, 1000.0])  # the number itself underflows at 745
@few_classes
def test_logarithm(classes, gap, variant):
    weight, logits = make_weight("random", classes), torch.randn(1, classes)
    logits[:, 0] += gap
    expected = mpmath.log(exact_flatness(variant, weight, mp_hessian(logits[0])))
    (value,) = per_feature(weight, logits, variant=variant, log=True).tolist()
    assert value == pytest.approx(float(expected), abs=REQUIRED)


@pytest.mark.parametrize("target", [0, 1], ids=["right", "wrong"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_focal_loss(variant, gamma, target):
    weight, logits = make_weight("random", 3), make_logits(3, ahead=0.0, doubts=[0.3, 1e-4, 1e-12, 1e-37])
    values = per_feature(weight, logits, torch.full((4,), target), variant=variant, loss=Focal(gamma))
    expected = [exact_flatness(variant, weight, mp_focal_hessian(row, gamma, target)) for row in logits]
    assert largest_error(values, expected) <= REQUIRED


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_of_the_true_class_end_at_zero(variant, gamma):
    weight, logits = make_weight("random", 3), torch.tensor([[1e3, 0.0, 0.0]])
    value = per_feature(weight, logits, torch.tensor([0]), variant=variant, loss=Focal(gamma))
    assert_close(value, torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("variant", VARIANTS)
@every_head
def test_cross_entropy_is_never_negative(head, variant):
    weight = make_weight(head, 7)
    logits = torch.cat([make_logits(7, 5.0), torch.zeros(1, 7), 1e3 * torch.randn(200, 7)])
    assert (per_feature(weight, logits, variant=variant) >= 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_read_as_float32(dtype, variant):
    features, weight = (30 * torch.randn(5, 2048)).to(dtype), make_weight("offset_1e3", 6).repeat(1, 512).to(dtype)
    logits, bias = make_logits(6, 3.0)[:5].to(dtype), torch.randn(6).to(dtype)
    value = relative_flatness(features, weight, logits, variant=variant, bias=bias)
    upcast = relative_flatness(features.float(), weight.float(), logits.float(), variant=variant, bias=bias.float())
    assert_close(value, upcast, rtol=1e-12, atol=0)
    assert value.isfinite().all()


LOSSES = pytest.mark.parametrize(
    "loss",
    [
        "cross_entropy",
        "focal",
        lambda z, y: torch.nn.functional.cross_entropy(z @ torch.eye(10).to(z), y, reduction="none"),
    ],
    ids=["cross_entropy", "focal", "function"],
)


def medium_problem():
    features, weight = torch.randn(8, 100), torch.randn(10, 100) / 10
    return features, weight, features @ weight.T, torch.randint(10, (8,))


@LOSSES
@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_changes_nothing(variant, loss):
    arguments = medium_problem()
    expected = relative_flatness(*arguments, variant=variant, loss=loss)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(relative_flatness(*arguments, variant=variant, loss=loss), expected, rtol=0, atol=0)
        assert torch.is_autocast_enabled("cpu")


@pytest.fixture
def medium_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
@pytest.mark.usefixtures("medium_precision")
def test_low_matmul_precision_changes_nothing_and_is_put_back(loss):
    features, weight = torch.randn(512, 512), torch.randn(512, 512)  # large enough for torch to use bf16
    arguments = features, weight, 3 * torch.randn(512, 512), torch.randint(512, (512,))
    value = relative_flatness(*arguments, loss=loss)
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")
    assert_close(value, relative_flatness(*arguments, loss=loss), rtol=0, atol=0)


@pytest.mark.usefixtures("medium_precision")
def test_low_matmul_precision_is_put_back_after_an_error():
    def broken(_logits, _target):
        raise RuntimeError("no loss today")

    with pytest.raises(RuntimeError, match="no loss today"):
        relative_flatness(*medium_problem(), loss=broken)
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["features", "logits"])
def test_factors_of_a_sample_that_is_not_finite_leave_the_others_alone(place, number):
    features, weight, logits, _ = medium_problem()
    clean = flatness_factors(features, weight, logits).neuronwise().linear()
    {"features": features, "logits": logits}[place][3, 5] = number
    value = flatness_factors(features, weight, logits).neuronwise().linear()
    others = torch.arange(len(value)) != 3
    assert_close(value[others], clean[others], rtol=1e-6, atol=0)
