r"""Logit Hessians ``H_z = ∂²ℓ/∂z²`` of the common losses, and of any loss by automatic differentiation.

A loss is named (``"cross_entropy"``), or given as the torch module that the training uses (``torch.nn.CrossEntropyLoss(
label_smoothing=0.1)``), as one of the classes below, or as any function of ``(logits, target)`` that returns one value
per sample. :func:`resolve_loss` turns each of these into a :class:`LogitLoss`.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Literal, get_args

from torch import nn

from lightning_flatness.functional._autograd_loss import AutogradLoss
from lightning_flatness.functional._elementwise_losses import (
    BinaryCrossEntropy,
    ClassReduction,
    ElementwiseLoss,
    Huber,
    MeanSquaredError,
    PoissonNLL,
)
from lightning_flatness.functional._logit_loss import LogitLoss, LossFunction
from lightning_flatness.functional._softmax_losses import CrossEntropy, Focal, TrueClassLoss

__all__ = [
    "AutogradLoss",
    "BinaryCrossEntropy",
    "ClassReduction",
    "CrossEntropy",
    "ElementwiseLoss",
    "Focal",
    "Huber",
    "LogitLoss",
    "LossFunction",
    "LossName",
    "MeanSquaredError",
    "PoissonNLL",
    "TrueClassLoss",
    "resolve_loss",
]

LossName = Literal["cross_entropy", "binary_cross_entropy", "mse", "huber", "poisson_nll", "focal"]


def resolve_loss(loss: "LossName | LogitLoss | nn.Module | LossFunction") -> LogitLoss:
    """Turn whatever describes a loss into a :class:`LogitLoss`.

    Args:
        loss: a name, a :class:`LogitLoss`, a torch loss module, whose settings are taken over, or a function of
            ``(logits, target)`` that returns one loss per sample.

    Returns:
        The loss.

    Raises:
        ValueError: if the name is unknown, the torch loss has no Hessian with respect to the logits, or ``loss`` is
            none of the above.

    Example:
        >>> resolve_loss("cross_entropy").label_smoothing
        0.0
        >>> resolve_loss(nn.CrossEntropyLoss(label_smoothing=0.1)).label_smoothing
        0.1
    """
    if isinstance(loss, LogitLoss):
        return loss
    if isinstance(loss, type):
        raise ValueError(f"`loss` must be an instance, got the class {loss.__name__}; write {loss.__name__}().")
    if isinstance(loss, str):
        if loss not in _NAMED:
            raise ValueError(
                f"`loss` must be one of {', '.join(get_args(LossName))}, a torch.nn loss or a function, got {loss!r}."
            )
        return _NAMED[loss]()
    if isinstance(loss, nn.Module):
        return _from_module(loss)
    if callable(loss):
        return AutogradLoss(loss)
    raise ValueError(f"`loss` must be a name, a torch.nn loss or a function, got {loss!r}.")


_NAMED: dict[str, Callable[[], LogitLoss]] = {
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "mse": MeanSquaredError,
    "huber": Huber,
    "poisson_nll": PoissonNLL,
    "focal": Focal,
}


def _from_module(module: nn.Module) -> LogitLoss:  # noqa: PLR0911 - a table
    if type(module).__module__ != nn.CrossEntropyLoss.__module__:  # also a subclass, whose forward may differ
        return AutogradLoss(deepcopy(module))
    match module:
        case nn.CrossEntropyLoss():
            return CrossEntropy(module.weight, module.ignore_index, module.label_smoothing)
        case nn.NLLLoss():
            return CrossEntropy(module.weight, module.ignore_index)
        case nn.BCEWithLogitsLoss():
            return BinaryCrossEntropy(module.pos_weight, module.weight, _over_classes(module))
        case nn.MSELoss():
            return MeanSquaredError(_over_classes(module))
        case nn.HuberLoss():
            return Huber(module.delta, reduction=_over_classes(module))
        case nn.SmoothL1Loss() if module.beta > 0:
            return Huber(module.beta, 1 / module.beta, _over_classes(module))
        case nn.PoissonNLLLoss() if module.log_input:
            return PoissonNLL(_over_classes(module))
    raise ValueError(
        f"`loss` does not support torch.nn.{type(module).__name__}; "
        "pass a function of (logits, target) that returns one loss per sample."
    )


def _over_classes(module: nn.Module) -> ClassReduction:
    return "sum" if module.reduction == "sum" else "mean"
