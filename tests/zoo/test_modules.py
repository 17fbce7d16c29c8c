"""Lightning modules that we did not write, and modules and batches that are unusual."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_flatness import AttackMonitor, RelativeFlatnessMonitor
from tests.callbacks.conftest import trainer
from tests.zoo.conftest import (
    CLASSES,
    COUNT,
    EPSILON,
    Wrapped,
    check_everything,
    foreign,
    images,
    kappa,
    monitors,
    seen,
    validate,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, CLASSES))


def _facts(model: nn.Module, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    features, logits = seen(model, layer, torch.stack([picture for picture, _ in images()]))
    return kappa(features, layer.weight.detach(), logits), logits


@pytest.mark.filterwarnings("ignore:You called `self.log.* but have no logger configured")
def test_torch_uncertainty() -> None:
    routines = foreign("torch_uncertainty.routines")
    model = network()
    module = routines.ClassificationRoutine(model, num_classes=CLASSES, loss=nn.CrossEntropyLoss())
    check_everything(module, images(), *_facts(model, model[-1]), monitors())


def test_lightning_uq_box() -> None:
    methods = foreign("lightning_uq_box.uq_methods")

    model = network()
    module = methods.DeterministicClassification(model, nn.CrossEntropyLoss())
    data = [{"input": picture, "target": label} for picture, label in images()]
    kappas, logits = _facts(model, model[-1])
    logged = validate(module, data, *monitors())
    assert logged["flatness/relative_flatness"] == pytest.approx(float(kappas.mean()), rel=1e-4)
    assert logged["scaling/relative_flatness_1"] == pytest.approx(float(kappas.mean()), rel=1e-4)
    target = torch.tensor([label for _, label in images()])
    accuracy = float((logits.argmax(1) == target).double().mean())
    assert logged["valAcc"] == pytest.approx(accuracy, rel=1e-6)
    success = logged.get("attack/linf_2_255_success_rate", 0.0)
    assert logged["attack/linf_2_255_robust_accuracy"] == pytest.approx(accuracy * (1 - success), rel=1e-6)


class TwoTasks(Wrapped):
    def __init__(self) -> None:
        super().__init__(network()[:-1])
        self.shape, self.colour = nn.Linear(24, CLASSES), nn.Linear(24, 3)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.model(inputs)
        return {"shape": self.shape(features), "colour": self.colour(features)}


def test_two_tasks_need_the_name_of_a_head() -> None:
    module = TwoTasks()
    message = r"^`head` is ambiguous: 'shape', 'colour' were given the same features; pass `head=` one of them\.$"
    with pytest.raises(ValueError, match=message):
        validate(module, images(), RelativeFlatnessMonitor())
    with pytest.raises(ValueError, match=r"pass `logits_fn=lambda module, x: module\(x\)\['shape'\]`, or `head=`"):
        validate(module, images(), AttackMonitor(epsilon=EPSILON))
    shape = lambda module, inputs: module(inputs)["shape"]  # noqa: E731
    check_everything(module, images(), *_facts(module, module.shape), monitors("shape", logits_fn=shape))


class Augmented(Wrapped):
    """Looks at every picture twice."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])
        self(batch[0].flip(3))


def test_two_views_are_averaged() -> None:
    module = Augmented(network())
    kappas, _ = _facts(module, module.model[-1])
    pictures = torch.stack([picture.flip(2) for picture, _ in images()])
    features, logits = seen(module, module.model[-1], pictures)
    mirrored = kappa(features, module.model[-1].weight.detach(), logits)
    logged = validate(module, images(), RelativeFlatnessMonitor(), AttackMonitor(epsilon=EPSILON, masking=False))
    expected = float(torch.cat([kappas, mirrored]).mean())
    assert logged["flatness/relative_flatness"] == pytest.approx(expected, rel=1e-4)


@dataclass
class Sample:
    index: int
    image: Tensor
    label: Tensor


class LabelFirst(NamedTuple):
    label: Tensor
    image: Tensor


class Named(Wrapped):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch.image)


@pytest.mark.parametrize(
    "form", [lambda image, label: Sample(0, image, label), lambda image, label: LabelFirst(label, image)]
)
def test_data_classes_and_named_tuples(form: Any) -> None:
    def collate(samples: list[tuple[Tensor, int]]) -> Any:
        return form(torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples]))

    module = Named(network())
    data = DataLoader(images(), 4, collate_fn=collate)  # type: ignore[arg-type]
    (logged,) = trainer(*monitors()).validate(module, data, verbose=False)
    kappas, logits = _facts(module, module.model[-1])
    assert logged["flatness/relative_flatness"] == pytest.approx(float(kappas.mean()), rel=1e-4)
    right = logits.argmax(1) == torch.tensor([label for _, label in images()])
    assert logged["flatness/correct"] == pytest.approx(float(kappas[right].mean()), rel=1e-4)
    assert len(right) == COUNT
