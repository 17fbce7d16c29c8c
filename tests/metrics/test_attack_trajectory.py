"""The metric counts what happens to each trajectory."""

from itertools import pairwise
from math import inf, log, nan

import pytest
import torch

from lightning_flatness.functional import TrajectoryPoints
from lightning_flatness.metrics import AttackTrajectory
from lightning_flatness.metrics.attack_trajectory import QUANTITIES
from tests.metrics.trajectories import POSITIONS, part, scalars_by_hand, trajectory_points

POINTS = trajectory_points()


def updated(*parts: TrajectoryPoints, **settings) -> AttackTrajectory:
    metric = AttackTrajectory(POSITIONS, **settings)
    for points in parts:
        metric.update(points)
    return metric


def plain(metric: AttackTrajectory) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


def assert_scalars(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=0.0101 if name == "basin_width" else 1e-12), name


@pytest.mark.parametrize("settings", [{}, {"loss_rise": 0.2, "confidence": 0.98}, {"loss_rise": 3.0}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_scalars_are_counted_by_hand(settings, seed):
    points = trajectory_points(seed=seed)
    assert_scalars(plain(updated(points, **settings)), scalars_by_hand(points, **settings))


def test_problems_show_every_case():
    rates = [scalars_by_hand(trajectory_points(seed=seed)) for seed in range(3)]
    assert all(
        0 < found[name] < 1 for found in rates for name in ("success_rate", "valley_rate", "basin_censored_rate")
    )
    assert "basin_width" not in scalars_by_hand(POINTS, 3.0)


def exact_curves(points: TrajectoryPoints) -> dict[str, list[float]]:
    """Means and lower quantiles of every quantity."""
    curves = {"position": list(POSITIONS), "flipped": points.flipped.double().mean(1).tolist()}
    for name in QUANTITIES:
        flatness = name in {"neuronwise", "layerwise", "maxeig"}
        values = getattr(points, f"log_{name}").exp() if flatness else getattr(points, name)
        curves[f"{name}_mean"] = values.mean(1).tolist()
        for suffix, level in (("median", 0.5), ("p10", 0.1), ("p90", 0.9)):
            way = "higher" if name == "confidence" else "lower"
            ordered = values.sort(dim=1).values
            rank = int(level * values.shape[1] + 1e-9)
            curves[f"{name}_{suffix}"] = ordered[:, rank if way == "higher" else rank - 1].tolist()
    return curves


def test_curves_are_means_and_quantiles():
    metric = updated(POINTS)
    assert metric.curves == {}
    metric.compute()
    expected = exact_curves(POINTS)
    assert metric.curves.keys() == expected.keys()
    for name, values in expected.items():
        if name.startswith("confidence") and not name.endswith("mean"):
            found = [1 - value for value in metric.curves[name]]
            assert found == pytest.approx([1 - value for value in values], rel=0.052, abs=1e-12), name
        else:
            tolerance = 1e-12 if name.endswith(("mean", "flipped", "position")) else 0.052
            assert metric.curves[name] == pytest.approx(values, rel=tolerance, abs=1e-12), name
    metric.reset()
    assert metric.curves == {}


@pytest.mark.parametrize("cuts", [(0, 40), (0, 1, 40), (0, 0, 13, 27, 40)])
def test_batches_of_any_size_and_order(cuts):
    parts = [part(POINTS, slice(first, last)) for first, last in pairwise(cuts)]
    metric, whole = updated(*reversed(parts)), updated(POINTS)
    assert_scalars(plain(metric), plain(whole))
    for name, values in whole.curves.items():
        assert metric.curves[name] == pytest.approx(values, rel=1e-12)


def changed(name: str, value: float, point: int = 1, row: int = 3) -> TrajectoryPoints:
    column = getattr(POINTS, name).clone()
    column[point, row] = value
    return POINTS._replace(**{name: column})


@pytest.mark.parametrize(("name", "value"), [("loss", nan), ("loss", inf), ("feature_distance", nan)])
def test_sample_with_a_number_that_is_not_finite_is_left_out(name, value):
    rest = TrajectoryPoints.cat([POINTS])
    rest = TrajectoryPoints(*(torch.cat([column[:, :3], column[:, 4:]], 1) for column in rest))
    assert_scalars(plain(updated(changed(name, value))), {**scalars_by_hand(rest), "nonfinite": 1})


def test_flatness_of_zero_counts_and_below_zero_does_not():
    zero, negative = updated(changed("log_neuronwise", -inf)), updated(changed("log_neuronwise", nan))
    zero.compute(), negative.compute()
    values = POINTS.log_neuronwise.exp()[1]
    rest = values.sum() - values[3]
    assert zero.curves["neuronwise_mean"][1] == pytest.approx(float(rest / 40))
    assert negative.curves["neuronwise_mean"][1] == pytest.approx(float(rest / 39))


def test_flatness_that_underflows_keeps_its_quantiles():
    metric = updated(POINTS._replace(log_neuronwise=POINTS.log_neuronwise - 200))
    metric.compute()
    found = torch.tensor(metric.curves["neuronwise_median"], dtype=torch.float64).log()
    expected = torch.tensor(exact_curves(POINTS)["neuronwise_median"], dtype=torch.float64).log() - 200
    assert torch.allclose(found, expected, atol=0.051)


def test_nothing_followed():
    metric = updated(TrajectoryPoints.empty(4, torch.zeros(0)))
    assert plain(metric) == {"samples": 0, "nonfinite": 0}
    assert metric.curves == {}


def test_nobody_fooled():
    values = plain(updated(POINTS._replace(flipped=torch.zeros_like(POINTS.flipped))))
    assert values["success_rate"] == 0
    assert "valley_rate" not in values


def test_memory_does_not_grow_with_the_samples():
    small, large = updated(part(POINTS, slice(0, 1))), updated(POINTS, *[trajectory_points(500, 1)] * 3)

    def size(metric: AttackTrajectory) -> int:
        return sum(getattr(metric, name).numel() for name in metric._defaults)

    assert size(small) == size(large)


def test_plot_draws_the_flatness():
    _, axes = updated(POINTS).plot()
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "clean_flatness",
        "peak_flatness",
        "final_flatness",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positions": [0.0]}, r"`positions` must hold the clean input and at least one more, got \[0\.0\]"),
        ({"loss_rise": 0.0}, r"`loss_rise` must be > 0 and finite, got 0\.0"),
        ({"confidence": 1.0}, r"`confidence` must be in \[0, 1\), got 1\.0"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttackTrajectory(**{"positions": POSITIONS, **arguments})


def test_points_must_be_as_many_as_positions():
    with pytest.raises(ValueError, match="`points` must hold 3 points, got 4"):
        AttackTrajectory(POSITIONS[:3]).update(POINTS)


def test_loss_rise_is_log_2_by_default():
    assert AttackTrajectory(POSITIONS).loss_rise == log(2)
