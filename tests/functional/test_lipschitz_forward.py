"""What a certificate follows through a forward, and what it refuses."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - everybody's name
from torchvision.ops import StochasticDepth

from lightning_flatness.functional import certified_lipschitz
from tests.functional.jacobians import tightness
from tests.functional.test_lipschitz_layers import Apply, random


def raises(text):
    return pytest.raises(ValueError, match=re.escape(text))


# In place: every name of the numbers must know of the change.


def _scaled_view(x):
    x = x + 0
    x[:, :1].mul_(5)
    return x


def _changed_before_its_view_is_used(x):
    x = x + 0
    view = x.view(-1)
    x *= 5
    return view


def _changed_result_unused(x):
    x = x + 0
    torch.relu_(x.mul_(5))
    return x


def _added_to_a_part(x):
    x = x + 0
    second = x[:, 2:].clone()
    x[:, :2].add_(second, alpha=3)
    return x


def _shrunk(x):
    x = x + 0
    x.mul_(0.5).clamp_(-1, 1)
    return x


def _changed_after_its_expansion(x):
    x = x + 0
    repeated = x.view(2, 2).expand(9, 2, 2)
    x *= 5
    return repeated


@pytest.mark.parametrize(
    "function",
    [
        *(_scaled_view, _changed_before_its_view_is_used, _changed_result_unused, _added_to_a_part, _shrunk),
        _changed_after_its_expansion,
    ],
)
def test_changes_in_place_reach_every_view(function):
    assert 1 - 1e-9 < tightness(Apply(function), 0.1 + random(1, 4).abs()) < 2


def test_a_constant_changed_in_place_is_an_error():
    buffer = torch.zeros(1, 2, dtype=torch.float64)
    with raises("a tensor that did not depend on the input is changed in place"):
        certified_lipschitz(Apply(lambda x: buffer.clone().add_(x)), random(1, 2))
    with raises("torch.add writes into a given tensor"):
        certified_lipschitz(Apply(lambda x: torch.add(x, x, out=buffer.clone())), random(1, 2))


def test_the_example_is_left_alone():
    example = random(2, 3)
    before = example.clone()
    certified_lipschitz(Apply(lambda x: x.mul_(2).relu_()), example)
    assert torch.equal(example, before)


# Operations without a rule.


class Named(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), Apply(function))

    def forward(self, x):
        return self.body(x)


def _hidden_from_python(x):
    with torch._C.DisableTorchFunctionSubclass():
        return 2 * x


UNSUPPORTED = {
    "no Lipschitz constant is known for torch.exp": torch.exp,
    "no Lipschitz constant is known for torch.Tensor.square": lambda x: x.square(),
    "no Lipschitz constant is known for torch.Tensor.__bool__": lambda x: x if x.sum() else -x,
    "no Lipschitz constant is known for torch.Tensor.item": lambda x: x * x.sum().item(),
    "no Lipschitz constant is known for torch.Tensor.numpy": lambda x: torch.as_tensor(x.numpy()),
    "no Lipschitz constant is known for torch.Tensor.data": lambda x: x.data,
    "no Lipschitz constant is known for torch.nn.functional.hardshrink": F.hardshrink,
    "no Lipschitz constant is known for torch.nn.functional.glu": F.glu,
    "no Lipschitz constant is known for torch.nn.functional.embedding": lambda x: F.embedding(x, torch.ones(2, 2)),
    "no Lipschitz constant is known for torch.Tensor.__setitem__": lambda x: torch.zeros(4).__setitem__(0, x[0, 0]),
    "no Lipschitz constant is known for torch.Tensor.gt": lambda x: torch.where(x > 0, x, 0),
    "aten.mul.Tensor was called from outside Python": _hidden_from_python,
    "a product of two tensors that depend on the input": lambda x: x * x.sigmoid(),
    "a product of two tensors that depend on the input has no largest slope": lambda x: x @ x.mT,
    "a division that is rounded or by what depends on the input": lambda x: x / x.sum(),
    "a parameter of an operation depends on the input": lambda x: x.clamp(max=x.mean()),
    "a weight depends on the input": lambda x: F.linear(torch.ones(1, 4), x),
    "an index that is no slice can repeat numbers": lambda x: x[:, [0, 0, 0]],
    "view as another type reads other numbers": lambda x: x.view(torch.float32),
    "a result is torch.int64": lambda x: x.to(torch.int64),
    "celu with `alpha` -1.0 has no largest slope": nn.CELU(-1.0),
    "softplus with `beta` 1.0 and `threshold` 1.0 jumps": nn.Softplus(1.0, 1.0),
    "dropout is in training mode": F.dropout,
    "rrelu is in training mode": lambda x: F.rrelu(x, training=True),
    "average pooling with `divisor_override`": lambda x: F.avg_pool2d(x[None], 1, divisor_override=2),
    "the matrix of a product has more than 2 dimensions": lambda x: torch.ones(3, 4, 4) @ x.mT,
    "batch normalisation by the statistics of the batch mixes samples": nn.BatchNorm1d(4, track_running_stats=False),
    "a normalisation without `eps` has no largest slope": nn.LayerNorm(4, eps=0.0),
    "a weight or constant is inf": lambda x: x / 0,
    "a weight or constant is nan": lambda x: x * torch.tensor([1.0, torch.nan, 1.0, 1.0]),
}


@pytest.mark.parametrize("text", UNSUPPORTED)
def test_operations_without_a_rule_are_named_with_their_place(text):
    with raises(f"`module` cannot be certified: {text}") as raised:
        certified_lipschitz(Named(UNSUPPORTED[text]).double().eval(), random(2, 4))
    assert re.search(
        r" in 'body\.1(\.function)?' \(\w+\); certify a part without it, or estimate with local_lipschitz\.$",
        str(raised.value),
    )


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("layer", [nn.Linear(3, 3), nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.PReLU(), nn.LayerNorm(3)])
def test_weights_that_are_not_finite(layer, number):
    layer.weight.data.view(-1)[0] = number
    with raises(f"`module` cannot be certified: a weight or constant is {number} in '0' ({type(layer).__name__});"):
        certified_lipschitz(nn.Sequential(layer).eval(), torch.zeros(1, 3, 3))


@pytest.mark.parametrize(
    "part",
    [
        *(nn.Dropout(), nn.BatchNorm1d(3), nn.RReLU()),
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
        nn.utils.spectral_norm(nn.Linear(3, 3)),
    ],
    ids=lambda part: type(part).__name__,
)
def test_training_mode(part):
    state = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    with raises(f"`module` must be in eval mode, got {type(part).__name__} ('1') in training mode; call `.eval()`."):
        certified_lipschitz(nn.Sequential(nn.ReLU(), part), torch.zeros(2, 3))
    assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())


def test_random_numbers():
    """A path that is dropped by chance would be certified to be constant."""
    part = StochasticDepth(0.5, "row")
    with raises("`module` must not draw random numbers, whose bound is only that of the draw; call `.eval()`."):
        certified_lipschitz(part, torch.zeros(1, 3))
    assert certified_lipschitz(part.eval(), torch.zeros(1, 3)) == pytest.approx(1)


def test_what_is_the_same_in_training_mode_is_certified():
    assert certified_lipschitz(nn.Sequential(nn.ReLU(), nn.LayerNorm(3)), torch.zeros(2, 3)) > 0


@pytest.mark.parametrize(
    ("example", "shown"),
    [
        (torch.zeros(3), "torch.float32 of shape (3,)"),
        (torch.zeros(0, 3), "torch.float32 of shape (0, 3)"),
        (torch.zeros(2, 3, dtype=torch.int64), "torch.int64 of shape (2, 3)"),
    ],
)
def test_example_that_is_no_batch(example, shown, unchecked_shapes):
    with unchecked_shapes, raises(f"`example` must be a batch of floating-point inputs, got {shown}."):
        certified_lipschitz(nn.ReLU(), example)


def test_unknown_norm(unchecked_shapes):
    with unchecked_shapes, raises("`norm` must be 2 or 'inf', got 'l2'."):
        certified_lipschitz(nn.ReLU(), torch.zeros(1, 2), norm="l2")


def test_module_that_returns_no_tensor():
    with raises("`module` must return one tensor, got tuple; wrap it so that it does."):
        certified_lipschitz(Apply(lambda x: (x, x)), torch.zeros(1, 2))


# Where and how it is called.


def test_under_inference_mode_and_autocast():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    expected = certified_lipschitz(module, torch.zeros(1, 4))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert certified_lipschitz(module, torch.zeros(1, 4)) == pytest.approx(expected, rel=1e-12)


def test_arguments_by_name():
    def function(x):
        return torch.flatten(input=torch.add(input=x, other=x), start_dim=0) * torch.mul(other=x, input=1.0).shape[0]

    assert certified_lipschitz(Apply(function), random(2, 2)) == pytest.approx(4)


def test_hooks_are_part_of_the_function():
    layer = nn.Linear(3, 3).double()
    expected = certified_lipschitz(layer, random(1, 3))
    layer.register_forward_hook(lambda *call: 2 * call[-1])
    assert certified_lipschitz(layer, random(1, 3)) == pytest.approx(2 * expected)


def test_a_function_with_its_own_gradient_is_followed():
    class Fivefold(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return 5 * x

    assert certified_lipschitz(Apply(Fivefold.apply), random(1, 3)) == pytest.approx(5)


def test_a_compiled_module_runs_without_its_compiler():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    compiled = torch.compile(module, backend=pytest.fail)
    assert certified_lipschitz(compiled, torch.zeros(1, 4)) == certified_lipschitz(module, torch.zeros(1, 4))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_script_is_an_error():
    with raises("`module` cannot be certified: no Lipschitz constant is known for"):
        certified_lipschitz(torch.jit.script(nn.Sequential(nn.ReLU())), torch.zeros(1, 3))
