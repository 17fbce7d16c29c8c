"""Estimates against the dense Jacobian of each sample."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 - everybody's name

from lightning_flatness.functional import displacement_lipschitz, local_lipschitz
from tests.functional.jacobians import jacobian


def raises(text):
    return pytest.raises(ValueError, match=re.escape(text))


def largest_over_signs(matrix):
    """Norm from the largest entry to l2, which is attained at a corner of the cube."""
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=matrix.shape[1])), dtype=matrix.dtype)
    return torch.linalg.vector_norm(corners @ matrix.T, dim=1).max().item()


def smooth_network():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Softplus(), nn.Linear(6, 4)).double()


def convolutional_network():
    return nn.Sequential(*(
        nn.Conv2d(1, 3, 2),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(3).eval(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )).double()


class Attention(nn.Module):
    """Its usual kernel can be differentiated once only."""

    def forward(self, inputs):
        queries = inputs.unflatten(1, (1, 4, 3))
        return F.scaled_dot_product_attention(queries, 2 * queries, queries).flatten(1)


def once_differentiable_network():
    return nn.Sequential(nn.Linear(5, 8), nn.Hardswish(), nn.Hardsigmoid(), nn.Linear(8, 4)).double()


NETWORKS = {
    "smooth": (smooth_network, (5,)),
    "convolutional": (convolutional_network, (1, 3, 3)),
    "attention": (lambda: Attention().double(), (12,)),
    "hardsigmoid": (once_differentiable_network, (5,)),
}


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=5)
def test_the_largest_singular_value(name, seed):
    torch.manual_seed(seed)
    make, shape = NETWORKS[name]
    network, points = make(), torch.randn(3, *shape, dtype=torch.float64)
    expected = [torch.linalg.matrix_norm(jacobian(network, point[None]), 2) for point in points]
    estimate = local_lipschitz(network, points, iterations=100)
    assert (estimate <= torch.stack(expected) * (1 + 1e-12)).all()
    torch.testing.assert_close(estimate, torch.stack(expected), rtol=1e-2, atol=0)


def test_the_largest_singular_value_to_many_digits():
    network, points = smooth_network(), torch.randn(3, 5, dtype=torch.float64)
    expected = torch.stack([torch.linalg.matrix_norm(jacobian(network, point[None]), 2) for point in points])
    torch.testing.assert_close(local_lipschitz(network, points, iterations=500), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10)
def test_the_largest_over_signs_is_never_exceeded_and_nearly_found(name, seed):
    torch.manual_seed(seed)
    make, shape = NETWORKS[name]
    network, points = make(), torch.randn(3, *shape, dtype=torch.float64)
    expected = [largest_over_signs(jacobian(network, point[None])) for point in points]
    for found, largest in zip(local_lipschitz(network, points, norm="inf").tolist(), expected, strict=True):
        assert 0.6 * largest <= found <= largest * (1 + 1e-12)


@pytest.mark.parametrize("norm", [2, "inf"])
def test_more_iterations_find_no_less(norm):
    network, points = smooth_network(), torch.randn(20, 5, dtype=torch.float64)
    few, many = (local_lipschitz(network, points, norm=norm, iterations=count) for count in (4, 200))
    assert few.mean() <= many.mean()
    assert few.mean() > 0.5 * many.mean()


@pytest.mark.parametrize("norm", [2, "inf"])
def test_a_sample_does_not_see_its_batch_nor_the_generator(norm):
    network, points = convolutional_network(), torch.randn(4, 1, 3, 3, dtype=torch.float64)
    together = local_lipschitz(network, points, norm=norm)
    state = torch.get_rng_state()
    alone = torch.cat([local_lipschitz(network, point[None], norm=norm) for point in points])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_wherever_it_is_called_from(context):
    network, points = smooth_network(), torch.randn(2, 5, dtype=torch.float64)
    expected = local_lipschitz(network, points)
    with context():
        found = local_lipschitz(network, points.clone())
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes(dtype):
    network, points = smooth_network(), torch.randn(4, 5, dtype=torch.float64)
    expected = local_lipschitz(network, points)
    found = local_lipschitz(network.to(dtype), points.to(dtype))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 0.05, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("norm", [2, "inf"])
def test_sizes_that_float32_can_only_just_hold(scale, norm):
    points = torch.randn(2, 5)
    found = local_lipschitz(lambda x: scale * x, points, norm=norm)
    torch.testing.assert_close(found, torch.full_like(found, scale * (1 if norm == 2 else 5**0.5)))


@pytest.mark.parametrize("norm", [2, "inf"])
@pytest.mark.parametrize(
    "function", [torch.zeros_like, torch.sign, lambda x: 0 * x, lambda x: F.relu(x - 100), torch.ones_like]
)
def test_constants(function, norm):
    assert local_lipschitz(function, torch.randn(2, 3), norm=norm).tolist() == [0, 0]


def test_features_of_any_shape():
    points = torch.randn(2, 3, 4)
    assert local_lipschitz(lambda x: 2 * x, points).tolist() == pytest.approx([2, 2])
    assert local_lipschitz(lambda x: x.sum((1, 2)), points, norm="inf").tolist() == pytest.approx([12, 12])


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        (lambda x: x[:1], "torch.float32 (1, 3)"),
        (lambda x: (x, x), "tuple"),
        (lambda x: x.long(), "torch.int64 (2, 3)"),
        (lambda x: x.sum(), "torch.float32 ()"),
    ],
)
def test_functions_that_give_no_features(function, shown):
    with raises(f"`fn` must return floating-point features of 2 samples, got {shown}."):
        local_lipschitz(function, torch.zeros(2, 3))


def test_numbers_that_are_not_finite():
    points = torch.zeros(2, 3)
    with raises("`fn(inputs)` must be finite, got inf at [0, 0]."):
        local_lipschitz(lambda x: 1 / x, points)
    points[1, 2] = torch.nan
    with raises("`inputs` must be finite, got nan at [1, 2]."):
        local_lipschitz(nn.Identity(), points)


def test_arguments_out_of_range(unchecked_shapes):
    points = torch.zeros(2, 3)
    with raises("`iterations` must be >= 1, got 0."):
        local_lipschitz(nn.Identity(), points, iterations=0)
    with unchecked_shapes, raises("`norm` must be 2 or 'inf', got 1."):
        local_lipschitz(nn.Identity(), points, norm=1)
    with raises("`inputs` must be a batch of floating-point inputs, got torch.float32 of shape (2,)."):
        local_lipschitz(nn.Identity(), torch.zeros(2))


def test_displacement():
    features, moved = torch.tensor([[0.0, 1.0], [2.0, 2.0]]), torch.tensor([[3.0, 5.0], [2.0, 2.0]])
    found = displacement_lipschitz(features, moved, torch.tensor([0.5, 0.0]))
    assert found.tolist() == [10, 0]


def test_displacement_of_half_precision_features():
    features = torch.zeros(1, 2, dtype=torch.float16)
    moved = torch.full((1, 2), 6e4, dtype=torch.float16)
    assert displacement_lipschitz(features, moved, torch.ones(1)).tolist() == pytest.approx([6e4 * 2**0.5], rel=1e-3)
    assert displacement_lipschitz(-moved, moved, torch.ones(1)).tolist() == pytest.approx([12e4 * 2**0.5], rel=1e-3)


def test_displacement_that_does_not_fit(unchecked_shapes):
    features, distance = torch.zeros(2, 3), torch.ones(2)
    text = "`features`, `features_adv` and `distance` must fit together, got shapes (2, 3), (1, 3), (2,)."
    with unchecked_shapes:
        with raises(text):
            displacement_lipschitz(features, features[:1], distance)
        with raises("`features_adv` must have 2 dimensions, got shape (3,)"):
            displacement_lipschitz(features, features[0], distance)
    with raises("`distance` must be >= 0, got -1.0."):
        displacement_lipschitz(features, features, -distance)
    with raises("`features_adv` must be finite, got nan at [0, 0]."):
        displacement_lipschitz(features, features * torch.nan, distance)
