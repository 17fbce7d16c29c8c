"""Cost and strength of the attacks beside their peers; ``pytest tests/benchmarks --benchmark-enable -s``.

``uv sync --group peers`` installs foolbox and adv-lib, whose rows are left out otherwise.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from lightning_flatness.attacks import AdaptiveAttack, AttackResult, ThreatModel, pgd
from tests.attacks.models import held_out

from .classifiers import classifier
from .measuring import print_table

STEPS = 20
pytestmark = pytest.mark.slow


class Case(NamedTuple):
    classifier: str
    epsilon: float
    samples: int
    rounds: int


CASES = (
    Case("CNN", 0.1, 500, 5),
    Case("adversarially trained CNN", 0.2, 500, 5),
    Case("adversarially trained CNN", 0.25, 500, 5),
    Case("ResNet-18", 0.05, 120, 2),
    Case("ViT", 0.05, 500, 3),
)


class Setting(NamedTuple):
    """Digits to attack, and how far."""

    inputs: Tensor
    target: Tensor
    epsilon: float


Attack = Callable[[nn.Module, Setting], Tensor]
"""Which of the digits are still classified correctly."""


class Counted(nn.Module):
    """Count the samples that go through a model, forwards and backwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        self.forwards += len(inputs)
        output = self.model(inputs)
        if output.requires_grad:
            output.register_hook(self._count)
        return output

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def judged(attack: Callable[[nn.Module, Setting], Tensor], model: nn.Module, setting: Setting) -> Tensor:
    """Attack, and make the two passes that tell what it has done."""
    with torch.no_grad():
        correct = model(setting.inputs).argmax(1) == setting.target
    x_adv = attack(model, setting)
    with torch.no_grad():
        return correct & (model(x_adv).argmax(1) == setting.target)


def torchattacks_pgd(model: nn.Module, setting: Setting) -> Tensor:
    attack = torchattacks.PGD(model, eps=setting.epsilon, alpha=setting.epsilon / 8, steps=STEPS)
    return attack(setting.inputs, setting.target)


def foolbox_pgd(model: nn.Module, setting: Setting) -> Tensor:
    foolbox = _quiet_import("foolbox")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=setting.epsilon / 8, steps=STEPS)
    return attack(foolbox.PyTorchModel(model, (0, 1)), *setting[:2], epsilons=setting.epsilon)[1]


def adv_lib_pgd(model: nn.Module, setting: Setting) -> Tensor:
    attack = _quiet_import("adv_lib.attacks").pgd_linf
    return attack(model, *setting, steps=STEPS, absolute_step_size=setting.epsilon / 8)


def ours(attack: Callable[..., AttackResult], model: nn.Module, setting: Setting) -> Tensor:
    inputs, target, epsilon = setting
    result = attack(ThreatModel(epsilon=epsilon))(model, inputs, target)
    return result.initially_correct & ~result.success


def same_steps(threat: ThreatModel) -> Callable[..., AttackResult]:
    return partial(pgd, threat=threat, steps=STEPS, step_size=threat.epsilon / 8)


def decaying(threat: ThreatModel) -> Callable[..., AttackResult]:
    return partial(pgd, threat=threat, steps=10)


REFERENCE = "torchattacks PGD-20"
ATTACKS: dict[str, Attack] = {
    REFERENCE: partial(judged, torchattacks_pgd),
    "foolbox PGD-20": partial(judged, foolbox_pgd),
    "adv-lib PGD-20": partial(judged, adv_lib_pgd),
    "pgd, the same steps": partial(ours, same_steps),
    "pgd, 10 decaying steps": partial(ours, decaying),
    "fast": partial(ours, partial(AdaptiveAttack, budget="fast")),
    "fast, bfloat16": partial(ours, partial(AdaptiveAttack, budget="fast", autocast_dtype=torch.bfloat16)),
}
PEERS = {"foolbox PGD-20": "foolbox", "adv-lib PGD-20": "adv_lib.attacks"}


