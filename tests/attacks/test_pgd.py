"""PGD on models whose answer is known, and what it counts and records."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_flatness.attacks import ThreatModel, apgd, pgd
from lightning_flatness.attacks._path import MAX_PATH_POINTS
from lightning_flatness.attacks.losses import cross_entropy
from tests.attacks.models import affine, affine_radius, digit_cnn, held_out

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def free(norm: str, epsilon: float) -> ThreatModel:
    return ThreatModel(norm, epsilon, lower=None, upper=None)


@NORMS
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("attack", [pgd, apgd])
@settings(max_examples=10)
@given(seed=st.integers(0, 99))
def test_affine_model_is_fooled_just_beyond_its_exact_radius(attack, loss, norm, seed):
    model = affine(num_classes=2, seed=seed)
    inputs = torch.randn(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    target, radius = model(inputs).argmax(1), affine_radius(model, inputs, norm)
    for x, y, r in zip(inputs.split(1), target.split(1), radius.tolist(), strict=True):
        assert attack(model, x, y, free(norm, 1.01 * r), steps=20, loss=loss).success.all()
        assert not attack(model, x, y, free(norm, 0.99 * r), steps=20, loss=loss).success.any()


@NORMS
def test_targeted_apgd_finds_the_nearest_of_many_classes(norm):
    model = affine(num_classes=5)
    inputs = torch.randn(10, 12, dtype=torch.float64)
    target, radius = model(inputs).argmax(1), affine_radius(model, inputs, norm)
    for x, y, r in zip(inputs.split(1), target.split(1), radius.tolist(), strict=True):
        for loss in ("margin", "dlr", "cross_entropy"):
            results = [
                apgd(model, x, y, free(norm, factor * r), steps=50, loss=loss, target_classes=4).success.item()
                for factor in (0.99, 1.05)
            ]
            assert results == [False, True]


def images(count: int = 60) -> tuple[nn.Module, Tensor, Tensor]:
    return digit_cnn(), *held_out(count)


def test_more_steps_or_restarts_never_fool_fewer():
    model, inputs, target = images()
    threat = ThreatModel(epsilon=0.1)
    by_steps = [pgd(model, inputs, target, threat, steps=steps, step_size=0.02).success for steps in (1, 3, 10)]
    by_restarts = [pgd(model, inputs, target, threat, steps=3, restarts=count).success for count in (1, 2, 4)]
    for fewer, more in (*pairwise(by_steps), *pairwise(by_restarts)):
        assert not (fewer & ~more).any()
    assert by_steps[0].sum() < by_steps[-1].sum()


@pytest.mark.parametrize("sizes", [[60], [1, 59], [20, 20, 20], [7] * 8 + [4]])
@NORMS
def test_result_does_not_depend_on_the_split_into_batches(norm, sizes):
    model = affine(num_classes=5)
    inputs = torch.rand(60, 12, dtype=torch.float64)
    target = model(inputs).argmax(1)
    target[::7] = 0
    threat = ThreatModel(norm, affine_radius(model, inputs, norm).median().item())
    generator = torch.Generator().manual_seed(3)
    parts = [
        pgd(model, x, y, threat, steps=7, restarts=2, generator=generator)
        for x, y in zip(inputs.split(sizes), target.split(sizes), strict=True)
    ]
    whole = pgd(model, inputs, target, threat, steps=7, restarts=2, generator=torch.Generator().manual_seed(3))
    assert 0 < whole.success.sum() < whole.initially_correct.sum() < 60
    for name in ("success", "initially_correct", "steps_to_fool"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    torch.testing.assert_close(torch.cat([part.x_adv for part in parts]), whole.x_adv, rtol=1e-9, atol=1e-9)
    assert sum(part.forwards for part in parts) == whole.forwards
    assert sum(part.backwards for part in parts) <= whole.backwards


def test_passes_are_counted_as_the_model_sees_them():
    model, inputs, target = images()
    passes = []
    handle = model.register_forward_hook(lambda _module, args, _output: passes.append(len(args[0])))
    try:
        result = pgd(model, inputs, target, ThreatModel(epsilon=0.1), steps=10)
    finally:
        handle.remove()
    assert result.forwards == sum(passes)
    assert result.backwards <= result.forwards - len(inputs)
    standing = int((result.initially_correct & ~result.success).sum())
    assert passes[0] == 60
    assert passes[1] == int(result.initially_correct.sum())
    assert passes[-1] >= standing > 0
    known = pgd(model, inputs, target, ThreatModel(epsilon=0.1), steps=10, clean_logits=model(inputs))
    assert known.forwards == result.forwards - 60
    assert torch.equal(known.x_adv, result.x_adv)


def test_fooled_samples_leave_the_batch_and_others_keep_their_best():
    model, inputs, target = images()
    threat = ThreatModel(epsilon=0.1)
    stopped = pgd(model, inputs, target, threat, steps=10)
    whole = pgd(model, inputs, target, threat, steps=10, stop_when_fooled=False)
    assert torch.equal(stopped.success, whole.success)
    assert torch.equal(stopped.steps_to_fool, whole.steps_to_fool)
    assert (whole.loss >= stopped.loss - 1e-5).all()
    assert whole.loss[whole.success].mean() > stopped.loss[stopped.success].mean()
    clean = cross_entropy(model(inputs), target)
    attacked = stopped.initially_correct
    assert (stopped.loss >= clean)[attacked].all()
    torch.testing.assert_close(stopped.loss, cross_entropy(model(stopped.x_adv), target).detach(), rtol=1e-3, atol=1e-5)


def test_steps_to_fool_points_into_the_path():
    model, inputs, target = images(30)
    result = pgd(model, inputs, target, ThreatModel(epsilon=0.1), steps=8, keep_path=True)
    assert result.path is not None
    assert result.path_steps == (-1, *range(9))
    assert torch.equal(result.path[0], inputs)
    wrong = model(result.path.flatten(0, 1)).argmax(1).view(10, 30) != target
    for k in range(30):
        if not result.initially_correct[k]:
            assert torch.equal(result.path[:, k], inputs[k].expand(10, 1, 28, 28))
        elif result.success[k]:
            first = int(result.steps_to_fool[k]) + 1
            assert not wrong[:first, k].any()
            assert wrong[first:, k].all()
            assert torch.equal(result.path[-1, k], result.x_adv[k])
        else:
            assert not wrong[:, k].any()


def test_path_is_bounded():
    model, inputs = affine(), torch.rand(2, 12, dtype=torch.float64)
    result = pgd(model, inputs, model(inputs).argmax(1), free("l2", 1e-3), steps=500, keep_path=True)
    assert result.path is not None
    assert len(result.path) == len(result.path_steps) == MAX_PATH_POINTS
    assert result.path_steps[-1] == 500
    assert pgd(model, inputs, model(inputs).argmax(1), free("l2", 1e-3)).path is None


def test_no_samples_and_no_correct_samples():
    model = affine()
    empty = torch.empty(0, 12, dtype=torch.float64)
    result = pgd(model, empty, torch.empty(0, dtype=torch.long), ThreatModel(), keep_path=True)
    assert result.x_adv.shape == (0, 12)
    inputs = torch.rand(3, 12, dtype=torch.float64)
    wrong = (model(inputs).argmax(1) + 1) % 4
    result = pgd(model, inputs, wrong, ThreatModel())
    assert (result.forwards, result.backwards) == (3, 0)
    assert torch.equal(result.x_adv, inputs)
    assert not result.initially_correct.any()


def test_epsilon_0_fools_nobody():
    model, inputs, target = images(20)
    for norm in ("linf", "l2"):
        result = pgd(model, inputs, target, ThreatModel(norm, 0.0), steps=3)
        assert not result.success.any()
        assert torch.equal(result.x_adv, inputs)


def test_loss_may_be_a_function():
    model, inputs, target = images(20)
    named = pgd(model, inputs, target, ThreatModel(epsilon=0.1), steps=5)
    given_loss = pgd(model, inputs, target, ThreatModel(epsilon=0.1), steps=5, loss=cross_entropy)
    assert torch.equal(named.x_adv, given_loss.x_adv)


class Broken(nn.Module):
    """Not finite, in logits or gradient, where the first input is large, but for the clean input."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, inputs: Tensor) -> Tensor:
        right, wrong = inputs.sum(1), 4 - inputs.sum(1)
        broken = (inputs[:, 0] > 0.75) & (inputs[:, 1] != 0.5)
        if self.how == "gradient":
            wrong = wrong + torch.where(broken, inputs[:, 0] * 0, 1).sqrt() - (~broken).float()
        else:
            wrong = torch.where(broken, float(self.how), wrong)
        return torch.stack([right, wrong], dim=1)


