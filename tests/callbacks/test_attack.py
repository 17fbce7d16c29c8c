"""What the attack monitor logs is what the attacks do."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

import pickle
import re
from collections.abc import Mapping
from math import inf, log, nan
from pathlib import Path
from typing import Any

import pytest
import torch
import torchattacks
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_flatness import AttackMonitor, RelativeFlatnessMonitor
from lightning_flatness.attacks import AdaptiveAttack, AttackResult, ThreatModel, from_torchattacks
from lightning_flatness.tracking import keys
from tests.callbacks.conftest import Net, StepNet, fit, flatness_of, loader, samples, trainer, validate

INPUTS, TARGET = samples(20, seed=1).tensors
RANGE: dict[str, Any] = {"lower": -5.0, "upper": 5.0}
THREAT = ThreatModel(epsilon=0.3, **RANGE)
LABEL = "linf_0_3"


class ForwardNet(Net):
    """Counts samples, and keeps nothing else of its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.count += len(inputs)
        return self.head(self.body(inputs))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


def monitor(**settings: Any) -> AttackMonitor:
    return AttackMonitor(**{"threat": THREAT, "masking": False, "num_examples": 0, **settings})


def by_hand(net: nn.Module, attack: Any = None, **settings: Any) -> AttackResult:
    return (attack or AdaptiveAttack(THREAT, "fast", **settings))(net.eval(), INPUTS, TARGET)


def rates(result: AttackResult) -> dict[str, float]:
    fooled, correct = int(result.success.sum()), int(result.initially_correct.sum())
    return {
        "success_rate": fooled / correct,
        "robust_accuracy": (correct - fooled) / 20,
        "clean_accuracy": correct / 20,
    }


def of(logged: Mapping[str, Any], label: str = LABEL, prefix: str = "attack/") -> dict[str, float]:
    start = f"{prefix}{label}_"
    return {name.removeprefix(start): float(value) for name, value in logged.items() if name.startswith(start)}


def subset(values: Mapping[str, float], names: Mapping[str, float]) -> dict[str, float]:
    return {name: values[name] for name in names}


def test_values_are_those_of_the_attack_by_hand() -> None:
    net = ForwardNet()
    logged = of(validate(net, monitor()))
    result = by_hand(net)
    with torch.no_grad():
        clean = nn.functional.cross_entropy(net(INPUTS), TARGET, reduction="none")
    increase = (result.loss - clean).double()
    expected = rates(result)
    assert 0 < expected["success_rate"] < 1
    assert subset(logged, expected) == pytest.approx(expected)
    assert logged["loss_increase"] == pytest.approx(float(increase.mean()), rel=1e-5)
    above = (increase > log(2)) & result.initially_correct
    assert logged["loss_success_rate"] == pytest.approx(float(above.sum() / result.initially_correct.sum()))
    assert logged["samples"] == 20
    assert logged["seconds"] > 0
    assert set(logged) <= set(keys.ATTACK_QUANTITIES)
    assert not {"success_rate_low", "robust_accuracy_high"} & set(logged)


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_values_do_not_depend_on_batches(batch_size: int) -> None:
    net = ForwardNet()
    logged = of(validate(net, monitor(), val=loader(20, seed=1, batch_size=batch_size)))
    assert subset(logged, rates(by_hand(net))) == pytest.approx(rates(by_hand(net)))


def test_clean_logits_are_those_of_the_step() -> None:
    net = ForwardNet()
    validate(net, monitor())
    with_monitor, net.count = net.count, 0
    result = by_hand(net)
    # The step runs the 20 samples once, and the attack by hand asks for their clean logits itself.
    assert with_monitor == 20 + result.forwards - 20


