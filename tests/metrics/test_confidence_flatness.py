"""Confidence against flatness."""

import pytest
import torch
from torchmetrics.functional import spearman_corrcoef

from lightning_flatness.functional.statistics import histogram_rank_correlation
from lightning_flatness.metrics import ConfidenceFlatness, detection_scores


def samples(count=600, seed=0):
    """Flatness over many decades, and confidences that fall with it, noisily."""
    generator = torch.Generator().manual_seed(seed)
    doubt = torch.rand(count, generator=generator, dtype=torch.float64).pow(8).clamp(1e-12)
    noise = torch.randn(count, generator=generator, dtype=torch.float64).exp()
    return {
        "flatness": 30 * doubt * noise,
        "confidence": 1 - 0.9 * doubt,
        "correct": torch.rand(count, generator=generator) < 0.7,
        "adversarial": torch.rand(count, generator=generator) < 0.3,
    }


def part(given, rows):
    return {name: value[rows] for name, value in given.items()}


def groups(given):
    clean = ~given["adversarial"]
    return {
        "correct": clean & given["correct"],
        "wrong": clean & ~given["correct"],
        "adversarial": given["adversarial"],
    }


def test_rank_correlations_are_spearmans():
    given = samples()
    metric = ConfidenceFlatness()
    metric.update(**given)
    values = metric.compute()
    for name, rows in groups(given).items():
        expected = spearman_corrcoef(given["flatness"][rows], given["confidence"][rows])
        assert values[f"{name}_samples"] == rows.sum()
        assert float(values[f"{name}_rank_correlation"]) == pytest.approx(float(expected), abs=0.01)
        assert -1 < expected < -0.5


def test_negative_flatness_and_rounded_confidence_are_outermost():
    metric = ConfidenceFlatness()
    flatness = torch.tensor([-3.0, 1e-4, 1.0, 1e4])
    confidence = torch.tensor([1 + 1e-6, 0.999, 0.9, 0.6])
    metric.update(flatness, confidence, torch.ones(4, dtype=torch.bool))
    assert float(metric.compute()["correct_rank_correlation"]) == pytest.approx(-1)


def test_histogram_holds_every_sample_in_its_place():
    metric = ConfidenceFlatness()
    one = torch.ones(1, dtype=torch.bool)
    metric.update(torch.tensor([2e-3]), torch.tensor([0.99]), one)
    metric.compute()
    assert metric.histograms.keys() == {"correct"}
    histogram = metric.histograms["correct"]
    counts = torch.tensor(histogram.counts)
    ((row, column),) = counts.nonzero().tolist()
    assert histogram.flatness_edges[row] <= torch.tensor(2e-3).log10() < histogram.flatness_edges[row + 1]
    assert histogram.odds_edges[column] <= torch.tensor(99.0).log10() < histogram.odds_edges[column + 1]
    assert counts.shape == (len(histogram.flatness_edges) - 1, len(histogram.odds_edges) - 1)
    assert int(counts.sum()) == 1


def test_batches_do_not_matter_and_extremes_are_kept():
    given = samples()
    given["flatness"][:3] = torch.tensor([0.0, torch.inf, torch.nan])
    given["confidence"][3:5] = torch.tensor([1.0, 0.0])
    whole, split = ConfidenceFlatness(), ConfidenceFlatness()
    whole.update(**given)
    for rows in (slice(0, 1), slice(1, 350), slice(350, 350), slice(350, 600)):
        split.update(**part(given, rows))
    assert torch.equal(whole.counts, split.counts)
    assert int(whole.counts.sum()) == 599
    assert whole.compute() == split.compute()


def test_what_cannot_be_had_has_no_entry():
    metric = ConfidenceFlatness()
    metric.update(torch.tensor([1.0, 1.0]), torch.tensor([0.9, 0.9]), torch.tensor([True, True]))
    assert set(metric.compute()) == {"correct_samples", "wrong_samples", "adversarial_samples"}
    metric.reset()
    assert not metric.histograms


def test_plot_shows_the_correlations():
    metric = ConfidenceFlatness()
    metric.update(**samples())
    values = metric.compute()
    drawn = {line.get_label(): float(line.get_ydata()[0]) for line in metric.plot()[1].lines}
    assert drawn == {name: float(value) for name, value in values.items() if name.endswith("_rank_correlation")}


def test_rank_correlation_of_integers_is_exact():
    pairs = torch.randint(0, 6, (80, 2), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(6, 6, dtype=torch.int64)
    for first, second in pairs.tolist():
        counts[first, second] += 1
    expected = spearman_corrcoef(pairs[:, 0].double(), pairs[:, 1].double())
    assert histogram_rank_correlation(counts) == pytest.approx(float(expected), abs=1e-6)


def kinds(shift, count=400):
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(4)]
    return draws[0].exp(), (draws[1] + shift).exp(), draws[2].sigmoid(), draws[3].sigmoid()


def test_separation_by_flatness_alone():
    clean, adv, *confidence = kinds(2.0)
    scores = detection_scores(clean, adv, *confidence)
    wins = (adv.unsqueeze(1) > clean).double().mean()
    assert scores["flatness_auroc"] == pytest.approx(float(wins), abs=1e-6)
    thresholds = torch.cat([clean, adv]).unsqueeze(1)
    balanced = ((adv >= thresholds).double().mean(1) + (clean < thresholds).double().mean(1)) / 2
    assert scores["flatness_accuracy"] == pytest.approx(float(balanced.max()), abs=1e-6)
    assert scores["confidence_auroc"] == pytest.approx(0.5, abs=0.05)
    assert scores["both_auroc"] >= scores["flatness_auroc"] - 1e-9


def test_direction_counts_for_the_area_but_not_for_the_accuracy():
    clean, adv, *confidence = kinds(2.0)
    scores, turned = (detection_scores(*pair, *confidence) for pair in ((clean, adv), (adv, clean)))
    assert turned["flatness_auroc"] == pytest.approx(1 - scores["flatness_auroc"], abs=1e-6)
    assert turned["flatness_accuracy"] == pytest.approx(scores["flatness_accuracy"], abs=1e-6)


def test_both_together_tell_what_neither_tells_alone():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(300, generator=generator, dtype=torch.float64)
    scores = detection_scores(base, base, base - 1, base + 0.15 - 1)
    assert scores["confidence_auroc"] < 0.7
    assert scores["both_accuracy"] > scores["confidence_accuracy"] + 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: torch.zeros(0), 2: torch.zeros(0)}, "`flatness_clean` must hold at least one value, got none."),
        ({3: torch.zeros(2)}, r"`confidence_adv` must hold one value per sample, shape \(3,\), got \(2,\)."),
        ({1: torch.tensor([1.0, torch.inf, 2.0])}, r"`flatness_adv` must be finite, got inf at \[1\]."),
    ],
)
def test_wrong_arguments(changes, message, unchecked_shapes):
    arguments = [changes.get(index, torch.ones(3)) for index in range(4)]
    with unchecked_shapes, pytest.raises(ValueError, match=message):
        detection_scores(*arguments)
