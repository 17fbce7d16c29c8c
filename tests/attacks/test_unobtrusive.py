"""Attacks work wherever a trainer calls them and leave everything as it was."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from lightning_flatness.attacks import AdaptiveAttack, ThreatModel, apgd, pgd
from tests.attacks.models import digit_cnn, held_out

ATTACKS = {
    "pgd": partial(pgd, steps=3),
    "apgd": partial(apgd, steps=5),
    "targeted": partial(apgd, steps=3, loss="dlr", target_classes=2),
    "adaptive": lambda model, inputs, target, threat: AdaptiveAttack(threat, "fast")(model, inputs, target),
    "bf16": partial(pgd, steps=3, autocast_dtype=torch.bfloat16),
}
CONTEXTS = {
    "training": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
}
every_attack = pytest.mark.parametrize("name", ATTACKS)


@every_attack
@pytest.mark.parametrize("context", CONTEXTS)
def test_works_in_every_context(name, context):
    model, threat = digit_cnn(), ThreatModel(epsilon=0.1)
    expected = ATTACKS[name](model, *held_out(20), threat)
    with CONTEXTS[context]():
        inputs, target = (part.clone() for part in held_out(20))
        assert inputs.is_inference() == (context == "inference_mode")
        before = inputs.clone()
        result = ATTACKS[name](model, inputs, target, threat)
        assert torch.equal(inputs, before)
        assert torch.is_grad_enabled() == (context in {"training", "autocast"})
        assert torch.is_inference_mode_enabled() == (context == "inference_mode")
    assert not result.x_adv.is_inference()
    assert not result.x_adv.requires_grad
    assert result.success.any()
    if context != "autocast":
        assert torch.equal(result.success, expected.success)
        assert torch.equal(result.x_adv, expected.x_adv)


def test_clean_logits_of_inference_mode_are_accepted():
    model = digit_cnn()
    with torch.inference_mode():
        inputs, target = held_out(5)
        result = pgd(model, inputs, target, ThreatModel(epsilon=0.1), clean_logits=model(inputs))
    assert result.forwards > 0


@every_attack
def test_leaves_model_and_random_numbers_alone(name):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10)).eval()
    model[1].train()
    model[4].weight.requires_grad_(requires_grad=False)
    model[1].weight.grad = torch.ones_like(model[1].weight)
    inputs, target = held_out(40)
    target = model(inputs).argmax(1)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    grads = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    random = torch.get_rng_state()
    result = ATTACKS[name](model, inputs, target, ThreatModel(epsilon=0.1))
    assert result.success.any()
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) if grad is None else torch.equal(parameter.grad, grad)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


@every_attack
def test_same_seed_same_result(name):
    model, (inputs, target), threat = digit_cnn(), held_out(20), ThreatModel(epsilon=0.1)
    first, second = (ATTACKS[name](model, inputs, target, threat) for _ in range(2))
    assert torch.equal(first.x_adv, second.x_adv)
    other = pgd(model, inputs, target, threat, steps=3, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(other.x_adv, pgd(model, inputs, target, threat, steps=3).x_adv)
