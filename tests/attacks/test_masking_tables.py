"""Gradient masking of small networks of a table's columns, whose range nobody declares."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from lightning_flatness.attacks import AdaptiveAttack, ThreatModel, masking_signals, pgd
from tests.attacks.diagnoses import alarms, means, samples

THREATS = [ThreatModel(norm, epsilon, None, None) for norm in ("linf", "l2") for epsilon in (0.1, 0.5)]


def blobs(dim: int, distance: float, count: int = 700) -> tuple[Tensor, Tensor]:
    """Two normal distributions, ``2 * distance`` apart."""
    generator = torch.Generator().manual_seed(1)
    centre = torch.randn(dim, generator=generator)
    target = torch.randint(2, (count,), generator=generator)
    centres = distance * centre / centre.norm() * (1 - 2 * target).unsqueeze(1)
    return centres + torch.randn(count, dim, generator=generator), target


@cache
def fitted(dim: int, distance: float, width: int, epochs: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Network trained on 500 rows, and 200 others."""
    inputs, target = blobs(dim, distance)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(epochs):
            loss = nn.functional.cross_entropy(model(inputs[:500]), target[:500])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), inputs[500:], target[500:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "distance", "width", "epochs"),
    [(2, 1.5, 8, 50), (2, 1.5, 8, 1000), (2, 3, 8, 1000), (2, 3, 32, 1000), (10, 1.5, 8, 50), (10, 3, 32, 1000)],
)
def test_honest_networks_are_silent(dim, distance, width, epochs):
    model, inputs, target = fitted(dim, distance, width, epochs)
    for threat in THREATS:
        diagnosis = masking_signals(model, inputs, target, threat, thorough=True)
        assert samples(diagnosis) > 100
        assert alarms(diagnosis) == set()


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "width"), [(2, 32), (10, 8)])
def test_a_network_that_has_learnt_the_noise_by_heart_does_hide_its_gradient(dim, width):
    """Leads of 100 and more leave the cross-entropy no gradient: PGD fools fewer than can be fooled."""
    model, inputs, target = fitted(dim, 1.5, width, 1000)
    threat = ThreatModel("linf", 1.0, None, None)
    diagnosis = masking_signals(model, inputs, target, threat)
    assert means(diagnosis)["zero_gradient_rate"] > 0.05
    assert "zero_gradient_rate" in alarms(diagnosis)
    by_pgd, strong = pgd(model, inputs, target, threat, steps=20), AdaptiveAttack(threat)(model, inputs, target)
    hidden = (strong.success & ~by_pgd.success).sum() / strong.initially_correct.sum()
    assert hidden > 0.02
