"""Numbers are right to six digits for what the model computes, in every precision and however it is compiled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from examples.mnist import DigitClassifier
from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from tests.benchmarks.precision import CLASSES, HIDDEN, PRECISIONS, SHOWN, body, by_definition, errors, evaluate
from tests.callbacks.conftest import Net, trainer

OWN_ERROR = 1e-6
"""Largest relative error of a number, given features and logits."""
CHANGE = {"64-true": 1e-6, "32-true": 0.0, "16-mixed": 0.005, "16-true": 0.005, "bf16-mixed": 0.03, "bf16-true": 0.03}
"""Largest relative change of a mean that the model's own rounding makes."""
RATE_CHANGE = 0.03
"""Largest change of a rate of success."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference(device: torch.device) -> dict[str, float]:
    values, _ = evaluate("32-true", device)
    return values


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision(precision: str, device: torch.device, reference: dict[str, float]) -> None:
    if precision == "16-mixed" and device.type == "cpu":
        pytest.skip("on a CPU Lightning replaces it by bf16-mixed; `--device cuda` runs it")
    values, seen = evaluate(precision, device)
    assert max(errors(values, by_definition(*seen)).values()) < OWN_ERROR
    assert values.keys() == reference.keys()
    for key in SHOWN.values():
        assert values[key] == pytest.approx(reference[key], rel=CHANGE[precision], abs=0), key
    rates = [name for name in values if name.endswith(("success_rate", "robust_accuracy"))]
    for key in rates:
        assert values[key] == pytest.approx(reference[key], abs=RATE_CHANGE), key
    assert 0.2 < values["attack/linf_0_5_success_rate"] < 0.9
    assert values["bound/violation_rate"] == 0


class Configured(Net):
    """Compiles its parts where Lightning asks for the model."""

    def configure_model(self) -> None:
        self.body.compile(backend="aot_eager")


def _net(kind: type[Net] = Net) -> Net:
    return kind(body(), nn.Linear(HIDDEN, CLASSES))


def _inner() -> Net:
    net = _net()
    net.body.compile(backend="aot_eager")
    return net


@pytest.mark.parametrize(
    ("make", "wrap"),
    [
        (_net, lambda net: torch.compile(net, backend="aot_eager")),
        (_inner, lambda net: net),
        (lambda: _net(Configured), lambda net: net),
    ],
    ids=["module", "inner network", "configure_model"],
)
def test_compiled_before_or_after_the_trainer_sees_it(
    make: Callable[[], Net], wrap: Callable[[Net], Any], device: torch.device, reference: dict[str, float]
) -> None:
    torch.compiler.reset()
    values, seen = evaluate("32-true", device, make(), wrap)
    assert max(errors(values, by_definition(*seen)).values()) < OWN_ERROR
    same = [name for name in values if not name.endswith("seconds")]
    assert {name: values[name] for name in same} == pytest.approx({name: reference[name] for name in same}, rel=1e-6)


def _of_digits(memory_format: torch.memory_format, device: torch.device) -> dict[str, float]:
    torch.manual_seed(0)
    images = torch.rand(60, 1, 28, 28).expand(-1, 3, -1, -1).contiguous(memory_format=memory_format)
    net = DigitClassifier().to(memory_format=memory_format)  # type: ignore[call-overload]
    net.features[0] = nn.Conv2d(3, 16, 3, padding=1).to(memory_format=memory_format)  # type: ignore[call-overload]
    monitors = [
        RelativeFlatnessMonitor(),
        AttackMonitor(0.02, masking_samples=10),
        LocalRobustnessMonitor(0.02, lipschitz_samples=10),
        AttackTrajectoryMonitor(0.02, max_samples=10, steps=5),
        HeadScalingMonitor(0.02, scales=(1.0, 10.0), attack_samples=10),
    ]
    target = net.eval()(images).argmax(1)
    assert images.is_contiguous(memory_format=memory_format)
    batches = DataLoader([(images[:30], target[:30]), (images[30:], target[30:])], batch_size=None)  # type: ignore[arg-type]
    logged = trainer(*monitors, accelerator=device.type).validate(net, batches, verbose=False)[0]
    return {name: value for name, value in logged.items() if not name.endswith("seconds")}


def test_channels_last(device: torch.device) -> None:
    values, expected = (_of_digits(layout, device) for layout in (torch.channels_last, torch.contiguous_format))
    rates = {name for name in expected if any(part in name for part in ("rate", "accuracy", "gap"))}
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        # Rounding may decide a sample at the edge.
        assert values[name] == pytest.approx(value, rel=1e-3, abs=0.1 if name in rates else 1e-5), name
    assert values["flatness/relative_flatness"] == pytest.approx(expected["flatness/relative_flatness"], rel=1e-5)
