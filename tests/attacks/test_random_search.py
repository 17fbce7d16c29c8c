"""Random search finds what a black-box attack can, inside the ball, one sample at a time."""

from functools import partial

import pytest
import torch

from lightning_flatness.attacks import AttackResult, ThreatModel, pgd
from lightning_flatness.attacks._random_search import run_random_search
from lightning_flatness.attacks._session import Options, Session
from tests.attacks.models import affine, affine_radius, digit_cnn, held_out

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def search(model, inputs, target, threat, queries=300, generator=None) -> AttackResult:
    with torch.no_grad():
        session = Session(model, inputs, target, threat, generator, None, Options())
        run_random_search(session, threat.norm, queries)
        return session.result()


@NORMS
def test_affine_model_is_fooled_beyond_its_exact_radius_only(norm):
    model = affine(num_classes=2)
    inputs = torch.randn(20, 12, dtype=torch.float64)
    target, radius = model(inputs).argmax(1), affine_radius(model, inputs, norm)
    for x, y, r in zip(inputs.split(1), target.split(1), radius.tolist(), strict=True):
        assert search(model, x, y, ThreatModel(norm, 1.2 * r, None, None)).success.all()
        assert not search(model, x, y, ThreatModel(norm, 0.99 * r, None, None)).success.any()


@NORMS
def test_no_gradient_is_asked_for_and_every_query_is_counted(norm):
    model, (inputs, target) = affine(num_classes=3), (torch.rand(9, 12, dtype=torch.float64), torch.arange(9) % 3)
    sizes = []

    def logits_fn(x):
        assert not x.requires_grad
        sizes.append(len(x))
        return model(x)

    result = search(logits_fn, inputs, target, ThreatModel(norm, 0.01), queries=7)
    assert result.backwards == 0
    assert result.forwards == sum(sizes)
    standing = int((result.initially_correct & ~result.success).sum())
    assert sizes[0] == 9
    assert sizes[-1] >= standing > 0
    assert len(sizes) == 8


@NORMS
@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2), (3, 1, 2, 2)])
def test_perturbations_of_any_shape_stay_in_ball_and_range(norm, shape):
    model = affine(num_classes=3)
    inputs = torch.rand(30, *shape, dtype=torch.float64)
    target = model(inputs.flatten(1)).argmax(1)
    threat = ThreatModel(norm, 0.3)
    seen = []

    def logits_fn(x):
        seen.append(threat.distance(x, inputs).max().item() if len(x) == 30 else 0.0)
        assert x.min() >= 0
        assert x.max() <= 1
        return model(x.flatten(1))

    result = search(logits_fn, inputs, target, threat, queries=40)
    assert 0 < result.success.sum() < 30
    assert max(seen) > 0.2
    assert threat.distance(result.x_adv, inputs).max() <= 0.3 + 1e-9


@pytest.mark.parametrize("sizes", [[40], [1, 39], [7] * 5 + [5]])
def test_result_does_not_depend_on_the_split_into_batches(sizes):
    model = affine(num_classes=5)
    inputs = torch.rand(40, 12, dtype=torch.float64)
    target = model(inputs).argmax(1)
    threat = ThreatModel(epsilon=affine_radius(model, inputs, "linf").median().item())
    generator = torch.Generator().manual_seed(3)
    parts = [
        search(model, x, y, threat, 20, generator)
        for x, y in zip(inputs.split(sizes), target.split(sizes), strict=True)
    ]
    whole = search(model, inputs, target, threat, 20, torch.Generator().manual_seed(3))
    assert 0 < whole.success.sum() < 40
    assert torch.equal(torch.cat([part.success for part in parts]), whole.success)
    assert torch.equal(torch.cat([part.steps_to_fool for part in parts]), whole.steps_to_fool)


@pytest.mark.slow
@pytest.mark.parametrize("threat", [ThreatModel(epsilon=0.15), ThreatModel("l2", 2.0)], ids=["linf", "l2"])
def test_is_as_strong_as_square_and_weaker_than_gradients(threat):
    torchattacks = pytest.importorskip("torchattacks")
    model, (inputs, target) = digit_cnn(), held_out(60)
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    square = torchattacks.Square(model, norm, threat.epsilon, n_queries=200, resc_schedule=threat.norm == "linf")
    theirs = model(square(inputs, target)).argmax(1) != target
    result = search(model, inputs, target, threat, queries=200)
    assert theirs.sum() - 3 <= (result.success | ~result.initially_correct).sum()
    white_box = partial(pgd, model, inputs, target, threat)()
    assert not (result.success & ~white_box.success).any()
    assert white_box.success.sum() > result.success.sum()
