"""The picture and the rows of a multiplied head."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.head_scaling import scaling_figure, scaling_rows

SCALES = (0.25, 1.0, 100.0)


def logged(names=tuple(keys.SCALING_QUANTITIES)):
    return {
        keys.scaling_key(name, scale): (place + 1) / (3 * scale + index + 1)
        for place, scale in enumerate(SCALES)
        for index, name in enumerate(names)
    }


def test_rows_hold_what_was_logged_in_order_of_the_scale():
    row = dict(reversed(logged().items())) | {"scaling/samples": 5.0, "val_loss": 1.0, "epoch": 3.0}
    row |= {"scaling/attacked_samples": 2.0, "scaling/nonfinite": 1.0}
    rows = scaling_rows(row)
    assert [one["scale"] for one in rows] == list(SCALES)
    for one in rows:
        expected = {name: row[keys.scaling_key(name, one["scale"])] for name in keys.SCALING_QUANTITIES}
        assert one == {"scale": one["scale"], **expected, "samples": 5.0, "attacked_samples": 2.0}


def test_lines_are_the_rows():
    rows = scaling_rows(logged())
    figure = scaling_figure(rows)
    drawn = [list(line.get_ydata()) for axes in figure.axes for line in axes.lines]
    assert all(list(line.get_xdata()) == list(SCALES) for axes in figure.axes for line in axes.lines)
    assert sorted(drawn) == sorted([row[name] for row in rows] for name in keys.SCALING_QUANTITIES)
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}


def names(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_legends_lie_below_and_say_how_many_samples_an_accuracy_is_of():
    counted = logged() | {"scaling/samples": 597.0, "scaling/attacked_samples": 64.0}
    for row, ends in ((counted, (", all 597", ", of 64 attacked")), (logged(), ("", ""))):
        figure = scaling_figure(scaling_rows(row))
        FigureCanvasAgg(figure).draw()
        _, rates = figure.axes
        assert f"clean accuracy{ends[0]}" in names(rates)
        assert f"robust accuracy, PGD on the margin{ends[1]}" in names(rates)
        for axes in figure.axes:
            legend = axes.get_legend().get_window_extent()
            assert legend.y1 < axes.xaxis.get_label().get_window_extent().y0
        first, second = (axes.get_legend().get_window_extent() for axes in figure.axes)
        assert not first.overlaps(second)


@pytest.mark.parametrize(
    ("loss", "drawn", "label"),
    [
        (1e-85, 1e-10, "values below 1e-10 are drawn there"),
        (0.0, 1e-10, "values below 1e-10 are drawn there"),
        (1e-9, 1e-9, ""),
    ],
)
def test_sizes_next_to_zero_do_not_flatten_the_others(loss, drawn, label):
    figure = scaling_figure(scaling_rows({"scaling/loss_1": 2.0, "scaling/loss_100": loss}))
    sizes, _ = figure.axes
    assert list(sizes.lines[0].get_ydata()) == [2.0, drawn]
    assert sizes.get_ylabel() == label


@pytest.mark.parametrize("row", [{}, logged(("loss", "confidence")), {"scaling/loss_1": 0.0}], ids=str)
def test_any_measurement_can_be_saved_as_a_picture(row, tmp_path):
    figure = scaling_figure(scaling_rows(row))
    figure.savefig(tmp_path / "scaling.png", dpi=30)
    assert sum(len(axes.lines) for axes in figure.axes) == len({key.rsplit("_", 1)[0].split("_0")[0] for key in row})
    assert (tmp_path / "scaling.png").stat().st_size > 1000
