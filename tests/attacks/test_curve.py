"""Bisection over epsilons against attacks at every epsilon."""

import math
from copy import deepcopy
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_flatness.attacks import AdaptiveAttack, Attack, ThreatModel, apgd, first_fooling_epsilon, pgd
from lightning_flatness.attacks._noise import DrawnSeeds, sample_seeds
from lightning_flatness.metrics import RobustAccuracyCurve
from tests.attacks.models import affine, affine_radius, digit_cnn, held_out

EPSILONS = [0.01, 0.03, 0.05, 0.08, 0.1, 0.13, 0.16, 0.2]
FREE = ThreatModel(lower=None, upper=None)
ATTACKS = {
    "pgd": lambda threat: partial(pgd, threat=threat, steps=10),
    "one step": lambda threat: partial(pgd, threat=threat, steps=1),
    "apgd": lambda threat: partial(apgd, threat=threat, steps=10),
    "fast": partial(AdaptiveAttack, budget="fast"),
}


def problem(count: int = 60) -> tuple[nn.Linear, Tensor, Tensor]:
    """Affine classifier and inputs, some of them wrong from the start."""
    model = affine(num_classes=5)
    inputs = torch.rand(count, 12, dtype=torch.float64)
    target = model(inputs).argmax(1)
    target[::7] = 0
    return model, inputs, target


def one_by_one(attack_for, model, inputs, target, threat, epsilons, seed=0) -> Tensor:
    """Successes of an attack at every epsilon, which all draw the same seeds."""
    rows = []
    for epsilon in epsilons:
        attack = attack_for(ThreatModel(threat.norm, epsilon, threat.lower, threat.upper))
        rows.append(attack(model, inputs, target, generator=torch.Generator().manual_seed(seed)).success)
    return torch.stack(rows)


