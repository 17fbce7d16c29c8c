"""HeadScalingMonitor: what a multiplied head would show."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_flatness import HeadScalingMonitor, RelativeFlatnessMonitor
from lightning_flatness.attacks import ThreatModel, attack_scaled_head
from lightning_flatness.attacks._noise import DrawnSeeds, sample_seeds
from lightning_flatness.metrics import HeadScaling
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.csv_log import read_epochs
from lightning_flatness.tracking.head_scaling import scaling_rows
from tests.callbacks.conftest import DIM, HIDDEN, Net, StepNet, TwoViews, fit, loader, samples, trainer, validate
from tests.wandb_reader import RecordedRun, read_run

SCALES = (0.25, 1.0, 100.0)
RANGE: dict[str, Any] = {"lower": -5.0, "upper": 5.0}


def monitor(*args: Any, **settings: Any) -> HeadScalingMonitor:
    return HeadScalingMonitor(*args, **{"scales": SCALES, **RANGE, **settings})


def scaling_of(logged: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in logged.items() if name.startswith("scaling/")}


def by_hand(net: Net) -> dict[str, float]:
    metric = HeadScaling(SCALES)
    for batch in net.seen:
        features, weight, logits, target = (part.clone() for part in batch)
        metric.update(features, weight, logits, target)
    values = metric.compute()
    named = {f"scaling/{name}": float(values[name]) for name in ("samples", "nonfinite")}
    for name in keys.SCALING_QUANTITIES.keys() & values.keys():
        named |= {
            keys.scaling_key(name, scale): float(value) for scale, value in zip(SCALES, values[name], strict=True)
        }
    return named


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_without_epsilon_the_metric_is_logged_and_nothing_runs_twice(precision: str) -> None:
    net, watch = Net(), monitor()
    logged = validate(net, watch, precision=precision)
    assert net.forwards == 3
    assert scaling_of(logged) == pytest.approx(by_hand(net), rel=1e-6)
    assert scaling_of(watch.history()[0]) == pytest.approx(by_hand(net), rel=1e-12)


def test_every_scale_has_the_same_accuracy_and_the_first_is_the_flatness_monitors() -> None:
    logged = validate(Net(), monitor(), RelativeFlatnessMonitor())
    assert len({logged[keys.scaling_key("clean_accuracy", scale)] for scale in SCALES}) == 1
    assert logged["scaling/relative_flatness_1"] == pytest.approx(logged[keys.RELATIVE_FLATNESS], rel=1e-6)
    assert logged["scaling/relative_flatness_median_1"] == pytest.approx(logged[keys.MEDIAN], rel=0.02)


def test_with_epsilon_the_leading_samples_are_attacked() -> None:
    net, watch = Net(), monitor(0.4, attack_samples=13)
    logged = validate(net, watch)
    inputs, target = samples(20, seed=1)[:13]
    threat = ThreatModel(epsilon=0.4, **RANGE)
    expected = attack_scaled_head(net.eval(), inputs, target, threat, scales=SCALES)
    assert logged[keys.SCALING_ATTACKED] == 13
    for name, (part, whole) in expected.rates().items():
        found = [logged[keys.scaling_key(name, scale)] for scale in SCALES]
        assert found == pytest.approx((part / whole).tolist(), rel=1e-6), name
    assert 0 < logged["scaling/robust_accuracy_margin_1"] < logged["scaling/clean_accuracy_1"]


@pytest.mark.parametrize("settings", [{}, {"epsilon": 0.3}])
def test_a_single_scale(settings: dict[str, Any]) -> None:
    several, one = monitor(**settings), monitor(scales=[SCALES[-1]], **settings)
    net = Net()
    logged, alone = scaling_of(validate(net, several)), scaling_of(validate(net, one))
    assert alone == {name: pytest.approx(logged[name]) for name in alone}
    assert len(one.table()) == 1


def test_table_has_one_row_per_scale() -> None:
    watch = monitor(0.6, scales=[100.0, 0.25, 1.0])
    assert watch.table() == []
    logged = validate(Net(), watch)
    rows = watch.table()
    assert [row["scale"] for row in rows] == [0.25, 1.0, 100.0]
    for row in rows:
        assert row.keys() == {"scale", *keys.SCALING_QUANTITIES, "samples", "attacked_samples"}
        assert (row["samples"], row["attacked_samples"]) == (
            logged[keys.SCALING_SAMPLES],
            logged[keys.SCALING_ATTACKED],
        )
        found = {name: logged[keys.scaling_key(name, row["scale"])] for name in keys.SCALING_QUANTITIES}
        assert found == pytest.approx({name: row[name] for name in found}, rel=1e-6)


def test_module_without_a_bias_and_tokens() -> None:
    class Tokens(StepNet):
        def evaluate(self, batch: Any) -> Any:
            return self(batch[0].unsqueeze(1).expand(-1, 3, -1))

    def repeated(batch: Any) -> Any:
        return batch[0], batch[1].unsqueeze(1).expand(-1, 3)

    plain = Net(head=nn.Linear(HIDDEN, 3, bias=False))
    tokens = Tokens(plain.body, plain.head)
    expected, logged = validate(plain, monitor()), validate(tokens, monitor(inputs_and_targets=repeated))
    assert logged.pop("scaling/samples") == 3 * expected.pop("scaling/samples")
    assert scaling_of(logged) == pytest.approx({name: logged[name] for name in scaling_of(expected)})
    for name, value in scaling_of(expected).items():
        assert logged[name] == pytest.approx(value, rel=1e-6), name


def test_views_share_their_targets() -> None:
    logged = validate(TwoViews(), monitor(0.3, head="head", attack_samples=5))
    assert logged["scaling/samples"] == 40
    assert logged[keys.SCALING_ATTACKED] == 5


class Returns(Net):
    """A forward that returns no logits."""

    def forward(self, inputs: Tensor) -> Any:
        return {"scores": super().forward(inputs)}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        self(batch[0])


def scores(module: nn.Module, inputs: Tensor) -> Tensor:
    found: Tensor = module(inputs)["scores"]
    return found


def test_logits_of_another_forward() -> None:
    net = Returns()
    with pytest.raises(ValueError, match=r"Returns returned dict instead of logits; pass `logits_fn=.*, or `head=`"):
        validate(net, monitor(0.3))
    by_function, by_head = (validate(net, monitor(0.3, **how)) for how in ({"logits_fn": scores}, {"head": "head"}))
    assert by_function == by_head


def test_last_measurement_and_schedule() -> None:
    watch = monitor(every_n_epochs=2)
    fit(Net(), watch, max_epochs=4)
    assert [row["epoch"] for row in watch.history()] == [0, 2]
    assert watch.table() == scaling_rows(watch.history()[-1])


def test_sanity_check_is_no_measurement() -> None:
    watch = monitor()
    fit(Net(), watch, max_epochs=2, check_val_every_n_epoch=3)
    assert (watch.history(), watch.table()) == ([], [])


def test_samples_without_a_class_are_not_attacked() -> None:
    inputs, target = samples(20, seed=1).tensors
    target = target.clone()
    target[:8] = target[10] = -100  # a whole batch, and one of the next
    net, watch = Net(), monitor(0.4, attack_samples=13)
    trainer(watch).validate(net, DataLoader(TensorDataset(inputs, target), 8), verbose=False)
    rows = [8, 9, 11, 12]
    seeds = sample_seeds(13, torch.Generator().manual_seed(0), torch.device("cpu"))
    expected = attack_scaled_head(
        net.eval(),
        inputs[rows],
        target[rows],
        ThreatModel(epsilon=0.4, **RANGE),
        scales=SCALES,
        generator=DrawnSeeds(seeds[rows]),
    )
    (logged,) = watch.history()
    assert (logged["scaling/samples"], logged[keys.SCALING_ATTACKED]) == (11, 4)
    part, whole = expected.rates()["robust_accuracy_margin"]
    found = [logged[keys.scaling_key("robust_accuracy_margin", scale)] for scale in SCALES]
    assert found == pytest.approx((part / whole).tolist())


def test_diverged_head_stops_nothing() -> None:
    net = Net()
    with torch.no_grad():
        net.head.weight[0, 0] = torch.nan
    watch = monitor(0.3)
    validate(net, watch)
    (logged,) = watch.history()
    assert (logged["scaling/samples"], logged["scaling/nonfinite"]) == (0, 20)
    assert [logged[keys.scaling_key("robust_accuracy_margin", scale)] for scale in SCALES] == [0, 0, 0]


def test_test_stage_and_several_dataloaders() -> None:
    watch = monitor(0.3, attack_samples=4)
    (first, second) = trainer(watch).test(Net(), [loader(), loader(12, seed=3)], verbose=False)
    names = set(first) | set(second)
    assert "test_scaling/robust_accuracy_margin_100/dataloader_idx_1" in names
    assert [len(watch.table(index)) for index in (0, 1, 2)] == [3, 3, 0]


def test_progress_bar_shows_the_calibration_error() -> None:
    runner = fit(Net(), monitor(prog_bar=True))
    assert [name for name in runner.progress_bar_metrics if "scaling" in name] == ["scaling/calibration_error_0_25"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, r"`scales` must be at least one number, > 0 and finite, got \[\]."),
        ({"scales": (1.0, 0.0)}, r"`scales` must be at least one number, > 0 and finite, got \[1.0, 0.0\]."),
        ({"scales": (1.0, 1.0)}, r"`scales` must differ, got \[1.0, 1.0\]."),
        ({"scales": (1.0, 1.00001)}, r"`scales` must differ in their first digits, .*, got \[1.0, 1.00001\]."),
        ({"steps": 0}, "`steps` must be >= 1, got 0."),
        ({"attack_samples": 0}, "`attack_samples` must be >= 1, got 0."),
        ({"seed": -1}, r"`seed` must be in \[0, 2\*\*32\), got -1."),
        ({"epsilon": 0.1, "threat": ThreatModel()}, "Pass either `epsilon` or `threat`"),
        ({"epsilon": -0.1}, "`epsilon` must be > 0, got -0.1."),
    ],
    ids=str,
)
def test_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeadScalingMonitor(**settings)


def test_targets_that_are_no_classes() -> None:
    def soft(batch: Any) -> Any:
        return batch[0], nn.functional.one_hot(batch[1], 3).float()

    with pytest.raises(ValueError, match=r"one class index for each of the \(8,\) rows .* got torch.float32 \(8, 3\)"):
        validate(Net(), monitor(inputs_and_targets=soft))
    with pytest.raises(ValueError, match=r"one class index for each of the \(8,\) rows of logits, got None;"):
        validate(Net(), monitor(inputs_and_targets=lambda batch: (batch[0], None)))


def test_inputs_that_cannot_be_attacked() -> None:
    class Dictionary(StepNet):
        def evaluate(self, batch: Any) -> Any:
            return self(batch[0]["x"])

    def wrapped(batch: Any) -> Any:
        return {"x": batch[0]}, batch[1]

    with pytest.raises(ValueError, match=r"Attacks need a tensor of inputs .*, got dict and targets of shape \(8,\)"):
        validate(Net(), monitor(0.3, inputs_and_targets=wrapped))


def test_inputs_out_of_range_are_told_before_training() -> None:
    net = Net()
    with pytest.raises(ValueError, match=r"`inputs` must lie in \[0.0, 1.0\]"):
        fit(net, HeadScalingMonitor(0.1))
    assert net.training_steps == 0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecordedRun, HeadScalingMonitor, Path]:
    place = tmp_path_factory.mktemp("run")
    watch = monitor(0.3, attack_samples=12)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        loggers = [WandbLogger(offline=True, save_dir=place), CSVLogger(place / "csv", name="", version="")]
        fit(Net(nn.Sequential(nn.Linear(DIM, HIDDEN), nn.Tanh())), watch, logger=loggers, max_epochs=2)
        wandb.finish()
    return read_run(place), watch, place


def test_every_value_is_recorded_with_its_summary(recorded: tuple[RecordedRun, HeadScalingMonitor, Path]) -> None:
    run, watch, _ = recorded
    names = scaling_of(watch.history()[-1])
    assert names.keys() == {
        *keys.SCALING_COUNTS,
        *(keys.scaling_key(name, scale) for name in keys.SCALING_QUANTITIES for scale in SCALES),
    }
    for name in names:
        values = [row[name] for row in run.history if name in row]
        assert values == pytest.approx([row[name] for row in watch.history()], rel=1e-6)
        assert set(run.summary[name]) == {"min", "max", "last"}
    assert run.config["scaling_monitor"]["scales"] == list(SCALES)
    assert run.config["scaling_monitor"]["threat"]["epsilon"] == 0.3


def test_table_and_chart_hold_the_last_measurement(recorded: tuple[RecordedRun, HeadScalingMonitor, Path]) -> None:
    run, watch, place = recorded
    (row,) = [row for row in run.history if keys.SCALING_TABLE in row]
    assert (row[keys.SCALING_TABLE]["nrows"], row[keys.SCALING_TABLE]["ncols"]) == (3, 13)
    files = {path.resolve() for path in place.rglob("*.table.json")}
    tables = [json.loads(file.read_text()) for file in files]
    (table,) = (one for one in tables if one["columns"][0] == "scale")
    found = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
    assert found == [pytest.approx(one) for one in watch.table()]
    (chart,) = (one for one in tables if one["columns"][0] != "scale")
    lines: dict[str, list[tuple[float, float]]] = {}
    for place_on_axis, name, value in chart["data"]:
        lines.setdefault(name, []).append((place_on_axis, value))
    expected = [
        (pytest.approx(x), pytest.approx(one["confidence"])) for x, one in zip((-0.60206, 0, 2), found, strict=True)
    ]
    assert lines["confidence"] == expected
    assert max(value for _, value in lines["relative flatness κ, median / largest"]) == 1


def test_other_loggers_lead_to_the_same_table(recorded: tuple[RecordedRun, HeadScalingMonitor, Path]) -> None:
    _, watch, place = recorded
    rows = scaling_rows(read_epochs(place / "csv" / "metrics.csv")[-1])
    assert rows == [pytest.approx(row, rel=1e-5, abs=1e-30) for row in watch.table()]


def test_classes_of_the_flatness_monitor() -> None:
    logged = validate(Net(), RelativeFlatnessMonitor(num_classes=3))
    names = [keys.class_key(keys.RELATIVE_FLATNESS, index) for index in range(3)]
    assert [name for name in logged if "_class_" in name] == names
    labels = torch.stack([target for _, target in samples(20, seed=1)])
    shares = labels.bincount(minlength=3) / 20
    mean = sum(float(share) * logged[name] for share, name in zip(shares, names, strict=True))
    assert mean == pytest.approx(logged[keys.RELATIVE_FLATNESS], rel=1e-6)
    with pytest.raises(ValueError, match=r"`num_classes` must be that of the head \(3\), got 4."):
        validate(Net(), RelativeFlatnessMonitor(num_classes=4))
    with pytest.raises(ValueError, match=r"`num_classes` must be >= 1 or None, got 0\."):
        RelativeFlatnessMonitor(num_classes=0)
