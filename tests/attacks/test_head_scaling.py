"""Attacks on a head multiplied by a number."""

import pytest
import torch
from torch import nn

from lightning_flatness.attacks import ThreatModel, attack_scaled_head, pgd
from tests.attacks.models import cnn, digit_cnn, digits, held_out, scaled_head

THREAT = ThreatModel(epsilon=0.2)
SCALES = (0.5, 1.0, 10.0, 100.0)


@pytest.fixture(scope="module")
def attacked():
    inputs, target = held_out(60)
    return attack_scaled_head(digit_cnn(5), inputs, target, THREAT, scales=SCALES)


def rates(result):
    return {name: (part / whole).tolist() for name, (part, whole) in result.rates().items()}


@pytest.mark.slow
def test_confidence_blinds_the_cross_entropy_only(attacked):
    found = rates(attacked)
    assert found["robust_accuracy_cross_entropy"][1] < 0.1
    assert found["robust_accuracy_cross_entropy"][3] > 0.7
    assert max(found["robust_accuracy_margin"]) < 0.1
    assert found["transfer_success_rate"] == [1.0] * len(SCALES)
    assert found["zero_gradient_rate"][1] == 0
    assert found["zero_gradient_rate"][3] > 0.7


@pytest.mark.slow
def test_decisions_are_the_same_and_success_needs_a_right_one(attacked):
    assert (attacked.initially_correct == attacked.initially_correct[0]).all()
    for fooled in (attacked.fooled_by_cross_entropy, attacked.fooled_by_margin, attacked.transfer_success):
        assert not (fooled & ~attacked.initially_correct).any()
    inputs, target = held_out(60)
    assert (THREAT.distance(attacked.x_adv, inputs) <= 0.2 + 1e-6).all()
    with torch.no_grad():
        other = digit_cnn(5)(attacked.x_adv).argmax(1) != target
    assert other[attacked.source_success].all()


def really_scaled(factor):
    """The digit CNN with the weights of its head multiplied."""
    model = cnn().eval()
    model.load_state_dict(digit_cnn(5).state_dict())
    with torch.no_grad():
        for parameter in model[-1].parameters():
            parameter.mul_(factor)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 64.0])
def test_module_with_multiplied_weights_is_fooled_alike(factor):
    inputs, target = held_out(40)
    found = attack_scaled_head(digit_cnn(5), inputs, target, THREAT, scales=[factor])
    on_module = attack_scaled_head(really_scaled(factor), inputs, target, THREAT, scales=[1.0])
    # A power of two changes no digit of the logits; those of other factors are rounded anew.
    assert torch.equal(found.fooled_by_margin, on_module.fooled_by_margin)
    assert torch.equal(found.fooled_by_cross_entropy, on_module.fooled_by_cross_entropy)
    assert torch.equal(found.zero_gradient, on_module.zero_gradient)


@pytest.mark.slow
def test_batches_do_not_matter(attacked):
    inputs, target = held_out(60)
    generator = torch.Generator().manual_seed(0)
    parts = [
        attack_scaled_head(digit_cnn(5), inputs[rows], target[rows], THREAT, scales=SCALES, generator=generator)
        for rows in (slice(0, 7), slice(7, 60))
    ]
    for name in ("fooled_by_cross_entropy", "fooled_by_margin", "zero_gradient", "transfer_success"):
        together = torch.cat([getattr(one, name) for one in parts], dim=1)
        assert (together != getattr(attacked, name)).double().mean() < 0.02, name


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    images, _ = digits()
    return model, images[:8], model(images[:8]).argmax(1)


def test_margin_of_a_scale_is_pgd_on_the_scaled_model():
    model, inputs, target = small()
    threat = ThreatModel(epsilon=0.02)
    result = attack_scaled_head(model, inputs, target, threat, scales=[3.0], steps=4)
    expected = pgd(scaled_head(model, 3.0), inputs, target, threat, steps=4, loss="margin")
    assert torch.equal(result.fooled_by_margin[0], expected.success)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_any_context_known_logits_and_counts(mode):
    model, inputs, target = small()
    calls = []

    def counted(x):
        calls.append(len(x))
        return model(x)

    plain = attack_scaled_head(counted, inputs, target, THREAT, scales=[1.0, 9.0], steps=3)
    assert plain.forwards == sum(calls)
    calls.clear()
    with mode():
        known = model(inputs)
        beside = attack_scaled_head(
            counted, inputs.clone(), target, THREAT, scales=[1.0, 9.0], steps=3, clean_logits=known
        )
    assert beside.forwards == sum(calls) == plain.forwards - len(inputs)
    assert torch.equal(plain.fooled_by_margin, beside.fooled_by_margin)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ties_are_no_success():
    """Two classes that a large factor lets overflow to the same infinity."""
    model = nn.Linear(2, 2)
    model.load_state_dict({"weight": 1e30 * torch.eye(2), "bias": torch.zeros(2)})
    inputs = torch.tensor([[0.9, 0.8]])
    found = attack_scaled_head(model, inputs, torch.tensor([0]), THREAT, scales=[1.0, 1e10])
    assert found.source_success.all()
    assert found.transfer_success.tolist() == [[True], [False]]
    assert found.initially_correct.tolist() == [[True], [False]]


def test_wrong_scales():
    model, inputs, target = small()
    with pytest.raises(ValueError, match=r"`scales` must be at least one number, > 0 and finite, got \[0.0\]."):
        attack_scaled_head(model, inputs, target, THREAT, scales=[0.0])
