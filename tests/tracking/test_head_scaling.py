"""The picture and the rows of a multiplied head."""

import pytest

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
    rows = scaling_rows(row)
    assert [one["scale"] for one in rows] == list(SCALES)
    for one in rows:
        expected = {name: row[keys.scaling_key(name, one["scale"])] for name in keys.SCALING_QUANTITIES}
        assert one == {"scale": one["scale"], **expected}


def test_lines_are_the_rows():
    rows = scaling_rows(logged())
    figure = scaling_figure(rows)
    drawn = [list(line.get_ydata()) for axes in figure.axes for line in axes.lines]
    assert all(list(line.get_xdata()) == list(SCALES) for axes in figure.axes for line in axes.lines)
    assert sorted(drawn) == sorted([row[name] for row in rows] for name in keys.SCALING_QUANTITIES)
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}


@pytest.mark.parametrize("row", [{}, logged(("loss", "confidence")), {"scaling/loss_1": 0.0}], ids=str)
def test_any_measurement_can_be_saved_as_a_picture(row, tmp_path):
    figure = scaling_figure(scaling_rows(row))
    figure.savefig(tmp_path / "scaling.png", dpi=30)
    assert sum(len(axes.lines) for axes in figure.axes) == len({key.rsplit("_", 1)[0].split("_0")[0] for key in row})
    assert (tmp_path / "scaling.png").stat().st_size > 1000
