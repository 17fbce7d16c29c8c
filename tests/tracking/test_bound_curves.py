"""Accuracies over epsilon, and the panels of bounds in the picture of a run."""

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.bound_curves import accuracies_over_epsilon, accuracy_figure
from lightning_flatness.tracking.curves import curves_figure
from tests.tracking.test_curves import drawn, points

EPSILONS = {"0_25": 0.25, "8_255": 8 / 255, "0_1": 0.1}


def row(epoch=0, **changes):
    accuracies = {f"bound/certified_accuracy_{label}": 1 - epsilon for label, epsilon in EPSILONS.items()}
    attacked = {f"attack/linf_{label}_robust_accuracy": 1 - epsilon / 2 for label, epsilon in EPSILONS.items()}
    values = {
        key: (index + 1) / (epoch + 2.0)
        for index, key in enumerate(keys.BOUND_KEYS)
        if "{radius}" not in key and key not in {keys.LIPSCHITZ_ESTIMATED, keys.VIOLATION_RATE}
    }
    others = {"attack/pgd_robust_accuracy": 0.5, "attack/linf_0_1_robust_accuracy_low": 0.1, keys.VIOLATION_RATE: 0.0}
    return {"epoch": float(epoch), **accuracies, **attacked, **values, **others, **changes}


CURVES = {
    "certified": ([8 / 255, 0.1, 0.25], [1 - 8 / 255, 0.9, 0.75]),
    "attacks, linf": ([8 / 255, 0.1, 0.25], [1 - 4 / 255, 0.95, 0.875]),
}


def test_accuracies_are_read_out_of_the_keys():
    assert accuracies_over_epsilon(row()) == CURVES


def test_norms_are_kept_apart():
    values = row(**{"attack/l2_0_5_robust_accuracy": 0.25})
    assert accuracies_over_epsilon(values) == {**CURVES, "attacks, l2": ([0.5], [0.25])}
    assert accuracies_over_epsilon(values, "linf") == CURVES
    assert set(accuracies_over_epsilon(values, "l2")) == {"certified", "attacks, l2"}


@pytest.mark.parametrize("values", [{}, {"epoch": 1.0, "val_loss": 2.0}, {"bound/loss_increase": 1.0}])
def test_nothing_to_read(values):
    assert accuracies_over_epsilon(values) == {}
    assert accuracy_figure(values).axes == []


def test_figure_of_one_epoch():
    figure = accuracy_figure(row(3))
    (axes,) = figure.axes
    assert axes.get_title() == "Accuracy over ε, epoch 3"
    assert drawn(figure) == {name: list(zip(*curve, strict=True)) for name, curve in CURVES.items()}


def test_distances_of_features_and_radii_of_inputs_share_no_axis():
    named = {axes.get_title(): [line.get_label() for line in axes.lines] for axes in curves_figure([row()]).axes}
    assert named["Distance to the decision boundary"] == ["of features, median"]
    assert all(label.startswith("of inputs") for label in named["Radii in which predictions stand"])


def test_attacks_begin_with_the_clean_accuracy_of_their_norm():
    clean = {"attack/linf_0_1_clean_accuracy": 0.99, "attack/pgd_clean_accuracy": 0.5}
    lines = drawn(accuracy_figure(row(**clean, **{"attack/l2_0_5_robust_accuracy": 0.25})))
    assert lines["attacks, linf"][:2] == [(0.0, 0.99), (8 / 255, 1 - 4 / 255)]
    assert lines["attacks, l2"] == [(0.5, 0.25)]


