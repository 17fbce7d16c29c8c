"""Signals of gradient masking over batches, of few samples, and in the contexts of a trainer."""

import pytest
import torch

from lightning_flatness.attacks import MASKING_RULES, MaskingDiagnosis, ThreatModel, masking_reasons, masking_signals
from tests.attacks.diagnoses import THOROUGH_ONLY, alarms, means
from tests.attacks.masking_models import PLANTED
from tests.attacks.models import affine, affine_radius, digit_cnn, held_out, scaled_head

UNIT = ThreatModel(epsilon=0.1)


@pytest.mark.parametrize("factor", [1, 100])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_signals_of_batches_add_up(norm, factor):
    model, inputs = affine(5), torch.rand(60, 12, dtype=torch.float64)
    model.bias.data = -model.weight.data.sum(1) / 2  # all classes occur
    target = model(inputs).argmax(1)
    target[::7] = (target[::7] + 1) % 5
    threat = ThreatModel(norm, affine_radius(model, inputs, norm).median().item())
    earlier = inputs.flip(1)

    def diagnose(sizes: list[int]) -> list[MaskingDiagnosis]:
        generator = torch.Generator().manual_seed(3)
        return [
            masking_signals(lambda x: factor * model(x), x, y, threat, generator=generator, earlier=before)
            for x, y, before in zip(*(part.split(sizes) for part in (inputs, target, earlier)), strict=True)
        ]

    (whole,), parts = diagnose([60]), diagnose([7, 30, 3, 20])
    assert all(len(y.unique()) > 1 for y in target.split([7, 30, 3, 20]))
    for name, signal in whole.signals.items():
        assert sum(part.signals[name].count for part in parts) == signal.count > 0
        assert sum(part.signals[name].sum for part in parts).item() == pytest.approx(signal.sum.item(), abs=1e-6)
    torch.testing.assert_close(torch.cat([part.x_adv for part in parts]), whole.x_adv)
    assert sum(part.backwards for part in parts) == whole.backwards
    assert 0 < means(whole)["success_rate"] < 1


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples_do(count, thorough):
    inputs, target = held_out(count)
    for model in (digit_cnn(), scaled_head(digit_cnn(), 1000), PLANTED["rounded inputs"](digit_cnn())):
        diagnosis = masking_signals(model, inputs, target, UNIT, thorough=thorough, earlier=inputs)
        assert diagnosis.x_adv.shape == inputs.shape
        assert THOROUGH_ONLY & set(diagnosis.signals) == (THOROUGH_ONLY if thorough else set())
        assert diagnosis.signals["success_rate"].count == count
        assert all(signal.sum.isfinite() for signal in diagnosis.signals.values())
        assert isinstance(alarms(diagnosis), set)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_a_trainer_validates(context):
    model, (inputs, target) = digit_cnn(), held_out(10)
    earlier = inputs.flip(2)
    outside = masking_signals(model, inputs, target, UNIT, thorough=True, earlier=earlier)
    with context():
        made_here = [part.clone() for part in (inputs, target, earlier)]
        inside = masking_signals(
            model, *made_here[:2], UNIT, thorough=True, earlier=made_here[2], clean_logits=model(made_here[0])
        )
        assert not torch.is_grad_enabled()
    assert means(inside) == pytest.approx(means(outside), abs=1e-6)
    assert torch.equal(inside.x_adv, outside.x_adv)
    assert not inside.x_adv.is_inference()
    assert outside.forwards - inside.forwards == 10  # the clean pass


def test_a_rate_that_proves_something_in_many_samples_proves_nothing_in_three():
    for name, rule in MASKING_RULES.items():
        if rule.lowest is None:
            continue
        beyond = {name: 1.5 * rule.above if rule.above is not None else rule.below - 0.1}
        assert masking_reasons(beyond, 3) == []
        assert len(masking_reasons(beyond, 2000)) == 1
    assert masking_reasons({"randomness": 2e-3}, 1)


@pytest.mark.parametrize(
    ("planted", "rule", "few"), [("softmax outputs", "probabilities", 3), ("random backward", "gradient_alignment", 5)]
)
def test_a_handful_of_samples_is_no_proof(planted, rule, few):
    model = PLANTED[planted](digit_cnn())
    for count, fires in ((few, False), (105, True)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            diagnosis = masking_signals(model, *held_out(count), UNIT)
        assert (rule in alarms(diagnosis)) == fires
        threshold = MASKING_RULES[rule]
        value = means(diagnosis)[rule]
        assert value > threshold.above if threshold.above is not None else value < threshold.below
