"""Certificates of single layers against the dense operator or a dense grid of slopes."""

from itertools import product
from math import sqrt

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 - everybody's name

from lightning_flatness.functional import certified_lipschitz
from lightning_flatness.functional._lipschitz_norms import Convolution
from tests.functional.jacobians import spectral_norm, tightness

SOUND = 1 - 1e-12
EXACT = 1 + 1e-8


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@st.composite
def convolutions(draw, dims):
    """A layer and its input, every size small; with dense and sparse kernels."""
    per_dim = {
        "kernel_size": st.integers(1, 4),
        "stride": st.integers(1, 3),
        "padding": st.integers(0, 3),
        "dilation": st.integers(1, 3),
    }
    chosen = {name: tuple(draw(numbers) for _ in range(dims)) for name, numbers in per_dim.items()}
    groups = draw(st.integers(1, 2))
    in_channels, out_channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    size = [draw(st.integers(1, 7)) for _ in range(dims)]
    spans = zip(size, chosen["padding"], chosen["dilation"], chosen["kernel_size"], strict=True)
    assume(all(length + 2 * pad > dilation * (taps - 1) for length, pad, dilation, taps in spans))
    kind = nn.Conv1d if dims == 1 else nn.Conv2d
    layer = kind(in_channels, out_channels, groups=groups, bias=draw(st.booleans()), **chosen).double()
    if draw(st.booleans()):
        layer.weight.data *= torch.rand_like(layer.weight) < 0.3
    return layer, random(1, in_channels, *size)


def fourier_norm(layer, point):
    pads = tuple((pad, pad) for pad in layer.padding)
    convolution = Convolution(tuple(point.shape[2:]), layer.stride, pads, layer.dilation, layer.groups)
    weight = layer.weight.detach()
    return convolution._fourier_norm(weight.view(layer.groups, -1, *weight.shape[1:]))


@pytest.mark.parametrize("dims", [1, 2])
@given(data=st.data())
@settings(max_examples=60)
def test_small_convolutions_are_exact(dims, data):
    layer, point = data.draw(convolutions(dims))
    true = spectral_norm(layer, point)
    assert true * SOUND <= certified_lipschitz(layer, point) <= true * EXACT + 1e-12


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("grid", [32, 1], ids=["whole", "coarse"])
@given(data=st.data())
@settings(max_examples=60)
def test_the_fourier_bound_is_sound_on_every_grid(dims, grid, data):
    layer, point = data.draw(convolutions(dims))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_flatness.functional._lipschitz_norms._GRID", grid)
        assert fourier_norm(layer, point) >= spectral_norm(layer, point) * SOUND


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "groups"), [(3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 1, 1), (3, 1, 2, 1), (3, 1, 1, 2)]
)
def test_the_fourier_bound_is_tight_for_images_larger_than_the_kernel(kernel, stride, dilation, groups):
    layer = nn.Conv2d(2, 4, kernel, stride, kernel // 2 * dilation, dilation, groups, bias=False).double()
    point = random(1, 2, 16, 16)
    assert 1 <= fourier_norm(layer, point) / spectral_norm(layer, point) < 1.06


def test_large_convolutions_take_the_fourier_bound():
    layer, point = nn.Conv2d(3, 8, 3, padding=1).double(), random(1, 3, 48, 48)
    assert certified_lipschitz(layer, point) == pytest.approx(fourier_norm(layer, point), rel=1e-8)
    left, right = random(1, 3, 48, 48), random(1, 3, 48, 48)
    for _ in range(20):
        # Power iteration, from below.
        right = torch.autograd.functional.vjp(layer, left, layer(left) - layer(0 * left))[1]
        left = right / right.norm()
    below = (layer(left) - layer(0 * left)).norm().item()
    assert below <= certified_lipschitz(layer, point) < 1.1 * below


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_padding_modes(mode, padding):
    layer = nn.Conv2d(2, 3, (3, 4), padding=padding, padding_mode=mode).double()
    ratio = tightness(layer, random(1, 2, 6, 7))
    assert 1 <= ratio < (EXACT if mode == "zeros" or padding == "valid" else 3)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 4), (700, 30)])
