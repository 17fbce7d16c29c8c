"""Where tensors lie changes nothing: values are those of the CPU, and results stay on the device of the inputs.

``pytest --device cuda`` runs them on an accelerator.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.attacks import (
    AdaptiveAttack,
    AttackResult,
    ThreatModel,
    apgd,
    first_fooling_epsilon,
    masking_signals,
    pgd,
    trajectory,
)
from lightning_flatness.functional import (
    certified_lipschitz,
    decision_radius,
    feature_hessian_trace,
    head_top_eigenvalue,
    local_lipschitz,
    loss_increase_bound,
    loss_radius,
    relative_flatness,
)
from tests.callbacks.conftest import CLASSES, DIM, HIDDEN, Net, loader, trainer

N = 40
THREAT = ThreatModel(epsilon=0.3, lower=-5.0, upper=5.0)
BALL: dict[str, Any] = {"epsilon": 0.3, "lower": -5.0, "upper": 5.0}
Problem = Mapping[str, Tensor]
FUNCTIONS: dict[str, Callable[[Problem], Tensor]] = {
    "relative_flatness": lambda p: relative_flatness(p["features"], p["weight"], p["logits"], p["target"]),
    "maxeig": lambda p: relative_flatness(p["features"], p["weight"], p["logits"], variant="maxeig"),
    "focal": lambda p: relative_flatness(p["features"], p["weight"], p["logits"], p["target"], loss="focal"),
    "feature_hessian_trace": lambda p: feature_hessian_trace(p["weight"], p["logits"], p["target"]),
    "head_top_eigenvalue": lambda p: head_top_eigenvalue(p["features"], p["logits"], p["target"]),
    "bennett": lambda p: loss_increase_bound(p["logits"], p["target"], p["weight"], 0.1),
    "refined": lambda p: loss_increase_bound(p["logits"], p["target"], p["weight"], 0.1, method="refined"),
    "decision_radius": lambda p: decision_radius(p["logits"], p["target"], p["weight"]),
    "loss_radius": lambda p: loss_radius(p["logits"], p["target"], p["weight"], 0.5),
}
ATTACKS: dict[str, Callable[..., AttackResult]] = {
    "pgd": lambda fn, inputs, target: pgd(fn, inputs, target, THREAT, steps=5),
    "apgd": lambda fn, inputs, target: apgd(fn, inputs, target, THREAT, steps=5),
    "fast": AdaptiveAttack(THREAT, "fast"),
    "standard": AdaptiveAttack(THREAT, "standard"),
}
MONITORS: dict[str, Callable[[], Callback]] = {
    "flatness": RelativeFlatnessMonitor,
    "attack": lambda: AttackMonitor(**BALL, masking_samples=10, epsilons=[0.1, 0.2]),
    "estimated": lambda: LocalRobustnessMonitor(**BALL, lipschitz_samples=10),
    "certified": lambda: LocalRobustnessMonitor(**BALL, lipschitz="certified"),
    "trajectory": lambda: AttackTrajectoryMonitor(**BALL, steps=4),
    "scaling": lambda: HeadScalingMonitor(**BALL, scales=(1.0, 10.0)),
}


def problem() -> Problem:
    features, weight = torch.randn(N, 16), torch.randn(5, 16)
    logits = features @ weight.T
    return {"features": features, "weight": weight, "logits": logits, "target": torch.randint(5, (N,))}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)).eval()


@contextmanager
def faster_matmul() -> Iterator[None]:
    """What users switch on for speed, and rounds to ten bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("context", [nullcontext, faster_matmul])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, context: Any, device: torch.device) -> None:
    on_cpu = problem()
    exact = FUNCTIONS[name]({
        key: value.double() if value.is_floating_point() else value for key, value in on_cpu.items()
    })
    with context():
        found = FUNCTIONS[name]({key: value.to(device) for key, value in on_cpu.items()})
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu().double(), exact, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name: str, device: torch.device) -> None:
    model, (inputs, target) = network(), loader(N).dataset.tensors
    expected = ATTACKS[name](model, inputs, target)
    result = ATTACKS[name](model.to(device), inputs.to(device), target.to(device))
    tensors = [value for value in vars(result).values() if isinstance(value, Tensor)]
    assert {tensor.device.type for tensor in tensors} == {device.type}
    assert 0 < int(expected.success.sum()) < N
    # Rounding may decide a sample at the edge.
    assert int((result.success.cpu() != expected.success).sum()) <= 1
    assert torch.equal(result.initially_correct.cpu(), expected.initially_correct)


def test_curve_of_epsilon(device: torch.device) -> None:
    model, (inputs, target) = network(), loader(N).dataset.tensors
    arguments = THREAT, [0.1, 0.2, 0.4]
    expected = first_fooling_epsilon(AdaptiveAttack, model, inputs, target, *arguments)
    found = first_fooling_epsilon(AdaptiveAttack, model.to(device), inputs.to(device), target.to(device), *arguments)
    assert int((found.index.cpu() != expected.index).sum()) <= 1


def test_trajectory(device: torch.device) -> None:
    model, (inputs, target) = network(), loader(N).dataset.tensors
    expected = trajectory(model, model[2], inputs, target, THREAT, steps=3)
    model.to(device)
    found = trajectory(model, model[2], inputs.to(device), target.to(device), THREAT, steps=3)
    assert found.points.loss.device.type == device.type
    torch.testing.assert_close(found.points.loss.cpu(), expected.points.loss, rtol=1e-4, atol=1e-5)


def test_masking_signals(device: torch.device) -> None:
    model, (inputs, target) = network(), loader(N).dataset.tensors
    expected = masking_signals(model, inputs, target, THREAT, thorough=True).signals
    found = masking_signals(model.to(device), inputs.to(device), target.to(device), THREAT, thorough=True).signals
    for name, signal in expected.items():
        assert float(found[name].mean()) == pytest.approx(float(signal.mean()), abs=2 / N, nan_ok=True), name


def test_lipschitz(device: torch.device) -> None:
    model, (inputs, _) = network(), loader(N).dataset.tensors
    certificate, estimate = certified_lipschitz(model, inputs[:1]), local_lipschitz(model, inputs)
    model, inputs = model.to(device), inputs.to(device)
    assert float(certified_lipschitz(model, inputs[:1])) == pytest.approx(float(certificate), rel=1e-5)
    torch.testing.assert_close(local_lipschitz(model, inputs).cpu(), estimate, rtol=1e-4, atol=1e-5)


def validated(monitor: Callback, device: torch.device) -> dict[str, float]:
    torch.manual_seed(0)
    place = {"accelerator": device.type, "devices": 1 if device.index is None else [device.index]}
    logged = trainer(monitor, **place).validate(Net(), loader(N, seed=1), verbose=False)[0]
    return {key: value for key, value in logged.items() if not key.endswith("seconds")}


@pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy may be fooled")
@pytest.mark.parametrize("name", MONITORS)
def test_monitors(name: str, device: torch.device) -> None:
    expected, found = validated(MONITORS[name](), torch.device("cpu")), validated(MONITORS[name](), device)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-3, abs=2 / N), key


def test_stream_of_the_caller(device: torch.device) -> None:
    """What is queued behind other work of the same stream sees its results."""
    if device.type != "cuda":
        pytest.skip("streams are CUDA's")
    given = {key: value.to(device) for key, value in problem().items()}
    expected = relative_flatness(given["features"], given["weight"], given["logits"])
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        found = relative_flatness(given["features"] * 1, given["weight"] * 1, given["logits"] * 1)
    stream.synchronize()
    torch.testing.assert_close(found, expected)