class Scaled(ForwardNet):
    """Validates something else than what forward says of the batch."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0] * 0)


def test_other_logits_of_the_step_are_not_taken_for_those_of_the_inputs() -> None:
    net = Scaled()
    logged = of(validate(net, monitor()))
    assert logged["clean_accuracy"] == pytest.approx(rates(by_hand(net))["clean_accuracy"])


def test_fit_and_test_log_too() -> None:
    net, watch = ForwardNet(), monitor()
    runner = fit(net, watch, max_epochs=2)
    assert [row["epoch"] for row in watch.history()] == [0, 1]
    assert of(runner.callback_metrics) == {
        name: pytest.approx(value) for name, value in of(watch.history()[-1]).items()
    }
    assert subset(of(watch.history()[-1]), rates(by_hand(net))) == pytest.approx(rates(by_hand(net)))
    (tested,) = runner.test(net, loader(20, seed=1), verbose=False)
    assert subset(of(tested, prefix="test_attack/"), rates(by_hand(net))) == pytest.approx(rates(by_hand(net)))


def test_other_monitors_do_not_see_the_attacks() -> None:
    net = ForwardNet()
    alone = flatness_of(validate(net, RelativeFlatnessMonitor()))
    beside = flatness_of(validate(net, monitor(), RelativeFlatnessMonitor()))
    after = flatness_of(validate(net, RelativeFlatnessMonitor(), monitor()))
    assert alone == beside == after


def test_robust_accuracy_can_be_watched(tmp_path: Any) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="attack/linf_0_3_robust_accuracy", mode="max")
    fit(ForwardNet(), checkpoint, monitor(), max_epochs=2, enable_checkpointing=True)
    assert checkpoint.best_model_score is not None


def test_bf16_passes() -> None:
    net = ForwardNet()
    logged = of(validate(net, monitor(autocast_dtype="bfloat16")))
    result = by_hand(net, autocast_dtype=torch.bfloat16)
    assert subset(logged, rates(result)) == pytest.approx(rates(result))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_loss_of_attacks_that_can_do_nothing_does_not_fall(precision: str) -> None:
    """What an attack returns has at worst the loss of the clean input, which must be computed as precisely."""
    logged = of(
        validate(ForwardNet(), monitor(threat=ThreatModel(epsilon=1e-6, **RANGE)), precision=precision), "linf_0_000001"
    )
    assert 0 <= logged["loss_increase"] < 1e-5


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_attack_sees_the_model_in_the_precision_of_the_step(precision: str) -> None:
    net = ForwardNet()
    dtypes: set[torch.dtype] = set()
    net.head.register_forward_hook(lambda _layer, _args, output: dtypes.add(output.dtype))
    logged = of(validate(net, monitor(), precision=precision))
    assert dtypes == {torch.float64 if precision == "64-true" else torch.bfloat16}
    assert 0 < logged["success_rate"] <= 1
    assert logged["samples"] == 20


class Statistics(nn.Module):
    """Like BatchNorm, for batches of any size."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(inputs.detach().mean(0), 0.1)
        return inputs - self.mean


