"""The guard around attacks that are broken, misused or missing."""

import pickle
import re
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torchattacks
from torch import Tensor, nn
from torchattacks.attack import Attack

from lightning_flatness.attacks import AttackResult, ThreatModel, from_torchattacks
from tests.attacks.zoo import Footprints, colour_model, eight, quick

THREAT = ThreatModel(epsilon=0.2)


class Foreign(Attack):
    """Attack that does as it is told."""

    def __init__(self, model: nn.Module, act: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__("Foreign", model)
        self.act = act

    def forward(self, inputs: Tensor, labels: Tensor) -> Any:
        return self.act(self, inputs, labels)


def attack_with(act: Callable[[Any, Tensor, Tensor], Any], threat: ThreatModel = THREAT) -> AttackResult:
    """Let a foreign attack loose on the seven digits that are classified well."""
    return from_torchattacks(lambda model: Foreign(model, act), threat)(colour_model(), *eight())


def fgsm(attack: Any, inputs: Tensor, labels: Tensor, size: float = 0.2) -> Tensor:
    point = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(attack.get_logits(point), labels), point)
    return (inputs + size * gradient.sign()).clamp(0, 1)


def test_honest_foreign_attack_succeeds():
    result = attack_with(fgsm)
    assert result.success.sum() == 7
    assert not result.rejected.any()
    assert (result.forwards, result.backwards) == (8 + 7 + 7, 7)


def returning(row: int, value: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor, Tensor], Tensor]:
    def act(attack: Any, inputs: Tensor, labels: Tensor) -> Tensor:
        x_adv = fgsm(attack, inputs, labels)
        x_adv[row] = value(x_adv[row])
        return x_adv

    return act


@pytest.mark.parametrize(
    "value",
    [
        lambda x_adv: torch.full_like(x_adv, torch.nan),
        lambda x_adv: torch.where(x_adv == x_adv.amax(), torch.nan, x_adv),
        lambda x_adv: x_adv + 1e-4,
        torch.ones_like,
        lambda x_adv: torch.full_like(x_adv, torch.inf),
    ],
    ids=["all NaN", "one NaN", "just outside the ball", "far outside the ball", "infinite"],
)
def test_what_leaves_the_ball_or_is_no_number_is_rejected_and_counted(value):
    result = attack_with(returning(2, value))
    assert result.rejected.tolist() == [False, False, False, True, False, False, False, False]
    assert result.success.tolist() == [False, True, True, False, True, True, True, True]
    assert torch.equal(result.x_adv[3], eight()[0][3])
    assert result.loss.isfinite().all()
    # A rejected result is not even shown to the model.
    assert result.forwards == 8 + 7 + 6


def test_what_leaves_the_range_but_not_the_ball_is_rejected():
    result = attack_with(lambda _, inputs, __: inputs - 0.1)
    assert result.rejected.tolist() == [False] + 7 * [True]
    # In a range of width 2, that is the radius of the ball.
    wide = ThreatModel(epsilon=0.2, lower=-1.0)
    assert not attack_with(lambda _, inputs, __: inputs - 0.1, wide).rejected.any()
    assert attack_with(lambda _, inputs, __: inputs - 0.101, wide).rejected.sum() == 7


def test_rounding_errors_are_projected_and_verified():
    result = attack_with(lambda *batch: fgsm(*batch, size=0.2 + 3e-7))
    assert result.success.sum() == 7
    assert THREAT.distance(result.x_adv, eight()[0]).amax() <= 0.2


def test_l2_ball_is_that_of_the_threat_model():
    attack = torchattacks.PGDL2(colour_model(), eps=1.0, alpha=0.3)
    outside = from_torchattacks(attack, ThreatModel("l2", 0.9))(colour_model(), *eight())
    assert outside.rejected.sum() == 7
    inside = from_torchattacks(attack, ThreatModel("l2", 1.0))(colour_model(), *eight())
    assert not inside.rejected.any()
    assert inside.success.any()


