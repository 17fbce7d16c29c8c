"""Whether the outputs of a head are what its module returns."""

import torch
from torch import Tensor

_TOLERANCE = 1e-2
"""Far above the rounding of half precision, and far below what a softmax changes."""


def doubt(logits: Tensor, returned: Tensor, *, is_guessed: bool) -> str | None:
    """What speaks against a head, by what its module's forward returns; None where nothing does.

    Args:
        logits: outputs of the head, shape ``(..., classes)``.
        returned: what forward returns.
        is_guessed: whether nobody has said which layer is the head; otherwise other outputs are taken for intended,
            unless they are the probabilities of the head's.

    Returns:
        The end of a sentence that begins with the head.
    """
    classes = logits.shape[-1]
    if returned.ndim < 2 or not returned.is_floating_point() or not returned.isfinite().all():
        return None
    if is_guessed and classes not in returned.shape[1:]:
        return (
            f"makes {classes} outputs, but the module's forward returns the shape {tuple(returned.shape)}: is it the "
            "last layer? Pass `head=` the layer that makes the logits."
        )
    ours, theirs = logits.double(), returned.detach().double()
    if returned.shape == logits.shape and _is_same(ours.softmax(-1), theirs):
        return (
            "is followed by a softmax before the module's forward returns: what is measured is the cross-entropy of "
            "the head's outputs. If your loss has a softmax of its own, as nn.CrossEntropyLoss has, two softmaxes are "
            "trained: return the logits."
        )
    if is_guessed and returned.shape == logits.shape and not _is_same(ours.log_softmax(-1), theirs.log_softmax(-1)):
        return (
            "makes other outputs than the module's forward returns: what is measured is the cross-entropy of the "
            "head's. If your loss is another function of them, pass `loss=`; if another layer makes the logits, "
            "pass `head=`."
        )
    return None


def _is_same(ours: Tensor, theirs: Tensor) -> bool:
    return bool(torch.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE))