class Masks(ForwardNet):
    """Draws random numbers in forward, and keeps running statistics in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics = Statistics()

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(self.statistics(inputs) + 0.01 * torch.randn_like(inputs))

    def on_validation_model_eval(self) -> None:
        self.eval()
        self.statistics.train()


def test_running_statistics_and_random_numbers_of_the_model_are_put_back() -> None:
    def left(*monitors: AttackMonitor) -> tuple[Any, ...]:
        torch.manual_seed(3)
        net = Masks()
        fit(net, *monitors, max_epochs=2)
        return net.statistics.mean, net.head.weight, torch.rand(5)

    for found, expected in zip(left(monitor()), left(), strict=True):
        assert torch.equal(found, expected)


class TestAttacks:
    def test_by_name_by_instance_and_by_function_beside_the_default(self) -> None:
        net = ForwardNet()
        attacks: dict[str, Any] = {
            "PGD": {"steps": 3, "random_start": False},
            "short": {"attack": "APGD", "steps": 2},
            "one_step": torchattacks.FGSM(net, eps=0.03),
            "class": torchattacks.FGSM,
            "own": AdaptiveAttack(THREAT, "standard"),
        }
        logged = validate(net, monitor(attacks=attacks))
        for label, attack in {
            "pgd": from_torchattacks("PGD", THREAT, steps=3, random_start=False),
            "class": from_torchattacks("FGSM", THREAT),
            "own": AdaptiveAttack(THREAT, "standard"),
            LABEL: AdaptiveAttack(THREAT, "fast"),
        }.items():
            expected = rates(by_hand(net, attack))
            assert subset(of(logged, label), expected) == pytest.approx(expected), label
        assert of(logged, "short")["success_rate"] > 0
        labels = ("pgd", "short", "one_step", "class", "own", LABEL)
        worst = logged["attack/worst_case_robust_accuracy"]
        assert worst <= min(of(logged, label)["robust_accuracy"] for label in labels) + 1e-6

    def test_alone(self) -> None:
        logged = validate(ForwardNet(), monitor(budget=None, attacks={"PGD": None}))
        assert of(logged, "pgd")["samples"] == 20
        assert of(logged) == {}
        assert of(logged, "worst_case") == {}

    def test_curve_over_epsilon(self) -> None:
        net = ForwardNet()
        logged = validate(net, monitor(epsilons=[0.05, 0.1, 0.6]))
        for epsilon, label in ((0.05, "linf_0_05"), (0.1, "linf_0_1"), (0.6, "linf_0_6")):
            attack = AdaptiveAttack(ThreatModel(epsilon=epsilon, **RANGE), "fast")
            expected = rates(by_hand(net, attack))["robust_accuracy"]
            assert of(logged, label) == {"robust_accuracy": pytest.approx(expected, abs=0.051)}
        curve = [of(logged, label)["robust_accuracy"] for label in ("linf_0_05", "linf_0_1", "linf_0_3", "linf_0_6")]
        assert curve == sorted(curve, reverse=True)
        assert curve[0] > curve[-1]

    def test_per_class(self) -> None:
        net = ForwardNet()
        logged = of(validate(net, monitor(num_classes=3)))
        result = by_hand(net)
        for index in range(3):
            of_class = index == TARGET
            expected = float((result.initially_correct & ~result.success)[of_class].double().mean())
            assert logged[f"robust_accuracy_class_{index}"] == pytest.approx(expected)


class TestPart:
    def test_max_samples(self) -> None:
        net = ForwardNet()
        logged = of(validate(net, monitor(max_samples=11)))
        result = AdaptiveAttack(THREAT, "fast")(net.eval(), INPUTS[:11], TARGET[:11])
        assert logged["samples"] == 11
        assert logged["success_rate"] == pytest.approx(float(result.success.sum() / result.initially_correct.sum()))
        for name in ("success_rate", "robust_accuracy"):
            assert logged[f"{name}_low"] <= logged[name] <= logged[f"{name}_high"]

    @pytest.mark.parametrize(
        ("settings", "most"),
        [
            ({"max_time_fraction": 1e-9}, 64),  # the fewest that are attacked
            ({"max_time_fraction": inf}, 400),
            ({"max_samples": 100}, 100),  # whoever says how many gets as many
            ({"max_samples": 100, "max_time_fraction": 1e-9}, 64),
        ],
        ids=str,
    )
    def test_number_of_samples(self, settings: dict[str, Any], most: int) -> None:
        watch = monitor(**settings)
        fit(ForwardNet(), watch, val=loader(400, batch_size=40), max_epochs=2)
        assert [of(row)["samples"] for row in watch.history()] == [most, most]

    def test_samples_are_as_many_as_training_pays_for(self) -> None:
        counts = {fraction: self._counts(fraction) for fraction in (0.15, 0.6)}
        assert counts[0.15] == self._counts(None) == self._counts(0.15)  # whatever the clock says
        few, many = (sum(counts[fraction][1:]) for fraction in (0.15, 0.6))
        assert 64 * 3 < few < 800 * 3
        assert 3 < many / few < 5

    def _counts(self, fraction: float | None) -> list[float]:
        torch.manual_seed(0)
        watch = monitor(max_time_fraction=fraction)
        data = {"train": loader(4000, batch_size=200), "val": loader(4000, batch_size=40)}
        fit(ForwardNet(), watch, **data, max_epochs=4)
        return [of(row)["samples"] for row in watch.history()]

    @pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy may be fooled")
    def test_masking_is_paid_for_by_fewer_samples(self) -> None:
        def counts(**settings: Any) -> list[float]:
            watch = monitor(max_time_fraction=0.5, **settings)
            data = {"train": loader(4000, batch_size=200), "val": loader(4000, batch_size=40)}
            fit(ForwardNet(), watch, **data, max_epochs=4)
            return [of(row)["samples"] for row in watch.history()]

        assert sum(counts(masking=True)[1:]) < sum(counts()[1:])

    def test_part_is_said_once_and_has_intervals(self, caplog: pytest.LogCaptureFixture) -> None:
        watch = monitor(max_time_fraction=1e-9)
        with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
            fit(ForwardNet(), watch, val=loader(100, seed=1), max_epochs=2)
        said = [record.message for record in caplog.records if "max_time_fraction" in record.message]
        assert len(said) == 1
        assert "as many validation samples as fit into 1e-07 % of the training" in said[0]
        assert all("success_rate_low" in of(row) for row in watch.history())

    def test_every_dataloader_has_its_share(self) -> None:
        watch = monitor(max_time_fraction=1e-9)
        fit(ForwardNet(), watch, val=[loader(100, seed=1), loader(90, seed=2)], max_epochs=2)
        for row in watch.history():
            assert [row[f"attack/{LABEL}_samples/dataloader_idx_{index}"] for index in (0, 1)] == [64, 64]

    def test_another_fit_begins_with_an_empty_account(self) -> None:
        watch = monitor()
        counts = []
        for _ in range(2):
            torch.manual_seed(0)
            fit(ForwardNet(), watch, train=loader(2000, batch_size=200), val=loader(500), max_epochs=2)
            counts.append([of(row)["samples"] for row in watch.history()[-2:]])
        assert counts[0] == counts[1]

    def test_evaluation_without_training_has_all_samples(self) -> None:
        watch = monitor(max_time_fraction=1e-9)
        runner = fit(ForwardNet(), watch)
        runner.test(ForwardNet(), loader(100, seed=1), verbose=False)
        runner.validate(ForwardNet(), loader(90, seed=1), verbose=False)
        test, validation = watch.history()[1:]
        assert of(test, prefix="test_attack/")["samples"] == 100
        assert of(validation)["samples"] == 90
        assert "success_rate_low" not in of(validation)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy may be fooled")
    def test_resumed_fit_attacks_the_same_samples(self, tmp_path: Path) -> None:
        data = {"train": loader(4000, batch_size=200), "val": loader(4000, batch_size=40)}

        def run(epochs: int, ckpt_path: Path | None = None) -> AttackMonitor:
            torch.manual_seed(0)
            watch = monitor(masking=True, masking_every_n=100)
            runner = trainer(watch, max_epochs=epochs, val_check_interval=0.5)
            runner.fit(ForwardNet(), data["train"], data["val"], ckpt_path=ckpt_path)
            runner.save_checkpoint(tmp_path / f"{epochs}.ckpt")
            return watch

        run(2)
        resumed, whole = (watch.history() for watch in (run(4, tmp_path / "2.ckpt"), run(4)))
        assert len(resumed) == 8
        seconds = f"attack/{LABEL}_seconds"
        assert [{**row, seconds: 0} for row in resumed] == [{**row, seconds: 0} for row in whole]

    def test_sanity_check_tries_every_attack_on_two_samples(self) -> None:
        seen: list[int] = []

        def attack(logits_fn: Any, inputs: Tensor, target: Tensor, **settings: Any) -> AttackResult:
            seen.append(len(inputs))
            return AdaptiveAttack(THREAT, "fast")(logits_fn, inputs, target, **settings)

        watch = monitor(attacks={"own": attack})
        fit(ForwardNet(), watch)
        assert seen == [2, 2, 8, 8, 4]
        assert len(watch.history()) == 1


class Pair(StepNet):
    """Returns features too."""

    def forward(self, inputs: Tensor) -> Any:
        features = self.body(inputs)
        return self.head(features), features

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0])[0], batch[1])


class NoForward(StepNet):
    forward = LightningModule.forward

    def evaluate(self, batch: Any) -> Any:
        return self.head(self.body(batch[0]))


class Detached(ForwardNet):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.detach()).detach() if not self.training else super().forward(inputs)


def first_output(module: nn.Module, inputs: Tensor) -> Tensor:
    logits: Tensor = module(inputs)[0]
    return logits


@pytest.mark.parametrize("settings", [{"logits_fn": first_output}, {"head": "head"}], ids=["logits_fn", "head"])
def test_modules_that_return_something_else(settings: dict[str, Any]) -> None:
    net = Pair()
    logged = of(validate(net, monitor(**settings)))
    result = AdaptiveAttack(THREAT, "fast")(lambda inputs: net(inputs)[0], INPUTS, TARGET)
    assert subset(logged, rates(result)) == pytest.approx(rates(result))


def test_spawned_processes_can_be_sent_the_monitor() -> None:
    sent = pickle.loads(pickle.dumps(monitor(head="head", epsilons=[0.1], attacks={"PGD": None})))  # noqa: S301 - ours
    assert of(validate(Pair(), sent))["samples"] == 20


def test_head_as_module() -> None:
    net = Pair()
    assert of(validate(net, monitor(head=net.head)))["samples"] == 20


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"epsilon": 0.0, "threat": None}, "`epsilon` must be > 0, got 0.0."),
            ({"epsilon": -0.1, "threat": None}, "`epsilon` must be > 0, got -0.1."),
            ({"epsilon": "8:255", "threat": None}, "`epsilon` must be a number or a fraction like '8/255', got '8:255"),
            ({"epsilon": 0.1}, "Pass either `epsilon` or `threat`, got epsilon=0.1 and threat=ThreatModel(norm='linf'"),
            (
                {"norm": "l2"},
                "`norm` is a part of `threat`, got norm='l2' and ThreatModel(norm='linf', epsilon=0.3, lower=-5.0",
            ),
            (
                {"mean": 0.5},
                "`mean` is a part of `threat`, got mean=0.5 and ThreatModel(norm='linf', epsilon=0.3, lower=-5",
            ),
            ({"threat": None, "lower": 1.0, "upper": 0.0}, "`lower` must be < `upper`, got 1.0 and 0.0."),
            ({"budget": "slow"}, "`budget` must be one of fast, standard, thorough, got 'slow'."),
            ({"attacks": {"PDG": None}}, "`attack` 'PDG' is not in torchattacks; did you mean"),
            ({"attacks": {"PGD": {"step": 3}}}, "`step` is no argument of PGD; did you mean"),
            ({"attacks": {"PGD": None, "pgd": None}}, "`attacks` must have labels of their own, got 'pgd'."),
            ({"attacks": {"worst case": None}}, "`attacks` must have labels of their own, got 'worst case'."),
            ({"attacks": ["PGD"]}, "`attacks` must map names to keywords, e.g. {'PGD': {'steps': 10}}, got ['PGD']."),
            ({"attacks": {"PGD": {"eps": 0.5}}}, "`eps` of PGD is that of the monitor, epsilon=0.3; leave it out."),
            ({"threat": ThreatModel(epsilon=8.0)}, "`epsilon` must be < 1, the width of the valid range, got 8; "),
            ({"epsilons": [0.1, 20.0]}, "`epsilons` must be < 10, the width of the valid range, got 20; "),
            ({"epsilons": 0.1}, "`epsilons` must be a list of numbers or fractions like '8/255', got 0.1."),
            (
                {"epsilons": [0.1], "attacks": {"linf_0_1": {"attack": "PGD"}}},
                "got 'linf_0_1', a radius of `epsilons`.",
            ),
            ({"group": "My attacks"}, "`group` must consist of a-z, 0-9 and _, got 'My attacks'; others"),
            ({"epsilons": ["a"]}, "`epsilons` must be a number or a fraction like '8/255', got 'a'."),
            ({"attacks": {"own": 3}}, "`attacks` must hold keywords, attacks or None, got 3 for 'own'."),
            ({"budget": None}, "`attacks` must hold at least one attack with budget=None."),
            ({"budget": None, "attacks": {"PGD": None}, "epsilons": [0.1]}, "`epsilons` needs the default attack; "),
            ({"epsilons": [0.2, 0.1]}, "`epsilons` must be > 0, finite and strictly increasing, got [0.2, 0.1]."),
            ({"epsilons": [nan]}, "`epsilons` must be > 0, finite and strictly increasing, got [nan]."),
            (
                {"epsilons": [0.10001, 0.10002]},
                "`epsilons` must differ in their first digits, which are in the keys, got",
            ),
            ({"loss_threshold": -1.0}, "`loss_threshold` must be >= 0 and finite, got -1.0."),
            ({"num_classes": 0}, "`num_classes` must be >= 1 or None, got 0."),
            ({"seed": -1}, "`seed` must be in [0, 2**32), got -1."),
            ({"autocast_dtype": "int8"}, "`autocast_dtype` must be 'bfloat16', 'float16' or None, got 'int8'."),
            ({"head": "head", "logits_fn": first_output}, "`head` and `logits_fn` both say what the logits are; "),
            ({"max_time_fraction": 0.0}, "`max_time_fraction` must be in (0, 1], None, or inf for no limit, got 0.0."),
            ({"max_time_fraction": 15}, "`max_time_fraction` must be in (0, 1], None, or inf for no limit, got 15."),
            ({"num_examples": -1}, "`num_examples` must be >= 0, got -1."),
            ({"masking_samples": 0}, "`masking_samples` must be >= 1, got 0."),
            ({"masking_every_n": 0}, "`masking_every_n` must be >= 1, got 0."),
            ({"every_n_epochs": 0}, "`every_n_epochs` must be >= 1, got 0."),
        ],
        ids=lambda value: None if isinstance(value, str) else ", ".join(value),
    )
    def test_arguments(self, settings: dict[str, Any], message: str, unchecked_shapes: Any) -> None:
        with unchecked_shapes, pytest.raises(ValueError, match=re.escape(message)):
            monitor(**settings)

    @pytest.mark.parametrize(
        ("net", "settings", "message"),
        [
            (
                ForwardNet,
                {"threat": ThreatModel(epsilon=0.1)},
                "`lower=`/`upper=`, or `mean=`/`std=` if they are normalised.",
            ),
            (
                Pair,
                {},
                "Pair returned tuple instead of logits; pass `logits_fn=lambda module, x: module(x)[0]`, or `head=",
            ),
            (Pair, {"head": "neck"}, "`head` 'neck' is not a part of Pair; pass one of its layers, in 'body', 'head'."),
            (NoForward, {}, "NoForward has no `forward`; pass `logits_fn=lambda module, x: ...`, "),
            (Detached, {}, "`logits_fn` must be differentiable in its inputs"),
            (
                ForwardNet,
                {"threat": ThreatModel("l2", 0.3, **RANGE), "budget": "thorough"},
                "Square cannot attack inputs",
            ),
            (
                ForwardNet,
                {"inputs_and_targets": lambda batch: ([1], batch[1])},
                "got list and Tensor; pass `inputs_and_",
            ),
            (
                ForwardNet,
                {"inputs_and_targets": lambda batch: (batch[0], None)},
                "got Tensor and NoneType; pass `inputs",
            ),
            (
                ForwardNet,
                {"inputs_and_targets": lambda batch: (batch[0].int(), batch[1])},
                "must be a floating-point ba",
            ),
            (ForwardNet, {"inputs_and_targets": lambda batch: (batch[0], batch[1].float())}, "`target` must"),
            (
                ForwardNet,
                {"inputs_and_targets": lambda batch: (batch[0], batch[1] + 7)},
                "`target` must be in [0, 3), g",
            ),
            (ForwardNet, {"attacks": {"TIFGSM": None}}, "TIFGSM cannot attack inputs of shape (2, 4)"),
        ],
    )
    @pytest.mark.parametrize("on_error", ["raise", "warn"])
    def test_before_the_first_training_step(
        self, net: Any, settings: dict[str, Any], message: str, on_error: str, unchecked_shapes: Any
    ) -> None:
        module = net()
        with unchecked_shapes, pytest.raises((ValueError, AttributeError), match=re.escape(message)):
            fit(module, monitor(on_error=on_error, **settings))
        assert module.training_steps == 0

    def test_nan_gradients_are_counted_and_finite_values_logged(self) -> None:
        class Broken(ForwardNet):
            def forward(self, inputs: Tensor) -> Tensor:
                return super().forward(inputs) + 0 * (inputs - inputs.detach()).sum(1, keepdim=True).abs().sqrt()

        logged = of(validate(Broken(), monitor()))
        assert logged["nonfinite"] > 0
        assert all(torch.tensor(value).isfinite() for value in logged.values())

    def test_failure_costs_one_point(self) -> None:
        class FailsLater(ForwardNet):
            def forward(self, inputs: Tensor) -> Any:
                broken = self.trainer.current_epoch == 1 and inputs.requires_grad
                return (super().forward(inputs),) if broken else super().forward(inputs)

        watch = monitor(on_error="warn")
        with pytest.warns(UserWarning, match="AttackMonitor failed in epoch 1 and leaves out that point: ValueError"):
            fit(FailsLater(), watch, max_epochs=3)
        assert [row["epoch"] for row in watch.history()] == [0, 2]


def test_own_attack_gets_tensors_that_can_be_recorded() -> None:
    def attack(logits_fn: Any, inputs: Tensor, target: Tensor, **settings: Any) -> AttackResult:
        with torch.enable_grad():
            point = inputs.detach().requires_grad_()
            nn.functional.cross_entropy(logits_fn(point), target).backward()
        assert settings["clean_logits"].shape == (len(inputs), 3)
        noise.append(torch.rand(3, generator=settings["generator"]).tolist())
        return AdaptiveAttack(THREAT, "fast")(logits_fn, inputs, target, **settings)

    noise: list[list[float]] = []
    assert of(validate(ForwardNet(), monitor(attacks={"own": attack})), "own")["samples"] == 20
    assert len({tuple(numbers) for numbers in noise}) == 3


@pytest.mark.parametrize("dataloaders", [None, [1]])
def test_several_dataloaders(dataloaders: list[int] | None) -> None:
    net = ForwardNet()
    logged = validate(net, monitor(dataloaders=dataloaders), val=[loader(8), loader(20, seed=1)])
    names = {name.rpartition("/")[2] for name in logged if name.startswith("attack/")}
    assert names == ({"dataloader_idx_0", "dataloader_idx_1"} if dataloaders is None else {"dataloader_idx_1"})
    expected = rates(by_hand(net))["success_rate"]
    assert logged[f"attack/{LABEL}_success_rate/dataloader_idx_1"] == pytest.approx(expected)


@pytest.mark.parametrize(("text", "radius"), [("8/255", 8 / 255), ("2 / 255", 2 / 255), ("0.5", 0.5)])
def test_epsilon_may_be_a_fraction(text: str, radius: float) -> None:
    assert AttackMonitor(text).threat.epsilon == radius


def test_epsilons_may_be_fractions() -> None:
    watch = AttackMonitor("8/255", epsilons=["2/255", "8/255"], masking=False)
    assert watch._curve is not None
    assert watch._curve.keys == ["attack/linf_2_255_robust_accuracy", "attack/linf_8_255_robust_accuracy"]


def test_own_attack_must_return_a_result() -> None:
    with pytest.raises(ValueError, match=r"^An attack must return an `AttackResult`, got Tensor\.") as caught:
        fit(ForwardNet(), monitor(attacks={"mine": lambda _logits_fn, inputs, *_, **__: inputs}))
    assert caught.value.__notes__ == ["In the attack 'mine'."]


@pytest.mark.parametrize("plain", [True, False])
def test_normalisation_that_nobody_did_is_noticed(plain: bool) -> None:  # noqa: FBT001 - a parameter of the test
    class Pixels(ForwardNet):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0] if plain else (batch[0] - 0.5) / 0.25)

    def pixels(batch: Any) -> tuple[Tensor, Tensor]:
        x = batch[0].sigmoid().round()
        return (x if plain else (x - 0.5) / 0.25), batch[1]

    def run() -> None:
        validate(Pixels(), AttackMonitor(0.1, mean=0.5, std=0.25, masking=False, inputs_and_targets=pixels))

    if not plain:
        run()
        return
    with pytest.warns(UserWarning, match=re.escape("the first inputs lie in [0.5, 0.75], a small part of [0, 1];")):
        run()


def test_threats_by_keywords_and_as_one() -> None:
    keywords = AttackMonitor(0.5, norm="l2", lower=None, upper=None, mean=[0.0] * 4, std=[1.0] * 4, masking=False)
    assert keywords.threat == ThreatModel("l2", 0.5, None, None, [0.0] * 4, [1.0] * 4)
    assert of(validate(ForwardNet(), keywords), "l2_0_5")["samples"] == 20
    assert AttackMonitor().threat == ThreatModel(epsilon=8 / 255)


def test_compiled_modules_are_attacked_without_compiling_anew() -> None:
    def graphs(net: ForwardNet, *monitors: AttackMonitor) -> int:
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        compiled: Any = torch.compile(net, backend="aot_eager")
        trainer(*monitors).validate(compiled, loader(20, seed=1), verbose=False)
        count: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        torch.compiler.reset()
        return count

    net, watch = ForwardNet(), monitor()
    assert graphs(net, watch) == graphs(ForwardNet())
    assert subset(of(watch.history()[0]), rates(by_hand(net))) == pytest.approx(rates(by_hand(net)))
