"""What the monitor of local robustness logs is the metric of what the head saw, and holds against attacks."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

import re
from collections.abc import Mapping
from math import inf, nan, sqrt
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_flatness import AttackMonitor, LocalRobustnessBound, LocalRobustnessMonitor, RelativeFlatnessMonitor
from lightning_flatness.attacks import AdaptiveAttack, ThreatModel
from lightning_flatness.functional import certified_lipschitz, local_lipschitz
from lightning_flatness.metrics import LossBoundCheck
from lightning_flatness.metrics import loss_bound_check as check_module
from lightning_flatness.tracking import keys
from tests.attacks.models import digit_cnn, digits
from tests.callbacks.conftest import CLASSES, HIDDEN, Net, StepNet, fit, flatness_of, loader, samples, trainer, validate

INPUTS, TARGET = samples(20, seed=1).tensors
RANGE: dict[str, Any] = {"lower": -5.0, "upper": 5.0}
EPSILON = 0.1


class ForwardNet(Net):
    """Keeps nothing of its forwards but their number of samples."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__(*parts)
        self.count = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.count += len(inputs)
        return self.head(self.body(inputs))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


def monitor(**settings: Any) -> LocalRobustnessMonitor:
    return LocalRobustnessMonitor(**{"epsilon": EPSILON, **RANGE, **settings})


def attacks(**settings: Any) -> AttackMonitor:
    return AttackMonitor(**{"epsilon": 0.3, "masking": False, **RANGE, **settings})


def of(logged: Mapping[str, Any], prefix: str = "bound/") -> dict[str, float]:
    return flatness_of(logged, prefix)


def by_hand(net: Any, lipschitz: Any, count: int = 20, *, certified: bool = False) -> dict[str, float]:
    radii = {keys.radius_label(radius): radius for radius in (EPSILON / 4, EPSILON / 2, EPSILON, 2 * EPSILON)}
    metric = LocalRobustnessBound(radii, EPSILON, certified=certified)
    with torch.no_grad():
        metric.update(net.eval()(INPUTS[:count]), TARGET[:count], net.head.weight, lipschitz)
    named = {keys.bound_key(name): float(value) for name, value in metric.compute().items()}
    return {key: value for key, value in named.items() if not (certified and key.endswith(keys.INTERVAL_ENDS))}


def approx(values: Mapping[str, float]) -> Any:
    return {name: pytest.approx(value, rel=1e-5, abs=1e-9) for name, value in values.items()}


# Values


@pytest.mark.parametrize(("norm", "other"), [("linf", "inf"), ("l2", 2)])
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_estimates_are_those_of_the_jacobians(stage: str, norm: Any, other: Any) -> None:
    net, watch = ForwardNet(), monitor(norm=norm)
    runner = trainer(watch)
    data = loader(20, seed=1)
    if stage == "fit":
        runner.fit(net, loader(), data)
    else:
        getattr(runner, stage)(net, data, verbose=False)
    expected = by_hand(net, local_lipschitz(nn.Sequential(net.body), INPUTS, norm=other, iterations=10))
    (row,) = watch.history()
    assert of(row, "test_bound/" if stage == "test" else "bound/") == approx({
        name.replace("bound/", "test_bound/") if stage == "test" else name: value for name, value in expected.items()
    })
    assert not any("certified" in name for name in row)
    assert row["stage"] == stage


@pytest.mark.parametrize(("norm", "other"), [("linf", "inf"), ("l2", 2)])
def test_certificates_are_those_of_the_layers(norm: Any, other: Any) -> None:
    net = ForwardNet()
    logged = of(validate(net, monitor(norm=norm, lipschitz="certified")))
    bound = certified_lipschitz(net.body, INPUTS, norm=other)
    assert logged == approx(by_hand(net, bound, certified=True))
    assert not any("estimated" in name for name in logged)


