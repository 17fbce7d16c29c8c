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


# In place: every name of the numbers must know of the change.


def _scaled_view(x):
    x = x + 0
    x[:, :1].mul_(5)
    return x


def _changed_before_its_view_is_used(x):
    x = x + 0
    view = x.view(-1)
    x *= 5
    return view


def _changed_result_unused(x):
    x = x + 0
    torch.relu_(x.mul_(5))
    return x


def _added_to_a_part(x):
    x = x + 0
    second = x[:, 2:].clone()
    x[:, :2].add_(second, alpha=3)
    return x


def _shrunk(x):
    x = x + 0
    x.mul_(0.5).clamp_(-1, 1)
    return x


@pytest.mark.parametrize(
    "function", [_scaled_view, _changed_before_its_view_is_used, _changed_result_unused, _added_to_a_part, _shrunk]
)
def test_changes_in_place_reach_every_view(function):
    assert 1 - 1e-9 < tightness(Apply(function), 0.1 + random(1, 4).abs()) < 2


def test_a_constant_changed_in_place_is_an_error():
    buffer = torch.zeros(1, 2, dtype=torch.float64)
    with raises("a tensor that did not depend on the input is changed in place"):
        certified_lipschitz(Apply(lambda x: buffer.clone().add_(x)), random(1, 2))
    with raises("torch.add writes into a given tensor"):
        certified_lipschitz(Apply(lambda x: torch.add(x, x, out=buffer.clone())), random(1, 2))


def test_the_example_is_left_alone():
    example = random(2, 3)
    before = example.clone()
    certified_lipschitz(Apply(lambda x: x.mul_(2).relu_()), example)
    assert torch.equal(example, before)


# Operations without a rule.


class Named(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), Apply(function))

    def forward(self, x):
        return self.body(x)


def _hidden_from_python(x):
    with torch._C.DisableTorchFunctionSubclass():
        return 2 * x


UNSUPPORTED = {
    "no Lipschitz constant is known for torch.exp": torch.exp,
    "no Lipschitz constant is known for torch.Tensor.square": lambda x: x.square(),
    "no Lipschitz constant is known for torch.Tensor.__bool__": lambda x: x if x.sum() else -x,
    "no Lipschitz constant is known for torch.Tensor.item": lambda x: x * x.sum().item(),
    "no Lipschitz constant is known for torch.Tensor.numpy": lambda x: torch.as_tensor(x.numpy()),
    "no Lipschitz constant is known for torch.Tensor.data": lambda x: x.data,
    "no Lipschitz constant is known for torch.nn.functional.hardshrink": F.hardshrink,
    "no Lipschitz constant is known for torch.nn.functional.glu": F.glu,
    "no Lipschitz constant is known for torch.nn.functional.embedding": lambda x: F.embedding(x, torch.ones(2, 2)),
    "no Lipschitz constant is known for torch.Tensor.__setitem__": lambda x: torch.zeros(4).__setitem__(0, x[0, 0]),
    "no Lipschitz constant is known for torch.Tensor.gt": lambda x: torch.where(x > 0, x, 0),
    "aten.mul.Tensor was called from outside Python": _hidden_from_python,
    "a product of two tensors that depend on the input": lambda x: x * x.sigmoid(),
    "a division that is rounded or by what depends on the input": lambda x: x / x.sum(),
    "a parameter of an operation depends on the input": lambda x: x.clamp(max=x.mean()),
    "a weight depends on the input": lambda x: F.linear(torch.ones(1, 4), x),
    "an index that is no slice can repeat numbers": lambda x: x[:, [0, 0, 0]],
    "view as another type reads other numbers": lambda x: x.view(torch.float32),
    "a result is torch.int64": lambda x: x.to(torch.int64),
    "celu with `alpha` -1.0 has no largest slope": nn.CELU(-1.0),
    "softplus with `beta` 1.0 and `threshold` 1.0 jumps": nn.Softplus(1.0, 1.0),
    "dropout is in training mode": F.dropout,
    "rrelu is in training mode": lambda x: F.rrelu(x, training=True),
    "average pooling with `divisor_override`": lambda x: F.avg_pool2d(x[None], 1, divisor_override=2),
    "the matrix of a product has more than 2 dimensions": lambda x: torch.ones(3, 4, 4) @ x.mT,
    "batch normalisation by the statistics of the batch mixes samples": nn.BatchNorm1d(4, track_running_stats=False),
    "a normalisation without `eps` has no largest slope": nn.LayerNorm(4, eps=0.0),
    "a weight or constant is inf": lambda x: x / 0,
    "a weight or constant is nan": lambda x: x * torch.tensor([1.0, torch.nan, 1.0, 1.0]),
}