def bisected(successes: list[bool]) -> int:
    low, high = 0, len(successes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if successes[middle] else (middle + 1, high)
    return low


@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(max_examples=15)
@given(
    seed=st.integers(0, 99),
    epsilons=st.lists(st.floats(0.001, 1.5), min_size=1, max_size=9, unique=True).map(sorted),
)
def test_affine_model_is_fooled_at_the_first_epsilon_beyond_its_exact_radius(norm, seed, epsilons):
    model = affine(num_classes=2, seed=seed)
    inputs = torch.randn(20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    target, radius = model(inputs).argmax(1), affine_radius(model, inputs, norm)
    threat = ThreatModel(norm, lower=None, upper=None)
    index = first_fooling_epsilon(ATTACKS["pgd"], model, inputs, target, threat, epsilons).index.tolist()
    for found, r in zip(index, radius.tolist(), strict=True):
        surely, maybe = (sum(epsilon < factor * r for epsilon in epsilons) for factor in (0.99, 1.01))
        assert surely <= found <= maybe


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("name", ATTACKS)
def test_asks_a_sample_exactly_what_the_attack_at_that_epsilon_alone_would_say(name, count):
    """With the same seeds: an attack of one step from a random start succeeds by luck."""
    model, inputs, target = problem()
    epsilons = [0.03 * (k + 1) for k in range(count)]
    result = first_fooling_epsilon(
        ATTACKS[name], model, inputs, target, FREE, epsilons, generator=torch.Generator().manual_seed(5)
    )
    successes = one_by_one(ATTACKS[name], model, inputs, target, FREE, epsilons, seed=5)
    correct = model(inputs).argmax(1) == target
    assert torch.equal(result.initially_correct, correct)
    expected = [bisected(column) for column in successes.T.tolist()]
    assert result.index.tolist() == expected
    assert 0 < correct.sum() < 60
    assert set(result.index[~correct].tolist()) == {count}
    assert len(set(expected)) > 1


def test_curve_of_a_cnn_is_that_of_an_attack_at_every_epsilon():
    inputs, target = held_out(60)
    inputs, model = inputs.double(), deepcopy(digit_cnn()).double()
    result = first_fooling_epsilon(ATTACKS["fast"], model, inputs, target, ThreatModel(), EPSILONS)
    fooled = one_by_one(ATTACKS["fast"], model, inputs, target, ThreatModel(), EPSILONS).cummax(0).values
    first = (~fooled).sum(0)
    # An attack that fails in a ball though it succeeds in a smaller one may hide the latter.
    assert (result.index >= first).all()
    assert (result.index != first).sum() <= 1
    assert len(set(first.tolist())) > len(EPSILONS) / 2


@pytest.mark.parametrize("sizes", [[60], [1, 59], [20, 20, 20], [7] * 8 + [4]])
def test_result_does_not_depend_on_the_split_into_batches(sizes):
    model, inputs, target = problem()
    generator = torch.Generator().manual_seed(3)
    parts = [
        first_fooling_epsilon(ATTACKS["one step"], model, x, y, ThreatModel(), EPSILONS, generator=generator)
        for x, y in zip(inputs.split(sizes), target.split(sizes), strict=True)
    ]
    whole = first_fooling_epsilon(
        ATTACKS["one step"], model, inputs, target, ThreatModel(), EPSILONS, generator=torch.Generator().manual_seed(3)
    )
    assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
    assert torch.equal(torch.cat([part.initially_correct for part in parts]), whole.initially_correct)
    assert sum(part.forwards for part in parts) == whole.forwards


def test_drawn_seeds_give_part_of_a_batch_the_starts_it_has_in_the_whole():
    inputs, rows = torch.rand(10, 3, 4), torch.tensor([7, 2, 5])
    seeds = sample_seeds(10, torch.Generator().manual_seed(1), inputs.device)
    whole = ThreatModel().random_start(inputs, torch.Generator().manual_seed(1))
    part = ThreatModel().random_start(inputs[rows], DrawnSeeds(seeds[rows]))
    assert torch.equal(part, whole[rows])


def test_passes_are_counted_as_the_model_sees_them():
    model, (inputs, target) = digit_cnn(), held_out(40)
    passes = []
    handle = model.register_forward_hook(lambda _module, args, _output: passes.append(len(args[0])))
    try:
        result = first_fooling_epsilon(ATTACKS["pgd"], model, inputs, target, ThreatModel(), EPSILONS)
    finally:
        handle.remove()
    assert passes[0] == 40
    assert result.forwards == sum(passes)
    assert 0 < result.backwards < result.forwards
    known = first_fooling_epsilon(
        ATTACKS["pgd"], model, inputs, target, ThreatModel(), EPSILONS, clean_logits=model(inputs)
    )
    assert known.forwards == result.forwards - 40
    assert torch.equal(known.index, result.index)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 20])
def test_each_correct_sample_is_attacked_a_logarithmic_number_of_times(count):
    model, inputs, target = problem()
    seen = []

    def attack_for(threat: ThreatModel) -> Attack:
        def attack(logits_fn, inputs, target, *, generator, clean_logits):
            seen.append(inputs)
            return pgd(logits_fn, inputs, target, threat, generator=generator, clean_logits=clean_logits)

        return attack

    epsilons = [0.02 * (k + 1) for k in range(count)]
    result = first_fooling_epsilon(attack_for, model, inputs, target, FREE, epsilons)
    times = [sum(int((x == part).all(1).sum()) for part in seen) for x in inputs]
    for how_often, correct in zip(times, result.initially_correct.tolist(), strict=True):
        if correct:
            assert math.floor(math.log2(count + 1)) <= how_often <= math.ceil(math.log2(count + 1))
        else:
            assert how_often == 0
    assert len(seen) <= count


