"""Numbers are right to six digits for what the model computes, in every precision and however it is compiled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.benchmarks.precision import CLASSES, HIDDEN, PRECISIONS, SHOWN, body, by_definition, errors, evaluate
from tests.callbacks.conftest import Net

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
