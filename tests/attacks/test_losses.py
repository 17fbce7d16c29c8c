"""The attack losses against their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_flatness.attacks import _targeted_losses as targeted
from lightning_flatness.attacks import losses
from lightning_flatness.attacks._slope import logit_gradient

SEEDS = st.integers(0, 999)


def draw(seed: int, classes: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(6, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (6,), generator=generator)
    return logits, target, (target + 1) % classes


@given(SEEDS, st.integers(2, 9))
def test_cross_entropy_is_torch_s(seed, classes):
    logits, target, other = draw(seed, classes)
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(losses.cross_entropy(logits, target), expected)
    expected = -torch.nn.functional.cross_entropy(logits, other, reduction="none")
    torch.testing.assert_close(targeted.targeted_cross_entropy(logits, target, other), expected)


@given(SEEDS, st.integers(2, 9), st.floats(20, 80))
def test_cross_entropy_is_exact_for_confident_logits(seed, classes, lead):
    logits, target, _ = draw(seed, classes)
    logits.scatter_(1, target.unsqueeze(1), lead)
    expected = torch.logsumexp(logits.scatter(1, target.unsqueeze(1), -1e9) - lead, 1).exp().log1p()
    value = losses.cross_entropy(logits.float(), target)
    assert (value > 0).all()
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=0)


@given(SEEDS, st.integers(2, 9))
def test_log_odds_are_those_of_the_probabilities_where_the_lead_is_small(seed, classes):
    logits, target, other = draw(seed, classes, scale=1.0)
    wrong = 1 - logits.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(losses.log_odds(logits, target), wrong.logit())
    right = logits.softmax(1).gather(1, other.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(targeted.targeted_log_odds(logits, target, other), right.logit())


@given(SEEDS, st.integers(2, 9), st.floats(10, 1e6))
def test_log_odds_of_confident_logits_keep_the_gradient_of_less_confident_ones(seed, classes, factor):
    logits, target, _ = draw(seed, classes)
    logits.scatter_(1, target.unsqueeze(1), logits.amax(1, keepdim=True) + 5)
    gradients = []
    for scale in (1, factor):
        point = (scale * logits).float().requires_grad_()
        (gradient,) = torch.autograd.grad(losses.log_odds(point, target).sum(), point)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gradients[0].gather(1, target.unsqueeze(1)), -torch.ones(6, 1))


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.log_odds, losses.margin, losses.dlr])
@given(SEEDS, st.integers(3, 9), st.floats(0.1, 30))
def test_closed_forms_are_the_gradients(loss, seed, classes, scale):
    logits, target, _ = draw(seed, classes, scale)
    point = logits.clone().requires_grad_()
    value = loss(point, target)
    (expected,) = torch.autograd.grad(value.sum(), point)
    torch.testing.assert_close(logit_gradient(loss, logits, target, value.detach()), expected)
    assert not logits.requires_grad


@given(SEEDS, st.integers(4, 9))
def test_margins_and_ratios_by_sorting(seed, classes):
    logits, target, other = draw(seed, classes)
    for row, y, t, values in zip(
        logits,
        target.tolist(),
        other.tolist(),
        zip(
            losses.margin(logits, target),
            losses.dlr(logits, target),
            targeted.targeted_margin(logits, target, other),
            targeted.targeted_dlr(logits, target, other),
            strict=True,
        ),
        strict=True,
    ):
        z = sorted(row.tolist(), reverse=True)
        best = max(v for k, v in enumerate(row.tolist()) if k != y)
        expected = [
            best - row[y],
            (best - row[y]) / (z[0] - z[2]),
            row[t] - row[y],
            (row[t] - row[y]) / (z[0] - (z[2] + z[3]) / 2),
        ]
        torch.testing.assert_close(torch.stack(values), torch.stack(expected))


@given(SEEDS, st.floats(1e-3, 1e3), st.floats(-50, 50))
def test_ratios_do_not_see_scale_and_shift(seed, factor, shift):
    logits, target, other = draw(seed, 5)
    torch.testing.assert_close(losses.dlr(factor * logits + shift, target), losses.dlr(logits, target))
    torch.testing.assert_close(
        targeted.targeted_dlr(factor * logits + shift, target, other),
        targeted.targeted_dlr(logits, target, other),
    )


def test_equal_logits_give_finite_ratios():
    logits, target, other = torch.zeros(1, 4), torch.tensor([0]), torch.tensor([1])
    assert losses.dlr(logits, target).item() == 0
    assert targeted.targeted_dlr(logits, target, other).item() == 0


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="dlr needs at least 3 classes, got 2; use 'margin'"):
        losses.dlr(torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="targeted_dlr needs at least 4 classes, got 3; use 'margin'"):
        targeted.targeted_dlr(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([1]))


def test_unknown_names_are_refused(unchecked_shapes):
    with unchecked_shapes:
        with pytest.raises(ValueError, match=r"`loss` must be one of .* or a function, got 'ce'"):
            losses.resolve_attack_loss("ce")
        with pytest.raises(ValueError, match="one of cross_entropy, log_odds, margin, dlr with target classes"):
            targeted.resolve_targeted_loss("ce")


def test_functions_are_losses():
    assert losses.resolve_attack_loss(losses.margin) is losses.margin
