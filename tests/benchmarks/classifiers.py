"""Digit classifiers to attack: small, but each of a kind that people use."""

from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torchvision.models import VisionTransformer, resnet18

from tests.attacks.models import digit_cnn, digits

BATCH = 50


def digit_resnet(epochs: int) -> nn.Module:
    """ResNet-18 with the stem for small images."""

    def build() -> nn.Module:
        model = resnet18(num_classes=10)
        model.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
        return model

    return trained(build, epochs)


def digit_vit(epochs: int) -> nn.Module:
    """Four layers, 16 patches."""

    def build() -> nn.Module:
        model = VisionTransformer(28, 7, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)
        model.conv_proj = nn.Conv2d(1, 64, 7, 7)
        return model

    return trained(build, epochs)


@cache
def classifier(name: str, *, quick: bool) -> nn.Module:
    """Train one; with ``quick``, as good as not at all."""
    builders: dict[str, Callable[[], nn.Module]] = {
        "CNN": lambda: digit_cnn(1 if quick else 8),
        "adversarially trained CNN": lambda: digit_cnn(1) if quick else digit_cnn(20, 0.2),
        "ResNet-18": lambda: digit_resnet(0 if quick else 2),
        "ViT": lambda: digit_vit(0 if quick else 15),
    }
    return builders[name]()


def trained(build: Callable[[], nn.Module], epochs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        images, labels = (part[:4000] for part in digits())
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, max(1, epochs) * len(labels) // BATCH)
        for _ in range(epochs):
            for rows in torch.randperm(len(labels)).split(BATCH):
                loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()
