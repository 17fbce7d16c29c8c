"""The cascades: stronger than their parts, and not deceived by confidence."""

import pytest
import torch

from lightning_flatness.attacks import AdaptiveAttack, AttackResult, ThreatModel, apgd, pgd
from lightning_flatness.attacks.apgd import _checkpoints
from tests.attacks.models import affine, affine_radius, digit_cnn, held_out, scaled_head

THREAT = ThreatModel(epsilon=0.2)


def robust_accuracy(result: AttackResult) -> float:
    return (result.initially_correct & ~result.success).double().mean().item()


@pytest.mark.parametrize("factor", [100, 1000])
def test_confidence_hides_from_the_cross_entropy_but_not_from_the_cascades(factor):
    model, (inputs, target) = digit_cnn(), held_out(100)
    confident, fast = scaled_head(model, factor), AdaptiveAttack(THREAT, budget="fast")
    truth = robust_accuracy(fast(model, inputs, target))
    assert truth <= 0.2
    assert robust_accuracy(pgd(confident, inputs, target, THREAT)) >= 0.8
    assert robust_accuracy(fast(confident, inputs, target)) <= truth + 0.02
    for loss in ("log_odds", "dlr"):
        assert robust_accuracy(pgd(confident, inputs, target, THREAT, loss=loss)) <= truth + 0.05


def test_standard_is_not_deceived_either():
    model, (inputs, target) = digit_cnn(), held_out(30)
    result = AdaptiveAttack(THREAT)(scaled_head(model, 100), inputs, target)
    assert robust_accuracy(result) <= robust_accuracy(pgd(model, inputs, target, THREAT)) + 0.03


def test_larger_budgets_are_stronger():
    model, (inputs, target) = digit_cnn(), held_out(60)
    threat = ThreatModel(epsilon=0.1)
    fast = AdaptiveAttack(threat, budget="fast")(model, inputs, target)
    usual = pgd(model, inputs, target, threat, steps=20, step_size=threat.epsilon / 8)
    assert robust_accuracy(fast) <= robust_accuracy(usual)
    assert fast.forwards + fast.backwards < 0.6 * (usual.forwards + usual.backwards)
    standard = AdaptiveAttack(threat)(model, inputs, target)
    assert not (apgd(model, inputs, target, threat).success & ~standard.success).any()
    assert not (fast.success & ~standard.success).any()
    assert (standard.steps_to_fool <= 400).all()


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("budget", ["fast", "standard"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_any_number_of_classes(num_classes, budget, norm):
    model = affine(num_classes)
    inputs = torch.rand(20, 12, dtype=torch.float64)
    target, radius = model(inputs).argmax(1), affine_radius(model, inputs, norm)
    epsilon = radius.median().item()
    result = AdaptiveAttack(ThreatModel(norm, epsilon, None, None), budget)(model, inputs, target)
    assert not result.success[radius > 1.001 * epsilon].any()
    assert result.success[radius < 0.8 * epsilon].all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bf16_passes_agree_with_float32(norm):
    model, (inputs, target) = digit_cnn(), held_out(100)
    threat = ThreatModel(norm, {"linf": 0.1, "l2": 1.0}[norm])
    plain, cheap = (
        AdaptiveAttack(threat, "fast", dtype)(model, inputs, target, clean_logits=model(inputs))
        for dtype in (None, torch.bfloat16)
    )
    assert abs(robust_accuracy(plain) - robust_accuracy(cheap)) <= 0.03
    assert torch.equal(model(cheap.x_adv).argmax(1) != target, cheap.success | ~cheap.initially_correct)
    assert (threat.distance(cheap.x_adv, inputs) <= threat.epsilon + 1e-7).all()
    assert cheap.x_adv.min() >= 0
    assert cheap.x_adv.max() <= 1


def test_checkpoints_are_those_of_the_paper():
    # p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), p_1 = 0.22
    assert list(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert _checkpoints(1) == {1: 1}


def test_impossible_arguments_are_refused(unchecked_shapes):
    model, inputs = affine(), torch.rand(2, 12, dtype=torch.float64)
    target = model(inputs).argmax(1)
    with unchecked_shapes:
        with pytest.raises(ValueError, match="`budget` must be one of fast, standard, thorough, got 'huge'"):
            AdaptiveAttack(ThreatModel(), budget="huge")
        with pytest.raises(ValueError, match="`steps` must be >= 1, got 0"):
            apgd(model, inputs, target, ThreatModel(), steps=0)
        with pytest.raises(ValueError, match="`restarts` must be >= 1, got 0"):
            apgd(model, inputs, target, ThreatModel(), restarts=0)
        with pytest.raises(ValueError, match="`target_classes` must be >= 0, got -1"):
            apgd(model, inputs, target, ThreatModel(), target_classes=-1)
        with pytest.raises(ValueError, match="`loss` must be a name with target_classes=3, got function"):
            apgd(model, inputs, target, ThreatModel(), target_classes=3, loss=lambda logits, _: logits[:, 0])
