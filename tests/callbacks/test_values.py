"""What is logged is the metric of what the head saw, and nothing runs twice."""
# The signatures of steps are Lightning's.

import warnings
from math import inf, isfinite
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from lightning_flatness import RelativeFlatnessMonitor
from lightning_flatness.callbacks import flatness as flatness_module
from lightning_flatness.functional import relative_flatness
from lightning_flatness.functional.losses import CrossEntropy
from tests.callbacks.conftest import (
    CLASSES,
    Net,
    Spy,
    StepNet,
    TwoViews,
    approx,
    by_hand,
    curve,
    fit,
    flatness_of,
    loader,
    samples,
    trainer,
    validate,
)

PRECISIONS = ["32-true", "bf16-mixed", "bf16-true", "64-true"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_logged_values_are_the_metric_of_features_and_logits(stage: str, precision: str) -> None:
    net, monitor = Net(), RelativeFlatnessMonitor()
    runner = trainer(monitor, precision=precision, num_sanity_val_steps=0)
    if stage == "fit":
        runner.fit(net, loader(), loader(20, seed=1))
    else:
        getattr(runner, stage)(net, loader(20, seed=1), verbose=False)
    prefix = "test_" if stage == "test" else ""
    expected = {f"{prefix}{name}": value for name, value in by_hand(net.seen).items()}
    assert flatness_of(runner.callback_metrics, f"{prefix}flatness/") == approx(expected)
    (row,) = monitor.history()
    step = 3 if stage == "fit" else 0
    assert row == {**approx(expected).expected, "stage": stage, "epoch": row["epoch"], "step": step} | {
        name: pytest.approx(value, rel=1e-12) for name, value in expected.items()
    }


def test_mean_is_that_of_the_formula() -> None:
    net = Net()
    logged = validate(net, RelativeFlatnessMonitor())
    parts = [relative_flatness(*(part.clone() for part in batch[:3])) for batch in net.seen]
    assert logged["flatness/relative_flatness"] == pytest.approx(float(torch.cat(parts).mean()), rel=1e-6)


def _smoothed(logits: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, target, label_smoothing=0.1, reduction="none")


@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "layerwise"},
        {"variant": "maxeig"},
        {"loss": CrossEntropy(temperature=2.0)},
        {"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))},
        {"loss": _smoothed},
    ],
    ids=["layerwise", "maxeig", "temperature", "class weights", "function"],
)
def test_variant_and_loss_are_those_of_the_metric(settings: dict[str, Any], stage: str) -> None:
    net, monitor = Net(), RelativeFlatnessMonitor(**settings)
    if stage == "fit":
        fit(net, monitor, num_sanity_val_steps=0)
    else:
        validate(net, monitor)
    assert flatness_of(monitor.history()[0]) == approx(by_hand(net.seen, **settings))


def test_bias_counts_where_asked_for() -> None:
    net = Net()
    logged = validate(net, RelativeFlatnessMonitor(include_bias=True))
    parts = [
        relative_flatness(*(part.clone() for part in batch[:3]), bias=net.head.bias.detach()) for batch in net.seen
    ]
    assert logged["flatness/relative_flatness"] == pytest.approx(float(torch.cat(parts).mean()), rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"max_epochs": 2, "val_check_interval": 0.5}, {"precision": "bf16-mixed"}])
def test_module_runs_as_often_as_without_the_monitor(settings: dict[str, Any]) -> None:
    def forwards(*callbacks: RelativeFlatnessMonitor) -> int:
        net = Net()
        runner = fit(net, *callbacks, **settings)
        runner.validate(net, loader(), verbose=False)
        runner.test(net, loader(), verbose=False)
        return net.forwards

    assert forwards(RelativeFlatnessMonitor()) == forwards()


@pytest.mark.parametrize("averaging_first", [True, False])
def test_averaged_weights_are_those_of_the_forward(averaging_first: bool) -> None:  # noqa: FBT001 - pytest's
    net, monitor = Net(), RelativeFlatnessMonitor()
    averaging = EMAWeightAveraging(decay=0.5)
    fit(net, *([averaging, monitor] if averaging_first else [monitor, averaging]), num_sanity_val_steps=0)
    assert flatness_of(monitor.history()[0]) == approx(by_hand(net.seen))


