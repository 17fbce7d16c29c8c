"""Upper bounds on the operator norms of linear layers, in float64 on the CPU. Nothing here is an estimate."""

from collections.abc import Iterable, Sequence
from math import ceil, cos, pi, prod, sqrt
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name

from lightning_flatness.functional._numerics import chunks

_DENSE_SIDE, _DENSE_ELEMENTS = 1024, 2**22
"""Largest short side and number of elements of a convolution's matrix whose singular values are taken directly."""
_WORK_ELEMENTS = 2**22
"""Largest number of elements of a temporary: 64 MiB in complex128."""
_SQUARES = (1e-100, 1e100)
"""Between these, the square of a matrix neither overflows nor underflows."""
_GRID, _COARSE_GRID = 32, 16
"""Most frequencies per dimension at which a convolution is evaluated, with at most and with more than 256 channels."""


def largest_singular_value(matrices: Shaped[Tensor, "batch rows columns"]) -> float:
    """Upper bound on the largest singular value of any of the matrices, tight up to rounding.

    The eigenvalues of the smaller Gram matrix, plus what rounding can have taken from them.
    """
    scale = float(matrices.abs().amax())
    if scale > 0 and not _SQUARES[0] < scale < _SQUARES[1]:
        return scale * largest_singular_value(matrices / scale)
    rows, columns = matrices.shape[1:]
    gram = matrices @ matrices.mH if rows <= columns else matrices.mH @ matrices
    rounding = torch.finfo(torch.float64).eps * (rows + columns) * matrices.abs().square().sum((1, 2))
    return sqrt(max(0.0, float((torch.linalg.eigvalsh(gram)[:, -1] + rounding).max())))


def matrix_norm(weight: Float[Tensor, "rows columns"]) -> float:
    """Upper bound on the operator norm of a matrix."""
    return largest_singular_value(weight.unsqueeze(0))