def test_epsilon_per_channel_keeps_its_ratios():
    threats = []

    def attack_for(threat: ThreatModel) -> Attack:
        threats.append(threat)
        return AdaptiveAttack(threat, "fast")

    model, inputs, target = problem(4)
    threat = ThreatModel(epsilon=[0.1] * 11 + [0.2], lower=-1.0, std=2.0)
    first_fooling_epsilon(attack_for, model, inputs / 2, target, threat, [0.05, 0.3])
    assert [threat.epsilon[0] for threat in threats] == [0.025, 0.15]
    assert [threat.epsilon[-1] for threat in threats] == [0.05, 0.3]
    assert {(threat.lower, threat.std) for threat in threats} == {(-1.0, 2.0)}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_in_every_context(context):
    model, (inputs, target) = digit_cnn(), held_out(20)
    expected = first_fooling_epsilon(ATTACKS["fast"], model, inputs, target, ThreatModel(), EPSILONS)
    with context():
        inputs, target = inputs.clone(), target.clone()
        result = first_fooling_epsilon(
            ATTACKS["fast"], model, inputs, target, ThreatModel(), EPSILONS, clean_logits=model(inputs)
        )
    assert torch.equal(result.index, expected.index)
    assert not result.index.is_inference()


def test_no_samples_and_no_correct_samples_need_no_attack():
    def attack_for(_threat: ThreatModel) -> Attack:
        return lambda *_args, **_kwargs: pytest.fail("was called")

    model = affine()
    empty = torch.empty(0, 12, dtype=torch.float64)
    result = first_fooling_epsilon(attack_for, model, empty, torch.empty(0).long(), ThreatModel(), EPSILONS)
    assert result.index.shape == result.initially_correct.shape == (0,)
    inputs = torch.rand(3, 12, dtype=torch.float64)
    wrong = (model(inputs).argmax(1) + 1) % 4
    result = first_fooling_epsilon(attack_for, model, inputs, wrong, ThreatModel(), EPSILONS)
    assert result.index.tolist() == [8, 8, 8]
    assert (result.forwards, result.backwards) == (3, 0)
    assert not result.initially_correct.any()


def test_metric_makes_the_curve_which_never_rises():
    model, (inputs, target) = digit_cnn(), held_out(30)
    metric = RobustAccuracyCurve(EPSILONS)
    for rows in torch.arange(30).split(20):
        result = first_fooling_epsilon(ATTACKS["fast"], model, inputs[rows], target[rows], ThreatModel(), EPSILONS)
        metric.update(result.index, result.initially_correct)
    curve = metric.compute()["robust_accuracy"].tolist()
    assert curve[0] == pytest.approx((model(inputs).argmax(1) == target).double().mean().item())
    assert all(large >= small for large, small in pairwise(curve))
    assert curve[0] > 0.9
    assert curve[-1] < 0.2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilons": []}, r"`epsilons` must be > 0, finite and strictly increasing, got \[\]\."),
        ({"epsilons": [0.0, 0.1]}, r"strictly increasing, got \[0\.0, 0\.1\]\."),
        ({"epsilons": [0.2, 0.1]}, r"strictly increasing, got \[0\.2, 0\.1\]\."),
        ({"epsilons": [0.1, 0.1]}, r"strictly increasing, got \[0\.1, 0\.1\]\."),
        ({"threat": ThreatModel(epsilon=[0.0] * 12)}, r"`threat` must let some channel change, got epsilon=\(0\.0, 0"),
        ({"inputs": torch.full((2, 12), 2.0)}, r"`inputs` must lie in \[0\.0, 1\.0\], got \[2, 2\]"),
        ({"target": torch.tensor([0, 4])}, r"`target` must be in \[0, 4\), got 4"),
        ({"clean_logits": torch.zeros(3, 4)}, r"`clean_logits` must be floating point of shape \(2, classes\)"),
    ],
)
def test_impossible_arguments_are_refused(changes, words, unchecked_shapes):
    arguments = {
        "inputs": torch.rand(2, 12),
        "target": torch.tensor([0, 1]),
        "threat": ThreatModel(),
        "epsilons": [0.1, 0.2],
    }
    with unchecked_shapes, pytest.raises(ValueError, match=words):
        first_fooling_epsilon(AdaptiveAttack, affine().float(), **arguments | changes)