def test_attack_that_claims_nothing_true_has_no_success():
    result = attack_with(lambda _, inputs, __: inputs.clone())
    assert not result.success.any()
    assert not result.rejected.any()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda _, inputs, __: inputs[:3], r"Foreign must return images of shape \(7, 3, 7, 7\), got \(3, 3, 7, 7\)"),
        (lambda _, inputs, __: (inputs, []), r"Foreign must return images of shape \(7, 3, 7, 7\), got tuple"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        attack_with(act)


def vandal(attack: Any, inputs: Tensor, labels: Tensor) -> Tensor:
    """Do what attacks do to the model that they are given, and more."""
    attack.model.train()
    attack.model.zero_grad(set_to_none=False)
    for parameter in attack.model.parameters():
        parameter.requires_grad_()
    nn.functional.cross_entropy(attack.get_logits(inputs.requires_grad_()), labels).backward()
    torch.manual_seed(0)
    torch.rand(3)
    inputs.detach_().zero_()
    labels.zero_()
    return inputs


def test_vandal_is_tidied_up_after(unchecked_shapes):
    model, (inputs, target) = deepcopy(colour_model()), eight()
    model.get_submodule("1").momentum = 0.0  # training mode would move the running mean
    model[0].weight.grad = torch.ones_like(model[0].weight)
    copies = inputs.clone(), target.clone()
    with unchecked_shapes:
        before = Footprints(model)
        before.state.pop("1.num_batches_tracked")
        from_torchattacks(lambda guarded: Foreign(guarded, vandal), THREAT)(model, inputs, target)
        model[1].num_batches_tracked.zero_()
        before.state["1.num_batches_tracked"] = torch.tensor(0)
        before.assert_none()
    assert torch.equal(inputs, copies[0])
    assert torch.equal(target, copies[1])


def test_attack_may_write_into_what_it_is_given():
    result = attack_with(lambda attack, inputs, labels: inputs.copy_(fgsm(attack, inputs, labels)))
    assert result.success.sum() == 7


def test_logits_that_the_model_keeps_are_not_written_into():
    stored = torch.eye(10)[eight()[1]]
    before = stored.clone()
    attack = from_torchattacks(lambda model: Foreign(model, overwriting), THREAT)
    attack(lambda images: stored[-len(images) :], *eight(), clean_logits=stored)
    assert torch.equal(stored, before)


def overwriting(attack: Any, inputs: Tensor, _: Tensor) -> Tensor:
    attack.get_logits(inputs).zero_()
    return inputs


def test_modes_are_the_callers_also_during_the_attack():
    seen = []

    def act(attack: Any, inputs: Tensor, _: Tensor) -> Tensor:
        seen.append([module.training for module in attack.model.module.modules()])
        return inputs

    model = colour_model()
    attack_with(act)
    assert seen == [[module.training for module in model.modules()]]


def test_attack_may_be_told_to_use_training_mode():
    seen, before = [], Footprints(colour_model())
    attack = Foreign(colour_model(), lambda foreign, inputs, _: seen.append(foreign.model.module[4].training) or inputs)
    attack.set_model_training_mode(model_training=True, dropout_training=True)
    from_torchattacks(attack, THREAT)(colour_model(), *eight())
    assert seen == [True]
    assert [module.training for module in colour_model().modules()] == before.modes


@pytest.mark.parametrize("given", ["class", "instance", "factory"])
def test_class_instance_and_factory_do_what_the_name_does(given):
    settings = {"eps": 0.2, "alpha": 0.05, "steps": 3, "random_start": False}
    by_name = from_torchattacks("PGD", THREAT, steps=3, random_start=False)
    attack = {
        "class": lambda: from_torchattacks(torchattacks.PGD, THREAT, steps=3, random_start=False),
        "instance": lambda: from_torchattacks(torchattacks.PGD(nn.Linear(1, 1), **settings), THREAT),
        "factory": lambda: from_torchattacks(lambda model: torchattacks.PGD(model, **settings), THREAT),
    }[given]()
    expected, result = (attack(colour_model(), *eight()) for attack in (by_name, attack))
    assert torch.equal(result.x_adv, expected.x_adv)


def test_name_stands_for_what_it_was_given():
    attack = from_torchattacks("PGD", THREAT, steps=3)
    assert attack.name == "PGD"
    assert attack.threat is THREAT
    assert repr(attack).endswith("steps=3, eps=0.2, alpha=0.05)")
    copy = pickle.loads(pickle.dumps(attack))  # noqa: S301 - our own
    assert torch.equal(copy(colour_model(), *eight()).x_adv, attack(colour_model(), *eight()).x_adv)


def test_ranges_per_channel_are_mapped_each_by_its_own_line():
    model, (inputs, target) = colour_model(), eight()
    lower, width = torch.tensor([0.0, -1.0, 2.0]).view(3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    threat = ThreatModel(epsilon=(0.2, 0.4, 0.8), lower=(0.0, -1.0, 2.0), upper=(1.0, 1.0, 6.0))
    attack = from_torchattacks("PGD", threat, random_start=False)
    result = attack(lambda data: model((data - lower) / width), inputs * width + lower, target)
    expected = from_torchattacks("PGD", THREAT, random_start=False)(model, inputs, target)
    assert torch.equal(result.success, expected.success)
    assert (((result.x_adv - lower) / width - expected.x_adv).abs().amax((1, 2, 3)) < 1e-5).all()


def test_steps_reach_the_edge_of_a_large_ball():
    # The default step of 2/255 would stop at 0.08.
    result = from_torchattacks("PGD", ThreatModel(epsilon=0.4))(colour_model(), *eight())
    assert ThreatModel(epsilon=0.4).distance(result.x_adv, eight()[0])[1:].amin() == pytest.approx(0.4)


def test_epsilon_0_leaves_nothing_to_attack():
    by_hand = torchattacks.PGDL2(deepcopy(colour_model()), eps=0.0, alpha=0.0, random_start=False)
    assert by_hand(*eight()).isnan().any()
    result = from_torchattacks("PGDL2", ThreatModel("l2", 0.0))(colour_model(), *eight())
    assert torch.equal(result.x_adv, eight()[0])
    assert not result.success.any()


def test_cw_moves_pixels_at_the_ends_of_the_range():
    model, inputs = colour_model(), eight()[0].round()
    target, settings = model(inputs).argmax(1), {"c": 5, "steps": 100, "lr": 0.5}
    by_hand = torchattacks.CW(deepcopy(model), **settings)
    assert torch.equal(by_hand(inputs, target), inputs)
    assert from_torchattacks("CW", ThreatModel("l2", 5.0), **settings)(model, inputs, target).success.any()


def test_deepfool_crosses_the_boundary():
    model, (inputs, target) = colour_model(), (part[1:] for part in eight())
    stuck = model(torchattacks.DeepFool(deepcopy(model), steps=10)(inputs, target)).argmax(1) == target
    assert stuck.any()
    result = from_torchattacks("DeepFool", ThreatModel("l2", 3.0), steps=10)(model, inputs, target)
    assert result.success[stuck].any()


def test_autoattack_has_its_published_budget(monkeypatch):
    made = []
    forward = torchattacks.AutoAttack.forward
    monkeypatch.setattr(torchattacks.AutoAttack, "forward", lambda *batch: made.append(batch[0]) or forward(*batch))
    from_torchattacks("AutoAttack", THREAT)(colour_model(), *eight())
    parts = made[0]._autoattack.attacks
    assert [part.steps for part in parts[:3]] == [100, 100, 100]
    assert (parts[3].n_queries, parts[3].rescale_schedule) == (5000, False)


@pytest.mark.parametrize("num_classes", [4, 12])
@pytest.mark.parametrize("name", ["JSMA", "APGDT", "FAB"])
def test_any_number_of_classes(name, num_classes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))
    inputs = torch.rand(6, 3, 4, 4)
    target = model(inputs).argmax(1)
    settings = {"multi_targeted": True} if name == "FAB" else {}
    result = from_torchattacks(name, ThreatModel("l2", 3.0), **settings)(model, inputs, target)
    assert result.success.any()


def test_too_few_classes_are_refused():
    model, inputs = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.rand(6, 3, 4, 4)
    attack = from_torchattacks("APGDT", THREAT)
    with pytest.raises(ValueError, match="APGDT needs at least 4 classes, got 3; choose another attack"):
        attack(model, inputs, model(inputs).argmax(1))


def test_masked_classes_do_not_matter():
    model, (inputs, target) = colour_model(), eight()
    mask = torch.zeros(10).scatter(0, torch.tensor([int(set(range(10)).difference(target.tolist()).pop())]), -torch.inf)
    for name in ("CW", "EADL1", "PGD"):
        result = quick(name)(lambda images: model(images) + mask, inputs, target)
        assert result.success.any()
        assert not result.rejected.any()


def test_gradients_do_not_underflow_in_float16():
    # The mean over the batch and the confidence leave slopes of 1e-8, which are 0 in float16.
    model, (inputs, target) = deepcopy(colour_model()), eight()
    with torch.no_grad():
        for parameter in model[5].parameters():
            parameter.mul_(4)
    half = deepcopy(model).half()
    settings = {"random_start": False, "steps": 5}
    expected = from_torchattacks("PGD", ThreatModel(epsilon=0.05), **settings)(model, inputs, target)
    result = from_torchattacks("PGD", ThreatModel(epsilon=0.05), **settings)(half, inputs.half(), target)
    assert expected.success.any()
    assert (result.success != expected.success).sum() <= 1


def test_nothing_to_attack():
    model, (inputs, target) = colour_model(), eight()
    attack = from_torchattacks("Square", THREAT)
    result = attack(model, inputs, (model(inputs).argmax(1) + 1) % 10)
    assert not result.initially_correct.any()
    assert result.forwards == 8
    empty = attack(model, inputs[:0], target[:0])
    assert empty.x_adv.shape == (0, 3, 7, 7)


def test_known_logits_save_a_forward():
    model, (inputs, target) = colour_model(), eight()
    attack = from_torchattacks("FGSM", THREAT)
    result = attack(model, inputs, target, clean_logits=model(inputs).detach())
    assert result.forwards == attack(model, inputs, target).forwards - 8


def test_check_says_what_cannot_work():
    model, batch = colour_model(), eight()
    with pytest.raises(ValueError, match=r"EADL1 cannot attack inputs of shape \(8, 3, 7, 7\): integer modulo by zero"):
        from_torchattacks("EADL1", ThreatModel("l2", 1.0), max_iterations=5).check(model, *batch)
    with pytest.raises(
        ValueError, match=r"PGD cannot attack .* must be differentiable in its inputs, got logits without"
    ):
        from_torchattacks("PGD", THREAT).check(lambda images: model(images).detach(), *batch)
    from_torchattacks("Square", THREAT).check(lambda images: model(images).detach(), *batch)
    with pytest.raises(ValueError, match=r"`inputs` must lie in \[0.0, 1.0\], got \[-1, 0\]"):
        from_torchattacks("PGD", THREAT).check(model, -torch.ones_like(batch[0]) * batch[0].round(), batch[1])


@pytest.mark.parametrize(
    ("attack", "threat", "settings", "message"),
    [
        ("pdg", {}, {}, "`attack` 'pdg' is not in torchattacks; did you mean PGD"),
        ("Blurring", {}, {}, "`attack` 'Blurring' is not in torchattacks; choose from APGD, APGDT, AutoAttack"),
        ("LGV", {}, {}, "`attack` 'LGV' cannot be used by name: it trains the model further and needs its training"),
        ("PGD", {}, {"stepz": 3}, "`stepz` is no argument of PGD; did you mean steps?"),
        ("PGD", {}, {"model": 3}, "`model` is no argument of PGD; choose from eps, alpha, steps, random_start."),
        ("PGDL2", {}, {}, "PGDL2 attacks in the norm L2, `threat` has 'linf'; make them the same."),
        ("PGD", {"norm": "l2"}, {}, "PGD attacks in the norm Linf, `threat` has 'l2'; make them the same."),
        ("APGD", {}, {"norm": "L2"}, "APGD attacks in the norm L2, `threat` has 'linf'; make them the same."),
        (torchattacks.APGD(colour_model(), norm="L2"), {}, {}, "APGD attacks in the norm L2, `threat` has 'linf'"),
        (torchattacks.PGD(colour_model()), {}, {"steps": 3}, "`steps` cannot be set for PGD, which is no class of att"),
        (
            "CW",
            {"upper": None},
            {},
            "CW needs a valid range, got `lower`=0.0, `upper`=None; give ThreatModel the small",
        ),
        (
            "PGD",
            {"upper": (1.0, 2.0, 1.0)},
            {},
            "PGD needs one `epsilon` / (`upper` - `lower`) for all channels, got 0.01569, 0.03137; use pgd or apgd.",
        ),
        (3, {}, {}, "`attack` must be a name, an attack of torchattacks or a function, got 3."),
    ],
)
def test_impossible_arguments_are_refused(attack, threat, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_torchattacks(attack, ThreatModel(**threat), **settings)


def test_impossible_factories_are_refused():
    with pytest.raises(ValueError, match="PGDL2 attacks in the norm L2, `threat` has 'linf'"):
        from_torchattacks(partial(torchattacks.PGDL2, eps=0.2), THREAT)(colour_model(), *eight())
    with pytest.raises(ValueError, match="no_attack must return an attack of torchattacks, got Sequential"):
        from_torchattacks(no_attack, THREAT)(colour_model(), *eight())


def no_attack(model: nn.Module) -> nn.Module:
    return model.module


INSTALL = "pip install --no-deps 'torchattacks>=3.5.1' && pip install scipy"


def test_missing_torchattacks_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(
        ImportError, match=re.escape(f"`attack` 'PGD': torchattacks cannot be imported. With pip: `{INSTALL}`")
    ):
        from_torchattacks("PGD", THREAT)

    with pytest.raises(ValueError, match=r"`attack` 'PGDD' is not in torchattacks; did you mean"):
        from_torchattacks("PGDD", THREAT)


def test_old_torchattacks_says_what_to_install(monkeypatch):
    monkeypatch.setattr(torchattacks, "__version__", "3.3.0")
    with pytest.raises(ImportError, match=re.escape(f"torchattacks 3.3.0 is too old. With pip: `{INSTALL}`")):
        from_torchattacks("PGD", THREAT)
