"""Every attack stays in the ball and the range, whatever the inputs are."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_flatness.attacks import AdaptiveAttack, AttackResult, ThreatModel, apgd, pgd
from tests.attacks.test_threat import DTYPES, SHAPES, assert_allowed, clean_inputs, threat_arguments

Attack = Callable[..., AttackResult]


def adaptive(model: nn.Module, inputs: Tensor, target: Tensor, threat: ThreatModel, **kwargs: object) -> AttackResult:
    return AdaptiveAttack(threat, budget="fast")(model, inputs, target, **kwargs)


ATTACKS: dict[str, Attack] = {
    "pgd": partial(pgd, steps=4),
    "pgd fixed": partial(pgd, steps=4, step_size=0.7, random_start=False),
    "pgd restarts": partial(pgd, steps=3, restarts=2, loss="margin", stop_when_fooled=False),
    "apgd": partial(apgd, steps=6),
    "apgd targeted": partial(apgd, steps=5, loss="dlr", target_classes=2),
    "adaptive": adaptive,
}


def wavy_model(inputs: Tensor, classes: int = 4) -> nn.Sequential:
    """Nonlinear, and deterministic in the number of its inputs."""
    dim = inputs[0].numel() if len(inputs) else 6
    generator = torch.Generator().manual_seed(dim)
    model = nn.Sequential(nn.Flatten(), nn.Linear(dim, 8), nn.Tanh(), nn.Linear(8, classes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.to(inputs.dtype).eval()


@pytest.mark.parametrize("name", ATTACKS)
@settings(max_examples=25)
@given(threat_arguments(), SHAPES, DTYPES, st.integers(0, 99))
def test_attacks_stay_in_ball_and_range(name, arguments, shape, dtype, seed):
    threat = ThreatModel(**arguments)
    inputs = clean_inputs(threat, shape, dtype, seed)
    model = wavy_model(inputs)
    target = model(inputs).argmax(1)
    target[::3] = (target[::3] + 1) % 4
    seen = []
    result = ATTACKS[name](lambda x: (seen.append(x.detach()), model(x))[1], inputs, target, threat)
    assert_allowed(threat, result.x_adv, inputs)
    assert all(x.dtype == dtype for x in seen)
    assert torch.equal(result.x_adv[~result.initially_correct], inputs[~result.initially_correct])
    fooled = model(result.x_adv).argmax(1) != target
    if dtype in {torch.float32, torch.float64}:
        assert torch.equal(fooled & result.initially_correct, result.success)
        assert not (result.success & ~result.initially_correct).any()
    assert ((result.steps_to_fool >= 0) == result.success).all()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_channels_last_images(name, norm):
    inputs = torch.rand(5, 3, 6, 6).to(memory_format=torch.channels_last)
    model = wavy_model(inputs)
    seen = []
    result = ATTACKS[name](
        lambda x: (seen.append(x), model(x))[1], inputs, model(inputs).argmax(1), ThreatModel(norm, 0.2)
    )
    assert result.x_adv.is_contiguous(memory_format=torch.channels_last)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    assert_allowed(ThreatModel(norm, 0.2), result.x_adv, inputs)


@pytest.mark.parametrize("name", ATTACKS)
def test_autocast_keeps_the_perturbation_in_float32(name):
    if name == "adaptive":
        attack = lambda model, inputs, target, threat: AdaptiveAttack(threat, "fast", torch.bfloat16)(  # noqa: E731
            model, inputs, target
        )
    else:
        attack = partial(ATTACKS[name], autocast_dtype=torch.bfloat16)
    inputs = torch.rand(40, 6)
    model, threat = wavy_model(inputs), ThreatModel(epsilon=0.1)
    target = model(inputs).argmax(1)
    result = attack(model, inputs, target, threat)
    assert_allowed(threat, result.x_adv, inputs)
    assert 0 < result.success.sum() < 40
    assert torch.equal(model(result.x_adv).argmax(1) != target, result.success)
