"""A head multiplied by a number, from the features of the head as it is."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_flatness.functional import relative_flatness, scale_head

SCALES = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)


def problem(*, bias=True, dtype=torch.float64, classes=5, samples=30):
    """A head, its features and targets, some of them wrong."""
    head = nn.Linear(6, classes, bias=bias).to(dtype)
    features = 2 * torch.randn(samples, 6, dtype=dtype)
    logits = head(features).detach()
    target = torch.where(torch.arange(samples) % 3 > 0, logits.argmax(1), torch.randint(classes, (samples,)))
    return head, features, logits, target


def really_scaled(head, scale):
    scaled = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None).to(head.weight.dtype)
    scaled.load_state_dict({name: scale * value for name, value in head.state_dict().items()})
    return scaled


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("scale", SCALES)
def test_is_what_a_module_with_multiplied_weights_gives(scale, classes, bias):
    head, features, logits, target = problem(bias=bias, classes=classes)
    found = scale_head(features, head.weight, logits, target, [scale])
    scaled = really_scaled(head, scale)
    outputs = scaled(features).detach()
    expected = relative_flatness(features, scaled.weight.detach(), outputs)
    torch.testing.assert_close(found.relative_flatness[0], expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.loss[0], cross_entropy(outputs, target, reduction="none"), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(found.confidence[0], outputs.softmax(1).amax(1), rtol=1e-12, atol=0)
    assert torch.equal(found.correct[0], outputs.argmax(1) == target)


@pytest.mark.parametrize("scale", [0.25, 0.5, 2.0, 64.0])
def test_powers_of_two_agree_in_float32_with_a_module_to_its_rounding(scale):
    head, features, logits, target = problem(dtype=torch.float32)
    found = scale_head(features, head.weight, logits, target, [scale])
    scaled = really_scaled(head, scale)
    expected = relative_flatness(features, scaled.weight.detach(), scaled(features).detach())
    torch.testing.assert_close(found.relative_flatness[0], expected, rtol=2e-5, atol=0)


def test_decisions_stay_and_every_sample_becomes_flat():
    head, features, logits, target = problem()
    found = scale_head(features, head.weight, logits, target, [1.0, 1e3, 1e5])
    assert (found.correct == found.correct[0]).all()
    assert (found.relative_flatness[2] < 1e-6 * found.relative_flatness[0]).all()
    assert (found.confidence[2] > 1 - 1e-6).all()


def test_module_and_gradients_are_left_alone():
    head, features, logits, target = problem()
    before = head.weight.detach().clone()
    found = scale_head(features.requires_grad_(), head.weight, logits, target, SCALES)
    assert torch.equal(head.weight, before)
    assert not found.relative_flatness.requires_grad


def test_no_samples():
    head, features, logits, target = problem()
    found = scale_head(features[:0], head.weight, logits[:0], target[:0], [1.0, 2.0])
    assert [part.shape for part in found] == [(2, 0)] * 4


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([], r"`scales` must be at least one number, > 0 and finite, got \[\]."),
        ([1.0, 0.0], r"`scales` must be at least one number, > 0 and finite, got \[1.0, 0.0\]."),
        ([-2.0], r"`scales` must be at least one number, > 0 and finite, got \[-2.0\]."),
        ([1.0, float("inf")], r"`scales` must be at least one number, > 0 and finite, got \[1.0, inf\]."),
        ([1.0, 2.0, 1.0], r"`scales` must differ, got \[1.0, 2.0, 1.0\]."),
    ],
)
def test_wrong_scales(scales, message):
    head, features, logits, target = problem()
    with pytest.raises(ValueError, match=message):
        scale_head(features, head.weight, logits, target, scales)


@pytest.mark.parametrize("wrong", [-1, 5])
def test_wrong_target(wrong):
    head, features, logits, target = problem()
    target[3] = wrong
    with pytest.raises(ValueError, match=rf"`target` must be in \[0, 5\), got {wrong}"):
        scale_head(features, head.weight, logits, target, [1.0])


def test_wrong_features():
    head, features, logits, target = problem()
    features[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"`features` must be finite, got nan at \[2, 1\]."):
        scale_head(features, head.weight, logits, target, [1.0])
