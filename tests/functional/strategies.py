"""Problems for hypothesis."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor


class Problem(NamedTuple):
    features: Tensor
    weight: Tensor
    bias: Tensor
    logits: Tensor
    raw_target: Tensor  # arbitrary numbers as wide as the logits


def matrices(rows: int, columns: int, bound: float = 2.0) -> st.SearchStrategy[Tensor]:
    numbers = st.floats(-bound, bound, allow_subnormal=False)
    flat = st.lists(numbers, min_size=rows * columns, max_size=rows * columns)
    return flat.map(lambda values: torch.tensor(values, dtype=torch.float64).reshape(rows, columns))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """A head and its logits in float64, moderate in size."""
    batch, classes, dim = draw(st.integers(1, 2)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    features, weight = draw(matrices(batch, dim)), draw(matrices(classes, dim))
    bias = draw(matrices(1, classes)).squeeze(0)
    return Problem(features, weight, bias, features @ weight.T + bias, draw(matrices(batch, classes)))


@st.composite
def confident_problems(draw: st.DrawFn) -> Problem:
    """The same with logits drawn for themselves: softmax probabilities down to e^-60."""
    problem = draw(problems())
    return problem._replace(logits=draw(matrices(*problem.logits.shape, bound=30.0)))
