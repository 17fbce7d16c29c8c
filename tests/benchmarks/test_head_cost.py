"""What measuring costs beside the head's own forward pass."""

import pytest
import torch
from torch.nn.functional import linear

from lightning_flatness.functional import flatness_factors
from lightning_flatness.metrics import RelativeFlatness

from .measuring import CPU_TIME, HeadData, alternate, defined_neuronwise, extra_memory, make_head

TITLE = "Cost at a head (batch, classes, dim), as a multiple of its own forward pass; CPU time, one thread"
COLUMNS = ("head", "forward ms", "flatness_factors", "update", "extra memory of update MiB")

pytestmark = CPU_TIME


@pytest.mark.parametrize("size", [(256, 10, 512), (256, 100, 640), (256, 1000, 2048), (2048, 50257, 768)], ids=str)
@torch.inference_mode()
def test_head_cost(benchmark, report, size):
    if benchmark.disabled and size[1] > 10_000:
        pytest.skip("runs with --benchmark-enable")
    head = make_head(*size)
    features, weight, logits, target = head
    metric = RelativeFlatness()
    memory = extra_memory(lambda: metric.update(*head))

    seconds = alternate(
        benchmark,
        {
            "update": lambda: metric.update(*head),
            "factors": lambda: flatness_factors(features, weight, logits),
            "forward": lambda: linear(features, weight),
        },
    )

    flatness = flatness_factors(features, weight, logits, target).neuronwise().linear()
    few = HeadData(features[:4], weight, logits[:4], target[:4])
    torch.testing.assert_close(flatness[:4], defined_neuronwise(few), rtol=1e-5, atol=0)
    torch.testing.assert_close(metric.compute()["relative_flatness"], flatness.mean(), rtol=1e-9, atol=0)
    if benchmark.enabled:
        ratios = (f"{seconds[name] / seconds['forward']:.2f}x" for name in ("factors", "update"))
        report(str(size), f"{1e3 * seconds['forward']:.2f}", *ratios, f"{memory:.1f}")