@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("attack", [pgd, apgd])
def test_what_is_not_finite_is_never_a_success(attack, how):
    inputs = torch.tensor([[0.9, 0.5, 0.9, 0.9], [0.6, 0.5, 0.5, 0.6]])
    model = Broken(how)
    result = attack(model, inputs, torch.tensor([0, 0]), ThreatModel(epsilon=0.1), steps=10)
    assert result.initially_correct.tolist() == [True, True]
    assert result.success.tolist() == [False, True]
    assert result.nonfinite.tolist() == [True, False]
    assert result.x_adv.isfinite().all()
    assert result.loss.isfinite().all()


def test_not_finite_clean_logits_are_wrong_from_the_start():
    inputs = torch.rand(3, 2)
    result = pgd(lambda x: x * torch.nan, inputs, torch.tensor([0, 1, 0]), ThreatModel())
    assert not result.initially_correct.any()
    assert not result.success.any()
    assert result.nonfinite.all()


def test_minus_infinity_masks_a_class():
    mask = torch.tensor([0.0, 0.0, -torch.inf])
    inputs = torch.tensor([[0.6, 0.5, 0.9]])
    result = pgd(lambda x: x + mask, inputs, torch.tensor([0]), ThreatModel(epsilon=0.1))
    assert result.success.all()
    assert not result.nonfinite.any()


