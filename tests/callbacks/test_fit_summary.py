"""The table that ends a fit."""

from pathlib import Path

import pytest

from lightning_flatness import AttackMonitor, RelativeFlatnessMonitor
from lightning_flatness.tracking._labels import robust_accuracies
from lightning_flatness.tracking.fit_summary import fit_summary
from lightning_flatness.tracking.runs import Run
from lightning_flatness.tracking.tables import attacks_table
from tests.callbacks.conftest import Net, fit, loader, trainer, validate
from tests.processes import finished, start

pytestmark = pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy may be fooled")
TITLE = "What the monitors measured"


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def cells(output: str, key: str) -> list[str]:
    words = next(line.split()[1:] for line in output.splitlines() if line.split()[:1] == [key])
    return [word for word in words if word not in {"↓", "↑"}]


def test_one_table_for_all_monitors(capsys: pytest.CaptureFixture[str]) -> None:
    flatness, attack = RelativeFlatnessMonitor(), AttackMonitor(epsilon=0.1, lower=None, upper=None)
    fit(Net(), flatness, attack, max_epochs=4)
    output = capsys.readouterr().out
    assert output.count(TITLE) == 1
    curve = [row["flatness/relative_flatness"] for row in flatness.history()]
    best = min(curve)
    assert cells(output, "flatness/relative_flatness") == [f"{curve[-1]:.4g}", f"{best:.4g}", str(curve.index(best))]
    robust = [row["attack/linf_0_1_robust_accuracy"] for row in attack.history()]
    best = max(robust)
    assert cells(output, "attack/linf_0_1_robust_accuracy") == [
        f"{robust[-1]:.4g}",
        "of",
        "20",
        f"{best:.4g}",
        str(robust.index(best)),
    ]


def test_monitors_without_it_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    silent = RelativeFlatnessMonitor(summary=False)
    fit(Net(), silent)
    assert TITLE not in capsys.readouterr().out
    fit(Net(), RelativeFlatnessMonitor(summary=False), AttackMonitor(epsilon=0.1, lower=None, upper=None))
    output = capsys.readouterr().out
    assert "attack/linf_0_1_robust_accuracy" in output
    assert "flatness/" not in output


def test_nothing_measured_or_no_fit_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    validate(Net(), RelativeFlatnessMonitor())
    fit(Net(), RelativeFlatnessMonitor(), limit_train_batches=0)
    assert TITLE not in capsys.readouterr().out


def test_the_second_fit_of_a_monitor_has_a_table_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = RelativeFlatnessMonitor()
    fit(Net(), monitor, max_epochs=4)
    capsys.readouterr()
    fit(Net(), monitor, max_epochs=2)
    second = [row["flatness/relative_flatness"] for row in monitor.history()[4:]]
    shown = cells(capsys.readouterr().out, "flatness/relative_flatness")
    assert len(second) == 2
    assert shown[:2] == [f"{second[-1]:.4g}", f"{min(second):.4g}"]


