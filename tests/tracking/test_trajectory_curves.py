"""Pictures of trajectories, read back from what was drawn."""

import math

import pytest

from lightning_flatness.tracking.trajectory_curves import chart_lines, curves_over_epochs, trajectory_figure

POSITIONS = [0.0, 1.0, 2.0]
NAMES = (
    "neuronwise_mean",
    "neuronwise_median",
    "loss_mean",
    "confidence_mean",
    "flipped",
    "feature_distance_mean",
)


def row(epoch, path="attack"):
    curves = {name: [place + epoch / 10 + step for step in POSITIONS] for place, name in enumerate(NAMES, 1)}
    where = {"stage": "fit", "epoch": epoch, "step": 10 * epoch, "dataloader_idx": 0, "path": path}
    return {**where, "curves": {"position": POSITIONS, **curves}}


@pytest.mark.parametrize("count", [1, 3, 20])
def test_every_panel_shows_a_line_per_epoch(count):
    rows = [row(epoch) for epoch in range(count)]
    figure = trajectory_figure([*rows, row(5, "noise")])
    assert len(figure.axes) == len(NAMES)
    for name, axes in zip(NAMES, figure.axes, strict=True):
        shown = [
            row for row in rows if f"epoch {row['epoch']}, step" in " ".join(line.get_label() for line in axes.lines)
        ]
        assert len(shown) == len(axes.lines) == min(count, 8)
        assert shown[0] is rows[0]
        assert shown[-1] is rows[-1]
        for line, one in zip(axes.lines, shown, strict=True):
            assert line.get_xdata().tolist() == POSITIONS
            assert line.get_ydata().tolist() == one["curves"][name]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log", *["linear"] * 4]
    assert figure.axes[-1].get_xlabel() == "gradient step"
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [line.get_label() for line in figure.axes[0].lines]


def test_lines_of_epochs_differ_in_colour():
    lines = trajectory_figure([row(epoch) for epoch in range(8)]).axes[0].lines
    assert len({tuple(line.get_color()) for line in lines}) == 8


@pytest.mark.parametrize(("path", "are_whole"), [("attack", True), ("noise", False)])
def test_ticks_of_an_attack_are_steps(path, are_whole):
    axes = trajectory_figure([row(0, path)], path).axes[-1]
    assert all(tick == round(tick) for tick in axes.get_xticks()) is are_whole


def test_paths_are_kept_apart():
    rows = [row(0), row(1, "noise")]
    assert list(curves_over_epochs(rows, "flipped", "noise")) == ["epoch 1, step 10"]
    figure = trajectory_figure(rows, "noise")
    assert len(figure.axes[0].lines) == 1
    assert figure.axes[-1].get_xlabel() == "position on the path: noise"


def test_nothing_to_draw():
    figure = trajectory_figure([])
    assert all(len(axes.lines) == 0 for axes in figure.axes)
    assert curves_over_epochs([], "flipped") == {}


def test_flatness_of_zero_is_drawn_on_a_linear_axis():
    flat = row(0)
    flat["curves"]["neuronwise_mean"] = [0.0, 0.0, 0.0]
    assert trajectory_figure([flat]).axes[0].get_yscale() == "linear"
    lines = chart_lines(flat["curves"])
    assert lines["log10 of the mean flatness"] == (POSITIONS, [-12.0] * 3)


def test_chart_puts_flatness_beside_the_others():
    lines = chart_lines(row(2)["curves"])
    assert lines["log10 of the mean flatness"] == (POSITIONS, [math.log10(1.2 + step) for step in POSITIONS])
    assert lines["misclassified"] == (POSITIONS, row(2)["curves"]["flipped"])
    assert len(lines) == 4


def test_path_that_was_not_recorded():
    with pytest.raises(ValueError, match=r"`path` must be one of attack, which were recorded, got 'nope'\."):
        trajectory_figure([row(0)], "nope")