def test_float16_gradients_do_not_underflow():
    # The true class leads by 20: e^-20 is no float16 number.
    inputs, target = torch.tensor([[0.75, 0.25]]), torch.tensor([0])
    result = pgd(lambda x: 40 * x.half(), inputs, target, ThreatModel(epsilon=0.3), random_start=False)
    assert result.success.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "`steps` must be >= 1, got 0"),
        ({"restarts": 0}, "`restarts` must be >= 1, got 0"),
        ({"step_size": 0.0}, "`step_size` must be > 0 or None, got 0.0"),
        ({"restarts": 2, "random_start": False}, "`restarts` must be 1 without random_start, got 2"),
        ({"loss": lambda logits, _: logits.sum()}, r"`loss` must return one value per sample, shape \(2,\), got"),
        ({"loss": lambda _, target: target.float()}, "`loss` must be differentiable in the logits"),
        ({"clean_logits": torch.zeros(3, 4)}, r"`clean_logits` must be floating point of shape \(2, classes\)"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message, unchecked_shapes):
    model, inputs = affine(), torch.rand(2, 12, dtype=torch.float64)
    with unchecked_shapes, pytest.raises(ValueError, match=message):
        pgd(model, inputs, model(inputs).argmax(1), ThreatModel(), **arguments)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: (x, x), r"`logits_fn` must return a tensor of logits, got tuple; wrap the model"),
        (lambda x: x.sum(1), r"`logits_fn` must return floating-point logits of shape \(2, classes\), got .* \(2,\)"),
        (lambda x: x[:1], r"of shape \(2, classes\), got torch.float32 \(1, 3\)"),
        (lambda x: x.argmax(1, keepdim=True).expand(-1, 3), r"floating-point logits .* got torch.int64 \(2, 3\)"),
        (lambda x: x.detach(), "`logits_fn` must be differentiable in its inputs, got logits without a graph"),
        (lambda x: x.detach() * torch.ones(3, requires_grad=True), "must be differentiable in its inputs"),
    ],
)
def test_models_that_return_no_logits_are_refused(model, message):
    inputs = torch.tensor([[0.5, 0.1, 0.1], [0.1, 0.5, 0.1]])
    with pytest.raises(ValueError, match=message):
        pgd(model, inputs, torch.tensor([0, 1]), ThreatModel())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([0.0, 1.0]), r"`target` must hold one class index per sample, shape \(2,\), got torch.float32"),
        (torch.tensor([[0], [1]]), r"`target` must hold one class index per sample, shape \(2,\), got .* \(2, 1\)"),
        (torch.tensor([0, 4]), r"`target` must be in \[0, 4\), got 4; leave out samples without a class"),
        (torch.tensor([-100, 1]), r"`target` must be in \[0, 4\), got -100"),
    ],
)
def test_targets_that_are_no_classes_are_refused(target, message, unchecked_shapes):
    with unchecked_shapes, pytest.raises(ValueError, match=message):
        pgd(affine(), torch.rand(2, 12, dtype=torch.float64), target, ThreatModel())


def test_inputs_are_checked_before_the_model_runs():
    with pytest.raises(ValueError, match="`inputs` must lie in"):
        pgd(lambda _: pytest.fail("was called"), torch.full((1, 3), 2.0), torch.tensor([0]), ThreatModel())
