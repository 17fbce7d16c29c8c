"""What a pass costs, and models in every form that people have them in."""

from collections import Counter
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from lightning_flatness.attacks import AdaptiveAttack, AttackResult, ThreatModel, pgd
from tests.attacks.models import digit_cnn, held_out

THREAT = ThreatModel(epsilon=0.1)
FAST = AdaptiveAttack(THREAT, "fast")


class Waits(TorchDispatchMode):
    """Count the operations that an accelerator must finish everything for before the program goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @override
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = [index for index in args[1] if index is not None] if func.overloadpacket in _INDEXED else []
        if func.overloadpacket in _WAITING or any(index.dtype == torch.bool for index in masks):
            self.count += 1
        return func(*args, **(kwargs or {}))


_WAITING = {
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.nonzero,
    torch.ops.aten.masked_select,
    torch.ops.aten.equal,
}
_INDEXED = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}


@pytest.mark.parametrize(("dtype", "most"), [(None, 1), (torch.bfloat16, 2)])
def test_device_is_waited_for_once_per_step(dtype, most):
    model, (inputs, target) = digit_cnn(), held_out(40)
    waits, left = Counter(), Counter()
    for steps in (2, 10):
        with Waits() as mode:
            result = pgd(model, inputs, target, THREAT, steps=steps, autocast_dtype=dtype)
        waits[steps], left[steps] = mode.count, int((~result.success).sum())
    assert left[10] < left[2]
    assert 0 < waits[10] - waits[2] <= 8 * most


def test_device_is_not_waited_for_where_nobody_leaves():
    model, (inputs, target) = digit_cnn(), held_out(10)
    counts = []
    for steps in (2, 10):
        with Waits() as mode:
            pgd(model, inputs, target, THREAT, steps=steps, stop_when_fooled=False)
        counts.append(mode.count)
    assert counts[0] == counts[1]


def assert_equally_robust(first: AttackResult, second: AttackResult) -> None:
    assert first.success.any()
    assert not (first.nonfinite | second.nonfinite).any()
    assert (first.success ^ second.success).sum() <= 1


@pytest.mark.parametrize("factor", [1, 100])
def test_float16_model_is_fooled_as_often(factor):
    model, (inputs, target) = deepcopy(digit_cnn()), held_out(60)
    with torch.no_grad():
        model[-1].weight *= factor
        model[-1].bias *= factor
    expected = FAST(model, inputs, target)
    model.half()
    result = FAST(model, inputs.half(), target)
    assert result.x_adv.dtype == torch.float16
    assert_equally_robust(expected, result)
    # Passes in float16 behind a float32 interface, as autocast makes them.
    assert_equally_robust(expected, FAST(lambda x: model(x.half()).float(), inputs, target))


class Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layouts: list[bool] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.layouts.append(inputs.is_contiguous(memory_format=torch.channels_last))
        return digit_cnn()(inputs.mean(1, keepdim=True))


def test_channels_last_stays():
    inputs, target = held_out(30)
    colour = inputs.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    model = Recorder().eval()
    result = FAST(model, colour, target)
    assert all(model.layouts)
    assert result.x_adv.is_contiguous(memory_format=torch.channels_last)
    assert 0 < result.success.sum() < 30
    plain = FAST(model, colour.contiguous(), target)
    assert_equally_robust(plain, result)


@pytest.mark.slow
def test_compiled_model_is_fooled_as_often():
    model, (inputs, target) = (
        nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.Tanh(), nn.Linear(20, 10)),
        held_out(30),
    )
    target = model(inputs).argmax(1)
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        compiled(inputs)
    plain, result = (FAST(each, inputs, target) for each in (model, compiled))
    assert_equally_robust(plain, result)
    assert (result.forwards, result.backwards) == (plain.forwards, plain.backwards)
