"""Whether the outputs of a head are what its module returns."""

from torch import Tensor

from lightning_flatness.functional._checks import are_probabilities

_TOLERANCE = 1e-2
"""As a share of the largest output: above the rounding of half precision, and far below what a softmax changes."""
_ROWS = 64
"""Leading rows that are compared, wherever the outputs are, on the CPU: float64 is not everywhere."""


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
    is_output = returned.ndim > 1 and returned.is_floating_point()
    if is_output and is_guessed and classes not in returned.shape[1:]:
        return (
            f"makes {classes} outputs, but the module's forward returns the shape {tuple(returned.shape)}: is it the "
            "last layer? Pass `head=` the layer that makes the logits."
        )
    if not is_output or returned.shape != logits.shape or not logits.numel():
        return None
    ours, theirs = (outputs.detach().reshape(-1, classes)[:_ROWS].cpu().double() for outputs in (logits, returned))
    if not theirs.isfinite().all() or _is_same(ours, theirs):
        return None
    if are_probabilities(theirs) and _is_same(ours.softmax(-1), theirs):
        return (
            "is followed by a softmax before the module's forward returns: what is measured is the cross-entropy of "
            "the head's outputs. If your loss has a softmax of its own, as nn.CrossEntropyLoss has, two softmaxes are "
            "trained: return the logits."
        )
    if not is_guessed or _is_same(ours.log_softmax(-1), theirs.log_softmax(-1)):
        return None
    return (
        "makes other outputs than the module's forward returns: what is measured is the cross-entropy of the head's. "
        "If your loss is another function of them, pass `loss=`; if another layer makes the logits, pass `head=`."
    )


def _is_same(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= _TOLERANCE * theirs.abs().max())
