"""Largest eigenvalue of a symmetric operator that is known only by its products."""

from collections.abc import Callable
from warnings import warn

import torch
from torch import Tensor

_BASIS_ELEMENTS = 2**26
"""Largest number of elements of the Krylov basis (256 MiB in float32) before the method restarts."""


def lanczos_top_eigenvalue(
    apply: Callable[[Tensor], Tensor], like: Tensor, tolerance: float, max_products: int
) -> Tensor:
    """Lanczos' method with full reorthogonalisation, restarted from the Ritz vector when the basis is full.

    Args:
        apply: the symmetric operator.
        like: vector with the length, dtype and device of the operator's.
        tolerance: residual relative to the eigenvalue at which to stop.
        max_products: most calls of ``apply``.

    Returns:
        The largest eigenvalue, a scalar.

    Warns:
        UserWarning: if ``max_products`` do not reach ``tolerance``; what is returned is then a lower bound.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(like.shape, generator=generator).to(like)
    vector = vector / torch.linalg.vector_norm(vector)
    size = min(max(4, _BASIS_ELEMENTS // like.numel()), 64, like.numel())
    scale: Tensor = torch.linalg.vector_norm(apply(vector))
    products = 1
    if scale == 0:
        return scale
    while True:
        basis = [vector]
        diagonal: list[float] = []
        off_diagonal: list[float] = []
        for _ in range(size):
            image = apply(basis[-1]) / scale
            products += 1
            diagonal.append(float(image @ basis[-1]))
            krylov = torch.stack(basis)
            for _ in range(2):
                image = image - krylov.T @ (krylov @ image)
            residual = float(torch.linalg.vector_norm(image))
            eigenvalue, coefficients = _ritz(diagonal, off_diagonal)
            error = residual * abs(float(coefficients[-1]))
            if error > tolerance * abs(eigenvalue) and products >= max_products:
                low, high = float(scale) * eigenvalue, float(scale) * (eigenvalue + error)
                warn(
                    f"The top eigenvalue is only known to be in [{low:.4g}, {high:.4g}] after {max_products} products; "
                    "raise `max_iterations`.",
                    stacklevel=3,
                )
            if error <= tolerance * abs(eigenvalue) or products >= max_products:
                return scale.mul(eigenvalue)
            off_diagonal.append(residual)
            basis.append(image / residual)
        vector = torch.stack(basis[:size]).T @ coefficients.to(like)
        vector = vector / torch.linalg.vector_norm(vector)


def _ritz(diagonal: list[float], off_diagonal: list[float]) -> tuple[float, Tensor]:
    """Largest eigenpair of the tridiagonal matrix."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off_diagonal:
        beside = torch.tensor(off_diagonal, dtype=torch.float64)
        matrix = matrix + torch.diag(beside, 1) + torch.diag(beside, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return float(values[-1]), vectors[:, -1]
