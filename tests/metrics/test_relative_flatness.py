"""What ``RelativeFlatness`` computes."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import log_softmax

from lightning_flatness.functional.losses import CrossEntropy, TrueClassLoss
from lightning_flatness.metrics import RelativeFlatness
from tests.metrics.problems import QUANTILES, by_hand, head_inputs, of_samples, scalars, without

SOFT = torch.rand(40, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64).softmax(1)
CASES = {
    "cross_entropy": ("cross_entropy", "classes"),
    "no target": ("cross_entropy", None),
    "soft labels": ("cross_entropy", SOFT),
    "weighted, smoothed": (
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0, 3.0, 1.0]), label_smoothing=0.1),
        "classes",
    ),
    "weighted soft labels": (CrossEntropy(weight=[0.5, 1.0, 2.0, 3.0, 1.0]), SOFT),
    "temperature": (CrossEntropy(temperature=2.0), "classes"),
    "binary": ("binary_cross_entropy", SOFT),
    "mse": ("mse", SOFT),
    "huber": ("huber", 3 * SOFT),
    "poisson": ("poisson_nll", SOFT),
    "focal": ("focal", "classes"),
    "generalised cross-entropy": (TrueClassLoss(lambda log_p, _: (1 - (0.7 * log_p).exp()) / 0.7), "classes"),
    "function": (lambda logits, target: -log_softmax(logits, 1).gather(1, target[:, None]).squeeze(1), "classes"),
}


def assert_is(result, expected, *, rel=1e-12):
    """Quantiles are within 1 % of the value whose rank is right."""
    tolerances = {name: rel if name not in QUANTILES else 0.0101 for name in expected}
    result = scalars(result)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=tolerances[name], abs=0), name


def case_inputs(case):
    target = CASES[case][1]
    inputs = without(head_inputs(), "bias")
    return inputs if isinstance(target, str) else inputs | {"target": target}


@pytest.mark.parametrize("variant", ["neuronwise", "layerwise", "maxeig"])
@pytest.mark.parametrize("case", CASES)
def test_is_the_functional_values_aggregated_by_hand(case, variant):
    inputs, loss = case_inputs(case), CASES[case][0]
    metric = RelativeFlatness(variant, loss)
    metric.update(**inputs)
    assert_is(metric.compute(), by_hand(inputs, variant, loss))


@pytest.mark.parametrize("variant", ["neuronwise", "layerwise", "maxeig"])
def test_include_bias_counts_it_among_the_parameters(variant):
    inputs = head_inputs()
    metric = RelativeFlatness(variant, include_bias=True)
    metric.update(**inputs)
    assert_is(metric.compute(), by_hand(inputs, variant))


def test_bias_is_not_used_without_include_bias():
    metric = RelativeFlatness()
    metric.update(**head_inputs())
    assert_is(metric.compute(), by_hand(without(head_inputs(), "bias")))


def test_negative_flatness_has_quantiles_and_no_geometric_mean():
    loss = TrueClassLoss(lambda log_p, _: 1 - log_p.exp())
    inputs = without(head_inputs(), "bias")
    expected = by_hand(inputs, loss=loss)
    assert expected["wrong"] < 0 < expected["correct"]
    assert "geometric_mean" not in expected
    metric = RelativeFlatness(loss=loss)
    metric.update(**inputs)
    assert_is(metric.compute(), expected)


@settings(max_examples=10)
@given(
    order=st.permutations(range(40)),
    cuts=st.sets(st.integers(1, 39), max_size=12),
    variant=st.sampled_from(["neuronwise", "maxeig"]),
    case=st.sampled_from(["cross_entropy", "soft labels", "focal", "binary"]),
)
def test_is_exact_under_any_batching_and_order(order, cuts, variant, case):
    inputs, loss = case_inputs(case), CASES[case][0]
    whole, parts = RelativeFlatness(variant, loss), RelativeFlatness(variant, loss)
    whole.update(**inputs)
    for start, stop in pairwise([0, *sorted(cuts), 40]):
        parts.update(**of_samples(inputs, order[start:stop]))
    assert scalars(parts.compute()) == pytest.approx(scalars(whole.compute()), rel=1e-12, abs=0)
    assert parts.histograms == whole.histograms


def test_single_precision_depends_on_the_batching_by_rounding_only():
    inputs = head_inputs(dtype=torch.float32)
    whole, parts = RelativeFlatness(), RelativeFlatness()
    whole.update(**inputs)
    for sample in range(40):
        parts.update(**of_samples(inputs, slice(sample, sample + 1)))
    expected = scalars(whole.compute())
    assert without(scalars(parts.compute()), *QUANTILES) == pytest.approx(without(expected, *QUANTILES), rel=1e-5)


def test_each_batch_is_measured_with_its_own_weight():
    first, second = (without(head_inputs(seed=seed), "bias") for seed in (1, 2))
    metric = RelativeFlatness()
    metric.update(**first)
    metric.update(**second)
    expected = [by_hand(inputs) for inputs in (first, second)]
    for name in ("relative_flatness", "layerwise", "weight_norm"):
        assert float(metric.compute()[name]) == pytest.approx((expected[0][name] + expected[1][name]) / 2, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_measured_as_it_is_given(dtype):
    inputs = without(head_inputs(dtype=dtype), "bias")
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    metric = RelativeFlatness()
    metric.update(**inputs)
    assert_is(metric.compute(), by_hand(exact), rel=1e-5)
    assert metric.compute()["relative_flatness"].dtype == torch.float64


@pytest.mark.parametrize("variant", ["neuronwise", "maxeig"])
def test_leading_dimensions_are_samples_and_the_ignored_target_is_none(variant):
    inputs = without(head_inputs(), "bias")
    tokens = {name: value.unflatten(0, (8, 5)) for name, value in inputs.items() if name != "weight"}
    ignored = torch.arange(40).unflatten(0, (8, 5)) % 4 == 0
    tokens["target"] = tokens["target"].masked_fill(ignored, -100)
    metric = RelativeFlatness(variant)
    metric.update(weight=inputs["weight"], **tokens)
    assert_is(metric.compute(), by_hand(of_samples(inputs, torch.arange(40) % 4 != 0), variant))


def test_soft_labels_may_have_leading_dimensions():
    inputs = case_inputs("binary")
    tokens = {name: value.unflatten(0, (2, 4, 5)) for name, value in inputs.items() if name != "weight"}
    metric = RelativeFlatness(loss="binary_cross_entropy")
    metric.update(weight=inputs["weight"], **tokens)
    assert_is(metric.compute(), by_hand(inputs, loss="binary_cross_entropy"))


def test_one_sample_without_leading_dimensions():
    inputs = without(head_inputs(), "bias")
    metric = RelativeFlatness()
    metric.update(**of_samples(inputs, 7))
    assert_is(metric.compute(), by_hand(of_samples(inputs, slice(7, 8))))


def test_another_ignored_target():
    inputs = without(head_inputs(), "bias")
    metric = RelativeFlatness(loss=CrossEntropy(ignore_index=2))
    metric.update(**inputs)
    assert_is(metric.compute(), by_hand(of_samples(inputs, inputs["target"] != 2)))


def test_only_right_answers_give_no_entry_for_wrong_ones():
    inputs = without(head_inputs(), "bias")
    metric = RelativeFlatness()
    metric.update(**inputs | {"target": inputs["logits"].argmax(1)})
    result = scalars(metric.compute())
    assert result["correct"] == result["relative_flatness"]
    assert "wrong" not in result


def test_real_valued_targets_are_no_classes():
    inputs = without(head_inputs(), "bias")
    one_output = {"features": inputs["features"], "weight": inputs["weight"][:1], "logits": inputs["logits"][:, :1]}
    metric = RelativeFlatness(loss=lambda logits, target: (logits.squeeze(1) - target).square())
    metric.update(**one_output, target=torch.linspace(-3, 3, 40, dtype=torch.float64))
    expected = 2 * inputs["features"].square().sum(1).mean() * inputs["weight"][0].square().sum()
    result = scalars(metric.compute())
    assert result["relative_flatness"] == pytest.approx(float(expected), rel=1e-12)
    assert result.keys().isdisjoint({"correct", "wrong"})


def test_histograms_count_right_and_wrong_answers():
    metric = RelativeFlatness()
    metric.update(**head_inputs())
    metric.compute()
    right = int((head_inputs()["logits"].argmax(1) == head_inputs()["target"]).sum())
    assert {name: sum(histogram.counts) for name, histogram in metric.histograms.items()} == {
        "correct": right,
        "wrong": 40 - right,
    }
    assert metric.histograms["correct"].edges == metric.histograms["wrong"].edges


def test_histogram_of_all_samples_without_classes_is_of_the_logarithm():
    inputs = without(head_inputs(), "bias", "target")
    metric = RelativeFlatness()
    for sample in range(40):
        metric.update(**of_samples(inputs, slice(sample, sample + 1)))
    metric.compute()
    (histogram,) = metric.histograms.values()
    assert list(metric.histograms) == ["all"]
    assert len(histogram.edges) == len(histogram.counts) + 1
    widths = [high - low for low, high in pairwise(histogram.edges)]
    assert widths == pytest.approx([widths[0]] * len(widths))
    centres = [edge + widths[0] / 2 for edge in histogram.edges[:-1]]
    log_mean = math.fsum(map(math.prod, zip(histogram.counts, centres, strict=True))) / 40
    assert log_mean == pytest.approx(math.log10(by_hand(inputs)["geometric_mean"]), abs=widths[0])


def test_sums_are_exact_for_samples_of_very_different_size():
    count = 100_000
    generator = torch.Generator().manual_seed(0)
    size = 10 ** (12 * torch.rand(count, generator=generator, dtype=torch.float64) - 6)
    features = torch.randn(count, 2, generator=generator, dtype=torch.float64) * size.unsqueeze(1)
    weight = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    logits = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    metric = RelativeFlatness()
    for rows in torch.arange(count).split(4999):
        metric.update(features[rows], weight, logits[rows])
    expected = by_hand({"features": features, "weight": weight, "logits": logits})
    assert_is(metric.compute(), expected, rel=1e-13)


def test_states_are_sums_that_do_not_grow():
    metric = RelativeFlatness()
    empty = {name: state.shape for name, state in metric.metric_state.items()}
    metric.update(**head_inputs())
    metric.update(**head_inputs(samples=7))
    assert {name: state.shape for name, state in metric.metric_state.items()} == empty
    single = [RelativeFlatness(), RelativeFlatness()]
    single[0].update(**head_inputs())
    single[1].update(**head_inputs(samples=7))
    for name in ("sums", "counts", "sketch"):
        state = metric.metric_state[name]
        assert torch.equal(state, sum(part.metric_state[name] for part in single)), name


@pytest.mark.parametrize("variant", ["neuronwise", "layerwise"])
def test_means_per_class_are_those_of_its_samples(variant):
    inputs = without(head_inputs(), "bias")
    inputs["target"][inputs["target"] == 4] = 0  # a class without samples
    inputs["features"][7, 2] = torch.nan  # a sample that does not count
    metric = RelativeFlatness(variant, num_classes=5)
    for rows in (list(range(9)), list(range(9, 40))):
        metric.update(**of_samples(inputs, rows))
    metric.compute()
    counted = [sample for sample in range(40) if sample != 7]
    for index in range(5):
        rows = [sample for sample in counted if inputs["target"][sample] == index]
        assert metric.per_class["samples"][index] == len(rows)
        mean = float(metric.per_class["relative_flatness"][index])
        if not rows:
            assert math.isnan(mean)
        else:
            assert mean == pytest.approx(by_hand(of_samples(inputs, rows), variant)["relative_flatness"], rel=1e-12)
    assert 0 < int(metric.per_class["relative_flatness"].isfinite().sum()) < 5
    metric.reset()
    assert not metric.per_class


def test_without_num_classes_nothing_is_known_per_class():
    metric = RelativeFlatness()
    metric.update(**without(head_inputs(), "bias"))
    metric.compute()
    assert metric.per_class == {}


def test_geometry_factor_does_not_depend_on_confidence():
    inputs = without(head_inputs(), "bias")
    two_classes = {**inputs, "weight": inputs["weight"][:2], "logits": inputs["logits"][:, :2], "target": None}
    values = []
    for temperature in (1.0, 1e-3):
        metric = RelativeFlatness(loss=CrossEntropy(temperature=temperature))
        metric.update(**two_classes)
        values.append(float(metric.compute()["geometry_factor"]))
    # Two classes: p(1 − p)‖w_0 − w_1‖² over 2p(1 − p).
    expected = float((inputs["weight"][0] - inputs["weight"][1]).square().sum()) / 2
    assert values == pytest.approx([expected, expected], rel=1e-12)
