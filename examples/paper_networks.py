"""The networks of the papers, for 32×32 images with values in [0, 1], and a small one for digits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision import models, transforms
from typing_extensions import override

from examples.cifar10 import MEAN, STD


def digit_cnn() -> nn.Module:
    """Two convolutions and one hidden layer, for 28×28 digits."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def resnet18() -> nn.Module:
    """ResNet-18 with a stem for small images."""
    network = models.resnet18(num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return _standardised(network)


def densenet121() -> nn.Module:
    """DenseNet-121 with a stem for small images."""
    network = models.densenet121(num_classes=10)
    network.features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.features.pool0 = nn.Identity()
    return _standardised(network)


def vgg11_bn() -> nn.Module:
    """VGG-11 with batch normalisation, and one linear layer behind the convolutions."""
    features = models.vgg11_bn().features
    return _standardised(nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)))


def wide_resnet28_4() -> nn.Module:
    """WRN-28-4 (Zagoruyko and Komodakis, *Wide Residual Networks*, BMVC 2016)."""
    widths, depth = (16, 64, 128, 256), 4
    blocks = [
        _WideBlock(before if first else after, after, stride if first else 1)
        for before, after, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
        for first in (True, *[False] * (depth - 1))
    ]
    top = (nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))
    return _standardised(nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1, bias=False), *blocks, *top))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "wrn-28-4": wide_resnet28_4,
    "densenet121": densenet121,
    "vgg11-bn": vgg11_bn,
}


def head_of(network: nn.Module) -> nn.Linear:
    """Return the last linear layer.

    Args:
        network: has one.
    """
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]


class _WideBlock(nn.Module):
    """Two 3×3 convolutions behind batch normalisation, and a way past them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
        )
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else nn.Identity()

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        active = self.activate(inputs)
        past: Tensor = self.shortcut(active) if isinstance(self.shortcut, nn.Conv2d) else inputs
        return past + self.residual(active)


def _standardised(network: nn.Module) -> nn.Module:
    """Standardise images inside the network, so that attacks see pixels."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(transforms.Normalize(MEAN, STD), network)
