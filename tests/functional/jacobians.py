"""Dense Jacobians in float64: what a Lipschitz constant is measured against."""

import torch
from torch import Tensor, nn

from lightning_flatness.functional import certified_lipschitz


def jacobian(function, point: Tensor) -> Tensor:
    """Matrix of the derivative at one point, flattened."""
    dense = torch.autograd.functional.jacobian(lambda x: function(x).flatten(), point)
    return dense.flatten(1)


def spectral_norm(function, point: Tensor) -> float:
    return torch.linalg.matrix_norm(jacobian(function, point), 2).item()


def tightness(module: nn.Module, point: Tensor) -> float:
    """How many times the norm of the Jacobian the certificate is."""
    return certified_lipschitz(module, point) / spectral_norm(module, point)
