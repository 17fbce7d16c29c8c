"""Outcomes of attacks, and what the metrics must make of them, by counting one by one."""

import math
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from lightning_flatness.functional.statistics import wilson_interval

NUM_CLASSES = 4
EPSILONS = (0.01, 0.1, 0.25)
ATTACKS = ("pgd", "apgd", "transfer")


class Sample(NamedTuple):
    """Arguments of the three metrics' ``update`` for one sample."""

    success: bool
    initially_correct: bool
    target: int
    clean_loss: float
    adv_loss: float
    steps_to_fool: int
    nonfinite: bool
    rejected: bool
    successes: tuple[bool, ...]
    index: int


losses = st.floats(0, 50, width=16) | st.sampled_from([math.inf, math.nan])
samples = st.builds(
    Sample,
    success=st.booleans(),
    initially_correct=st.booleans(),
    target=st.integers(0, NUM_CLASSES - 1),
    clean_loss=losses,
    adv_loss=losses,
    steps_to_fool=st.integers(-1, 20) | st.integers(4000, 5000),
    nonfinite=st.booleans(),
    rejected=st.booleans(),
    successes=st.tuples(*[st.booleans()] * len(ATTACKS)),
    index=st.integers(0, len(EPSILONS)),
)
ARGUMENTS = {
    "AttackSuccessRate": Sample._fields[:8],
    "RobustAccuracy": ("successes", "initially_correct"),
    "RobustAccuracyCurve": ("index", "initially_correct"),
}


def outcomes(count: int = 40, seed: int = 0) -> list[Sample]:
    """Some of every kind, all losses finite."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, 9, generator=generator, dtype=torch.float64).tolist()
    return [
        Sample(
            success=draw[0] < 0.5,
            initially_correct=draw[1] < 0.8,
            target=int(NUM_CLASSES * draw[2]),
            clean_loss=draw[3],
            adv_loss=3 * draw[4],
            steps_to_fool=int(20 * draw[5]) - 1,
            nonfinite=draw[6] < 0.1,
            rejected=draw[7] < 0.1,
            successes=(draw[0] < 0.5, draw[3] < 0.4, draw[4] < 0.2),
            index=int((len(EPSILONS) + 1) * draw[8]),
        )
        for draw in draws
    ]


def arguments(rows: list[Sample], *names: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Columns of ``rows`` as keyword arguments of ``update``."""
    types = {"clean_loss": dtype, "adv_loss": dtype, "target": torch.int64, "steps_to_fool": torch.int64}
    types["index"] = torch.int64
    columns: dict[str, Any] = {}
    for name in names:
        column = [getattr(row, name) for row in rows]
        if name == "successes":
            columns[name] = {
                attack: torch.tensor([row[k] for row in column], dtype=torch.bool) for k, attack in enumerate(ATTACKS)
            }
        else:
            columns[name] = torch.tensor(column, dtype=types.get(name, torch.bool))
    return columns


def success_rate_by_hand(rows: list[Sample], threshold: float = math.log(2)) -> dict[str, float]:
    """What ``AttackSuccessRate.compute`` must return."""
    correct = [row for row in rows if row.initially_correct]
    fooled = [row for row in correct if row.success]
    measured = [row for row in rows if math.isfinite(row.adv_loss - row.clean_loss)]
    rises = [row.adv_loss - row.clean_loss for row in measured]
    rises_of_correct = [row.adv_loss - row.clean_loss for row in measured if row.initially_correct]
    steps = sorted(row.steps_to_fool for row in fooled if row.steps_to_fool >= 0)
    return {
        **share("success_rate", len(fooled), len(correct)),
        **share("robust_accuracy", len([row for row in correct if not row.success]), len(rows)),
        **({"clean_accuracy": len(correct) / len(rows)} if rows else {}),
        **({"loss_increase": math.fsum(rises) / len(rises)} if rises else {}),
        **(
            {"loss_success_rate": sum(rise > threshold for rise in rises_of_correct) / len(rises_of_correct)}
            if rises_of_correct
            else {}
        ),
        **(
            {
                "steps_to_fool": min(4096, steps[(len(steps) - 1) // 2]),
                "steps_to_fool_mean": sum(steps) / len(steps),
            }
            if steps
            else {}
        ),
        "samples": len(rows),
        "nonfinite": sum(row.nonfinite or not math.isfinite(row.adv_loss - row.clean_loss) for row in rows),
        "rejected": sum(row.rejected for row in rows),
    }


def robust_accuracy_by_hand(rows: list[Sample]) -> dict[str, float]:
    """What ``RobustAccuracy.compute`` must return."""
    correct = [row for row in rows if row.initially_correct]
    expected: dict[str, float] = {"samples": len(rows)} | ({"clean_accuracy": len(correct) / len(rows)} if rows else {})
    for k, attack in enumerate(ATTACKS):
        expected |= share(attack, sum(not row.successes[k] for row in correct), len(rows))
    return expected | share("worst_case", sum(not any(row.successes) for row in correct), len(rows))


def curve_by_hand(rows: list[Sample]) -> list[dict[str, float]]:
    """What ``RobustAccuracyCurve.compute`` must return at 0 and at each epsilon."""
    return [
        share("robust_accuracy", sum(row.initially_correct and row.index > k for row in rows), len(rows))
        for k in range(-1, len(EPSILONS))
    ]


def share(name: str, part: int, whole: int, confidence: float = 0.95) -> dict[str, float]:
    """A proportion and its interval."""
    if not whole:
        return {}
    low, high = wilson_interval(torch.tensor(part), torch.tensor(whole), confidence)
    return {name: part / whole, f"{name}_low": float(low), f"{name}_high": float(high)}


def plain(result: dict[str, Tensor]) -> dict[str, Any]:
    """Numbers, and lists of numbers."""
    return {name: value.tolist() for name, value in result.items()}
