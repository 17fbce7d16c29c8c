"""Every public name says what it takes and gives, and shows it."""

import importlib
import inspect
import pkgutil
import re

import pytest

from lightning_flatness import tracking

PACKAGES = (
    "",
    ".functional",
    ".functional.losses",
    ".functional.statistics",
    ".metrics",
    ".attacks",
    ".attacks.losses",
)
RIM = [
    module.name.removeprefix("lightning_flatness")
    for module in pkgutil.walk_packages(tracking.__path__, f"{tracking.__name__}.")
    if "._" not in module.name
]
"""What draws, writes and reads: not every function has an example, since many need a run or an account."""
NOT_MADE_BY_USERS = {
    *("FlatnessFactors", "ScaledHead", "TrajectoryPoints", "Histogram", "JointHistogram", "AttackResult", "Trajectory"),
    *("EpsilonCurveResult", "MaskingDiagnosis", "ScaledHeadAttack", "Signal", "TorchattacksAttack", "MaskingRule"),
    *("LogitLoss", "ElementwiseLoss", "Attack"),
}
"""What functions return, and what only derived classes are made of: there is no call to show."""
MADE_INSIDE = {"TorchattacksAttack"}
"""Classes whose arguments are those of the function that makes them."""


def public(package):
    """Functions and classes in a package's ``__all__``, or those that a module defines."""
    module = importlib.import_module(f"lightning_flatness{package}")
    names = vars(module).get("__all__") or [name for name in vars(module) if not name.startswith("_")]
    things = {name: getattr(module, name) for name in names}
    return {
        name: thing
        for name, thing in things.items()
        if (inspect.isfunction(thing) or inspect.isclass(thing))
        and ("__all__" in vars(module) or thing.__module__ == module.__name__)
    }


THINGS = {f"{package}.{name}": thing for package in PACKAGES for name, thing in public(package).items()}
EVERYWHERE = {**THINGS, **{f"{module}.{name}": thing for module in RIM for name, thing in public(module).items()}}
every_name = pytest.mark.parametrize("name", THINGS)
everywhere = pytest.mark.parametrize("name", EVERYWHERE)


def parameters(thing):
    """Names of what a call takes, ``*args`` and ``**kwargs`` of abstract classes left out."""
    kinds = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return [name for name, one in inspect.signature(thing).parameters.items() if one.kind not in kinds and name != "_"]


def documented(text):
    """Names under ``Args:`` or ``Attributes:``."""
    sections = re.findall(r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", f"{text}\n", re.MULTILINE)
    return re.findall(r"^    \*{0,2}(\w+):", "".join(sections), re.MULTILINE)


@everywhere
def test_every_argument_is_described_in_order(name):
    thing = EVERYWHERE[name]
    if thing.__name__ not in MADE_INSIDE:
        told = documented(inspect.getdoc(thing))
        assert [one for one in told if one in parameters(thing)] == parameters(thing)


@everywhere
def test_what_is_returned_is_described(name):
    thing = EVERYWHERE[name]
    if inspect.isfunction(thing) and inspect.signature(thing).return_annotation is not None:
        assert re.search(r"^(Returns|Yields):$", inspect.getdoc(thing), re.MULTILINE)


@every_name
def test_there_is_an_example(name):
    thing = THINGS[name]
    assert (">>> " in inspect.getdoc(thing)) == (thing.__name__ not in NOT_MADE_BY_USERS)


@everywhere
def test_errors_of_a_function_are_described(name):
    """Those that it raises itself, and those of the checks that it calls."""
    thing = EVERYWHERE[name]
    if inspect.isfunction(thing) and re.search(r"^    +raise |^    check_", inspect.getsource(thing), re.MULTILINE):
        assert "Raises:\n" in inspect.getdoc(thing)


def test_names_above_are_public():
    assert {thing.__name__ for thing in THINGS.values()} >= NOT_MADE_BY_USERS | MADE_INSIDE
