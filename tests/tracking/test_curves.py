"""The curves of one run, as a picture."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.curves import curves_figure


def epochs(count, **changes):
    """A run in which every value is different, but for the keys in ``changes``."""
    names = ["train_loss", "val_loss", "val_acc", *keys.FLATNESS_KEYS]
    rows = [
        {"epoch": float(epoch), "step": 10.0 * epoch}
        | {name: (index + 1) / (epoch + 1.5) for index, name in enumerate(names)}
        for epoch in range(count)
    ]
    return [{**row, **changes} for row in rows]


def drawn(figure):
    """Label → points of every line of the figure."""
    return {
        line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for axes in figure.axes
        for line in axes.lines
    }


def points(rows, name):
    return [(row["epoch"], row[name]) for row in rows if name in row]


LABELS = {
    "mean": keys.RELATIVE_FLATNESS,
    "90th percentile": keys.P90,
    "median": keys.MEDIAN,
    "geometric mean": keys.GEOMETRIC_MEAN,
    "correctly classified": keys.CORRECT,
    "wrongly classified": keys.WRONG,
    "confidence factor tr H_z": keys.CONFIDENCE_FACTOR,
    "geometry factor": keys.GEOMETRY_FACTOR,
    "feature norm ‖φ‖": keys.FEATURE_NORM,
    "weight norm ‖W‖": keys.WEIGHT_NORM,
    "train_loss": "train_loss",
    "val_loss": "val_loss",
    "val_acc": "val_acc",
}


def test_lines_hold_exactly_the_numbers_given():
    rows = epochs(5)
    assert drawn(curves_figure(rows)) == {label: points(rows, name) for label, name in LABELS.items()}


@pytest.mark.parametrize("label", LABELS)
def test_epochs_without_a_value_are_skipped(label):
    rows = epochs(6)
    for epoch in (0, 3):
        del rows[epoch][LABELS[label]]
    lines = drawn(curves_figure(rows))
    assert [epoch for epoch, _ in lines[label]] == [1, 2, 4, 5]
    assert lines[label] == points(rows, LABELS[label])


@pytest.mark.parametrize("label", LABELS)
def test_what_was_never_logged_is_not_drawn(label):
    rows = [{name: value for name, value in row.items() if name != LABELS[label]} for row in epochs(3)]
    assert drawn(curves_figure(rows)).keys() == LABELS.keys() - {label}


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def test_panels_say_what_they_show():
    figure = curves_figure(epochs(3))
    flatness = ["Relative flatness κ (small is flat)", "κ by answer", "What κ is made of"]
    assert titles(figure) == [*flatness, "Loss", "Accuracy"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}


def test_there_are_no_empty_panels():
    rows = [{"epoch": 0.0, "val_loss": 1.0, "attack/pgd_robust_accuracy": 0.5}]
    assert titles(curves_figure(rows)) == ["Loss", "Robust accuracy: still correct under attack"]


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([1.0, 9.0], "linear"), ([1.0, 11.0], "log"), ([0.0, 1.0, 11.0], "log"), ([-1.0, 1.0, 11.0], "linear")],
)
def test_only_sizes_far_apart_need_a_logarithmic_axis(losses, scale):
    rows = [{"epoch": float(epoch), "val_loss": loss} for epoch, loss in enumerate(losses)]
    (axes,) = curves_figure(rows).axes
    assert axes.get_yscale() == scale


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_ticks_are_epochs(count):
    for axes in curves_figure(epochs(count)).axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert set(ticks) & set(range(count))
        assert ticks == [round(tick) for tick in ticks]


@pytest.mark.parametrize("count", [1, 5])
def test_legends_lie_below_their_axes_and_hide_no_other(count):
    rows = [
        row | {f"attack/linf_0_{place}_robust_accuracy": 0.5 for place in range(1, 10)} | {keys.ALARM: 0.0}
        for row in epochs(count)
    ]
    figure = curves_figure(rows)
    FigureCanvasAgg(figure).draw()
    legends = [axes.get_legend().get_window_extent() for axes in figure.axes]
    for axes, legend in zip(figure.axes, legends, strict=True):
        assert legend.y1 < axes.xaxis.get_label().get_window_extent().y0
        others = [other.get_tightbbox(for_layout_only=True) for other in figure.axes if other is not axes]
        assert not any(legend.overlaps(other) for other in others)


def test_every_line_has_a_marker_and_what_is_estimated_is_dotted():
    rows = epochs(2, **{"bound/estimated_accuracy_0_1": 0.5, keys.BOUND_LOSS_INCREASE: 2.0, keys.TIGHTNESS: 3.0})
    lines = [line for axes in curves_figure(rows).axes for line in axes.lines]
    assert "None" not in {line.get_marker() for line in lines}
    dotted = {line.get_label() for line in lines if line.get_linestyle() == ":"}
    assert dotted == {"estimated", "estimated 0.1", "mean bound on the rise, estimated"}


def test_attacks_are_sorted_and_told_as_their_keys_are():
    labels = ["pgd", "worst_case", "l2_0_5", "linf_0_2", "linf_2_255", "linf_0_05", "apgd"]
    rows = [{"epoch": 0.0} | {f"attack/{label}_robust_accuracy": 0.5 for label in labels}]
    expected = ["linf 2/255", "linf 0.05", "linf 0.2", "l2 0.5", "pgd", "apgd", "worst case"]
    (axes,) = [axes for axes in curves_figure(rows).axes if axes.get_title().startswith("Robust accuracy")]
    assert [line.get_label() for line in axes.lines] == expected


def test_legends_name_every_line():
    figure = curves_figure(epochs(3))
    named = [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().texts]
    assert sorted(named) == sorted(LABELS)


def test_losses_and_accuracies_are_told_by_their_names():
    rows = [{"epoch": 0.0, "nll_Loss": 2.0, "MulticlassAccuracy": 0.5, "lr": 0.1, "attack/linf_loss_increase": 1.0}]
    assert drawn(curves_figure(rows)).keys() == {"nll_Loss", "MulticlassAccuracy"}


@pytest.mark.parametrize(
    "rows",
    [[], [{"epoch": 0.0}], epochs(1), epochs(3, **dict.fromkeys(keys.FLATNESS_KEYS, 0.0)), epochs(3, train_loss=-1.0)],
    ids=["no epoch", "no value", "one epoch", "zeros", "negative loss"],
)
def test_any_run_can_be_saved_as_a_picture(rows, tmp_path):
    curves_figure(rows).savefig(tmp_path / "curves.png", dpi=30)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
