"""Who gets the old ``requests`` that torchattacks pins: those who ask for its extra, and nobody else."""

from importlib.metadata import metadata, requires

import pytest
from packaging.requirements import Requirement

NAME = "lightning-flatness"
EXTRAS = set(metadata(NAME).get_all("Provides-Extra"))
CURRENT = "2.32.0"
"""A release of requests that the pin excludes."""


def wanted(*extras: str) -> list[Requirement]:
    """Requirements of the package with some extras, and of all that comes with them; those of this environment."""
    found: list[Requirement] = []
    open_ends, seen = [Requirement(f"{NAME}[{','.join(extras)}]")], set()
    while open_ends:
        above = open_ends.pop()
        if str(above) in seen:
            continue
        seen.add(str(above))
        for text in requires(above.name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in (above.extras or {""}) | {""}
            ):
                found.append(requirement)
                open_ends.append(requirement)
    return found


def pins(*extras: str) -> list[str]:
    """Requirements that exclude current releases of requests."""
    ours = [one for one in wanted(*extras) if one.name == "requests"]
    assert ours, "requests comes with Weights & Biases, or this looks at nothing"
    return [str(one) for one in ours if not one.specifier.contains(CURRENT)]


def test_the_extra_has_the_pin() -> None:
    assert [one for one in pins("torchattacks") if "2.25.1" in one]


@pytest.mark.parametrize("extra", ["", *sorted(EXTRAS - {"torchattacks"})])
def test_nothing_else_has_it(extra: str) -> None:
    assert "torchattacks" not in {one.name for one in wanted(*[extra] if extra else [])}
    assert pins(*[extra] if extra else []) == []
