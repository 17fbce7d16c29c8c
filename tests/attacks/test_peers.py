"""Robust masks against those of torchattacks."""

from collections.abc import Iterator

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from lightning_flatness.attacks import ThreatModel, apgd, pgd
from lightning_flatness.attacks._ball import Ball, L2Ball, LinfBall
from tests.attacks.models import digit_cnn, held_out

pytestmark = pytest.mark.slow


class EverFooled(nn.Module):
    """Remember which samples were wrong at any call; torchattacks' PGD looks at the last iterate only."""

    def __init__(self, model: nn.Module, target: Tensor) -> None:
        super().__init__()
        self.model, self.target = model, target
        self.wrong = torch.zeros_like(target, dtype=torch.bool)

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.model(inputs)
        self.wrong |= logits.argmax(1) != self.target
        return logits


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let our runs start where torchattacks' PGD does after ``torch.manual_seed(0)``."""

    def linf(ball: Ball, _seeds: Tensor, _stream: int) -> Tensor:
        torch.manual_seed(0)
        return ball.project(ball.inputs + torch.empty_like(ball.inputs).uniform_(-1, 1) * ball.epsilon)

    monkeypatch.setattr(LinfBall, "random_start", linf)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("epsilon", [0.03, 0.06, 0.1])
@pytest.mark.usefixtures("same_noise")
def test_pgd_fools_exactly_whom_torchattacks_fools(epsilon, random_start):
    model, (inputs, target) = digit_cnn(), held_out(200)
    correct = model(inputs).argmax(1) == target  # the noise is drawn for all that are attacked
    inputs, target = inputs[correct], target[correct]
    spy = EverFooled(model, target).eval()
    peer = torchattacks.PGD(spy, eps=epsilon, alpha=epsilon / 8, steps=20, random_start=random_start)
    spy(peer(inputs, target))
    ours = pgd(model, inputs, target, ThreatModel(epsilon=epsilon), step_size=epsilon / 8, random_start=random_start)
    assert torch.equal(spy.wrong, ours.success)
    assert 0 < ours.success.sum() < len(inputs)
    # The peer takes 20 forwards and backwards of everything, and two forwards more to know what it has done.
    assert ours.forwards + ours.backwards < 42 * len(inputs)


@pytest.fixture
def same_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let our runs start where torchattacks' do, whose APGD seeds the global generator with 0."""

    def linf(ball: Ball, _seeds: Tensor, _stream: int) -> Tensor:
        noise = 2 * torch.rand(ball.inputs.shape) - 1
        return ball.project(ball.inputs + ball.epsilon * noise / noise.abs().amax((1, 2, 3), keepdim=True))

    def l2(ball: Ball, _seeds: Tensor, _stream: int) -> Tensor:
        noise = torch.randn(ball.inputs.shape)
        return ball.project(ball.inputs + ball.epsilon * noise / ball.per_sample(noise.flatten(1).norm(dim=1)))

    monkeypatch.setattr(LinfBall, "random_start", linf)
    monkeypatch.setattr(L2Ball, "random_start", l2)
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 1.0)])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.usefixtures("same_starts")
def test_apgd_agrees_with_torchattacks(norm, epsilon, loss):
    model, (inputs, target) = digit_cnn(), held_out(150)
    peer = torchattacks.APGD(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, steps=30, loss=loss)
    theirs = model(peer(inputs, target)).argmax(1) == target
    torch.manual_seed(0)
    name = {"ce": "cross_entropy", "dlr": "dlr"}[loss]
    result = apgd(model, inputs, target, ThreatModel(norm, epsilon), steps=30, loss=name)
    ours = result.initially_correct & ~result.success
    # The peer compares the first step's loss with 0 where the paper compares it with the start's.
    assert (theirs != ours).sum() <= 1
    assert 20 < ours.sum() < 130


@pytest.mark.usefixtures("same_starts")
def test_targeted_apgd_agrees_with_torchattacks():
    model, (inputs, target) = digit_cnn(), held_out(100)
    peer = torchattacks.APGDT(model, eps=0.1, steps=15, n_classes=4)
    theirs = model(peer(inputs, target)).argmax(1) == target
    torch.manual_seed(0)
    result = apgd(model, inputs, target, ThreatModel(epsilon=0.1), steps=15, loss="dlr", target_classes=3)
    ours = result.initially_correct & ~result.success
    # As above; and once the masks differ by one sample, the later starts are no longer the same.
    assert (theirs != ours).sum() <= 2
