"""Differences ``a_j = w_j − w_y`` of a head's rows, exact for rows that are nearly equal."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_flatness.functional._head import Head
from lightning_flatness.functional._numerics import TILE_ELEMENTS, chunks, sq_norm, wide

# Below this share of ``‖w_j‖² + ‖w_y‖²``, ``‖w_j − w_y‖²`` is not taken from inner products, which cancel.
_CANCELLATION_LIMIT = 1e-4


@dataclass(frozen=True, eq=False)
class RowOffsets:
    """``a_j`` of samples whose true classes ``y`` are given; none is kept for more than a few classes."""

    head: Head

    def lengths(self, target: Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        """``‖a_j‖`` of each class, 0 for identical rows."""
        true_rows = self._centred(target)
        true_sq_norms = sq_norm(true_rows)
        squared = true_rows.new_empty(len(target), self.head.num_classes)
        for tile in self.head.row_slices():
            rows = self._centred(tile)
            scale = true_sq_norms.unsqueeze(1) + sq_norm(rows)
            squares = torch.addmm(scale, true_rows, rows.T, alpha=-2)
            samples, classes = (squares < _CANCELLATION_LIMIT * scale).nonzero(as_tuple=True)
            for part in chunks(len(samples), TILE_ELEMENTS // max(1, self.head.dim)):
                offsets = true_rows[samples[part]] - rows[classes[part]]
                squares[samples[part], classes[part]] = sq_norm(offsets)
            squared[:, tile] = squares
        return squared.sqrt_()

    def mean_length(
        self, shares: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """``‖Σ π_j a_j‖`` for shares ``π`` of the classes."""
        offset = -self._centred(target)
        for tile in self.head.row_slices():
            offset.addmm_(shares[:, tile], self._centred(tile))
        return sq_norm(offset).sqrt()

    def gram(self, target: Int[Tensor, " batch"], index: Int[Tensor, "batch few"]) -> Float[Tensor, "batch few few"]:
        """``⟨a_j, a_k⟩`` of the classes in ``index``."""
        grams = []
        for rows in chunks(len(target), TILE_ELEMENTS // max(1, index.shape[1] * self.head.dim)):
            offsets = wide(self.head.weight[index[rows]]) - wide(self.head.weight[target[rows]]).unsqueeze(1)
            grams.append(offsets @ offsets.mT)
        return torch.cat(grams)

    @cached_property
    def all_pairs(self) -> tuple[Int[Tensor, "classes others"], Float[Tensor, "classes others others"]]:
        """For each true class, the other classes and their :meth:`gram`; for heads of few classes."""
        every = torch.arange(self.head.num_classes, device=self.head.weight.device)
        others = torch.stack([every[every != true_class] for true_class in range(len(every))])
        return others, self.gram(every, others)

    def _centred(self, index: slice | Int[Tensor, " batch"]) -> Float[Tensor, "rows dim"]:
        return wide(self.head.rows(index)) - wide(self.head.centre)
