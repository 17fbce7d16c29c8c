"""Networks of timm, with random weights."""

from typing import Any

import pytest

from tests.zoo.conftest import CLASSES, check_linear_head, foreign

timm = foreign("timm")


@pytest.mark.parametrize(
    ("name", "head", "settings"),
    [
        ("resnet10t", "fc", {}),
        ("vit_tiny_patch16_224", "head", {"img_size": 32, "depth": 2}),
        ("convnext_atto", "head.fc", {"depths": (1, 1, 1, 1)}),
        ("mixer_s32_224", "head", {"img_size": 32}),
    ],
)
def test_all_monitors_by_default(name: str, head: str, settings: dict[str, Any]) -> None:
    check_linear_head(head, timm.create_model(name, num_classes=CLASSES, **settings))
