"""Every attack of torchattacks through the guard."""

import re
from copy import deepcopy
from functools import cache

import pytest
import torch
import torchattacks
from torch import Tensor, nn
from torch.testing import assert_close

from lightning_flatness._isolation import own_random_numbers
from lightning_flatness.attacks import AttackResult, ThreatModel, from_torchattacks, torchattacks_names
from lightning_flatness.attacks._guard import family
from lightning_flatness.attacks._noise import sample_seeds
from lightning_flatness.attacks._zoo import EXCLUDED
from tests.attacks.zoo import HARMLESS, Footprints, by_hand, colour_model, eight, quick, threat_for

# SparseFool; numpy 2 says so.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

every_attack = pytest.mark.parametrize("name", torchattacks_names())
every_quick_attack = pytest.mark.parametrize("name", sorted({*torchattacks_names()} - {"SparseFool"}))
RIGHT = slice(1, None)  # of the eight digits


@pytest.fixture(autouse=True)
def _as_users_have_it(unchecked_shapes):
    """The checks of types in the other tests take random numbers from Python's generator."""
    with unchecked_shapes:
        yield


@cache
def expected(name: str) -> AttackResult:
    return quick(name)(colour_model(), *eight())


def assert_sound(result: AttackResult, inputs: Tensor, target: Tensor, threat: ThreatModel, model: nn.Module) -> None:
    """Every success is one: in ball and range, and the model says so."""
    x_adv = result.x_adv
    assert x_adv.isfinite().all()
    assert result.loss.isfinite().all()
    assert (threat.distance(x_adv, inputs) <= threat.epsilon * (1 + 1e-6)).all()
    threat.check_inputs(x_adv)
    with torch.no_grad():
        assert torch.equal(model(x_adv).argmax(1) != target, result.success | ~result.initially_correct)
    assert not (result.success & result.rejected).any()
    assert (result.steps_to_fool == -1).all()


def test_names_are_all_that_need_no_more_than_a_model():
    assert set(torchattacks_names()) | set(EXCLUDED) == set(torchattacks.__all__)
    assert set(EXCLUDED) == set(torchattacks.__wrapper__)


@every_attack
def test_results_are_sound_and_nothing_else_changes(name):
    model, (inputs, target) = colour_model(), eight()
    before, copies = Footprints(model), (inputs.clone(), target.clone())
    result = quick(name)(model, inputs, target)
    before.assert_none()
    assert torch.equal(inputs, copies[0])
    assert torch.equal(target, copies[1])
    assert_sound(result, inputs, target, threat_for(name), model)
    assert result.success.any() == (name not in HARMLESS)
    assert result.forwards > 8
    # The first sample is wrong without an attack, and some attacks would make it right.
    assert result.initially_correct.tolist() == [False] + 7 * [True]
    assert torch.equal(result.x_adv[0], inputs[0])
    assert not result.rejected[0]


@every_attack
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_without_gradients(name, context):
    with context():
        inputs, target = eight()
        assert inputs.is_inference() == (context is torch.inference_mode)
        result = quick(name)(colour_model(), inputs, target)
    assert torch.equal(result.x_adv, expected(name).x_adv)
    assert not result.x_adv.is_inference()