def autoattack(model: nn.Module, setting: Setting) -> Tensor:
    """AutoAttack as published: torchattacks' own has 10 steps instead of 100, and another schedule of the squares."""
    attack = torchattacks.AutoAttack(model, eps=setting.epsilon, seed=0)
    for part in attack._autoattack.attacks:
        part.steps, part.resc_schedule = 100, False
    with torch.random.fork_rng(devices=[]):
        return attack(setting.inputs, setting.target)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pgd_and_fast(case: Case, benchmark: Any) -> None:
    model = classifier(case.classifier, quick=not benchmark.enabled)
    setting = Setting(*held_out(case.samples if benchmark.enabled else 4), case.epsilon)
    attacks = {name: attack for name, attack in ATTACKS.items() if name not in PEERS or _installed(PEERS[name])}
    robust = _compare(f"{case.classifier}, eps {case.epsilon}", attacks, model, setting, benchmark, case.rounds)
    if benchmark.enabled:
        assert robust["fast"].double().mean() <= robust[REFERENCE].double().mean() + _standard_error(
            robust["fast"], robust[REFERENCE]
        )


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_standard(case: Case, benchmark: Any) -> None:
    if not benchmark.enabled:
        pytest.skip("AutoAttack takes a minute for ten digits")
    model = classifier(case.classifier, quick=False)
    attacks = {
        "AutoAttack": partial(judged, autoattack),
        "thorough": partial(ours, partial(AdaptiveAttack, budget="thorough")),
        "standard": partial(ours, AdaptiveAttack),
        "fast": ATTACKS["fast"],
    }
    setting = Setting(*held_out(100), case.epsilon)
    robust = _compare(f"{case.classifier}, eps {case.epsilon}", attacks, model, setting, benchmark, 1)
    assert (robust["AutoAttack"] ^ robust["standard"]).sum() <= 1


def _compare(
    title: str, attacks: Mapping[str, Attack], model: nn.Module, setting: Setting, benchmark: Any, rounds: int
) -> dict[str, Tensor]:
    """Print one table; the first attack is what the others are compared with."""
    robust: dict[str, Tensor] = {}
    passes: dict[str, Counted] = {name: Counted(model) for name in attacks}
    seconds: dict[str, list[float]] = {name: [] for name in attacks}

    def one_round() -> None:
        # Alternating, so that whatever else the machine does hits all alike.
        for name, attack in attacks.items():
            start = process_time()
            robust[name] = attack(model, setting)
            seconds[name].append(process_time() - start)

    benchmark.pedantic(one_round, rounds=rounds if benchmark.enabled else 1)
    for name, attack in attacks.items():
        attack(passes[name], setting)
    _show(title, robust, passes, seconds)
    return robust


def _show(
    title: str, robust: Mapping[str, Tensor], passes: Mapping[str, Counted], seconds: Mapping[str, list[float]]
) -> None:
    first = next(iter(robust))
    count, baseline = len(robust[first]), passes[first].forwards + passes[first].backwards
    rows = []
    for name, mask in robust.items():
        done = passes[name]
        ratios = sorted(theirs / own for theirs, own in zip(seconds[first], seconds[name], strict=True))
        difference, error = (mask.double() - robust[first].double()).mean(), _standard_error(mask, robust[first])
        rows.append((
            name,
            f"{mask.double().mean():.3f}",
            f"{difference:+.3f} ({error:.3f})",
            f"{done.forwards / count:.1f}",
            f"{done.backwards / count:.1f}",
            f"{baseline / (done.forwards + done.backwards):.2f}x",
            f"{median(ratios):.2f}x",
            f"{ratios[0]:.2f}-{ratios[-1]:.2f}",
        ))
    columns = ("attack", "robust", "difference (s.e.)", "forwards", "backwards", "passes", "speed-up", "range")
    print_table(f"{title}, {count} digits", columns, rows)


def _standard_error(first: Tensor, second: Tensor) -> float:
    """Of the difference of two paired rates."""
    return float((first.double() - second.double()).std() / len(first) ** 0.5)


def _quiet_import(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in foreign packages
        return import_module(module)


def _installed(module: str) -> bool:
    try:
        _quiet_import(module)
    except ImportError as error:
        print(f"\nno row for {module}: {error}; `uv sync --group peers`")  # noqa: T201 - the point of a benchmark
        return False
    return True
