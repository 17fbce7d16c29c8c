"""Which rules of gradient masking fire on which models; ``pytest tests/benchmarks --benchmark-enable -s -k masking``.

Honest models, models that hide their gradients, and one whose logits grow until PGD on the cross-entropy is blind.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from typing import Any, NamedTuple

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from lightning_flatness.attacks import AdaptiveAttack, AttackResult, MaskingDiagnosis, ThreatModel, masking_signals, pgd
from tests.attacks.diagnoses import THOROUGH_ONLY, fired
from tests.attacks.masking_models import EARLY, HONEST, PLANTED
from tests.attacks.models import cnn, digit_cnn, held_out, scaled_head, trained

from .measuring import print_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SAMPLES = 105
COLUMNS = {f"linf {epsilon}": ThreatModel(epsilon=epsilon) for epsilon in (0.05, 0.1, 0.2, 0.3)} | {
    "l2 1.0": ThreatModel("l2", 1.0)
}
CODES = {
    "zero_gradient_rate": "Z",
    "gradient_underflow": "U",
    "probabilities": "P",
    "randomness": "R",
    "gradient_alignment": "A",
    "directional_correlation": "D",
    "loss_decrease_rate": "F",
    "loss_gap": "G",
    "unbounded_survival": "S",
    "temperature_gap": "t",
    "black_box_gap": "b",
}
LEGEND = ", ".join(f"{code} {name}" for name, code in CODES.items())
BASES = {"standard": partial(trained, cnn, 5), "linf 0.2": partial(trained, cnn, 5, 0.2)}


class Cell(NamedTuple):
    """What was seen of one model under one threat."""

    free: list[str]
    thorough: list[str]
    passes: tuple[float, float]  # per sample, of the free and of the thorough diagnosis


def test_honest(benchmark: Any) -> None:
    models = HONEST | EARLY if benchmark.enabled else {"cnn": partial(digit_cnn, 1)}
    rows = _measure({name: build() for name, build in models.items()}, benchmark)
    _show("honest models", rows)
    assert [name for name, cells in rows.items() for cell in cells if cell.free or cell.thorough] == []


def test_planted(benchmark: Any) -> None:
    bases = BASES if benchmark.enabled else {"standard": partial(digit_cnn, 1)}
    plants = PLANTED if benchmark.enabled else {"softmax outputs": PLANTED["softmax outputs"]}
    models = {f"{name}, {base}": plant(build()) for base, build in bases.items() for name, plant in plants.items()}
    rows = _measure(models, benchmark)
    _show("models that hide their gradients", rows)
    assert [name for name, cells in rows.items() if not any(cell.free for cell in cells)] == []


def test_growing_head(benchmark: Any) -> None:
    """Robust accuracy that an attack on the cross-entropy reports of one and the same classifier."""
    model = digit_cnn(8 if benchmark.enabled else 1)
    factors = (1, 10, 100, 1000) if benchmark.enabled else (1,)
    inputs, target = held_out(200 if benchmark.enabled else 10)
    threat = ThreatModel(epsilon=0.2)
    rows: list[tuple[str, ...]] = []

    def measure() -> None:
        rows.extend(_head_row(scaled_head(model, factor), factor, inputs, target, threat) for factor in factors)

    benchmark.pedantic(measure)
    columns = ("head", "clean", "torchattacks PGD-20", "pgd, 20 steps", "fast", "alarm")
    print_table(f"robust accuracy at linf 0.2 of a CNN whose logits are multiplied; {LEGEND}", columns, rows)
    assert [row[-1] != "-" for row in rows if row[0] != "x10"] == [factor >= 100 for factor in factors if factor != 10]
    assert len({row[1] for row in rows}) == 1
    assert max(float(row[4]) for row in rows) <= float(rows[0][4]) + 0.02
    if benchmark.enabled:
        clean, by_peer, by_fast = (float(rows[2][column]) for column in (1, 2, 4))
        assert by_peer > 0.9  # nearly every digit seems to stand,
        assert by_fast < 0.05 < clean  # and none does


def _head_row(model: nn.Module, factor: int, inputs: Tensor, target: Tensor, threat: ThreatModel) -> tuple[str, ...]:
    with torch.no_grad():
        clean = model(inputs).argmax(1) == target
    with redirect_stdout(StringIO()):  # it finds no parameters to ask for their device, and says so
        peer = torchattacks.PGD(model, eps=threat.epsilon, alpha=threat.epsilon / 8, steps=20)
    with _seeded():
        x_adv = peer(inputs, target)
    with torch.no_grad():
        by_peer = clean & (model(x_adv).argmax(1) == target)
    results = [
        _standing(attack(model, inputs, target))
        for attack in (partial(pgd, threat=threat, steps=20), AdaptiveAttack(threat, budget="fast"))
    ]
    reasons = fired(masking_signals(model, inputs, target, threat))
    shares = (f"{mask.double().mean():.3f}" for mask in (clean, by_peer, *results))
    return f"x{factor}", *shares, _codes(reasons)


def _standing(result: AttackResult) -> Tensor:
    return result.initially_correct & ~result.success


def _measure(models: Mapping[str, nn.Module], benchmark: Any) -> dict[str, list[Cell]]:
    threats = list(COLUMNS.values()) if benchmark.enabled else [ThreatModel(epsilon=0.1)]
    samples = SAMPLES if benchmark.enabled else 6
    rows: dict[str, list[Cell]] = {}

    def measure() -> None:
        for name, model in models.items():
            inputs, target = _correct(model, samples)
            rows[name] = [_cell(model, inputs, target, threat) for threat in threats]

    benchmark.pedantic(measure)
    return rows


def _cell(model: nn.Module, inputs: Tensor, target: Tensor, threat: ThreatModel) -> Cell:
    with _seeded():
        free = masking_signals(model, inputs, target, threat)
    with _seeded():
        thorough = masking_signals(model, inputs, target, threat, thorough=True)
    found = [name for name in fired(thorough) if name in THOROUGH_ONLY]
    return Cell(fired(free), found, (_passes(free, len(inputs)), _passes(thorough, len(inputs))))


def _correct(model: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """Digits that a model knows, as far as there are as many among 1,000."""
    inputs, target = held_out(1000)
    with torch.no_grad():
        rows = (model(inputs).argmax(1) == target).nonzero().squeeze(1)[:count]
    return inputs[rows], target[rows]


@contextmanager
def _seeded() -> Iterator[None]:
    """Attacks and models that draw random numbers draw the same ones at every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _passes(diagnosis: MaskingDiagnosis, samples: int) -> float:
    return (diagnosis.forwards + diagnosis.backwards) / samples


def _codes(names: list[str]) -> str:
    return "".join(CODES[name] for name in names) or "-"


def _show(title: str, rows: Mapping[str, list[Cell]]) -> None:
    threats = list(COLUMNS)[: len(next(iter(rows.values())))]
    cells = [
        (
            name,
            *(_codes(cell.free + cell.thorough) for cell in row),
            _span([cell.passes[0] for cell in row]),
            _span([cell.passes[1] for cell in row]),
        )
        for name, row in rows.items()
    ]
    print_table(f"{title}: rules that fire; {LEGEND}", ("model", *threats, "free passes", "thorough passes"), cells)


def _span(values: list[float]) -> str:
    return f"{min(values):.0f}-{max(values):.0f}"
