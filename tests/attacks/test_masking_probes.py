"""Signals of gradient masking from gradients close to the input: known gradients, underflow, half precision."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lightning_flatness.attacks import ThreatModel, masking_signals
from tests.attacks.diagnoses import alarms, means, samples
from tests.attacks.masking_models import PLANTED, Wrapped, _half_precision
from tests.attacks.models import affine, affine_radius, digit_cnn, held_out


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_affine_model_has_nothing_to_hide(dtype, norm):
    model, inputs = affine(5), torch.rand(100, 12, dtype=torch.float64)
    epsilon = affine_radius(model, inputs, norm).median().item()
    target = model(inputs).argmax(1)
    diagnosis = masking_signals(
        model.to(dtype), inputs.to(dtype), target, ThreatModel(norm, epsilon, None, None), thorough=True
    )
    values = means(diagnosis)
    assert samples(diagnosis) == 100
    assert alarms(diagnosis) == set()
    assert values["zero_gradient_rate"] == values["gradient_underflow"] == values["randomness"] == 0
    assert values["gradient_alignment"] == pytest.approx(1.0, abs=1e-6)
    assert values["directional_correlation"] == pytest.approx(1.0, abs=1e-3)
    assert diagnosis.signals["directional_correlation"].count == 100
    assert values["success_rate"] > 0.3


def test_underflow_is_the_share_counted_by_hand():
    """The gradient enters float16 divided by 2**15, and is 0 there up to 2**-25."""
    model, inputs = affine(3).float(), torch.rand(50, 12)
    target = model(inputs).argmax(1)
    faint = Wrapped(lambda x: model(_half_precision(x)) / 1000)
    values = means(masking_signals(faint, inputs, target, ThreatModel(epsilon=0.05)))
    rounded = ((inputs * 2**15).half() * 2.0**-15).float()
    logits = (model(rounded) / 1000).detach()
    size = ((logits.softmax(1) - nn.functional.one_hot(target, 3)) @ model.weight.detach() / 1000).abs()
    lost = (size > 2**-20) & (size <= 2**-10)
    share = (lost.sum(1) / (size > 2**-20).sum(1)).mean().item()
    assert 0.2 < share < 0.9
    assert values["gradient_underflow"] == pytest.approx(share, abs=1e-6)
    exact = means(masking_signals(lambda x: model(x) / 1000, inputs, target, ThreatModel(epsilon=0.05)))
    assert exact["gradient_underflow"] == 0


def _half(dtype: torch.dtype, inputs: Tensor) -> Tensor:
    logits: Tensor = deepcopy(digit_cnn()).to(dtype)(inputs.to(dtype))
    return logits.float()


def _autocast(inputs: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits: Tensor = digit_cnn()(inputs)
    return logits.float()


def _wide_head(inputs: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        features = digit_cnn()[:-1](inputs)
    logits: Tensor = digit_cnn()[-1](features.float())
    return logits


HALF = {
    "bfloat16": partial(_half, torch.bfloat16),
    "float16": partial(_half, torch.float16),
    "autocast": _autocast,
    "head in float32": _wide_head,
}


@pytest.mark.parametrize("epsilon", [0.001, 0.1])
@pytest.mark.parametrize("model", HALF.values(), ids=HALF)
def test_half_precision_behind_float32_logits_is_no_wrong_gradient(model, epsilon):
    inputs, target = held_out(40)
    assert model(inputs[:1]).dtype == torch.float32
    diagnosis = masking_signals(model, inputs, target, ThreatModel(epsilon=epsilon))
    assert samples(diagnosis) > 30
    assert alarms(diagnosis) == set()


@pytest.mark.parametrize("epsilon", [0.001, 0.1])
def test_a_wrong_gradient_is_seen_in_float32_at_every_epsilon_and_through_half_precision(epsilon):
    inputs, target = held_out(105)
    for model in (digit_cnn(), Wrapped(_autocast)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            diagnosis = masking_signals(PLANTED["random backward"](model), inputs, target, ThreatModel(epsilon=epsilon))
        assert alarms(diagnosis) & {"directional_correlation", "gradient_alignment"}
    honest = masking_signals(digit_cnn(), inputs, target, ThreatModel(epsilon=epsilon))
    assert honest.signals["directional_correlation"].count == samples(honest)


def test_probabilities_of_half_precision_are_seen():
    inputs, target = held_out(60)
    model = deepcopy(digit_cnn()).bfloat16()
    diagnosis = masking_signals(lambda x: model(x.bfloat16()).softmax(1).float(), inputs, target, ThreatModel())
    assert means(diagnosis)["probabilities"] == 1
