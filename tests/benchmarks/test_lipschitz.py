"""What a certificate costs, how loose it is, and which part of that is the layers' own."""

from copy import deepcopy
from statistics import median
from time import process_time

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from lightning_flatness.functional import certified_lipschitz, local_lipschitz
from tests.attacks.models import digit_cnn, held_out

TITLE = "Lipschitz constants, l2: certified, and the largest estimate on 16 inputs; CPU seconds, one thread"
COLUMNS = ("network", "certified", "seconds", "estimated", "seconds", "forward", "layers: median", "largest ratio")


def _digits(*, trained):
    return digit_cnn(8 if trained else 1)[:-1], held_out(16)[0]


def _resnet(*, stride):
    model = resnet18(weights=None)
    model.fc = nn.Identity()
    if stride == 1:  # as on CIFAR-10
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model.eval(), torch.rand(16, 3, 32, 32)


NETWORKS = {
    "trained CNN, MNIST": lambda: _digits(trained=True),
    "random ResNet-18, 32x32": lambda: _resnet(stride=2),
    "random ResNet-18 for CIFAR-10": lambda: _resnet(stride=1),
}


def _timed(function):
    start = process_time()
    return function(), process_time() - start


def _layer_ratios(module, inputs):
    """Bound over the norm by the power method, from below, of each convolution and matrix."""
    points = {}
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [
        layer.register_forward_hook(lambda layer, arguments, _: points.update({layer: arguments[0].detach().double()}))
        for layer in layers
    ]
    module(inputs[:1])
    for handle in handles:
        handle.remove()
    exact = {deepcopy(layer).double(): point for layer, point in points.items()}
    return [
        certified_lipschitz(layer, point) / local_lipschitz(layer, point, iterations=50).item()
        for layer, point in exact.items()
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NETWORKS)
def test_lipschitz(name, benchmark, report):
    if benchmark.disabled and name != "trained CNN, MNIST":
        pytest.skip("runs with --benchmark-enable")
    module, inputs = NETWORKS[name]() if benchmark.enabled else _digits(trained=False)
    with torch.no_grad():
        _, forward = _timed(lambda: module(inputs))
    certified, certified_seconds = _timed(
        lambda: benchmark.pedantic(lambda: certified_lipschitz(module, inputs[:1]), rounds=1)
    )
    estimated, estimated_seconds = _timed(lambda: local_lipschitz(module, inputs).max().item())
    ratios = _layer_ratios(module, inputs)
    assert estimated <= certified
    assert min(ratios) >= 1
    if benchmark.enabled:
        numbers = (certified, certified_seconds, estimated, estimated_seconds, forward, median(ratios), max(ratios))
        report(name, *(f"{number:.4g}" for number in numbers))