class Fails(nn.Module):
    """Model that fails the third time that it is called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0
        self.training = model.training

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("out of memory")
        return self.model(inputs)


@pytest.mark.parametrize("name", sorted({*torchattacks_names()} - {"VANILA", "GN", "FGSM", "FFGSM"}))
def test_nothing_changes_when_the_model_fails(name):
    model = Fails(colour_model())
    before = Footprints(model)
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        quick(name)(model, *eight())
    assert caught.value.__notes__ == [f"in torchattacks' {name} on images of shape (7, 3, 7, 7)"]
    before.assert_none()


@every_quick_attack
def test_instance_keeps_its_state(name):
    model = colour_model()
    attack = by_hand(name, model, 0)
    # As if it were made before the model was moved, and for another normalisation.
    attack.set_device(torch.device("meta"))
    attack.set_normalization_used(mean=[0.5] * 3, std=[0.5] * 3)
    members = family(attack)
    before = [dict(vars(member)) for member in members]
    result = from_torchattacks(attack, threat_for(name))(model, *eight())
    assert result.success.any() == (name not in HARMLESS)
    for member, state in zip(members, before, strict=True):
        assert vars(member).keys() == state.keys()
        assert all(vars(member)[key] is value for key, value in state.items())


CORRECTED = {"CW", "DeepFool", "EADEN", "EADL1", "PGDRS", "PGDRSL2"}


@pytest.mark.parametrize("name", sorted({*torchattacks_names()} - CORRECTED))
def test_does_what_the_attack_does_by_hand(name):
    model, threat = deepcopy(colour_model()).eval(), threat_for(name)
    inputs, target = (part[RIGHT] for part in eight())
    generator = torch.Generator().manual_seed(3)
    seed = int(sample_seeds(7, torch.Generator().manual_seed(3), inputs.device)[0]) % 2**32
    ours = quick(name)(model, inputs, target, generator)
    with own_random_numbers(seed, inputs.device):
        x_adv = by_hand(name, model, seed)(inputs, target)
    fooled = model(x_adv).argmax(1) != target
    inside = threat.distance(x_adv, inputs) <= threat.epsilon + 1e-5
    assert torch.equal(ours.success, fooled & inside)
    assert torch.equal(ours.rejected, ~inside)
    assert_close(ours.x_adv[ours.success], x_adv[ours.success], rtol=0, atol=1e-6)


RANDOM = ["APGD", "APGDT", "DIFGSM", "FFGSM", "GN", "Jitter", "OnePixel", "PGD", "PGDL2", "PGDRS", "PGDRSL2"]
RANDOM += ["Pixle", "RFGSM", "SPSA", "Square", "TPGD", "VMIFGSM"]


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_gives_another_result(name):
    other = quick(name)(colour_model(), *eight(), torch.Generator().manual_seed(1))
    assert not torch.equal(other.x_adv, expected(name).x_adv)


def agree(first: AttackResult, second: AttackResult) -> bool:
    """Whether the same samples are fooled, but for one that rounding may decide."""
    return int((first.success != second.success).sum()) <= 1


@every_quick_attack
def test_standardised_inputs_give_what_unstandardised_ones_give(name):
    model, (inputs, target) = colour_model(), eight()
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.3, 0.25, 0.2]).view(3, 1, 1)
    threat = threat_for(name, mean=(0.1, 0.2, 0.3), std=(0.3, 0.25, 0.2))
    before = Footprints(model)  # of a model that hides in a function
    result = quick(name, threat)(lambda images: model(images * std + mean), (inputs - mean) / std, target)
    before.assert_none()
    assert agree(result, expected(name))
    assert (threat.distance(result.x_adv, (inputs - mean) / std) <= threat.epsilon * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", ["CW", "FAB", "PGD", "Square"])
def test_pixels_in_0_to_255_give_what_those_in_0_to_1_give(name):
    model, (inputs, target), unit = colour_model(), eight(), threat_for(name)
    threat = ThreatModel(unit.norm, 255 * unit.epsilon, 0, 255)
    assert agree(quick(name, threat)(lambda images: model(images / 255), 255 * inputs, target), expected(name))


@pytest.mark.parametrize(
    "name", sorted({*torchattacks_names()} - {"Jitter", "SparseFool"})
)  # Jitter divides by the largest |logit|
def test_shifted_logits_change_nothing(name):
    model = colour_model()
    assert agree(quick(name)(lambda images: model(images) - 100, *eight()), expected(name))


@every_quick_attack
def test_memory_format_is_kept(name):
    inputs, target = eight()
    result = quick(name)(colour_model(), inputs.contiguous(memory_format=torch.channels_last), target)
    assert result.x_adv.is_contiguous(memory_format=torch.channels_last)
    assert agree(result, expected(name))


@every_quick_attack
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(name, dtype):
    model = deepcopy(colour_model()).to(dtype)
    inputs, target = eight()
    inputs = inputs.to(dtype)
    result = quick(name)(model, inputs, target)
    assert result.x_adv.dtype == dtype
    assert_sound(result, inputs, target, threat_for(name), model)
    assert result.success.any() == (name not in HARMLESS)


@every_quick_attack
def test_autocast_of_the_caller(name):
    with torch.autocast("cpu", torch.bfloat16):
        result = quick(name)(colour_model(), *eight())
    assert result.success.any() == (name not in HARMLESS)


IMAGES_ONLY = {
    "DIFGSM": "DIFGSM needs images as high as wide, got 1 x 147; choose another attack.",
    "Pixle": "Pixle needs images as high as wide, got 1 x 147; choose another attack.",
    "Square": "Square needs images of at least 5 x 5 for norm='l2', got 1 x 147; choose another attack.",
    "AutoAttack": "AutoAttack needs images of at least 5 x 5 for norm='l2', got 1 x 147; choose another attack.",
    "TIFGSM": "TIFGSM needs 3 channels, got 1; choose another attack.",
    "PIFGSM": "PIFGSM needs 3 channels, got 1; choose another attack.",
    "PIFGSMPP": "PIFGSMPP needs 3 channels, got 1; choose another attack.",
}


@every_attack
def test_vectors_are_attacked_or_refused_by_name(name):
    model, (inputs, target), attack = colour_model(), eight(), quick(name)
    rows = (lambda vectors: model(vectors.view(-1, 3, 7, 7)), inputs.flatten(1), target)
    if name in IMAGES_ONLY:
        with pytest.raises(
            ValueError, match=re.escape(f"{name} cannot attack inputs of shape (8, 147): {IMAGES_ONLY[name]}")
        ):
            attack.check(*rows)
        with pytest.raises(ValueError, match=re.escape(IMAGES_ONLY[name])):
            attack(*rows)
        return
    attack.check(*rows)
    result = attack(*rows)
    assert result.x_adv.shape == (8, 147)
    assert_sound(result, *rows[1:], threat_for(name), rows[0])
    assert result.success.any() == (name not in HARMLESS)


@every_attack
def test_check_is_quiet_and_cheaper_than_the_attack(name, capsys):
    model, attack, calls = colour_model(), quick(name), []
    before = Footprints(model)
    attack.check(lambda images: calls.append(len(images)) or model(images), *eight())
    before.assert_none()
    assert capsys.readouterr() == ("", "")
    assert sum(calls) <= expected(name).forwards