class Convolution(NamedTuple):
    """A one- or two-dimensional convolution with zero padding, one entry per spatial dimension."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def norm(self, weight: Float[Tensor, "out_channels in_channels *kernel"]) -> float:
        """Upper bound on the operator norm: exact for small layers, else by :func:`_fourier_norm`."""
        kernel = weight.view(self.groups, -1, *weight.shape[1:])
        inputs, outputs = prod(self.size) * kernel.shape[2], prod(self._output_size(kernel)) * kernel.shape[1]
        # The matrix of a large kernel on a small image can be smaller than the table that makes it.
        table = prod(self.size) * prod(self._output_size(kernel)) * prod(kernel.shape[3:])
        if min(inputs, outputs) <= _DENSE_SIDE and max(inputs * outputs, table) <= _DENSE_ELEMENTS:
            return largest_singular_value(self._dense(kernel))
        return self._fourier_norm(kernel)

    def _output_size(self, kernel: Tensor) -> list[int]:
        spans = (length + sum(pad) for length, pad in zip(self.size, self.padding, strict=True))
        steps = zip(spans, self.dilation, kernel.shape[3:], self.stride, strict=True)
        return [(span - dilation * (taps - 1) - 1) // stride + 1 for span, dilation, taps, stride in steps]

    def _dense(self, kernel: Tensor) -> Float[Tensor, "groups outputs inputs"]:
        """Matrix of each group, from which input each tap of the kernel reads for each output."""
        flat = [1] * (2 - len(self.size))
        size, taps = [*flat, *self.size], [*flat, *kernel.shape[3:]]
        pixels = torch.eye(prod(size), dtype=torch.float64).view(-1, 1, *size)
        pads = [amount for pad in reversed(self.padding) for amount in pad]
        dilation, stride = (*flat, *self.dilation), (*flat, *self.stride)
        reads = F.unfold(F.pad(pixels, pads), tuple(taps), dilation, stride=stride)
        matrix = torch.einsum("goit,ptq->goqip", kernel.flatten(3), reads)
        return matrix.flatten(3).flatten(1, 2)

    def _fourier_norm(self, kernel: Float[Tensor, "groups out in *kernel"]) -> float:
        """Upper bound from the kernel's Fourier transform.

        Zero padding only restricts inputs and outputs of the convolution on the infinite grid, whose norm is the
        largest singular value of the transform ``K(ω)`` at any frequency. On a grid of ``N ≥ length + taps - 1``
        frequencies the circular convolution holds the padded one as a part, so that its largest value is a bound. On
        fewer, ``‖K(ω)u‖²`` is a trigonometric polynomial of degree ``taps - 1`` for every ``u``, and its maximum is at
        most ``1 / cos(π degree / N)`` times that on the grid, in each dimension (M. Riesz; see Pfister and Bresler,
        2019). A stride makes channels of the input's phases; without one, a dilation splits into independent parts.
        """
        for dim in range(len(self.size)):
            kernel = _phases(kernel, 3 + dim, self.stride[dim], self.dilation[dim])
        kernel = kernel.flatten(3 + len(self.size)).movedim(-1, 3).flatten(2, 3)
        limit = _GRID if min(kernel.shape[1:3]) <= 256 else _COARSE_GRID
        grid, excess = [], 1.0
        for dim, taps in enumerate(kernel.shape[3:]):
            length = self.size[dim]
            stride, dilation = self.stride[dim], self.dilation[dim]
            length = ceil(length / dilation) if stride == 1 else ceil((length + stride - 1) / stride)
            count, factor = _frequencies(length, taps, limit)
            grid.append(count)
            excess *= factor
        return sqrt(excess) * _largest_on_grid(kernel, grid)


def _phases(kernel: Tensor, dim: int, stride: int, dilation: int) -> Tensor:
    """Kernel of the same convolution without stride and dilation in ``dim``; phases become the last dimension."""
    if stride > 1:
        taps = dilation * (kernel.shape[dim] - 1) + 1
        spread = kernel.new_zeros(*kernel.shape[:dim], ceil(taps / stride) * stride, *kernel.shape[dim + 1 :])
        spread.narrow(dim, 0, taps).index_copy_(dim, torch.arange(0, taps, dilation), kernel)
        kernel = spread
    split = kernel.reshape(*kernel.shape[:dim], -1, stride, *kernel.shape[dim + 1 :])
    return split.movedim(dim + 1, -1)


def _frequencies(length: int, taps: int, limit: int) -> tuple[int, float]:
    """Number of frequencies, and by how much the square of the norm can exceed its largest value there."""
    if taps == 1:
        return 1, 1.0
    whole = length + taps - 1
    count = max(limit, 4 * (taps - 1))
    return (whole, 1.0) if whole <= count else (count, 1 / cos(pi * (taps - 1) / count))


def _largest_on_grid(kernel: Float[Tensor, "groups out in *taps"], grid: Sequence[int]) -> float:
    """Largest singular value of the transform at any frequency of the grid; half of them, the rest are conjugates."""
    halves = [*grid[:-1], grid[-1] // 2 + 1]
    frequencies = _points(torch.arange(half, dtype=torch.float64) / n for half, n in zip(halves, grid, strict=True))
    places = _points(torch.arange(taps, dtype=torch.float64) for taps in kernel.shape[3:])
    angles = -2 * pi * (frequencies @ places.T)
    waves = torch.polar(torch.ones_like(angles), angles)
    flat = kernel.reshape(-1, len(places)).T.to(waves.dtype)
    parts = chunks(len(waves), _WORK_ELEMENTS // flat.shape[1])
    return max(largest_singular_value((waves[part] @ flat).view(-1, *kernel.shape[1:3])) for part in parts)


def _points(axes: Iterable[Tensor]) -> Float[Tensor, "points dims"]:
    return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], dim=1)


def separable_norm(matrices: Sequence[Float[Tensor, "_ _"]]) -> float:
    """Upper bound on the operator norm of the Kronecker product of the matrices."""
    return prod(matrix_norm(matrix) for matrix in matrices)