@pytest.mark.parametrize("max_samples", [1, 8, 11, 1000])
def test_max_samples_are_the_first_of_every_epoch(max_samples: int) -> None:
    net, monitor = Net(), RelativeFlatnessMonitor(max_samples=max_samples)
    fit(net, monitor, num_sanity_val_steps=0, max_epochs=2)
    for row, seen in zip(monitor.history(), (net.seen[:3], net.seen[3:]), strict=True):
        whole = (
            torch.cat([batch[0] for batch in seen])[:max_samples],
            seen[0][1],
            *(torch.cat([batch[part] for batch in seen])[:max_samples] for part in (2, 3)),
        )
        assert flatness_of(row) == approx(by_hand([whole]))


def test_max_samples_counts_samples_and_not_their_views() -> None:
    net = TwoViews()
    logged = validate(net, RelativeFlatnessMonitor(max_samples=8, head="head"))
    assert flatness_of(logged) == approx(by_hand(net.seen[:2]))


@pytest.mark.parametrize("samples_kept", [0, 5])
def test_top_eigenvalue_is_of_the_samples_asked_for(samples_kept: int) -> None:
    net = Net()
    logged = validate(net, RelativeFlatnessMonitor(top_eigenvalue_samples=samples_kept))
    if samples_kept == 0:
        assert "flatness/top_eigenvalue" not in logged
        return
    first = [tuple(part[:samples_kept] if index != 1 else part for index, part in enumerate(net.seen[0]))]
    assert logged["flatness/top_eigenvalue"] == pytest.approx(by_hand(first)["flatness/top_eigenvalue"], rel=1e-4)


def test_top_eigenvalue_of_a_huge_head_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatness_module, "_LARGEST_HEAD", 23)
    logged = validate(Net(), RelativeFlatnessMonitor())
    assert "flatness/top_eigenvalue" not in logged
    assert "flatness/relative_flatness" in logged


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_several_dataloaders_have_their_own_keys(stage: str) -> None:
    net = Net()
    loaders = [loader(8, seed=1), loader(16, seed=2)]
    logged = getattr(trainer(RelativeFlatnessMonitor()), stage)(net, loaders, verbose=False)
    prefix = "test_" if stage == "test" else ""
    for index, seen in enumerate((net.seen[:1], net.seen[1:])):
        expected = {f"{prefix}{name}/dataloader_idx_{index}": value for name, value in by_hand(seen).items()}
        found = {name: value for part in logged for name, value in flatness_of(part, f"{prefix}flatness/").items()}
        assert {name: value for name, value in found.items() if name.endswith(str(index))} == approx(expected)


def test_only_the_chosen_dataloaders_are_measured() -> None:
    net = Net()
    logged = validate(net, RelativeFlatnessMonitor(dataloaders=[1]), val={"a": loader(8), "b": loader(16, seed=2)})
    expected = {f"{name}/dataloader_idx_1": value for name, value in by_hand(net.seen[1:]).items()}
    assert flatness_of(logged) == approx(expected)


@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")  # Lightning's
def test_empty_loader_beside_another_logs_no_values_and_no_warning() -> None:
    net = Net()
    logged = flatness_of(validate(net, RelativeFlatnessMonitor(), val=[loader(0), loader(16, seed=2)]))
    expected = {f"{name}/dataloader_idx_1": value for name, value in by_hand(net.seen).items()}
    assert {name: value for name, value in logged.items() if name.endswith("1")} == approx(expected)
    assert {name for name in logged if name.endswith("0")} <= {"flatness/nonfinite/dataloader_idx_0"}


def _poison(net: Net, value: float) -> Net:
    def body(inputs: Tensor) -> Tensor:
        features = nn.functional.pad(inputs, (0, 4))
        if not net.training:
            features = features.clone()
            features[::4, 0] = value
        return features

    module = nn.Module()
    module.forward = body
    net.body = module
    return net


