"""Every error of the functional layer, by the text that a user reads."""

import re
from inspect import unwrap

import pytest
import torch
from torch import nn

from lightning_flatness.functional import (
    feature_hessian_trace,
    flatness_factors,
    head_top_eigenvalue,
    relative_flatness,
)
from lightning_flatness.functional._checks import finite_rows, flatten_leading
from lightning_flatness.functional.losses import (
    AutogradLoss,
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    TrueClassLoss,
    resolve_loss,
)

FEATURES, WEIGHT, LOGITS = torch.ones(3, 4), torch.ones(5, 4), torch.ones(3, 5)
TARGET = torch.tensor([0, 1, 2])


def flatness(target=None, features=FEATURES, weight=WEIGHT, logits=LOGITS, **arguments):
    return relative_flatness(features, weight, logits, target, **arguments)


def raises(text):
    return pytest.raises(ValueError, match=re.escape(text))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"features": torch.ones(3, 4, 1)}, "`features` must have 2 dimensions, got shape (3, 4, 1); flatten"),
        ({"weight": torch.ones(5)}, "`weight` must have 2 dimensions, got shape (5,)"),
        ({"logits": torch.ones(1, 3, 5)}, "`logits` must have 2 dimensions, got shape (1, 3, 5)"),
        ({"features": torch.ones(3, 4, dtype=torch.int64)}, "`features` must be floating point, got torch.int64."),
        ({"weight": torch.ones(5, 4, dtype=torch.bool)}, "`weight` must be floating point, got torch.bool."),
        ({"logits": torch.ones(3, 5, dtype=torch.int32)}, "`logits` must be floating point, got torch.int32."),
        ({"features": torch.ones(3, 6)}, "`features` must have as many columns as `weight` (4), got 6."),
        ({"logits": torch.ones(3, 6)}, "`logits` must have one column per row of `weight` (5), got 6."),
        ({"logits": torch.ones(2, 5)}, "`features` and `logits` must hold as many samples, got 3 and 2."),
        ({"bias": torch.ones(4)}, "`bias` must have shape (5,), got (4,)."),
        ({"bias": torch.ones(5, 1)}, "`bias` must have shape (5,), got (5, 1)."),
    ],
)
@pytest.mark.parametrize("function", [relative_flatness, flatness_factors])
def test_shapes_and_dtypes(function, arguments, text, unchecked_shapes):
    arguments = {"features": FEATURES, "weight": WEIGHT, "logits": LOGITS} | arguments
    with unchecked_shapes, raises(text):
        function(**arguments)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: feature_hessian_trace(WEIGHT[0], LOGITS), "`weight` must have 2 dimensions, got shape (4,)"),
        (lambda: feature_hessian_trace(WEIGHT, LOGITS[:, :2]), "`logits` must have one column per row of `weight` (5)"),
        (lambda: head_top_eigenvalue(FEATURES[0], LOGITS), "`features` must have 2 dimensions, got shape (4,)"),
        (lambda: head_top_eigenvalue(FEATURES, LOGITS.int()), "`logits` must be floating point, got torch.int32."),
        (lambda: head_top_eigenvalue(FEATURES[:2], LOGITS), "must hold as many samples, got 2 and 3."),
    ],
)
def test_shapes_and_dtypes_of_the_other_functions(call, text, unchecked_shapes):
    with unchecked_shapes, raises(text):
        call()


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["features", "weight", "logits", "bias"])
def test_a_value_that_is_not_finite_is_named_with_its_place(name, number):
    tensors = {"features": FEATURES, "weight": WEIGHT, "logits": LOGITS, "bias": WEIGHT[:, 0]}
    bad = tensors[name].clone()
    place = (2, 1)[: bad.ndim]
    bad[place] = number
    with raises(f"`{name}` must be finite, got {number} at {list(place)}."):
        flatness(**{name: bad})


@pytest.mark.parametrize("loss", ["huber", CrossEntropy(weight=[1.0] * 5), BinaryCrossEntropy(pos_weight=[2.0] * 5)])
def test_a_target_that_is_not_finite(loss):
    target = torch.full((3, 5), torch.nan)
    with raises("`target` must be finite, got nan at [0, 0]."):
        flatness(target, loss=loss)