@pytest.mark.parametrize("text", UNSUPPORTED)
def test_operations_without_a_rule_are_named_with_their_place(text):
    with raises(f"`module` cannot be certified: {text}") as raised:
        certified_lipschitz(Named(UNSUPPORTED[text]).double().eval(), random(2, 4))
    assert re.search(
        r" in 'body\.1(\.function)?' \(\w+\); certify a part without it, or estimate with local_lipschitz\.$",
        str(raised.value),
    )


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("layer", [nn.Linear(3, 3), nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.PReLU(), nn.LayerNorm(3)])
def test_weights_that_are_not_finite(layer, number):
    layer.weight.data.view(-1)[0] = number
    with raises(f"`module` cannot be certified: a weight or constant is {number} in '0' ({type(layer).__name__});"):
        certified_lipschitz(nn.Sequential(layer).eval(), torch.zeros(1, 3, 3))


@pytest.mark.parametrize(
    "part",
    [nn.Dropout(), nn.BatchNorm1d(3), nn.RReLU(), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))],
    ids=lambda part: type(part).__name__,
)
def test_training_mode(part):
    state = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    with raises(f"`module` must be in eval mode, got {type(part).__name__} ('1') in training mode; call `.eval()`."):
        certified_lipschitz(nn.Sequential(nn.ReLU(), part), torch.zeros(2, 3))
    assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())


def test_what_is_the_same_in_training_mode_is_certified():
    assert certified_lipschitz(nn.Sequential(nn.ReLU(), nn.LayerNorm(3)), torch.zeros(2, 3)) > 0


@pytest.mark.parametrize(
    ("example", "shown"),
    [
        (torch.zeros(3), "torch.float32 of shape (3,)"),
        (torch.zeros(0, 3), "torch.float32 of shape (0, 3)"),
        (torch.zeros(2, 3, dtype=torch.int64), "torch.int64 of shape (2, 3)"),
    ],
)
def test_example_that_is_no_batch(example, shown, unchecked_shapes):
    with unchecked_shapes, raises(f"`example` must be a batch of floating-point inputs, got {shown}."):
        certified_lipschitz(nn.ReLU(), example)


def test_unknown_norm(unchecked_shapes):
    with unchecked_shapes, raises("`norm` must be 2 or 'inf', got 'l2'."):
        certified_lipschitz(nn.ReLU(), torch.zeros(1, 2), norm="l2")


def test_module_that_returns_no_tensor():
    with raises("`module` must return one tensor, got tuple; wrap it so that it does."):
        certified_lipschitz(Apply(lambda x: (x, x)), torch.zeros(1, 2))


# Where and how it is called.


def test_under_inference_mode_and_autocast():
    module, shape = network("residual")
    expected = certified_lipschitz(module, random(1, *shape))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert certified_lipschitz(module, random(1, *shape)) == pytest.approx(expected, rel=1e-9)


def test_hooks_are_part_of_the_function():
    layer = nn.Linear(3, 3).double()
    expected = certified_lipschitz(layer, random(1, 3))
    layer.register_forward_hook(lambda *call: 2 * call[-1])
    assert certified_lipschitz(layer, random(1, 3)) == pytest.approx(2 * expected)


def test_a_function_with_its_own_gradient_is_followed():
    class Fivefold(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return 5 * x

    assert certified_lipschitz(Apply(Fivefold.apply), random(1, 3)) == pytest.approx(5)


def test_a_compiled_module_runs_without_its_compiler():
    module, shape = network("mlp")
    compiled = torch.compile(module, backend=pytest.fail)
    assert certified_lipschitz(compiled, random(1, *shape)) == certified_lipschitz(module, random(1, *shape))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_script_is_an_error():
    with raises("`module` cannot be certified: no Lipschitz constant is known for"):
        certified_lipschitz(torch.jit.script(nn.Sequential(nn.ReLU())), torch.zeros(1, 3))


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
