"""The rows of a linear head, with the bias as a last column when it belongs to the block."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_flatness.functional._numerics import (
    TILE_ELEMENTS,
    at_least_float32,
    chunks,
    sq_norm,
)


@dataclass(frozen=True, eq=False)
class Head:
    """Row ``w_k`` of ``weight`` for each class, or ``[w_k, b_k]`` where ``bias`` is given."""

    weight: Float[Tensor, "classes dim"]
    bias: Float[Tensor, " classes"] | None = None

    @classmethod
    def without_columns(cls, logits: Float[Tensor, "batch classes"]) -> "Head":
        """Rows of no length: what needs only the logits, at no cost."""
        return cls(logits.new_empty(logits.shape[1], 0))

    @property
    def num_classes(self) -> int:
        """Number of rows."""
        return self.weight.shape[0]

    @property
    def dim(self) -> int:
        """Number of columns, the bias included."""
        return self.weight.shape[1] + (self.bias is not None)

    @cached_property
    def centre(self) -> Float[Tensor, " dim"]:
        """Mean row. Any shift is legal in a variance; this one keeps common offsets out."""
        mean = at_least_float32(self.weight).mean(0)
        if self.bias is None:
            return mean
        return torch.cat([mean, at_least_float32(self.bias).mean(0, keepdim=True)])

    def rows(self, index: slice | Int[Tensor, " batch"]) -> Float[Tensor, "rows dim"]:
        """Rows at ``index``, in float32 or wider."""
        rows = at_least_float32(self.weight[index])
        if self.bias is None:
            return rows
        return torch.cat([rows, at_least_float32(self.bias[index]).unsqueeze(1)], dim=1)

    def row_slices(self) -> list[slice]:
        """Slices of the rows that each hold at most one tile."""
        return list(chunks(self.num_classes, TILE_ELEMENTS // max(1, self.dim)))

    @cached_property
    def row_sq_norms(self) -> Float[Tensor, " classes"]:
        """``‖w_k‖²`` of each class, not centred."""
        return torch.cat([sq_norm(self.rows(rows)) for rows in self.row_slices()])

    def sq_norm(self) -> Float[Tensor, ""]:
        """``‖W‖_F²``, not centred."""
        return self.row_sq_norms.sum()

    def feature_sq_norms(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """``‖φ‖²``, or ``‖[φ, 1]‖²`` where the bias belongs to the block."""
        return sq_norm(features) + (self.bias is not None)