def test_values_that_are_not_finite_of_the_other_functions():
    with raises("`weight` must be finite, got nan at [0, 0]."):
        feature_hessian_trace(WEIGHT * torch.nan, LOGITS)
    with raises("`features` must be finite, got inf at [0, 0]."):
        head_top_eigenvalue(FEATURES * torch.inf, LOGITS)


def test_unknown_variant():
    with raises("`variant` must be one of neuronwise, layerwise, maxeig, got 'trace'."):
        unwrap(relative_flatness)(FEATURES, WEIGHT, LOGITS, variant="trace")


def test_unknown_loss():
    with raises(
        "`loss` must be one of cross_entropy, binary_cross_entropy, mse, huber, poisson_nll, focal, a torch.nn"
    ):
        unwrap(resolve_loss)("hinge")


def test_something_that_is_no_loss():
    with raises("`loss` must be a name, a torch.nn loss or a function, got 3."):
        unwrap(resolve_loss)(3)


def test_class_instead_of_a_loss():
    with raises("`loss` must be an instance, got the class CrossEntropyLoss; write CrossEntropyLoss()."):
        unwrap(resolve_loss)(nn.CrossEntropyLoss)


@pytest.mark.parametrize(
    "module",
    [
        nn.L1Loss(),
        nn.MultiMarginLoss(),
        nn.KLDivLoss(),
        nn.HingeEmbeddingLoss(),
        nn.SmoothL1Loss(beta=0.0),
        nn.PoissonNLLLoss(log_input=False),
    ],
    ids=lambda module: type(module).__name__,
)
def test_torch_losses_without_a_hessian_in_the_logits(module):
    with raises(f"`loss` does not support torch.nn.{type(module).__name__}; pass a function"):
        resolve_loss(module)


@pytest.mark.parametrize(
    "loss",
    ["huber", "focal", CrossEntropy(weight=[1.0] * 5), BinaryCrossEntropy(pos_weight=[1.0] * 5), AutogradLoss(len)],
    ids=lambda loss: loss if isinstance(loss, str) else type(loss).__name__,
)
@pytest.mark.parametrize("function", [relative_flatness, flatness_factors])
def test_a_target_that_is_missing(function, loss):
    with raises(f"`target` must be given for {type(resolve_loss(loss)).__name__}, whose Hessian needs it, got None."):
        function(FEATURES, WEIGHT, LOGITS, loss=loss)


@pytest.mark.parametrize(
    "loss", ["cross_entropy", "focal", CrossEntropy(weight=[1.0] * 5)], ids=["ce", "focal", "weighted"]
)
@pytest.mark.parametrize("index", [-1, 5])
def test_classes_out_of_range(loss, index):
    with raises(f"`target` must be in [0, 5) or ignore_index=-100, got {index}."):
        flatness(torch.tensor([0, index, 2]), loss=loss)


def test_an_ignored_class_is_in_range():
    value = flatness(torch.tensor([0, -1, 2]), weight=torch.eye(5)[:, :4], loss=CrossEntropy(ignore_index=-1))
    assert (value > 0).tolist() == [True, False, True]


def test_classes_of_the_wrong_shape_or_dtype(unchecked_shapes):
    text = "`target` must hold one class index per sample, shape (3,), got "
    with unchecked_shapes:
        with raises(text + "torch.int64 (3, 1)."):
            flatness(TARGET.unsqueeze(1))
        with raises(text + "torch.int64 (2,)."):
            flatness(TARGET[:2])
        with raises(text + "torch.float32 (3,)."):
            flatness(TARGET.float(), loss="focal")


def test_true_or_false_is_no_class():
    with raises("`target` must hold one class index per sample, shape (3,), got torch.bool (3,)."):
        flatness(TARGET > 0, loss="focal")


@pytest.mark.parametrize(
    "loss", ["cross_entropy", "huber", BinaryCrossEntropy(pos_weight=[1.0] * 5)], ids=["ce", "huber", "bce"]
)
def test_wide_targets_of_the_wrong_shape(loss, unchecked_shapes):
    with unchecked_shapes, raises("`target` must have the shape of `logits`, (3, 5), got (3, 4)."):
        flatness(torch.ones(3, 4), loss=loss)


