"""AutoAttack as published."""

import sys
from copy import deepcopy

import pytest
import torch
import torchattacks
from torch import nn

from lightning_flatness.attacks import AdaptiveAttack, AttackResult, ThreatModel, from_torchattacks
from lightning_flatness.attacks._noise import sample_seeds
from tests.attacks.zoo import colour_model, small_digits

THREAT = ThreatModel(epsilon=0.07)


def held_out(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(part[4000 : 4000 + count] for part in small_digits())


def robust(result: AttackResult) -> list[bool]:
    return (result.initially_correct & ~result.success).tolist()


@pytest.fixture(autouse=True)
def _quick(unchecked_shapes):
    """Thousands of calls are checked elsewhere."""
    with unchecked_shapes:
        yield


def test_thorough_leaves_standing_whom_the_published_autoattack_does():
    model, (inputs, target) = colour_model(), held_out(10)
    generator = torch.Generator().manual_seed(0)
    result = AdaptiveAttack(THREAT, "thorough")(model, inputs, target, generator)
    assert 0 < sum(robust(result)) < 10
    seed = int(sample_seeds(10, torch.Generator().manual_seed(0), inputs.device)[0]) % 2**32
    by_hand = torchattacks.AutoAttack(deepcopy(model), eps=0.07, seed=seed)
    for part in by_hand._autoattack.attacks:
        part.steps, part.rescale_schedule = 100, False
    with torch.random.fork_rng(devices=[]):
        x_adv = by_hand(inputs, target)
    assert robust(result) == (model.eval()(x_adv).argmax(1) == target).tolist()


@pytest.mark.parametrize("num_classes", [2, 3])
def test_thorough_works_where_there_is_no_targeted_dlr(num_classes):
    images, labels = (part[4000:] for part in small_digits())
    few = labels < num_classes
    inputs, target = images[few][:6], labels[few][:6]
    # The cross-entropy's gradient vanishes, so that the margin, with which we stand in, has it all to do.
    model = nn.Sequential(colour_model(), Leading(num_classes), Times(1e4))
    threat = ThreatModel(epsilon=0.2)
    assert not from_torchattacks("APGD", threat, steps=100)(model, inputs, target).success.all()
    assert AdaptiveAttack(threat, "thorough")(model, inputs, target).success.all()


class Leading(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, : self.count]


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.factor * logits


def test_each_part_gets_what_the_parts_before_have_left():
    model, (inputs, target) = colour_model(), held_out(20)
    result = AdaptiveAttack(ThreatModel(epsilon=0.2), "thorough")(model, inputs, target)
    first = from_torchattacks("APGD", ThreatModel(epsilon=0.2), steps=100)(model, inputs, target)
    assert torch.equal(result.success, first.success)
    assert robust(first) == 20 * [False]
    assert (result.forwards, result.backwards) == (first.forwards, first.backwards)
    assert torch.equal(result.x_adv, first.x_adv)


def test_bf16_passes_and_float32_checks():
    model, (inputs, target) = colour_model(), held_out(20)
    cheap = AdaptiveAttack(ThreatModel(epsilon=0.2), "thorough", torch.bfloat16)(model, inputs, target)
    assert cheap.success.sum() >= 15
    assert torch.equal(model(cheap.x_adv).argmax(1) != target, cheap.success | ~cheap.initially_correct)


def test_what_thorough_needs_is_asked_for_at_construction(monkeypatch):
    with pytest.raises(ValueError, match=r"APGD needs a valid range, got `lower`=None, `upper`=1.0"):
        AdaptiveAttack(ThreatModel(lower=None), "thorough")
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match=r"`attack` 'APGD': torchattacks cannot be imported. With pip: "):
        AdaptiveAttack(ThreatModel(), "thorough")
    AdaptiveAttack(ThreatModel(), "standard")
