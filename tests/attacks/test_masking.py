"""Signals of gradient masking: their definitions, what fires them, and what must not."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_flatness.attacks import (
    MASKING_RULES,
    Signal,
    ThreatModel,
    masking_reasons,
    masking_signals,
    pgd,
)
from lightning_flatness.attacks.losses import margin
from tests.attacks.architectures import mlp
from tests.attacks.diagnoses import THOROUGH_ONLY, alarms, means, samples
from tests.attacks.masking_models import PLANTED, Wrapped
from tests.attacks.models import affine, affine_radius, digit_cnn, held_out, scaled_head, trained

FREE = {
    "zero_gradient_rate",
    "gradient_underflow",
    "loss_underflow_rate",
    "probabilities",
    "randomness",
    "gradient_alignment",
    "directional_correlation",
    "loss_decrease_rate",
    "success_rate",
    "loss_gap",
    "unbounded_survival",
}
THOROUGH = FREE | THOROUGH_ONLY
THREAT = ThreatModel(epsilon=0.1)


def problem(num_classes: int = 3, count: int = 20, norm: str = "linf") -> tuple[nn.Module, Tensor, Tensor, ThreatModel]:
    """Affine model and a threat that fools about half of the samples."""
    model = affine(num_classes)
    inputs = torch.rand(count, 12, dtype=torch.float64)
    epsilon = affine_radius(model, inputs, norm).median().item()
    return model, inputs, model(inputs).argmax(1), ThreatModel(norm, epsilon, None, None)


def test_success_is_that_of_the_plain_attack():
    model, inputs, target, threat = problem(num_classes=5)
    generator = torch.Generator().manual_seed(5)
    diagnosis = masking_signals(model, inputs, target, threat, thorough=True, generator=generator)
    plain = pgd(model, inputs, target, threat, steps=5, generator=torch.Generator().manual_seed(5))
    assert diagnosis.signals["success_rate"].sum == plain.success.sum() > 0
    assert torch.equal(diagnosis.x_adv, plain.x_adv)
    assert threat.distance(diagnosis.x_adv, inputs).max() <= threat.epsilon + 1e-9


def test_loss_gap_and_survival_count_what_other_attacks_do():
    model, (inputs, target) = digit_cnn(), held_out(60)
    hidden = scaled_head(model, 100)
    values = means(masking_signals(hidden, inputs, target, THREAT))
    plain, by_margin = (pgd(hidden, inputs, target, THREAT, steps=5, loss=loss) for loss in ("cross_entropy", "margin"))
    correct = plain.initially_correct.sum()
    assert values["loss_gap"] == pytest.approx(((by_margin.success & ~plain.success).sum() / correct).item())
    anywhere = ThreatModel(epsilon=1.0)
    unbounded = pgd(hidden, inputs, target, anywhere, steps=10, random_start=False)
    assert values["unbounded_survival"] == pytest.approx(
        ((correct - unbounded.success.sum()) / correct).item(), abs=0.1
    )
    exact = torch.autograd.functional.jacobian(
        lambda x: nn.functional.cross_entropy(hidden(x), target, reduction="sum"), inputs
    )
    zero = (exact.flatten(1) == 0).all(1)[plain.initially_correct]
    assert values["zero_gradient_rate"] == pytest.approx(zero.double().mean().item())
    losses = nn.functional.cross_entropy(hidden(inputs), target, reduction="none")[plain.initially_correct]
    assert values["loss_underflow_rate"] == pytest.approx((losses == 0).double().mean().item())


def test_wrong_backward_is_seen_by_its_cosines():
    class Turned(torch.autograd.Function):
        """Derivative of the elements in the wrong order."""

        @staticmethod
        def forward(ctx, inputs):
            del ctx
            return inputs.clone()

        @staticmethod
        def backward(ctx, gradient):
            del ctx
            return gradient.flip(1)

    model, inputs, target, threat = problem(count=50)
    values = means(masking_signals(Wrapped(lambda x: model(Turned.apply(x))), inputs, target, threat))
    assert values["gradient_alignment"] == pytest.approx(1.0)
    assert values["directional_correlation"] < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("threat", [ThreatModel(epsilon=0.1), ThreatModel("l2", 1.0)], ids=["linf", "l2"])
def test_honest_models_are_silent_and_every_planted_one_is_not(threat):
    expected = {
        "head x30": "unbounded_survival",
        "head x100": "zero_gradient_rate",
        "head x1000": "loss_gap",
        "rounded inputs": "zero_gradient_rate",
        "random backward": "directional_correlation",
        "softmax outputs": "probabilities",
        "noise": "randomness",
        "float16 underflow": "gradient_underflow",
    }
    assert set(expected) == set(PLANTED)
    inputs, target = held_out(105)
    for epsilon in (0.0, 0.2):
        model = digit_cnn(epsilon=epsilon)
        assert alarms(masking_signals(model, inputs, target, threat)) == set()
        for name, plant in PLANTED.items():
            assert expected[name] in alarms(masking_signals(plant(model), inputs, target, ThreatModel(epsilon=0.2)))
            assert alarms(masking_signals(plant(model), inputs, target, threat))


@pytest.mark.slow
def test_thorough_tells_confidence_from_a_wrong_gradient():
    model, (inputs, target) = digit_cnn(), held_out(80)
    thorough = partial(masking_signals, inputs=inputs, target=target, threat=THREAT, thorough=True)
    assert alarms(thorough(model)) == set()
    confident = alarms(thorough(scaled_head(model, 100)))
    assert "temperature_gap" in confident
    assert "black_box_gap" not in confident
    rounded = alarms(thorough(PLANTED["rounded inputs"](model)))
    assert "black_box_gap" in rounded
    assert "temperature_gap" not in rounded


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [0, 1, 150])
def test_untrained_and_very_confident_models_are_silent(epochs):
    model, (inputs, target) = trained(mlp, epochs), held_out(1000)
    with torch.no_grad():
        correct = (model(inputs).argmax(1) == target).nonzero().squeeze(1)[:100]
    values = {}
    for threat in (ThreatModel(epsilon=0.05), ThreatModel("l2", 1.0)):
        diagnosis = masking_signals(model, inputs[correct], target[correct], threat, thorough=True)
        values = means(diagnosis)
        assert samples(diagnosis) > 80
        assert alarms(diagnosis) == set()
    if epochs == 150:
        assert values["loss_underflow_rate"] > 0.3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_masking(dtype):
    model, (inputs, target) = digit_cnn(), held_out(60)
    copy = nn.Sequential(*(type(layer)(*args(layer)) for layer in model)).to(dtype)
    copy.load_state_dict(model.state_dict())
    diagnosis = masking_signals(copy, inputs.to(dtype), target, THREAT)
    assert alarms(diagnosis) == set()
    assert diagnosis.x_adv.dtype == dtype
    assert means(diagnosis)["success_rate"] > 0.2


def args(layer: nn.Module) -> tuple[int, ...]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels, 3, 1, 1
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return (2,) if isinstance(layer, nn.MaxPool2d) else ()


def test_earlier_adversarial_examples_betray_a_head_that_has_grown():
    model, (inputs, target) = digit_cnn(), held_out(80)
    earlier = masking_signals(model, inputs, target, ThreatModel(epsilon=0.2)).x_adv
    honest = masking_signals(model, inputs, target, ThreatModel(epsilon=0.2), earlier=earlier)
    assert means(honest)["transfer_gap"] == 0
    hidden = masking_signals(scaled_head(model, 100), inputs, target, ThreatModel(epsilon=0.2), earlier=earlier)
    assert means(hidden)["transfer_gap"] > 0.5
    assert "transfer_gap" in alarms(hidden)
    too_far = masking_signals(scaled_head(model, 100), inputs, target, ThreatModel(epsilon=0.0), earlier=earlier)
    assert means(too_far)["transfer_gap"] == 0


def test_signals_are_what_a_mean_metric_takes():
    metric = MeanMetric()
    for values in ([1.0, 0.0, float("nan")], [float("nan")], [1.0]):
        signal = Signal.of(torch.tensor(values))
        assert signal.sum.dtype == torch.float64
        metric.update(signal.mean(), signal.count)
    assert metric.compute() == pytest.approx(2 / 3)


def test_no_correct_sample_counts_nothing():
    model, inputs, target, threat = problem()
    wrong = (target + 1) % 3
    for x, y in ((inputs, wrong), (inputs[:0], wrong[:0])):
        diagnosis = masking_signals(model, x, y, threat, thorough=True, earlier=x)
        assert set(diagnosis.signals) == THOROUGH | {"transfer_gap"}
        assert {signal.count.item() for signal in diagnosis.signals.values()} == {0}
        assert torch.equal(diagnosis.x_adv, x)
        assert diagnosis.backwards == 0
        assert means(diagnosis) == {}
        assert masking_reasons(means(diagnosis), samples(diagnosis)) == []


def test_a_dead_network_hides_nothing_but_one_that_knows_one_class_may():
    dead = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    nn.init.constant_(dead[0].bias, -100.0)
    inputs = torch.rand(30, 12, dtype=torch.float64)
    diagnosis = masking_signals(dead, inputs, dead(inputs).argmax(1), ThreatModel())
    assert samples(diagnosis) == 0
    model, (inputs, target) = digit_cnn(), held_out(400)
    zeros = (target == 0).nonzero().squeeze(1)
    diagnosis = masking_signals(scaled_head(model, 1000), inputs[zeros], target[zeros], THREAT)
    assert "zero_gradient_rate" in alarms(diagnosis)


def test_a_model_of_one_class_survives_everything_and_is_no_alarm():
    def one_class(x):
        return torch.stack([5 + x.sum(1), x.sum(1) * 0, x[:, 0]], dim=1)

    diagnosis = masking_signals(one_class, torch.rand(50, 4), torch.zeros(50, dtype=torch.long), ThreatModel())
    assert samples(diagnosis) == 50
    assert diagnosis.signals["unbounded_survival"].count == 0
    assert alarms(diagnosis) == set()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_leave_every_value_finite(bad):
    model, inputs, target, _ = problem()

    def sometimes(x):
        return torch.where((x[:, :1] > 0.5) & (x[:, 1:2] != inputs[0, 1]), bad, model(x))

    diagnosis = masking_signals(sometimes, inputs, target, ThreatModel(epsilon=0.3), thorough=True)
    assert 0 < samples(diagnosis) < 20
    for signal in diagnosis.signals.values():
        assert signal.sum.isfinite()
    nothing = masking_signals(lambda x: model(x) * torch.nan, inputs, target, ThreatModel())
    assert samples(nothing) == 0


def test_classes_masked_by_minus_infinity_are_no_randomness():
    model, inputs, target, threat = problem()

    def masked(x):
        return torch.cat([model(x), torch.full((len(x), 1), -torch.inf)], dim=1)

    diagnosis = masking_signals(masked, inputs, target, threat)
    assert means(diagnosis)["randomness"] == 0
    assert alarms(diagnosis) == set()


def test_gradients_that_are_not_finite_are_left_out():
    def steep(x):
        return torch.stack([x.sum(1), 3 - x.sum(1) - (x[:, 0] * 0).sqrt()], dim=1)

    inputs = torch.full((4, 3), 0.9)
    diagnosis = masking_signals(steep, inputs, torch.zeros(4, dtype=torch.long), ThreatModel(), thorough=True)
    assert diagnosis.signals["gradient_alignment"].count == 0
    assert diagnosis.signals["zero_gradient_rate"].mean() == 0
    assert all(signal.sum.isfinite() for signal in diagnosis.signals.values())


def test_reach_follows_the_declared_range_or_the_batch():
    seen = []

    def flat(x):
        seen.append(x.detach())
        return torch.stack([1e5 * x.sum(1), -1e5 * x.sum(1)], dim=1)

    inputs, target = torch.rand(30, 2) - 0.5, torch.zeros(30, dtype=torch.long)
    for lower, upper, reach in ((-3.0, 5.0, 8.0), (None, None, 1.0)):
        seen.clear()
        target = (inputs.sum(1) < 0).long()
        masking_signals(flat, inputs, target, ThreatModel("linf", 0.01, lower, upper))
        assert max(x.abs().max().item() for x in seen) <= reach + 1.0


def test_passes_are_counted_as_the_model_sees_them():
    model, inputs, target, threat = problem()
    sizes = []

    def logits_fn(x):
        sizes.append(len(x))
        return model(x)

    diagnosis = masking_signals(logits_fn, inputs, target, threat, thorough=True, earlier=inputs)
    assert diagnosis.forwards == sum(sizes)
    assert diagnosis.backwards < diagnosis.forwards


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x.detach(), "`logits_fn` must be differentiable in its inputs, got logits without a graph"),
        (lambda x: x.detach() * torch.ones(3, requires_grad=True), "must be differentiable in its inputs"),
        (lambda x: (x, x), "`logits_fn` must return a tensor of logits, got tuple"),
    ],
)
def test_models_without_a_gradient_are_refused(model, message):
    inputs = torch.tensor([[0.5, 0.1, 0.1], [0.1, 0.5, 0.1]])
    with pytest.raises(ValueError, match=message):
        masking_signals(model, inputs, torch.tensor([0, 1]), ThreatModel())


HONEST = {
    "zero_gradient_rate": 0.0,
    "gradient_underflow": 0.0,
    "loss_underflow_rate": 0.9,
    "probabilities": 0.0,
    "randomness": 0.0,
    "gradient_alignment": 0.4,
    "directional_correlation": 1.0,
    "loss_decrease_rate": 0.1,
    "success_rate": 0.5,
    "loss_gap": 0.05,
    "unbounded_survival": 0.0,
    "transfer_gap": 0.02,
    "temperature_gap": 0.03,
    "black_box_gap": 0.02,
}
MASKED = {
    "zero_gradient_rate": 0.3,
    "gradient_underflow": 0.5,
    "probabilities": 1.0,
    "randomness": 0.01,
    "gradient_alignment": 0.0,
    "directional_correlation": 0.3,
    "loss_decrease_rate": 0.45,
    "loss_gap": 0.5,
    "unbounded_survival": 0.3,
    "transfer_gap": 0.2,
    "temperature_gap": 0.2,
    "black_box_gap": 0.2,
}


def test_every_signal_but_two_has_a_rule():
    assert set(MASKING_RULES) == set(MASKED)
    assert set(HONEST) == THOROUGH | {"transfer_gap"}
    assert set(HONEST) - set(MASKED) == {"loss_underflow_rate", "success_rate"}


@pytest.mark.parametrize("name", MASKED)
def test_each_rule_fires_alone_and_says_its_number(name):
    assert masking_reasons(HONEST, 100) == []
    (reason,) = masking_reasons(HONEST | {name: MASKED[name]}, 100)
    assert reason.startswith(f"{name}: ")
    assert any(f"{MASKED[name]:{form}}" in reason for form in (".0%", ".2f", ".2g"))
    assert reason.count(".") - reason.count("0.") == 1
    assert masking_reasons(HONEST | {name: torch.nan}, 100) == []


def test_rates_fire_where_their_whole_interval_lies_beyond_the_threshold():
    # Wilson's interval of 12 out of 100 is [0.070, 0.198], that of 10 is [0.055, 0.174], that of 9 is [0.048, 0.162].
    for count, fires in ((9, False), (10, True), (12, True)):
        assert bool(masking_reasons({"black_box_gap": count / 100}, 100)) == fires
    # A cosine of 0 in 25 samples counts like 12.5 of 25: at most 0.686, a cosine of 0.37; in 400: at most 0.10.
    assert masking_reasons({"gradient_alignment": 0.0}, 25) == []
    assert masking_reasons({"gradient_alignment": 0.0}, 400)


def test_margin_is_the_signal_where_no_class_leads():
    """Early in a training the cross-entropy is a poor guide, though nothing is hidden."""
    weak = Wrapped(lambda x: affine(10)(x) / 1000)
    inputs = torch.rand(60, 12, dtype=torch.float64)
    target = weak(inputs).argmax(1)
    threat = ThreatModel(epsilon=affine_radius(affine(10), inputs, "linf").median().item())
    diagnosis = masking_signals(weak, inputs, target, threat, thorough=True)
    plain, by_margin = (pgd(weak, inputs, target, threat, steps=5, loss=loss) for loss in ("cross_entropy", "margin"))
    assert (by_margin.success & ~plain.success).sum() > 3
    assert margin(weak(inputs), target).abs().max() < 0.1
    assert means(diagnosis)["loss_gap"] == 0
    assert alarms(diagnosis) == set()


def test_earlier_of_another_shape_is_refused(unchecked_shapes) -> None:
    inputs, target = held_out(4)
    message = r"`earlier` must have the shape of `inputs` \(4, 1, 28, 28\), got \(3, 1, 28, 28\)."
    with unchecked_shapes, pytest.raises(ValueError, match=message):
        masking_signals(digit_cnn(1), inputs, target, THREAT, earlier=inputs[:3])