def test_linear_layers_are_exact(shape):
    assert SOUND < tightness(nn.Linear(*shape).double(), random(2, shape[0])) < EXACT


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_weights_whose_squares_are_no_numbers(scale):
    layer, point = nn.Linear(3, 4, bias=False).double(), random(1, 3)
    ordinary = certified_lipschitz(layer, point)
    layer.weight.data *= scale
    assert certified_lipschitz(layer, point) == pytest.approx(scale * ordinary, rel=1e-12, abs=0)


def test_linear_layers_over_positions_are_exact():
    assert SOUND < tightness(nn.Linear(3, 5).double(), random(2, 4, 3)) < EXACT


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x @ torch.arange(12.0, dtype=torch.float64).view(4, 3),
        lambda x: torch.matmul(torch.arange(6.0, dtype=torch.float64).view(2, 3), x),
        lambda x: x @ torch.arange(4.0, dtype=torch.float64),
        lambda x: torch.mm(x[0], torch.arange(12.0, dtype=torch.float64).view(4, 3)),
    ],
)
def test_products_with_constant_matrices_are_exact(function):
    assert SOUND < tightness(Apply(function), random(2, 3, 4)) < EXACT


LINEAR_POOLS = [
    *(nn.AvgPool1d(3), nn.AvgPool1d(3, 1, 1), nn.AvgPool1d(4, 3, 2, ceil_mode=True)),
    nn.AvgPool1d(4, 3, 2, ceil_mode=True, count_include_pad=False),
    *(nn.AdaptiveAvgPool1d(1), nn.AdaptiveAvgPool1d(4), nn.AdaptiveAvgPool1d(9)),
    *(nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d((3, 2), (1, 3), (1, 0), ceil_mode=True)),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    *(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, None)), nn.AdaptiveAvgPool2d((5, 2))),
]


@pytest.mark.parametrize("pool", LINEAR_POOLS, ids=str)
def test_average_pooling_is_exact(pool):
    dims = 1 if "1d" in str(pool) else 2
    assert SOUND < tightness(pool, random(1, 2, *[7, 6][:dims])) < EXACT


def most_windows(pool, shape):
    """In how many windows the most frequent input is: raise it alone and count the maxima that follow."""
    unit = torch.eye(shape[-2] * shape[-1], dtype=torch.float64).view(-1, 1, *shape[-2:])
    return pool(unit).flatten(1).sum(1).max().item()


MAX_POOLS = [
    *(nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 1), nn.MaxPool2d((3, 2), (1, 2))),
    *(nn.MaxPool2d(3, 2, dilation=2), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.MaxPool2d(2, 3)),
    *(nn.AdaptiveMaxPool2d(1), nn.AdaptiveMaxPool2d((4, 5)), nn.AdaptiveMaxPool2d((9, None))),
]


@pytest.mark.parametrize("pool", MAX_POOLS, ids=str)
def test_maximum_pooling_is_the_root_of_the_overlap(pool):
    true = sqrt(most_windows(pool, (9, 8)))
    assert certified_lipschitz(pool, random(1, 1, 9, 8)) == pytest.approx(true, rel=1e-8)


@pytest.mark.parametrize(("pool", "squared"), [(nn.MaxPool1d(3, 2), 2), (nn.AdaptiveMaxPool1d(5), 2)], ids=str)
def test_maximum_pooling_of_signals(pool, squared):
    assert certified_lipschitz(pool, random(1, 2, 7)) == pytest.approx(sqrt(squared), rel=1e-8)


