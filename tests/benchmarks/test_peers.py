"""The same numbers, of the same head, by what else there is."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from lightning_flatness.functional import relative_flatness

from .measuring import CPU_TIME, HeadData, alternate, defined_layerwise, defined_neuronwise, make_head

# importorskip also keeps the deprecation warnings of their imports quiet.
curvlinops = pytest.importorskip("curvlinops")
backpack = pytest.importorskip("backpack")
extensions = pytest.importorskip("backpack.extensions")

TITLE = "A head with 512 features, batch 64; CPU time, one thread; error: largest, against the definition in float64"
COLUMNS = ("classes", "method", "what it gives", "ms", "ratio to ours", "relative error", "of a confident head")
MAX_DENSE_ELEMENTS = 2**28  # 1 GiB

pytestmark = [
    CPU_TIME,
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),  # BackPACK's, on a layer whose input is data
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),  # torch's own forward mode calls it
]


def ours(head: HeadData, variant: str) -> Tensor:
    return relative_flatness(head.features, head.weight, head.logits, variant=variant)


def textbook(head: HeadData) -> Tensor:
    probs = head.logits.softmax(1)
    variance = probs @ head.weight.square().sum(1) - (probs @ head.weight).square().sum(1)
    return head.features.square().sum(1) * variance


def textbook_layerwise(head: HeadData) -> Tensor:
    trace = 1 - head.logits.softmax(1).square().sum(1)
    return head.weight.square().sum() * head.features.square().sum(1) * trace


def from_blocks(hessian: Tensor, head: HeadData) -> Tensor:
    """Neuronwise relative flatness, given the Hessian with four axes."""
    return torch.einsum("sdtd,st->", hessian, head.weight @ head.weight.T)


def torch_func(head: HeadData) -> Tensor:
    def loss(weight: Tensor) -> Tensor:
        return cross_entropy(linear(head.features, weight), head.target)

    return from_blocks(torch.func.hessian(loss)(head.weight), head)


def linear_layer(head: HeadData) -> nn.Linear:
    layer = nn.Linear(*head.weight.T.shape, bias=False)
    layer.weight = nn.Parameter(head.weight.clone())
    return layer


def curvlinops_hessian(head: HeadData):
    layer = linear_layer(head)
    data = [(head.features, head.target)]
    return curvlinops.HessianLinearOperator(
        layer, nn.CrossEntropyLoss(), [layer.weight], data, check_deterministic=False
    )


def curvlinops_exact(head: HeadData) -> Tensor:
    dense = curvlinops_hessian(head) @ torch.eye(head.weight.numel())
    return from_blocks(dense.view(*head.weight.shape, *head.weight.shape), head)


def curvlinops_hutchpp(head: HeadData) -> Tensor:
    return head.weight.square().sum() * curvlinops.hutchpp_trace(curvlinops_hessian(head), num_matvecs=99)


def backpack_diagonal(head: HeadData) -> Tensor:
    layer, loss = backpack.extend(linear_layer(head)), backpack.extend(nn.CrossEntropyLoss(reduction="sum"))
    with backpack.backpack(extensions.BatchDiagHessian()):
        loss(layer(head.features), head.target).backward()
    return head.weight.square().sum() * layer.weight.diag_h_batch.flatten(1).sum(1)


class Method(NamedTuple):
    name: str
    gives: str
    function: Callable[[HeadData], Tensor]
    tolerance: float
    confident_tolerance: float = torch.inf
    dense: bool = False  # needs the whole Hessian

    def error(self, head: HeadData) -> float:
        """Largest relative error over what the method gives: one number per sample, or their mean."""
        value = self.function(head).double()
        definition = defined_neuronwise(head) if self.gives.startswith("neuronwise") else defined_layerwise(head)
        expected = definition if value.ndim else definition.mean()
        return float(((value - expected) / expected).abs().max())


METHODS = (
    Method("ours", "neuronwise per sample", partial(ours, variant="neuronwise"), 1e-5, 1e-5),
    Method("ours", "layerwise per sample", partial(ours, variant="layerwise"), 1e-5, 1e-5),
    Method("textbook form, float32", "neuronwise per sample", textbook, 1.0),
    Method("textbook form, float32", "layerwise per sample", textbook_layerwise, 1.0),
    Method("BackPACK BatchDiagHessian", "layerwise per sample", backpack_diagonal, 1.0),
    Method("curvlinops Hutch++ (99)", "layerwise, mean", curvlinops_hutchpp, 0.3),
    Method("torch.func.hessian", "neuronwise, mean", torch_func, 1e-3, dense=True),
    Method("curvlinops Hessian @ I", "neuronwise, mean", curvlinops_exact, 1e-3, dense=True),
)


@pytest.mark.parametrize("classes", [10, 100])
def test_peers(benchmark, report, classes):
    batch, dim = (64, 512) if benchmark.enabled else (8, 16)
    head, confident = (make_head(batch, classes, dim, scale) for scale in (0.5, 4.0))
    methods = [m for m in METHODS if not m.dense or head.weight.numel() ** 2 <= MAX_DENSE_ELEMENTS]
    seconds = alternate(benchmark, {f"{m.name}, {m.gives}": partial(m.function, head) for m in methods})
    baseline = next(iter(seconds.values()))

    for method in METHODS:
        cells = ["not run: a Hessian of more than 1 GiB", "", "", ""]
        if method in methods:
            errors = method.error(head), method.error(confident)
            assert errors[0] < method.tolerance
            assert errors[1] < method.confident_tolerance
            time = seconds[f"{method.name}, {method.gives}"]
            cells = [f"{1e3 * time:.2f}", f"{time / baseline:.2f}x", *(f"{error:.1e}" for error in errors)]
        if benchmark.enabled:
            report(str(classes), method.name, method.gives, *cells)
