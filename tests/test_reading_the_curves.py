"""The trainings behind the page "Reading the curves"."""

from pathlib import Path

import pytest

from examples import reading_the_curves
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.csv_log import read_epochs

LARGEST_PICTURE = 150_000
COMMITTED = Path(__file__).parent.parent / "docs" / "images"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy may be fooled")
def test_pictures_and_table_are_made_from_the_logs(tmp_path, capsys):
    logs, pictures = tmp_path / "logs", tmp_path / "pictures"
    reading_the_curves.main(["--folder", str(logs), "--pictures", str(pictures), "--epochs", "1"])
    assert {path.stem for path in pictures.glob("*.png")} == {f"curves_{name}" for name in reading_the_curves.CASES}
    table = (pictures / "curves.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    masked = read_epochs(logs / "masked" / "metrics.csv")
    healthy = read_epochs(logs / "healthy" / "metrics.csv")
    assert masked[0]["val_accuracy"] == healthy[0]["val_accuracy"]
    assert masked[0][keys.WEIGHT_NORM] == pytest.approx(50 * healthy[0][keys.WEIGHT_NORM])
    (row,) = (line for line in table.splitlines() if line.startswith("| weight norm |"))
    assert f"{masked[0][keys.WEIGHT_NORM]:.3g} → " in row


@pytest.mark.parametrize("name", reading_the_curves.CASES)
def test_the_page_has_its_picture(name):
    path = COMMITTED / f"curves_{name}.png"
    assert f"(images/{path.name})" in (COMMITTED.parent / "reading_the_curves.md").read_text(encoding="utf-8")
    assert 0 < path.stat().st_size < LARGEST_PICTURE


def test_the_committed_table_has_every_row_and_training():
    header, _, *rows = (COMMITTED / "curves.md").read_text(encoding="utf-8").splitlines()
    assert [cell.strip() for cell in header.split("|")[2:-1]] == list(reading_the_curves.CASES)
    assert [row.split("|")[1].strip() for row in rows] == ["epoch", *reading_the_curves.TABLE.values()]