@pytest.mark.filterwarnings("default:5 samples have features")  # counted below
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_samples_that_are_not_finite_are_counted_and_said_once(value: float) -> None:
    net, monitor = _poison(Net(), value), RelativeFlatnessMonitor()
    with pytest.warns(UserWarning, match=r"^5 samples have .* counted in flatness/nonfinite") as caught:
        fit(net, monitor, max_epochs=3, num_sanity_val_steps=0)
    assert sum("samples have features" in str(warning.message) for warning in caught) == 1
    assert curve(monitor, "flatness/nonfinite") == [5, 5, 5]
    for row in monitor.history():
        assert torch.tensor(list(flatness_of(row).values())).isfinite().all()
        assert row["flatness/relative_flatness"] > 0


def test_without_one_finite_sample_only_their_count_is_logged() -> None:
    net = Net()
    nn.init.constant_(net.head.weight, float("nan"))
    with pytest.warns(UserWarning, match=r"^20 samples have features, logits or weights that are NaN"):
        logged = validate(net, RelativeFlatnessMonitor())
    assert flatness_of(logged) == {"flatness/nonfinite": 20}


def test_values_beyond_float32_are_not_logged_as_infinite() -> None:
    net = Net()
    with torch.no_grad():
        net.body[0].weight.mul_(1e15)
        net.head.weight[:] = 1e10 * net.head.weight[0]  # equal rows keep the logits equal: tr H_z does not vanish
    monitor = RelativeFlatnessMonitor(top_eigenvalue_samples=0)
    logged = validate(net, monitor)
    assert monitor.history()[0].get("flatness/layerwise", inf) > torch.finfo(torch.float32).max
    assert all(isfinite(value) for value in logged.values())


def test_huge_features_do_not_stop_the_training() -> None:
    net, monitor = Net(), RelativeFlatnessMonitor()
    with torch.no_grad():
        net.body[0].weight.mul_(1e15)
        net.head.weight[:] = net.head.weight[0]
    fit(net, monitor)
    assert len(monitor.history()) == 1


class Unlabelled(StepNet):
    def evaluate(self, batch: Any) -> Any:
        return self(batch)


def test_cross_entropy_needs_no_targets() -> None:
    inputs = samples(8).tensors[0]
    logged = validate(Unlabelled(), RelativeFlatnessMonitor(), val=torch.utils.data.DataLoader(inputs, 8))
    assert logged["flatness/relative_flatness"] > 0
    assert not {"flatness/correct", "flatness/wrong"} & set(logged)


def _soft(batch: Any) -> tuple[Tensor, Tensor]:
    return batch[0], (torch.nn.functional.one_hot(batch[1], CLASSES) * 0.7 + 0.1).bfloat16()


def _regressed(batch: Any) -> tuple[Tensor, Tensor]:
    return batch[0], batch[0][:, :CLASSES]


@pytest.mark.parametrize(
    ("pick", "loss", "times"), [(_regressed, "cross_entropy", 1), (_regressed, "mse", 0), (_soft, "cross_entropy", 0)]
)
def test_regression_is_not_taken_for_soft_labels(pick: Any, loss: Any, times: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Net(), RelativeFlatnessMonitor(loss=loss, inputs_and_targets=pick), max_epochs=2)
    words = (
        "RelativeFlatnessMonitor measures the flatness of the cross-entropy, but the targets are numbers that are no "
        "probabilities of classes; pass `loss=` the training loss, e.g. 'mse' for a regression."
    )
    assert [str(one.message) for one in caught].count(words) == times


@pytest.mark.parametrize("prog_bar", [True, False])
def test_progress_bar_shows_the_mean_where_asked_for(prog_bar: bool) -> None:  # noqa: FBT001 - pytest's
    shown: list[str] = []
    spy = Spy("on_validation_end", lambda runner, _: shown.extend(runner.progress_bar_metrics))
    fit(Net(), RelativeFlatnessMonitor(prog_bar=prog_bar), spy)
    assert ("flatness/relative_flatness" in shown) == prog_bar
