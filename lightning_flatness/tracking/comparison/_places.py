"""Where monitors have logged: their groups, in validation and test, and the dataloaders."""

from collections.abc import Sequence
from typing import NamedTuple

from lightning_flatness.tracking import keys
from lightning_flatness.tracking._labels import logged
from lightning_flatness.tracking.runs import Run


class Place(NamedTuple):
    """Where a monitor has logged: its group, with ``test_``, and the end of its keys, with the dataloader."""

    group: str
    end: str

    def key(self, name: str) -> str:
        return f"{self.group}/{name}{self.end}"


def apart(key: str) -> tuple[str, Place]:
    """Take a key apart into its name and where it was logged."""
    group, _, rest = key.partition("/")
    name, slash, loader = rest.partition("/")
    return name, Place(group, slash + loader)


def name_of(key: str) -> str:
    """Name that a key has in every group and for every dataloader."""
    return apart(key)[0]


def places_of(run: Run, name: str) -> list[Place]:
    """Where a value of that name was logged, in validation and test, of each dataloader."""
    found = [apart(key) for key in logged(run.epochs)]
    places = [place for own_name, place in found if own_name == name and place.group]
    return [place for place in places if _is_ours(name, place, found)]


_COMMON = {keys.BOUND_SAMPLES, keys.BOUND_NONFINITE, keys.BOUND_LOSS_INCREASE}
"""Their names are those of other monitors' values, too."""
_USUAL_GROUPS = {
    name_of(key): apart(key)[1].group
    for key in (*keys.BOUND_KEYS, *keys.MASKING_KEYS, keys.ALARM)
    if key not in _COMMON
}
"""Name → group, of the keys that tell a monitor where it logs under a group of its own."""


def _is_ours(name: str, place: Place, found: Sequence[tuple[str, Place]]) -> bool:
    """Whether a monitor has logged it: other groups than the usual one hold its other values too."""
    usual = _USUAL_GROUPS.get(name)
    if usual is None or place.group.removeprefix("test_") == usual:
        return True
    return any(where == place and other != name and _USUAL_GROUPS.get(other) == usual for other, where in found)