def test_a_given_constant_is_a_certificate_and_runs_nothing_again() -> None:
    net = ForwardNet()
    logged = of(validate(net, monitor(lipschitz=3.0)))
    assert net.count == 20
    assert logged == approx(by_hand(net, 3.0, certified=True))
    beside = of(validate(net, monitor(lipschitz=3.0), attacks()))
    assert {name: beside[name] for name in logged} == logged


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("lipschitz", ["estimated", "certified"])
def test_constants_are_those_of_the_data_before_normalisation(lipschitz: Any, norm: Any) -> None:
    """The same function of the data, normalised in the module or before it."""
    std, mean = [0.5, 2.0, 1.0, 0.25], [0.1, 0.2, 0.3, 0.4]

    class Normalise(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return (inputs - torch.tensor(mean)) / torch.tensor(std)

    inside = ForwardNet()
    inside.body = nn.Sequential(Normalise(), *inside.body)
    outside = ForwardNet(nn.Sequential(*inside.body[1:]), inside.head)
    normalised = DataLoader(TensorDataset((INPUTS - torch.tensor(mean)) / torch.tensor(std), TARGET), 8)
    expected = of(validate(inside, monitor(norm=norm, lipschitz=lipschitz)))
    found = of(validate(outside, monitor(norm=norm, lipschitz=lipschitz, mean=mean, std=std), val=normalised))
    assert found == approx(expected)
    without = of(validate(outside, monitor(norm=norm, lipschitz=lipschitz, lower=None, upper=None), val=normalised))
    assert without[f"bound/lipschitz_{lipschitz}"] < expected[f"bound/lipschitz_{lipschitz}"]


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_values_do_not_depend_on_batches(batch_size: int) -> None:
    net = ForwardNet()
    logged = of(validate(net, monitor(), val=loader(20, seed=1, batch_size=batch_size)))
    assert logged == approx(of(validate(net, monitor())))


@pytest.mark.parametrize("count", [1, 8, 11])
def test_only_samples_with_an_estimate_are_counted(count: int) -> None:
    net = ForwardNet()
    logged = of(validate(net, monitor(lipschitz_samples=count)))
    assert logged == approx(by_hand(net, local_lipschitz(net.body, INPUTS[:count], norm="inf", iterations=10), count))
    assert logged["bound/samples"] == count


def test_sanity_check_tries_two_samples_and_logs_nothing() -> None:
    def count(*monitors: Any) -> int:
        net = ForwardNet()
        fit(net, *monitors, limit_train_batches=1, limit_val_batches=1, num_sanity_val_steps=1)
        return net.count

    whole = 8
    # Two samples compared and two estimated, then two compared and eight estimated.
    assert count(monitor()) == count() + (2 + 2) + (2 + whole)


@pytest.mark.parametrize("lipschitz", ["estimated", "certified", 50.0])
def test_max_samples(lipschitz: Any) -> None:
    logged = of(validate(ForwardNet(), monitor(max_samples=11, lipschitz=lipschitz)))
    assert logged["bound/samples"] == 11
    assert sum(name.endswith("_low") for name in logged) == 4


def test_radii_and_threat_and_progress_bar() -> None:
    watch = monitor(radii=[0.2, 0.3], prog_bar=True, lipschitz=1.0)
    runner = fit(ForwardNet(), watch)
    assert {name for name in watch.history()[0] if "accuracy" in name} == {
        "bound/certified_accuracy_0_2",
        "bound/certified_accuracy_0_3",
    }
    assert "bound/certified_accuracy_0_2" in runner.progress_bar_metrics
    several = ThreatModel("linf", [0.1, 0.2, 0.1, 0.1], -5.0, 5.0)
    assert list(LocalRobustnessMonitor(threat=several).radii.values()) == pytest.approx([0.05, 0.1, 0.2, 0.4])
    assert LocalRobustnessMonitor("8/255").epsilon == LocalRobustnessMonitor().epsilon == 8 / 255


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("lipschitz", ["estimated", "certified"])
def test_any_precision(lipschitz: Any, precision: str) -> None:
    net = ForwardNet()
    logged = of(validate(net, attacks(), monitor(lipschitz=lipschitz), precision=precision))
    expected = of(validate(net.float(), attacks(), monitor(lipschitz=lipschitz)))
    constant = f"bound/lipschitz_{lipschitz}"
    assert logged[constant] == pytest.approx(expected[constant], rel=0.03)
    assert logged["bound/violation_rate"] == 0


class MeanOfTwo(nn.Module):
    """Two branches and no plain layer order, as a network of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, HIDDEN), nn.Linear(4, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        features = 0.5 * (self.first(inputs).relu() + self.second(inputs).tanh())
        return self.head(features).log_softmax(1)


class Wrapped(ForwardNet):
    """The usual way: ``self.model``, and a ``forward`` that calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        del self.body, self.head
        self.model = model

    def forward(self, inputs: Tensor) -> Any:
        return self.model(inputs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("lipschitz", ["estimated", "certified"])
@pytest.mark.parametrize("kind", ["sequential", "branches"])
def test_ordinary_modules_work_whatever_comes_after_the_head(kind: str, lipschitz: Any) -> None:
    layers = nn.Sequential(nn.Linear(4, HIDDEN), nn.ReLU(), nn.Dropout(0.5), nn.Linear(HIDDEN, CLASSES))
    net = Wrapped(layers if kind == "sequential" else MeanOfTwo())
    watch = monitor(lipschitz=lipschitz)
    fit(net, attacks(), watch, max_epochs=2)
    assert [row["epoch"] for row in watch.history()] == [0, 1]
    # The weights have changed, and the constant with them.
    assert len({row[f"bound/lipschitz_{lipschitz}"] for row in watch.history()}) == 2
    assert all(row["bound/violation_rate"] == 0 for row in watch.history())


class NoForward(StepNet):
    """Has a function of its own in place of ``forward``."""

    forward = LightningModule.forward

    def evaluate(self, batch: Any) -> Tensor:
        return self.classify(batch[0])

    def classify(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


@pytest.mark.parametrize("lipschitz", ["estimated", "certified"])
def test_logits_function(lipschitz: Any) -> None:
    net = NoForward()
    run: dict[str, Any] = {"logits_fn": lambda module, inputs: module.classify(inputs)}
    logged = of(validate(net, attacks(**run), monitor(lipschitz=lipschitz, **run)))
    assert logged["bound/violation_rate"] == 0
    with pytest.raises(ValueError, match=r"^NoForward has no `forward`; pass `logits_fn=lambda module, x: \.\.\.`"):
        validate(net, monitor(lipschitz=lipschitz))


# Against attacks


def check_by_hand(net: Any, count: int = 20, epsilon: float = 0.3) -> dict[str, float]:
    with torch.no_grad():
        logits = net.eval()(INPUTS)
        result = AdaptiveAttack(ThreatModel(epsilon=epsilon, **RANGE), "fast")(net, INPUTS, TARGET, clean_logits=logits)
        metric = LossBoundCheck()
        features, moved = net.body(INPUTS), net.body(result.x_adv)
        metric.update(*(part[:count] for part in (logits, TARGET)), net.head.weight, features[:count], moved[:count])
    return {keys.bound_key(name): float(value) for name, value in metric.compute().items()}


CHECKED = {keys.VIOLATION_RATE, keys.TIGHTNESS, keys.TAYLOR_VIOLATION_RATE}


@pytest.mark.parametrize("lipschitz", ["estimated", "certified", 50.0])
@pytest.mark.parametrize("attack_first", [True, False])
def test_check_is_that_of_the_attack_in_any_order(attack_first: bool, lipschitz: Any) -> None:  # noqa: FBT001 - pytest's
    net, watch = ForwardNet(), monitor(lipschitz=lipschitz)
    pair = [attacks(), watch] if attack_first else [watch, attacks()]
    fit(net, RelativeFlatnessMonitor(), *pair, max_epochs=2)
    for row in watch.history():
        assert set(row) >= CHECKED
        assert row[keys.VIOLATION_RATE] == 0
    expected = check_by_hand(net)
    assert {name: watch.history()[-1][name] for name in CHECKED} == approx(expected)
    assert expected[keys.TIGHTNESS] > 1


@pytest.mark.parametrize("attack_first", [True, False])
def test_only_samples_that_were_attacked_are_compared(attack_first: bool) -> None:  # noqa: FBT001 - pytest's
    net = ForwardNet()
    pair = [monitor(max_samples=15), attacks(max_samples=11)]
    logged = of(validate(net, *(pair[::-1] if attack_first else pair)))
    assert {name: logged[name] for name in CHECKED} == approx(check_by_hand(net, 11))
    logged = of(validate(net, monitor(max_samples=5), attacks()))
    assert {name: logged[name] for name in CHECKED} == approx(check_by_hand(net, 5))


def test_several_attacks_and_monitors_are_all_compared() -> None:
    net = ForwardNet()
    own: dict[str, Any] = {"PGD": {"steps": 2}}
    together = of(validate(net, attacks(), monitor(lipschitz=50.0), attacks(attacks=own, group="second")))
    assert net.count > 20
    assert together[keys.VIOLATION_RATE] == 0
    assert set(together) >= CHECKED


def test_each_attack_costs_one_forward_more() -> None:
    def count(*monitors: Any) -> int:
        torch.manual_seed(0)
        net = ForwardNet()
        validate(net, *monitors)
        return net.count

    attack: dict[str, Any] = {"budget": None, "attacks": {"PGD": {"steps": 2}}, "num_examples": 0}
    compared = 2
    assert count(attacks(**attack), monitor(lipschitz=50.0)) == count(attacks(**attack)) + 20 + compared


def test_without_an_attack_in_the_epoch_nothing_is_compared() -> None:
    watch = monitor(lipschitz=50.0)
    fit(ForwardNet(), attacks(every_n_epochs=2), watch, max_epochs=3)
    assert [keys.VIOLATION_RATE in row for row in watch.history()] == [True, False, True]
    assert not CHECKED & set(validate(ForwardNet(), monitor()))


def test_dataloaders_are_kept_apart() -> None:
    net = ForwardNet()
    loaders = [loader(8, seed=3), loader(20, seed=1)]
    logged = of(validate(net, monitor(dataloaders=[1]), attacks(), val=loaders))
    expected = check_by_hand(net)
    assert {name: logged[f"{name}/dataloader_idx_1"] for name in CHECKED} == approx(expected)
    assert not any(name.endswith("_0") for name in logged)


def test_violation_is_said_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound that is none."""
    monkeypatch.setattr(check_module, "loss_increase_bound", lambda logits, *_, **__: torch.zeros(len(logits)).double())
    message = (
        r"^The loss of up to [0-9.]+% of the attacked samples grew by more .* \(bound/violation_rate\), .* report it"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        fit(ForwardNet(), attacks(), monitor(lipschitz=50.0), max_epochs=2)
    assert sum("the attacked samples grew" in str(warning.message) for warning in caught) == 1


def test_a_number_that_is_no_certificate_is_found_out() -> None:
    watch = monitor(lipschitz=1e-3)
    message = r"Attacks moved the features of [0-9.]+% of the samples farther than lipschitz=0.001 allows: it is no c"
    with pytest.warns(UserWarning, match=message) as caught:
        fit(ForwardNet(), attacks(), watch, max_epochs=2)
    assert sum("no certificate" in str(warning.message) for warning in caught) == 1
    assert watch.history()[-1][keys.LIPSCHITZ_VIOLATION_RATE] > 0.9


def test_estimates_are_of_the_counted_samples_only() -> None:
    logged = of(validate(ForwardNet(), attacks(), monitor(lipschitz_samples=3)))
    assert 0 <= logged[keys.LIPSCHITZ_VIOLATION_RATE] <= 1
    certified = of(validate(ForwardNet(), monitor(lipschitz="certified"), attacks()))
    assert certified[keys.LIPSCHITZ_VIOLATION_RATE] == 0


def test_failure_of_the_check_is_not_the_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, attack = monitor(lipschitz=50.0, on_error="warn"), attacks()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("lightning_flatness.metrics.loss_bound_check.loss_change", fail)
    with pytest.warns(UserWarning, match=r"^LocalRobustnessMonitor failed in epoch 0 .*RuntimeError: broken \("):
        fit(ForwardNet(), watch, attack)
    assert len(attack.history()) == 1
    assert watch.history() == []
    with pytest.raises(RuntimeError, match="broken"):
        fit(ForwardNet(), monitor(lipschitz=50.0), attacks(on_error="warn"))


def test_other_monitors_do_not_see_the_estimates() -> None:
    net = ForwardNet()
    alone = flatness_of(validate(net, RelativeFlatnessMonitor()))
    assert flatness_of(validate(net, monitor(), RelativeFlatnessMonitor())) == alone
    assert flatness_of(validate(net, RelativeFlatnessMonitor(), monitor())) == alone


# Trained networks


class Digits(StepNet):
    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        del self.body, self.head
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)


def _digit_loader(count: int = 150) -> DataLoader[Any]:
    images, labels = digits()
    return DataLoader(TensorDataset(images[4000 : 4000 + count], labels[4000 : 4000 + count]), 50)


def lipschitz_network() -> nn.Sequential:
    """Orthogonal layers: the features are 1-Lipschitz by construction."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = (nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        for layer in (parts[0], parts[2]):
            nn.utils.parametrizations.orthogonal(layer, orthogonal_map="cayley")
        model = nn.Sequential(nn.Flatten(), *parts)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        images, labels = (part[:4000] for part in digits())
        for rows in torch.randperm(4000).split(50):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for layer in (parts[0], parts[2]):
            nn.utils.parametrize.remove_parametrizations(layer, "weight")  # the same numbers, computed once
    return model.eval()


@pytest.mark.slow
def test_certified_accuracy_is_below_that_under_attack_for_a_lipschitz_network() -> None:
    threat: dict[str, Any] = {"norm": "l2", "epsilon": 0.5}
    monitors = [
        AttackMonitor(**threat, masking=False, epsilons=[0.125, 0.25, 1.0]),
        LocalRobustnessMonitor(**threat, lipschitz="certified"),
        LocalRobustnessMonitor(**threat, lipschitz=1.0, group="given"),
    ]
    logged = validate(Digits(lipschitz_network()), *monitors, val=_digit_loader())
    assert logged["bound/lipschitz_certified"] == pytest.approx(1, rel=1e-4)
    for label in ("0_125", "0_25", "0_5", "1"):
        attacked = logged[f"attack/l2_{label}_robust_accuracy"]
        for group in ("bound", "given"):
            assert logged[f"{group}/certified_accuracy_{label}"] <= attacked
    assert logged["bound/certified_accuracy_0_125"] > 0.5  # so that something is guaranteed
    assert logged[keys.VIOLATION_RATE] == 0


@pytest.mark.slow
def test_taylor_bound_is_violated_by_a_standard_network_and_ours_is_not() -> None:
    few: dict[str, Any] = {"lipschitz": "estimated", "lipschitz_samples": 20}
    monitors = [
        LocalRobustnessMonitor(0.3, **few),
        LocalRobustnessMonitor(0.3, **few, group="flat", cubic_constant=0.0),
    ]
    logged = validate(Digits(digit_cnn(3)), AttackMonitor(0.3, masking=False), *monitors, val=_digit_loader())
    assert logged[keys.VIOLATION_RATE] == 0
    assert logged["flat/taylor_violation_rate"] > 2 * logged[keys.TAYLOR_VIOLATION_RATE] > 0
    assert 1 < logged[keys.TIGHTNESS] < 10
    assert logged["bound/samples"] == 20


# Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radii": [0.1, -0.1]}, r"`radii` must be at least one number, > 0 and finite, got \[0\.1, -0\.1\]\."),
        ({"radii": [inf]}, r"`radii` must be at least one number, > 0 and finite, got \[inf\]\."),
        ({"radii": [nan]}, r"`radii` must be at least one number, > 0 and finite, got \[nan\]\."),
        ({"radii": []}, r"`radii` must be at least one number, > 0 and finite, got \[\]\."),
        ({"radii": [0.1, 0.100001]}, r"`radii` must differ in their first digits, .*, got \[0\.1, 0\.100001\]\."),
        ({"epsilon": -0.1}, r"`epsilon` must be > 0, got -0\.1\."),
        ({"epsilon": inf}, r"`epsilon` must be finite, got inf; .*"),
        ({"lipschitz": -1.0}, r"`lipschitz` must be >= 0 and finite, got -1\.0\."),
        ({"lipschitz": nan}, r"`lipschitz` must be >= 0 and finite, got nan\."),
        ({"lipschitz": "guessed"}, r"`lipschitz` must be a number, 'estimated' or 'certified', got 'guessed'\."),
        ({"lipschitz_samples": 0}, r"`lipschitz_samples` must be >= 1, got 0\."),
        ({"method": "taylor"}, r"`method` must bound the loss of every sample, got 'taylor', which does not\."),
        ({"cubic_constant": -1.0}, r"`cubic_constant` must be >= 0 and finite, got -1\.0\."),
        ({"threat": ThreatModel()}, r"Pass either `epsilon` or `threat`, got .*"),
    ],
    ids=str,
)
def test_arguments_are_checked_at_once(settings: dict[str, Any], message: str, unchecked_shapes: Any) -> None:
    with unchecked_shapes, pytest.raises(ValueError, match=f"^{message}$"):
        monitor(**settings)


class Attention(StepNet):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, HIDDEN), nn.Softmax(1), nn.Linear(HIDDEN, HIDDEN)))
        self.body.append(Squares())


