r"""How far features can move when inputs move: Lipschitz constants, certified from above and estimated from below.

``‖φ(x') - φ(x)‖₂ ≤ L ‖x' - x‖`` makes an input radius ``ρ / L`` of a radius ``ρ`` in feature space. Only an upper bound
on ``L`` makes a guarantee of it; an estimate from below does not.
"""

from collections.abc import Callable
from math import prod, sqrt
from types import TracebackType
from typing import Literal, get_args
from warnings import catch_warnings, simplefilter
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm

from lightning_flatness.functional._checks import check_counts, check_finite, check_matrix
from lightning_flatness.functional._lipschitz_activations import ACTIVATION_FACTORS
from lightning_flatness.functional._lipschitz_factors import scaling
from lightning_flatness.functional._lipschitz_layers import LAYER_FACTORS, LAYER_RULES
from lightning_flatness.functional._lipschitz_rules import ARITHMETIC_RULES, METADATA, MOVE_FACTORS
from lightning_flatness.functional._lipschitz_tensor import Bound, BoundedTensor, NoRuleError
from lightning_flatness.functional._numerics import full_precision, wide

InputNorm = Literal[2, "inf"]
"""Norm of an input's displacement; features are always measured in l2."""

_ROUNDING = 1 + 1e-9
"""More than all roundings of the factors, sums and Fourier transforms of a network can add up to."""
_FACTORS = [*ACTIVATION_FACTORS, *MOVE_FACTORS, *LAYER_FACTORS]
_RULES = {
    **{function: scaling(factor) for functions, factor in _FACTORS for function in functions},
    **{function: rule for functions, rule in [*ARITHMETIC_RULES, *LAYER_RULES] for function in functions},
    **dict.fromkeys(METADATA),
}


def certified_lipschitz(module: nn.Module, example: Float[Tensor, "batch *shape"], *, norm: InputNorm = 2) -> float:
    r"""Upper bound on the Lipschitz constant of a module, everywhere, by a rule for each operation of its forward.

    The forward runs once on ``example``, and each torch function in it multiplies or adds the bounds of its inputs:
    matrices and convolutions by their operator norm (exact or nearly so), activations by their largest
    slope, residual branches add, concatenations are a root of squares, and batch normalisation is absorbed into the
    layer before it. Loose for deep networks, by orders of magnitude, but sound: an operation without a rule is an
    error, as is control flow that depends on values. LayerNorm and its kin are only bounded by ``max|γ| / √eps``.

    Rules exist for linear layers, products with constant matrices, one- and two-dimensional convolutions with every
    padding, stride and dilation, maximum and average pooling, normalisation layers, activations with a largest slope,
    softmax, sums of tensors, products with constants, concatenation, slices, reshaping, padding, and changes in place.
    There are none for attention, recurrent layers, transposed and three-dimensional convolutions, interpolation, or
    products of two tensors that depend on the input.

    The bound is one on the function with exact arithmetic, for inputs of the shape of ``example``. Weights are copied
    to the CPU; the time is cubic in the number of channels.

    Args:
        module: maps a batch to features, each sample by itself; in eval mode.
        example: a batch of inputs; only its shape matters.
        norm: of the displacement of the inputs: ``2``, or ``"inf"`` for its largest entry, where the bound is ``√n``
            times the other for samples of ``n`` numbers. Features are measured in l2 with either.

    Returns:
        The bound ``L`` in ``‖f(x') - f(x)‖₂ ≤ L ‖x' - x‖``, rounded up.

    Raises:
        ValueError: if ``module`` holds an operation without a rule, weights that are not finite or a part in training
            mode, draws random numbers or returns more than a tensor, or ``example`` is no batch of floating-point
            numbers.

    References:
        Delattre, Barthélemy, Araujo, Allauzen, *Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram
        Iteration*, ICML 2023, where the bound by the Fourier transform is discussed; Pfister and Bresler, *Bounding
        Multivariate Trigonometric Polynomials*, IEEE Transactions on Signal Processing 2019, for its grid.

    Example:
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
        >>> module[0].weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> round(certified_lipschitz(module, torch.zeros(1, 2)), 6)
        4.0
    """
    _check_norm(norm)
    _check_batch("example", example)
    _check_eval_mode(module)
    constant = _bound(module, example)
    return constant * _ROUNDING * (sqrt(prod(example.shape[1:])) if norm == "inf" else 1.0)