def test_labels_of_radii_do_not_touch():
    radii = {f"attack/linf_0_{label}_robust_accuracy": 0.5 for label in ("025", "05", "1", "2")}
    figure = accuracy_figure({**radii, "attack/linf_0_2_clean_accuracy": 1.0})
    figure.set_size_inches(4, 4)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    shown = [label.get_window_extent() for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
    assert all(left.x1 + 5 < right.x0 for left, right in pairwise(shown))


@pytest.mark.parametrize(("attacked", "first"), [(64.0, (0.0, 0.99)), (250.0, (8 / 255, 1 - 8 / 255))])
def test_guarantees_begin_with_the_clean_accuracy_of_the_same_samples(attacked, first):
    clean = {"attack/linf_0_1_clean_accuracy": 0.99, "attack/linf_0_1_samples": attacked, keys.BOUND_SAMPLES: 64.0}
    assert drawn(accuracy_figure(row(**clean)))["certified"][0] == first


@pytest.mark.parametrize(
    ("kind", "label", "style"),
    [
        ("certified", "features moved farther than the certificate", "-"),
        ("estimated", "features moved farther than the estimate", ":"),
    ],
)
def test_features_that_moved_farther_violate_a_certificate_but_no_estimate(kind, label, style):
    rows = [
        {"epoch": 0.0, f"bound/lipschitz_{kind}": 2.0, keys.VIOLATION_RATE: 0.0, keys.LIPSCHITZ_VIOLATION_RATE: 0.1}
    ]
    (axes,) = [axes for axes in curves_figure(rows).axes if axes.get_title() == "Violations of bounds"]
    shown = {line.get_label(): (list(line.get_ydata()), line.get_linestyle()) for line in axes.lines}
    assert shown == {"bound violated": ([0.0], "-"), label: ([0.1], style)}


def test_panels_show_the_last_epoch_and_the_curves():
    rows = [row(0), row(1, **{"bound/certified_accuracy_0_1": 0.8}), {"epoch": 2.0, "val_loss": 1.0}]
    lines = drawn(curves_figure(rows))
    assert lines["certified"] == [(8 / 255, 1 - 8 / 255), (0.1, 0.8), (0.25, 0.75)]
    for label, name in {
        "of features, median": keys.DECISION_RADIUS_MEDIAN,
        "of inputs, estimated, mean": keys.ESTIMATED_RADIUS_MEAN,
        "certified (from above)": keys.LIPSCHITZ_CERTIFIED,
        "mean bound on the rise, certified and estimated": keys.BOUND_LOSS_INCREASE,
        "bound / rise under attack, median": keys.TIGHTNESS,
        "bound violated": keys.VIOLATION_RATE,
        "Taylor bound violated": keys.TAYLOR_VIOLATION_RATE,
        "certified 0.1": "bound/certified_accuracy_0_1",
    }.items():
        assert lines[label] == points(rows, name)
    assert "estimated (from below)" not in lines


def test_every_panel_has_one_unit():
    units = {axes.get_title(): axes.get_ylabel() for axes in curves_figure([row(0), row(1)]).axes}
    assert units["Radii in which predictions stand"] == "units of inputs"
    assert units["Distance to the decision boundary"] == "units of features"
    assert units["Bound on the loss within ε"] == "nats"
    assert units["Loss bound where attacks led: 1 is tight"] == "ratio"
    assert units["Violations of bounds"] == "share of attacked samples"


def test_accuracies_are_sorted_by_the_radius_that_their_keys_tell():
    (axes,) = [axes for axes in curves_figure([row(0)]).axes if axes.get_title() == "Accuracy within radius ε"]
    assert [line.get_label() for line in axes.lines] == ["certified 8/255", "certified 0.1", "certified 0.25"]


@pytest.mark.parametrize("attacked", [True, False])
def test_picture_can_be_saved_with_and_without_attacks(attacked, tmp_path):
    rows = [{name: value for name, value in row(k).items() if attacked or "attack/" not in name} for k in range(2)]
    rows = [{name: value for name, value in one.items() if attacked or "violation" not in name} for one in rows]
    figure = curves_figure(rows)
    figure.savefig(tmp_path / "curves.png", dpi=60)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    titles = {axes.get_title() for axes in figure.axes}
    assert {"Accuracy over ε, epoch 1", "Bound on the loss within ε"} <= titles
