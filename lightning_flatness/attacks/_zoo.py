"""What is known of the attacks of torchattacks 3.5: what they need, and what they get wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isclose
from types import MappingProxyType

from torch import Tensor

from lightning_flatness.attacks.threat import Norm, ThreatModel, channelwise

RADIUS_NAMES = ("eps", "max_epsilon")
"""What attacks call the radius of their ball."""

FEWEST = MappingProxyType({
    "steps": 1,
    "n_queries": 1,
    "num_iter_set": 1,
    "nb_iter": 1,
    "restarts": 1,
    "max_patches": 1,
    "binary_search_steps": 1,
    "max_iterations": 10,  # the elastic net attacks divide by a tenth of it
    "gamma": 1e-9,  # of the pixels, rounded up to one step
})
"""Attributes that say how long an attack takes, and the smallest values with which it does all that it does."""

NORM_NAMES: Mapping[Norm, str] = {"linf": "Linf", "l2": "L2"}


@dataclass(frozen=True)
class Traits:
    """What one attack needs.

    Args:
        norm: of its ball; None where it has none, or is told which.
        channels: the only number of channels it takes; None for any.
        square: images must be as high as wide.
        l2_side: smallest height and width for the norm L2.
        classes: fewest classes.
        raise_logits: it multiplies logits by 0 to leave a class out, which only works if none is negative.
        inside: pixels must be this far from the ends of the range, where they could not move.
        leaves_range: its results lie a little outside the range.
        next_class: it aims at the class after the true one, as if there were 10 classes.
        overshoot: it stops on the boundary; go beyond by this share of the perturbation.
        settings: attributes that have to be corrected after construction.
    """

    norm: Norm | None = None
    channels: int | None = None
    square: bool = False
    l2_side: int = 1
    classes: int = 2
    raise_logits: bool = False
    inside: float = 0.0
    leaves_range: bool = False
    next_class: bool = False
    overshoot: float = 0.0
    settings: Mapping[str, object] = field(default_factory=dict)


_LINF = Traits(norm="linf")
_INSIDE = 1e-6
_L2_SQUARES = 5  # in a row, at the start

ZOO: Mapping[str, Traits] = MappingProxyType({
    **dict.fromkeys(["FGSM", "BIM", "RFGSM", "FFGSM", "PGD", "EOTPGD", "TPGD", "Jitter", "SPSA"], _LINF),
    **dict.fromkeys(["MIFGSM", "NIFGSM", "SINIFGSM", "VMIFGSM", "VNIFGSM"], _LINF),
    "UPGD": Traits(norm="linf", raise_logits=True),
    "DIFGSM": Traits(norm="linf", square=True),
    "TIFGSM": Traits(norm="linf", square=True, channels=3),
    "PIFGSM": Traits(norm="linf", channels=3),
    "PIFGSMPP": Traits(norm="linf", channels=3),
    "PGDL2": Traits(norm="l2"),
    # A clamp in their graph lets no gradient through at its ends.
    "PGDRS": Traits(norm="linf", inside=_INSIDE),
    "PGDRSL2": Traits(norm="l2", inside=_INSIDE),
    # told which norm
    **dict.fromkeys(["APGD", "FAB"], Traits()),
    "Square": Traits(l2_side=_L2_SQUARES),
    "APGDT": Traits(classes=4),
    # Its parts are built with 10 iterations and another schedule than those published.
    "AutoAttack": Traits(classes=4, l2_side=_L2_SQUARES, settings={"steps": 100, "rescale_schedule": False}),
    # without a ball
    "CW": Traits(raise_logits=True, inside=_INSIDE),  # the ends are at infinity
    "DeepFool": Traits(overshoot=0.02),
    # They write into the clean images.
    **dict.fromkeys(["EADEN", "EADL1"], Traits(raise_logits=True, leaves_range=True)),
    "JSMA": Traits(next_class=True),
    "Pixle": Traits(square=True),
    **dict.fromkeys(["SparseFool", "OnePixel", "GN", "VANILA"], Traits()),
})

EXCLUDED: Mapping[str, str] = {
    "LGV": "it trains the model further and needs its training data",
    "MultiAttack": "it takes attacks instead of a model; pass an instance, or run the attacks one by one",
}


def traits_of(attack: type) -> Traits:
    """Traits of the attack or of what it is derived from."""
    return next((ZOO[base.__name__] for base in attack.__mro__ if base.__name__ in ZOO), Traits())


def did_you_mean(name: str, known: list[str]) -> str:
    """Name what is closest, whatever its case; all of it where nothing is close."""
    spelled = {other.lower(): other for other in known}
    close = get_close_matches(name.lower(), spelled)
    names = ", ".join(spelled[match] for match in close)
    return f"did you mean {names}?" if close else f"choose from {', '.join(known)}."


def check_range(name: str, threat: ThreatModel) -> None:
    """Raise ``ValueError`` where there is no range to map to [0, 1], which is all that torchattacks knows."""
    if threat.lower is None or threat.upper is None:
        raise ValueError(
            f"{name} needs a valid range, got `lower`={threat.lower}, `upper`={threat.upper}; "
            "give ThreatModel the smallest and the largest value of your data."
        )


def unit_epsilon(name: str, threat: ThreatModel) -> float:
    """Radius of the ball where the valid range is [0, 1].

    Raises:
        ValueError: if it is not the same for all channels.
    """
    assert threat.lower is not None
    assert threat.upper is not None
    radii = {
        epsilon / (upper - lower) for epsilon, lower, upper in channelwise(threat.epsilon, threat.lower, threat.upper)
    }
    if not isclose(min(radii), max(radii), rel_tol=1e-6):
        raise ValueError(
            f"{name} needs one `epsilon` / (`upper` - `lower`) for all channels, "
            f"got {', '.join(f'{radius:.4g}' for radius in sorted(radii))}; use pgd or apgd."
        )
    return max(radii)


def check_images(name: str, traits: Traits, norm: Norm, images: Tensor, num_classes: int) -> None:
    """Raise ``ValueError`` where an attack cannot work on what it would be given."""
    _, channels, height, width = images.shape
    side = traits.l2_side if norm == "l2" else 1
    if min(height, width) < side:
        raise ValueError(
            f"{name} needs images of at least {side} x {side} for norm='l2', got {height} x {width}; "
            "choose another attack."
        )
    if traits.channels not in {None, channels}:
        raise ValueError(f"{name} needs {traits.channels} channels, got {channels}; choose another attack.")
    if traits.square and height != width:
        raise ValueError(f"{name} needs images as high as wide, got {height} x {width}; choose another attack.")
    if num_classes < traits.classes:
        raise ValueError(f"{name} needs at least {traits.classes} classes, got {num_classes}; choose another attack.")