def test_every_validation_of_an_epoch_counts(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = RelativeFlatnessMonitor()
    fit(Net(), monitor, max_epochs=2, val_check_interval=1)
    curve = [row["flatness/relative_flatness"] for row in monitor.history()]
    assert len(curve) == 6
    assert cells(capsys.readouterr().out, "flatness/relative_flatness")[1] == f"{min(curve):.4g}"


def test_reasons_of_an_alarm_are_those_of_the_monitor() -> None:
    attack = AttackMonitor(epsilon=0.1, lower=None, upper=None)
    fit(Net(), attack)
    attack._masking.reasons = {0: ["One.", "Two."]}
    assert attack.texts(trainer())["masking/reasons"] == "One. Two."


SCRIPT = """
import sys
from tests.callbacks.conftest import Net, fit
from lightning_flatness import RelativeFlatnessMonitor
{}
fit(Net(), RelativeFlatnessMonitor(), max_epochs=2)
print("the script went on", file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("sys.stdout.close()", "is not printed: ValueError"),
        ("import os; ends = os.pipe(); os.close(ends[0]); os.dup2(ends[1], 1)", "is not printed: BrokenPipeError"),
        ("sys.stdout.reconfigure(encoding='ascii')", None),
    ],
    ids=["closed", "broken pipe", "ascii"],
)
def test_a_terminal_that_takes_nothing_does_not_end_the_script(before: str, says: str | None, tmp_path: Path) -> None:
    log = tmp_path / "log"
    finished(start(exec, SCRIPT.format(before), {}, output=log))
    printed = log.read_text()
    assert "the script went on" in printed
    assert (says is None) == (TITLE in printed)
    if says is not None:
        assert says in printed


def test_alarms_stand_below_in_words() -> None:
    rows = [{"epoch": float(epoch), "masking/alarm": 1.0, "masking/zero_gradient_rate": 0.9} for epoch in range(2)]
    table = fit_summary(Run("fit", "", rows))
    assert "Gradients are masked" in str(table.caption)
    assert not fit_summary(Run("fit", "", [{"epoch": 0.0, "val_loss": 1.0}])).row_count


def rows_of(run: Run) -> dict[str, list[str]]:
    columns = [[str(cell) for cell in column.cells] for column in fit_summary(run).columns]
    return {key: rest for key, *rest in zip(*columns, strict=True)}


def test_what_the_last_measurement_left_out_is_a_dash_and_counts_are_shown() -> None:
    kappa, count, alarm = "flatness/relative_flatness", "flatness/nonfinite", "masking/alarm"
    rows = [{"epoch": 0.0, kappa: 11.37, count: 0.0, alarm: 1.0}, {"epoch": 1.0, count: 597.0, alarm: 0.0}]
    assert rows_of(Run("fit", "", rows)) == {
        kappa: ["–", "↓ 11.37", "0"],
        count: ["597", "", ""],
        alarm: ["0", "", ""],
    }
    assert count not in rows_of(Run("fit", "", rows[:1]))


def test_attacks_are_ordered_by_radius_with_the_clean_accuracy_of_the_same_samples_above() -> None:
    row = {"epoch": 0.0, "attack/linf_0_2_robust_accuracy": 0.25, "attack/linf_0_025_robust_accuracy": 0.75}
    row |= {
        "attack/linf_0_1_robust_accuracy": 0.5,
        "attack/linf_0_1_clean_accuracy": 1.0,
        "attack/linf_0_1_samples": 64,
    }
    row |= {"attack/linf_0_1_robust_accuracy_low": 0.41, "attack/linf_0_1_robust_accuracy_high": 0.59}
    found = rows_of(Run("fit", "", [row]))
    names = ["0_025_robust", "0_1_clean", "0_1_robust", "0_2_robust"]
    assert list(found) == [f"attack/linf_{name}_accuracy" for name in names]
    assert found["attack/linf_0_1_robust_accuracy"][0] == "0.5 of 64"


def test_attacks_are_ordered_as_in_the_tables_of_the_epochs() -> None:
    labels = ["pgd", "l2_0_5", "linf_16_255", "linf_8_255", "l2_0_25", "worst_case"]
    row = {"epoch": 0.0} | {f"attack/{label}_robust_accuracy": 0.5 for label in labels}
    columns = attacks_table([row]).columns[1:]
    assert list(rows_of(Run("fit", "", [row]))) == list(robust_accuracies([row]))
    assert [str(column.header).split() for column in columns] == [
        ["linf", "8/255"], ["linf", "16/255"], ["l2", "0.25"], ["l2", "0.5"], ["pgd"], ["worst", "case"],
    ]  # fmt: skip


def test_dataloaders_whose_numbers_begin_alike_are_told_apart() -> None:
    one, ten = (f"flatness/relative_flatness/dataloader_idx_{index}" for index in (1, 10))
    found = rows_of(Run("fit", "", [{"epoch": 0.0, one: 2.0, ten: 3.0}, {"epoch": 1.0, ten: 4.0}]))
    assert (found[one][0], found[ten][0]) == ("2", "4")


def test_history_goes_on_after_a_checkpoint(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    first = RelativeFlatnessMonitor()
    fit(Net(), first, max_epochs=2).save_checkpoint(tmp_path / "two.ckpt")
    capsys.readouterr()
    second = RelativeFlatnessMonitor()
    trainer(second, max_epochs=3).fit(Net(), loader(), loader(20, seed=1), ckpt_path=tmp_path / "two.ckpt")
    curve = [row["flatness/relative_flatness"] for row in second.history()]
    assert len(curve) == 3
    assert cells(capsys.readouterr().out, "flatness/relative_flatness")[1] == f"{min(curve):.4g}"
