"""Certificates of whole networks: never below what pairs of inputs, Jacobians or attacks show."""

import re
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 - everybody's name
from torchvision.models import resnet18

from examples.mnist import DigitClassifier
from lightning_flatness.attacks import ThreatModel, pgd
from lightning_flatness.functional import certified_lipschitz, displacement_lipschitz, local_lipschitz
from tests.attacks.models import digit_cnn, held_out
from tests.functional.jacobians import tightness
from tests.functional.test_lipschitz_layers import Apply, random, with_statistics


def raises(text):
    return pytest.raises(ValueError, match=re.escape(text))


class Residual(nn.Module):
    """As in torchvision, with the same in-place operations."""

    def __init__(self, width=4):
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(with_statistics(nn.BatchNorm2d(width)) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norms[0](self.first(x)))
        out = self.norms[1](self.second(out))
        out += x
        return self.relu(out)


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(2, 3, k, padding=k // 2) for k in (1, 3, 5))

    def forward(self, x):
        x = (x - 0.5) / 0.25
        # Control flow on shapes is that of every input of the same shape.
        assert x.shape[1] == 2
        return torch.cat([F.gelu(branch(x)) for branch in self.branches], dim=1)


class ChannelGate(nn.Module):
    """Multiplies by what does not depend on the input."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("mixing", torch.randn(4, 4))

    def forward(self, x):
        x = torch.einsum("oi,i->o", self.mixing, self.scale.flatten()).view(-1, 1, 1) * x
        return (x.permute(0, 2, 3, 1) @ self.mixing).mean((1, 2)) + x.flatten(2).amax(2)


def networks():
    return {
        "mlp": (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, 4)), (6,)),
        "cnn": (
            nn.Sequential(
                *(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1)),
                *(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout()),
            ),
            (2, 8, 8),
        ),
        "signal": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.ELU(), nn.AdaptiveMaxPool1d(3), nn.Conv1d(4, 2, 2)), (2, 9)),
        "residual": (nn.Sequential(Residual(), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (4, 5, 5)),
        "concatenation": (nn.Sequential(Inception(), nn.MaxPool2d(2)), (2, 6, 6)),
        "constants": (ChannelGate(), (4, 3, 3)),
        "normalised": (nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Softplus(), nn.Linear(6, 2)), (5,)),
        "spectral": (
            nn.Sequential(
                nn.utils.parametrizations.spectral_norm(nn.Linear(5, 6)),
                nn.ReLU(),
                nn.utils.parametrizations.orthogonal(nn.Linear(6, 6)),
                nn.ReLU(),
                nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)),
            ),
            (5,),
        ),
    }


NAMES = sorted(networks())


def network(name):
    module, shape = networks()[name]
    return module.double().eval(), shape


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-3, 0.1, 1.0, 10.0]))
@settings(max_examples=10)
def test_no_pair_and_no_jacobian_exceeds_the_certificate(name, seed, scale):
    torch.manual_seed(seed)
    module, shape = network(name)
    point, moves = random(8, *shape), scale * random(8, *shape)
    features, moved = module(point).flatten(1), module(point + moves).flatten(1)
    certified = certified_lipschitz(module, point[:1])
    assert displacement_lipschitz(features, moved, moves.flatten(1).norm(dim=1)).max() <= certified
    assert local_lipschitz(module, point, iterations=5).max() <= certified
    in_largest_entry = certified_lipschitz(module, point[:1], norm="inf")
    assert displacement_lipschitz(features, moved, moves.flatten(1).abs().amax(1)).max() <= in_largest_entry
    assert local_lipschitz(module, point, norm="inf", iterations=5).max() <= in_largest_entry
    assert in_largest_entry == pytest.approx(certified * sqrt(point[0].numel()))


@pytest.mark.parametrize("name", NAMES)
def test_batch_size_and_dtype_hardly_matter(name):
    module, shape = network(name)
    alone = certified_lipschitz(module, random(1, *shape))
    assert certified_lipschitz(module, random(3, *shape)) == pytest.approx(alone, rel=1e-9)
    assert certified_lipschitz(module.float(), torch.zeros(1, *shape)) == pytest.approx(alone, rel=1e-4)


def test_branches_add_and_concatenations_are_a_root_of_squares():
    double = Apply(lambda x: 2 * x)
    assert certified_lipschitz(Apply(lambda x: x + double(x) - 3 * x), random(1, 2)) == pytest.approx(6)
    assert certified_lipschitz(Apply(lambda x: torch.cat([x, double(x), 2 * x])), random(1, 2)) == pytest.approx(3)


def test_spectral_norm_takes_the_weight_in_effect():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 6), n_power_iterations=50).double()
    for _ in range(5):
        layer(random(1, 5))
    assert certified_lipschitz(layer.eval(), random(1, 5)) == pytest.approx(1, rel=1e-6)
    assert (
        certified_lipschitz(
            nn.utils.spectral_norm(nn.Linear(5, 6).double(), n_power_iterations=50).eval(), random(1, 5)
        )
        > 0
    )


def test_a_convolution_with_standardised_weights_takes_the_weight_in_effect():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std(
                (1, 2, 3), keepdim=True
            )
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    assert tightness(Standardised(2, 3, 3).double(), random(1, 2, 4, 4)) == pytest.approx(1, rel=1e-6)


def test_what_does_not_depend_on_the_input_has_constant_zero():
    assert certified_lipschitz(Apply(lambda x: torch.ones(len(x), 2)), random(1, 2)) == 0
    assert certified_lipschitz(Apply(lambda x: 0 * x), random(1, 2)) == 0


# Real networks.


def test_the_example_network():
    classifier = DigitClassifier().eval()
    images = torch.rand(8, 1, 28, 28)
    certified = certified_lipschitz(classifier.features, images[:1])
    estimate = local_lipschitz(classifier.features, images, iterations=10)
    assert estimate.max() <= certified < 100 * estimate.max()
    assert certified_lipschitz(classifier, images[:1]) > 0


def test_resnet18():
    """Random weights of a residual network, at a size at which it is quick."""
    model = resnet18(weights=None).eval()
    model.fc = nn.Identity()
    images = torch.rand(2, 3, 32, 32)
    certified = certified_lipschitz(model, images[:1])
    assert local_lipschitz(model, images, iterations=5).max() <= certified < torch.inf


@pytest.mark.slow
@pytest.mark.parametrize("norm", [2, "inf"])
def test_no_attack_on_a_trained_network_exceeds_the_certificate(norm):
    model, (images, labels) = digit_cnn(1), held_out(50)
    features = model[:-1]
    threat = ThreatModel(norm="l2" if norm == 2 else "linf", epsilon=2.0 if norm == 2 else 0.2)
    moved = pgd(model, images, labels, threat, steps=10).x_adv
    distance = torch.linalg.vector_norm((moved - images).flatten(1), 2 if norm == 2 else torch.inf, dim=1)
    with torch.no_grad():
        attacked = displacement_lipschitz(features(images), features(moved), distance)
    certified = certified_lipschitz(features, images[:1], norm=norm)
    estimate = local_lipschitz(features, images, norm=norm)
    assert 0 < attacked.max() <= certified
    assert estimate.max() <= certified