class Squares(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * inputs


class Mirrored(StepNet):
    """Two rows of logits per sample."""

    def evaluate(self, batch: Any) -> Any:
        return self(batch[0].repeat(2, 1))


class OtherFeatures(StepNet):
    """Does in its step what ``forward`` does not."""

    def evaluate(self, batch: Any) -> Any:
        return self(2 - batch[0])


class TwoCalls(StepNet):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs)) + self.head(self.body(-inputs))

    def evaluate(self, batch: Any) -> Any:
        return self.head(self.body(batch[0]))


ERRORS: dict[str, tuple[type[StepNet], dict[str, Any], Any, str]] = {
    "an operation without a rule": (
        Attention,
        {"lipschitz": "certified"},
        None,
        r"^`module` cannot be certified: a product of two tensors .* in 'Attention\.body\.3' \(Squares\); .*"
        r"Here, pass `lipschitz='estimated'`\.$",
    ),
    "two rows per sample": (Mirrored, {}, None, r"^Bounds need one row of logits for each of the 8 samples, got shape"),
    "other features": (OtherFeatures, {}, None, r"^The module's `forward` gives other features than its validation "),
    "two calls": (TwoCalls, {}, None, r"^The head 'head' must be called once when the module runs on a batch, got 2 "),
    "inputs out of range": (StepNet, {"lower": 0.0, "upper": 1.0}, None, r"^`inputs` must lie in \[0\.0, 1\.0\], got"),
    "no classes": (
        StepNet,
        {},
        lambda batch: (batch[0], None),
        r"^Bounds need a tensor of inputs and one of class indices, got torch\.float32 \(8, 4\) and NoneType; pass",
    ),
    "soft targets": (
        StepNet,
        {},
        lambda batch: (batch[0], nn.functional.one_hot(batch[1], CLASSES).float()),
        r"^Bounds need .* and torch\.float32 \(8, 3\); pass `inputs_and_targets=`",
    ),
    "ignored samples": (
        StepNet,
        {},
        lambda batch: (batch[0], batch[1] - 100),
        r"^`target` must be in \[0, 3\), got -\d+; leave ignored samples out\.$",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_come_before_training(case: str) -> None:
    make, settings, pick, message = ERRORS[case]
    net = make()
    with pytest.raises(ValueError, match=message):
        fit(net, monitor(inputs_and_targets=pick, on_error="warn", **settings))
    assert net.training_steps == 0


def test_random_weights_that_are_not_finite_cost_nothing_but_the_guarantee() -> None:
    net = ForwardNet()
    nn.init.constant_(net.head.bias, nan)
    logged = of(validate(net, monitor(lipschitz="certified")))
    assert logged["bound/nonfinite"] == 20
    assert logged["bound/certified_accuracy_0_1"] == 0


def test_settings_are_plain() -> None:
    settings = monitor(lipschitz="certified")._settings()
    assert settings["lipschitz"] == "certified"
    assert settings["radii"] == pytest.approx([0.025, 0.05, 0.1, 0.2])
    assert re.fullmatch(r"linf", settings["threat"]["norm"])


def test_l2_certificate_is_smaller_by_the_root_of_the_dimension() -> None:
    net = ForwardNet()
    in_l2, in_linf = (
        of(validate(net, monitor(norm=norm, lipschitz="certified")))["bound/lipschitz_certified"]
        for norm in ("l2", "linf")
    )
    assert in_linf == pytest.approx(sqrt(4) * in_l2, rel=1e-6)
