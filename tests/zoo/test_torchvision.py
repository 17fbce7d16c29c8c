"""Classifiers of torchvision, with random weights."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from lightning_flatness import RelativeFlatnessMonitor
from tests.zoo.conftest import CLASSES, Wrapped, check_linear_head, images, validate

# Initialising by a truncated normal takes torchvision seconds.
FAST: dict[str, Any] = {"init_weights": False}


@pytest.mark.parametrize(
    ("make", "head", "side", "settings"),
    [
        (models.vgg11, "classifier.6", 32, FAST),
        (models.densenet121, "classifier", 32, {}),
        (models.mobilenet_v3_small, "classifier.3", 32, {}),
        (models.swin_t, "head", 32, {}),
        (models.googlenet, "fc", 32, {"aux_logits": True, **FAST}),
        (models.inception_v3, "fc", 75, {"aux_logits": True, **FAST}),
    ],
    ids=["vgg", "densenet", "mobilenet", "swin", "googlenet", "inception"],
)
def test_all_monitors_by_default(make: Any, head: str, side: int, settings: dict[str, Any]) -> None:
    check_linear_head(head, make(num_classes=CLASSES, **settings), side=side)


def test_squeezenet_averages_rectified_logits_of_positions() -> None:
    module = Wrapped(models.squeezenet1_1(num_classes=CLASSES))
    with pytest.raises(ValueError, match=r"^`head` cannot be found: Wrapped has no nn\.Linear\. .* 1×1 kernels\.$"):
        validate(module, images(), RelativeFlatnessMonitor())
    # Its nn.ReLU works in place.
    with pytest.raises(ValueError, match=r"^`head` must be an affine map of its input \(W x \+ b\), which .* is not; "):
        validate(module, images(), RelativeFlatnessMonitor(head="model.classifier.1"))
    module.model.classifier[2] = nn.Identity()
    message = r"makes logits at 3 × 3 positions of each sample, but there is one target for all of them; average the"
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        validate(module, images(64), RelativeFlatnessMonitor(head="model.classifier.1"))