def test_targets_of_a_function_that_do_not_fit_the_batch(unchecked_shapes):
    with unchecked_shapes, raises("`target` must hold one entry per sample (3), got shape (2,)."):
        flatness(TARGET[:2], loss=nn.functional.cross_entropy)


@pytest.mark.parametrize(
    ("function", "shape"),
    [(nn.functional.cross_entropy, "()"), (lambda z, _: z, "(3, 5)"), (lambda z, _: z[:, :1], "(3, 1)")],
    ids=["scalar", "wide", "column"],
)
def test_a_function_that_does_not_give_one_loss_per_sample(function, shape):
    with raises(f'`loss` must return one value per sample, shape (3,), got {shape}; use reduction="none".'):
        flatness(TARGET, loss=function)


def test_class_weights_of_the_wrong_length():
    with raises("`weight` of the loss must hold one value per class (5), got 2."):
        flatness(TARGET, loss=CrossEntropy(weight=[1.0, 2.0]))


@pytest.mark.parametrize("length", [2, 7])
@pytest.mark.parametrize(
    "make",
    [
        lambda numbers: BinaryCrossEntropy(pos_weight=numbers),
        lambda numbers: BinaryCrossEntropy(weight=numbers),
        lambda numbers: Focal(alpha=numbers),
    ],
    ids=["pos_weight", "bce_weight", "focal_alpha"],
)
def test_other_weights_of_the_wrong_length(make, length):
    loss = make([1.0] * length)
    target = TARGET if isinstance(loss, TrueClassLoss) else torch.ones(3, 5)
    with pytest.raises(ValueError, match=rf"must hold one value per class \(5\), got {length}"):
        flatness(target, loss=loss)


@pytest.mark.parametrize("number", [-0.1, 1.1, torch.nan])
def test_label_smoothing_out_of_range(number):
    with raises(f"`label_smoothing` must be in [0, 1], got {number}."):
        CrossEntropy(label_smoothing=number)


@pytest.mark.parametrize("number", [0.0, -2.0, torch.nan])
def test_temperature_out_of_range(number):
    with raises(f"`temperature` must be > 0, got {number}."):
        CrossEntropy(temperature=number)


@pytest.mark.parametrize("number", [-0.5, torch.nan])
def test_gamma_out_of_range(number):
    with raises(f"`gamma` must be >= 0, got {number}."):
        Focal(number)


@pytest.mark.parametrize(
    ("features", "logits", "target"), [(FEATURES[:0], LOGITS[:0], None), (FEATURES, LOGITS, torch.full((3,), -100))]
)
def test_no_sample_has_no_top_eigenvalue(features, logits, target):
    with raises("`features` must hold at least one sample that counts, got none."):
        head_top_eigenvalue(features, logits, target)


def test_leading_dimensions_that_do_not_fit():
    features, logits = torch.ones(2, 3, 4), torch.ones(2, 3, 5)
    with raises("must have the same leading dimensions, got (2, 3, 4) and (3, 2, 5)."):
        flatten_leading(features, logits.transpose(0, 1), None)
    with raises("`target` must have shape (2, 3) or (2, 3, 5), got (3, 2)."):
        flatten_leading(features, logits, torch.ones(3, 2))


@pytest.mark.parametrize("target_shape", [(2, 3), (2, 3, 5)])
def test_every_position_becomes_a_sample(target_shape):
    features, logits, target = torch.randn(2, 3, 4), torch.randn(2, 3, 5), torch.randn(target_shape)
    flat = flatten_leading(features, logits, target)
    for before, after in zip((features, logits, target), flat, strict=True):
        assert torch.equal(after[4], before[1, 1])
        assert len(after) == 6
    assert flatten_leading(features, logits, None)[2] is None


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_are_found(number):
    rows = torch.randn(4, 3)
    rows[2, 1] = number
    assert finite_rows(rows).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("loss", "answer"), [("cross_entropy", True), ("focal", True), (len, True), ("mse", False), ("huber", False)]
)
def test_whether_targets_are_classes(loss, answer):
    assert resolve_loss(loss).target_is_class is answer