def _bound(module: nn.Module, example: Tensor) -> float:
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        full_precision(example.device),
        torch.compiler.set_stance("force_eager"),
    ):
        seeds = _random_states(example.device)
        start = BoundedTensor(example.detach().clone(), Bound(1.0), _RULES, WeakSet())
        try:
            output = module(start)
        except NoRuleError as error:
            raise ValueError(
                f"`module` cannot be certified: {error}{_place(module, error.__traceback__)}; "
                "certify a part without it, or estimate with local_lipschitz."
            ) from error
    if not all(map(torch.equal, seeds, _random_states(example.device))):
        raise ValueError("`module` must not draw random numbers, whose bound is only that of the draw; call `.eval()`.")
    if isinstance(output, BoundedTensor):
        return output.bound.constant
    if isinstance(output, Tensor):
        return 0.0
    raise ValueError(f"`module` must return one tensor, got {type(output).__name__}; wrap it so that it does.")


def _random_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _place(module: nn.Module, traceback: TracebackType | None) -> str:
    """Name the innermost part of ``module`` in whose forward an error was raised."""
    names = {id(part): f" in {name!r} ({type(part).__name__})" for name, part in module.named_modules() if name}
    place = ""
    while traceback is not None:
        place = names.get(id(traceback.tb_frame.f_locals.get("self")), place)
        traceback = traceback.tb_next
    return place


def _check_eval_mode(module: nn.Module) -> None:
    kinds = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.RReLU)  # noqa: SLF001 - their only name
    for name, part in module.named_modules():
        hooks = part._forward_pre_hooks.values()  # noqa: SLF001 - where the older spectral norm stands
        changes = isinstance(part, kinds) or is_parametrized(part) or any(isinstance(h, SpectralNorm) for h in hooks)
        if part.training and changes:
            raise ValueError(
                f"`module` must be in eval mode, got {type(part).__name__} ({name!r}) in training mode; call `.eval()`."
            )


def local_lipschitz(
    fn: Callable[[Tensor], Tensor],
    inputs: Float[Tensor, "batch *shape"],
    *,
    norm: InputNorm = 2,
    iterations: int = 20,
) -> Float[Tensor, " batch"]:
    r"""Estimate, from below, of the norm of the Jacobian of each sample's features.

    The Jacobian's norm at one point is a lower bound on the Lipschitz constant around it, and ``iterations`` steps of
    the power method give a lower bound on that norm: no guarantee follows from it. All samples are iterated together,
    from the same start for every sample and every call. The value of a sample does not depend on its batch.

    The forward runs once; each step is a backward pass and a pass back through that, 4 to 6 times the time of a forward
    without gradients on a CPU, about 100 forwards for 20 steps. The graph of both passes is kept, as in training.

    Args:
        fn: maps a batch to features, each sample by itself; differentiable in torch. Each step costs another forward
            where torch cannot differentiate it twice.
        inputs: points at which to estimate.
        norm: of the displacement: ``2`` gives the largest singular value; ``"inf"`` the largest ``‖Jv‖₂`` over
            ``|v_i| ≤ 1``, by the method's sign form, which can stop at a local maximum.
        iterations: steps of the power method.

    Returns:
        Estimates, float64 (float32 on MPS).

    Raises:
        ValueError: if shapes, ``norm`` or ``iterations`` do not fit, or inputs or features are not finite.

    References:
        Boyd, *The Power Method for lp Norms*, Linear Algebra and its Applications 1974.

    Example:
        >>> local_lipschitz(lambda x: x @ torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.zeros(1, 2)).round(decimals=3)
        tensor([4.], dtype=torch.float64)
    """
    _check_norm(norm)
    _check_batch("inputs", inputs)
    check_finite(inputs=inputs)
    check_counts(iterations=iterations)
    # The faster kernels of attention cannot be differentiated twice.
    exact = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(mode=False), torch.enable_grad(), full_precision(inputs.device), exact:
        point = inputs.detach().clone().requires_grad_()
        jacobian, transposed = _jacobian(fn, point)
        start = torch.randn(point.shape[1:], generator=torch.Generator().manual_seed(0))
        direction = _unit(start.to(point).expand_as(point))
        for step in range(iterations):
            # Signs from the start would often end at a poor local maximum.
            use_signs = norm == "inf" and step >= iterations // 2
            direction = transposed(_unit(jacobian(direction)))
            direction = _signs(direction) if use_signs else _unit(direction)
        return _lengths(jacobian(direction))


