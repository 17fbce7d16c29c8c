"""How an attack of torchattacks is made for a model: the only place that imports torchattacks, and only when asked."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_flatness.attacks._guard import family
from lightning_flatness.attacks._zoo import (
    EXCLUDED,
    FEWEST,
    NORM_NAMES,
    RADIUS_NAMES,
    ZOO,
    Traits,
    check_range,
    did_you_mean,
    traits_of,
    unit_epsilon,
)
from lightning_flatness.attacks.threat import ThreatModel

_MAX_CLASSES = 10
"""Attacks on one class after the other are told of no more, which leaves the 9 likeliest other classes."""

_OLDEST = (3, 5)


class Recipe:
    """Makes an attack, and knows what it needs.

    Args:
        attack: name, class, instance or function of a model.
        threat: the ball and the valid range.
        arguments: of the class.

    Raises:
        ValueError: if they do not fit together.
        ImportError: if torchattacks is missing or too old.
    """

    def __init__(self, attack: Any, threat: ThreatModel, arguments: Mapping[str, Any]) -> None:
        if isinstance(attack, str):
            attack = _class_of(attack)
        base = self._base = torchattacks().attack.Attack
        if not isinstance(attack, base) and not callable(attack):
            raise ValueError(f"`attack` must be a name, an attack of torchattacks or a function, got {attack!r}.")
        self._attack, self._threat = attack, threat
        self.name: str = getattr(attack, "__name__", type(attack).__name__)
        self.arguments: dict[str, Any] = {}
        check_range(self.name, threat)
        if isinstance(attack, type) and issubclass(attack, base):
            self.arguments = _arguments(attack, threat, arguments)
        elif arguments:
            key = next(iter(arguments))
            raise ValueError(f"`{key}` cannot be set for {self.name}, which is no class of attacks; set it there.")
        elif isinstance(attack, base):
            _check_norm(self.name, _norm_of(attack), threat)

    def make(self, model: nn.Module, num_classes: int, seed: int) -> Any:
        """Return the attack, which may be the same object each time."""
        if isinstance(self._attack, type):
            parameters = inspect.signature(self._attack).parameters
            known = {"n_classes": min(num_classes, _MAX_CLASSES), "seed": seed}
            told = {key: value for key, value in known.items() if key in parameters}
            attack = self._attack(model, **told | self.arguments)
            settings = traits_of(self._attack).settings
            for member in family(attack):
                vars(member).update((key, value) for key, value in settings.items() if key in vars(member))
            return attack
        if isinstance(self._attack, self._base):
            return self._attack
        attack = self._attack(model)
        if not isinstance(attack, self._base):
            raise ValueError(f"{self.name} must return an attack of torchattacks, got {type(attack).__name__}.")
        _check_norm(type(attack).__name__, _norm_of(attack), self._threat)
        return attack


def set_up(attack: Any, traits: Traits, num_classes: int, *, fewest: bool) -> None:
    """Aim an attack at classes that exist, and shorten it if wished, while it is borrowed."""
    if traits.next_class and not attack.targeted:
        attack.set_mode_targeted_by_function(lambda _, labels: (labels + 1) % num_classes, quiet=True)
    if fewest:
        for member in family(attack):
            long = {key: vars(member)[key] for key in FEWEST if key in vars(member)}
            vars(member).update((key, min(value, FEWEST[key])) for key, value in long.items())


def torchattacks() -> Any:
    """Import torchattacks.

    Raises:
        ImportError: if it is missing or too old, with what to install.
    """
    try:
        import torchattacks as package  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise ImportError(_how_to_install("cannot be imported")) from error
    if tuple(map(int, package.__version__.split(".")[:2])) < _OLDEST:
        raise ImportError(_how_to_install(f"{package.__version__} is too old"))
    return package


def _how_to_install(problem: str) -> str:
    return (
        f"torchattacks {problem}. With pip: `pip install --no-deps 'torchattacks>=3.5.1' && pip install scipy`. "
        "With uv: `uv add 'torchattacks>=3.5.1'`, with "
        '`override-dependencies = ["requests>=2.32"]` under [tool.uv].'
    )


def _class_of(name: str) -> type:
    if name in EXCLUDED:
        raise ValueError(f"`attack` {name!r} cannot be used by name: {EXCLUDED[name]}.")
    if name not in ZOO:
        raise ValueError(f"`attack` {name!r} is not in torchattacks; {did_you_mean(name, sorted(ZOO))}")
    try:
        kind: type = getattr(torchattacks(), name)
    except ImportError as error:
        raise ImportError(f"`attack` {name!r}: {error}") from error
    return kind


def _arguments(kind: type, threat: ThreatModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the class is told besides the model: the user's arguments, and what the threat model says."""
    name, parameters = kind.__name__, dict(list(inspect.signature(kind).parameters.items())[1:])
    _check_keywords(name, parameters, given)
    told = dict(given)
    if "norm" in parameters:
        told.setdefault("norm", NORM_NAMES[threat.norm])
    _check_norm(name, told.get("norm", _own_norm(kind)), threat)
    radius = next((key for key in RADIUS_NAMES if key in parameters), None)
    if radius is not None and radius not in told:
        told[radius] = unit_epsilon(name, threat)
    if radius is not None and "alpha" in parameters and "alpha" not in told:
        told["alpha"] = parameters["alpha"].default / parameters[radius].default * told[radius]
    return told


def _check_keywords(name: str, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> None:
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in given:
        if key not in parameters:
            raise ValueError(f"`{key}` is no argument of {name}; {did_you_mean(key, list(parameters))}")


def _own_norm(kind: type) -> str | None:
    norm = traits_of(kind).norm
    return None if norm is None else NORM_NAMES[norm]


def _norm_of(attack: Any) -> str | None:
    norm: str | None = vars(attack).get("norm", _own_norm(type(attack)))
    return norm


def _check_norm(name: str, norm: str | None, threat: ThreatModel) -> None:
    if norm not in {None, NORM_NAMES[threat.norm]}:
        raise ValueError(f"{name} attacks in the norm {norm}, `threat` has {threat.norm!r}; make them the same.")