ACTIVATIONS = [
    *(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.2), nn.LeakyReLU(-3.0), nn.PReLU(init=1.7)),
    *(nn.RReLU(), nn.ELU(), nn.ELU(2.5), nn.CELU(0.3), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish()),
    *(nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.Softplus(3.0), nn.Softsign(), nn.Tanhshrink(), nn.Softshrink()),
    *(nn.Hardtanh(), nn.Hardsigmoid(), nn.Hardswish(), nn.LogSigmoid(), nn.Identity(), nn.Dropout()),
    *(Apply(torch.abs), Apply(torch.sin), Apply(torch.cos), Apply(torch.atan), Apply(torch.neg)),
    *(Apply(lambda x: x.clamp(-1, 1)), Apply(lambda x: torch.relu_(x + 0)), Apply(lambda x: F.silu(x, inplace=True))),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_have_their_largest_slope(activation):
    activation = activation.double().eval()
    grid = torch.linspace(-25, 25, 500_001, dtype=torch.float64).requires_grad_()
    (slopes,) = torch.autograd.grad(activation(grid * 1).sum(), grid)
    constant = certified_lipschitz(activation, random(1, 3))
    assert 0 <= constant - slopes.abs().max().item() < 5e-5


def test_softmax_has_its_largest_slope():
    assert tightness(nn.Softmax(1), torch.zeros(1, 2, dtype=torch.float64)) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(6), (2, 6)),
        (nn.LayerNorm((3, 4)), (1, 3, 4)),
        (nn.GroupNorm(2, 4), (1, 4, 3)),
        (nn.InstanceNorm1d(4, affine=True), (1, 4, 3)),
        (nn.RMSNorm(6, eps=1e-3), (2, 6)),
    ],
    ids=str,
)
def test_normalisation_by_own_statistics_is_bounded_by_eps(layer, shape):
    layer = layer.double().eval()
    layer.weight.data.uniform_(-2, 2)
    bound = layer.weight.abs().max().item() / sqrt(layer.eps)
    assert certified_lipschitz(layer, random(*shape)) == pytest.approx(bound, rel=1e-8)
    # Nearly reached where the input hardly varies, never exceeded.
    assert 0.5 * bound < spectral_norm(layer, 1e-9 * random(*shape)) < bound
    assert spectral_norm(layer, random(*shape)) < bound


def test_rms_norm_without_eps_takes_that_of_the_dtype():
    constant = certified_lipschitz(nn.RMSNorm(4).eval(), torch.zeros(1, 4))
    assert constant == pytest.approx(torch.finfo(torch.float32).eps ** -0.5, rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rms_norm_without_eps_is_bounded_in_every_dtype(dtype):
    small = torch.full((1, 4), 1e-5 if dtype != torch.float64 else 1e-9, dtype=dtype)
    slope = (F.rms_norm(small, (4,)) / small).double().max().item()
    assert certified_lipschitz(Apply(lambda x: F.rms_norm(x, (4,))), small) >= slope * (1 - 1e-3)


def with_statistics(layer):
    layer = layer.double().eval()
    layer.running_var.uniform_(0.1, 3)
    layer.weight.data.uniform_(-2, 2)
    return layer


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (2, 4)),
        (nn.BatchNorm1d(4), (2, 4, 3)),
        (nn.BatchNorm2d(4), (2, 4, 3, 3)),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (2, 4, 3, 3)),
    ],
    ids=str,
)
def test_batch_normalisation_is_exact(layer, shape):
    assert SOUND < tightness(with_statistics(layer), random(*shape)) < EXACT


def test_batch_normalisation_without_weights_is_exact():
    layer = nn.BatchNorm1d(4, affine=False).double().eval()
    layer.running_var.uniform_(0.1, 3)
    assert SOUND < tightness(layer, random(2, 4)) < EXACT


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)), (1, 2, 5, 5)),
        ((nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)), (1, 2, 6)),
        ((nn.Linear(3, 4), nn.BatchNorm1d(4)), (2, 3)),
        ((nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), (1, 2, 5, 5)),
    ],
    ids=str,
)
def test_batch_normalisation_is_absorbed_into_the_layer_before_it(layers, shape):
    module = nn.Sequential(layers[0].double(), with_statistics(layers[1]))
    assert SOUND < tightness(module, random(*shape)) < EXACT