def _jacobian(fn: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Callable[[Tensor], Tensor], ...]:
    """Products with each sample's Jacobian and with its transpose, by two reverse passes over one forward."""
    features = fn(point)
    if not isinstance(features, Tensor) or features.shape[:1] != point.shape[:1] or not features.is_floating_point():
        shown = f"{features.dtype} {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"`fn` must return floating-point features of {len(point)} samples, got {shown}.")
    check_finite(**{"fn(inputs)": features})
    # The gradient is linear in `cotangent`, so that its own gradient is a product with the Jacobian.
    features = features + 0 * point.flatten()[0]  # so that a constant has a gradient too
    cotangent = torch.zeros_like(features, requires_grad=True)
    (pullback,) = torch.autograd.grad(features, point, cotangent, create_graph=True)

    def jacobian(direction: Tensor) -> Tensor:
        try:
            return torch.autograd.grad(pullback, cotangent, direction, retain_graph=True)[0]
        except RuntimeError as error:
            # Some operations, such as hardsigmoid, can be differentiated once only.
            if "is not implemented" not in str(error):
                raise
            return _forward_product(fn, point, direction)

    def transposed(direction: Tensor) -> Tensor:
        return torch.autograd.grad(features, point, direction, retain_graph=True)[0]

    return jacobian, transposed


def _forward_product(fn: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor) -> Tensor:
    """Product with each sample's Jacobian by another forward in dual numbers."""
    with torch.no_grad(), forward_ad.dual_level(), catch_warnings():
        simplefilter("ignore", FutureWarning)  # torch's own rules are written in what it has deprecated
        dual = forward_ad.make_dual(point.detach(), direction)  # type: ignore[no-untyped-call]
        value, tangent = forward_ad.unpack_dual(fn(dual))  # type: ignore[no-untyped-call]
        return torch.zeros_like(value) if tangent is None else tangent


def _lengths(rows: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
    lengths: Tensor = torch.linalg.vector_norm(rows.reshape(len(rows), -1), dim=1, dtype=wide(rows[:0]).dtype)
    return lengths


def _unit(rows: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
    """Each row over its length; zero stays zero."""
    lengths = _lengths(rows).clamp_min(torch.finfo(torch.float32).tiny)
    return (rows / lengths.view(-1, *[1] * (rows.ndim - 1))).to(rows.dtype)


def _signs(rows: Tensor) -> Tensor:
    return torch.where(rows < 0, -1.0, 1.0).to(rows.dtype)


def displacement_lipschitz(
    features: Float[Tensor, "batch dim"], features_adv: Float[Tensor, "batch dim"], distance: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Lipschitz constant that a pair of inputs shows, ``‖φ' - φ‖₂ / ‖x' - x‖``: a lower bound.

    Args:
        features: features of the inputs.
        features_adv: features of the inputs after an attack.
        distance: how far the attack has moved each input, in the norm of one's choice.

    Returns:
        Ratios, float64 (float32 on MPS); 0 where nothing has moved.

    Raises:
        ValueError: if shapes do not fit, or numbers are not finite or a distance is negative.

    Example:
        >>> displacement_lipschitz(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.tensor([2.0]))
        tensor([2.5000], dtype=torch.float64)
    """
    check_matrix("features", features)
    check_matrix("features_adv", features_adv)
    if features.shape != features_adv.shape or distance.shape != features.shape[:1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (features, features_adv, distance))
        raise ValueError(f"`features`, `features_adv` and `distance` must fit together, got shapes {shapes}.")
    check_finite(features=features, features_adv=features_adv, distance=distance)
    if bool((distance < 0).any()):
        raise ValueError(f"`distance` must be >= 0, got {float(distance.min())}.")
    ratio = _lengths(wide(features_adv) - wide(features)) / wide(distance)
    return torch.where(distance > 0, ratio, 0.0)


def _check_norm(norm: object) -> None:
    if norm not in get_args(InputNorm):
        raise ValueError(f"`norm` must be 2 or 'inf', got {norm!r}.")


def _check_batch(name: str, batch: Tensor) -> None:
    if batch.ndim < 2 or batch.numel() == 0 or not batch.is_floating_point():
        raise ValueError(
            f"`{name}` must be a batch of floating-point inputs, got {batch.dtype} of shape {tuple(batch.shape)}."
        )