def test_batch_normalisation_of_positions_is_not_absorbed():
    """Its channels are not the outputs of the layer before it."""
    module = nn.Sequential(nn.Linear(3, 5).double(), with_statistics(nn.BatchNorm1d(4)))
    point = random(2, 4, 3)
    product = certified_lipschitz(module[0], point) * certified_lipschitz(module[1], random(2, 4, 5))
    assert certified_lipschitz(module, point) == pytest.approx(product, rel=1e-8)
    assert tightness(module, point) >= SOUND


MOVES = [
    *(lambda x: x.flatten(1), lambda x: x.reshape(len(x), -1), lambda x: x.view(x.size(0), -1)),
    *(lambda x: x.permute(0, 2, 3, 1), lambda x: x.transpose(1, 2), lambda x: x[:, 1:, ..., None], lambda x: x[0]),
    *(lambda x: x.expand(3, 2, 4, 4), lambda x: x.repeat(1, 2, 1, 3), lambda x: torch.stack([x, 2 * x], 1)),
    *(lambda x: x.sum((2, 3)), lambda x: x.mean((2, 3), keepdim=True), lambda x: x.sum(), lambda x: x.mean()),
    *(lambda x: F.pad(x, (1, 2, 0, 1)), lambda x: F.pad(x, (3, 3, 2, 2), mode="reflect")),
    *(lambda x: F.pad(x, (4, 1, 2, 2), mode="circular"), lambda x: F.pad(x, (0, 3, 1, 0), mode="replicate")),
    *(lambda x: F.pixel_unshuffle(x, 2), lambda x: x.roll(1, 2), lambda x: x.flip(1), lambda x: x.to(torch.float64)),
    *(lambda x: x + x.mean(), lambda x: 3 * x - 1, lambda x: (1 - x) / 4, lambda x: x / torch.tensor([0.5, 2, 4, 1])),
    *(
        lambda x: x.mul(2).add(x, alpha=-3),
        lambda x: torch.sub(x, x, alpha=0.5),
        lambda x: x * torch.ones(5, 1, 1, 1, 1),
    ),
    *(lambda x: torch.cat([x, 3 * x, x[:, :1]], 1), lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    *(
        lambda x: sum(x.split(1, 1)),
        lambda x: sum(part for part in x),
        lambda x: x.clamp_min(-9 * torch.ones(3, 1, 1, 1)),
    ),
    *(lambda x: torch.zeros(2, 2, 4, 4).sub(x, alpha=2), lambda x: x.amax(1), lambda x: x.flatten(1).T),
]


@pytest.mark.parametrize("index", range(len(MOVES)))
def test_everything_linear_without_a_weight_is_sound(index):
    point = random(1, 2, 4, 4)
    constant, true = certified_lipschitz(Apply(MOVES[index]), point), spectral_norm(MOVES[index], point)
    assert true * SOUND <= constant <= 6 * true + 1e-12


def test_nothing_left_of_the_input_is_constant():
    assert certified_lipschitz(Apply(lambda x: (x.flatten()[:0] + 1).sum()), random(1, 2)) == 0


def test_tightness_over_many_convolutions(record_property):
    """Report: the ratio of the Fourier bound, which large layers get, to the norm."""
    ratios = []
    sizes = [(6, 1), (8, 2), (12, 1), (12, 3)]
    for (length, stride), kernel, groups, channels in product(sizes, (1, 3, 5), (1, 2), ((2, 4), (6, 2))):
        layer = nn.Conv2d(*channels, kernel, stride, kernel // 2, groups=groups, bias=False).double()
        point = random(1, channels[0], length, length)
        ratios.append(fourier_norm(layer, point) / spectral_norm(layer, point))
    ordered = torch.tensor(ratios).sort().values
    record_property("median", ordered.median().item())
    record_property("max", ordered[-1].item())
    assert ordered[0] >= SOUND
    assert ordered.median() < 1.05
    assert ordered[-1] < 1.4
