"""Configurations as dotted names with plain values."""

from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from typing_extensions import override

_MOST_ENTRIES = 10_000
_MOST_ITEMS = 100_000
"""Items of lists, and hundreds of letters, of all settings: a short file can hold one long list many times over."""
_DEEPEST = 50
_LARGEST_FILE = 1_000_000
"""Letters; what loggers write has some thousands."""
_LONGEST_INTEGER = 1_000
"""Letters; Python does not write whole numbers of some thousand digits."""
_MERGE = "tag:yaml.org,2002:merge"


class Configuration(NamedTuple):
    """Dotted name → plain value, and what was left out, in sentences."""

    values: dict[str, Any]
    notes: list[str]


class LeftOut(NamedTuple):
    """Stands where a value was that is not made from a file."""

    why: str


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the fast one, if there is one
    """Makes plain values only."""

    def left_out(self, node: Any) -> LeftOut:
        if node.tag == _MERGE:
            return LeftOut("keys are not merged")
        return LeftOut(f"it is a Python object ({node.tag.removeprefix('tag:yaml.org,2002:')})")

    def tuple_as_list(self, node: Any) -> list[Any]:
        return self.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else []

    def integer(self, node: Any) -> Any:
        text = self.construct_scalar(node)
        return self.construct_yaml_int(node) if len(text) <= _LONGEST_INTEGER else f"{text[:20]}…"

    @override
    def flatten_mapping(self, node: Any) -> None:
        # Merging nested merges takes time that doubles with each of them.
        node.value = [
            (yaml.ScalarNode("tag:yaml.org,2002:str", "<<"), yaml.ScalarNode(_MERGE, "")) if key.tag == _MERGE else pair
            for pair in node.value
            for key in pair[:1]
        ]
        super().flatten_mapping(node)


_Loader.add_constructor(None, _Loader.left_out)
_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _Loader.tuple_as_list)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.integer)


def read_yaml(path: Path) -> Configuration:
    """Read a file of settings; nothing in it is executed.

    Args:
        path: a YAML file, as ``CSVLogger`` and ``LightningCLI`` write it.

    Returns:
        Values and notes; none of either where the file holds no settings.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            return Configuration({}, [f"{path.name} is too large for settings and was not read."])
        content = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except Exception as error:
        words = " ".join(str(error).split())
        return Configuration({}, [f"{path.name} cannot be read: {words or type(error).__name__}."])
    if content is None:
        return Configuration({}, [])
    if not isinstance(content, Mapping):
        return Configuration({}, [f"{path.name} holds no names and values."])
    return flat(content)


def flat(settings: Mapping[Any, Any]) -> Configuration:
    """Put nested settings under dotted names.

    Args:
        settings: mappings and lists of plain values, also such that contain themselves.

    Returns:
        Values, of which lists of plain values stay lists, and notes on what was left out.

    Example:
        >>> flat({"optimizer": {"lr": 0.1, "betas": [0.9, 0.999]}, "layers": [{"width": 8}]}).values
        {'optimizer.lr': 0.1, 'optimizer.betas': [0.9, 0.999], 'layers.0.width': 8}
    """
    values: dict[str, Any] = {}
    notes: list[str] = []
    items = 0
    for name, value in _leaves("", settings, 0):
        items += len(name) // 100 + _size(value)
        if len(values) + len(notes) >= _MOST_ENTRIES or items > _MOST_ITEMS:
            notes.append(f"Settings after the first {len(values) + len(notes)} were left out.")
            break
        if isinstance(value, LeftOut):
            notes.append(f"The setting {name!r} was left out: {value.why}.")
        else:
            values[name] = value
    return Configuration(values, notes)


def _leaves(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST:
        yield name, "…"
        return
    entries = _entries(value)
    if entries is None:
        yield name, _plain(value)
        return
    for inner, part in entries:
        yield from _leaves(f"{name}.{inner}" if name else inner, part, depth + 1)


def _size(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    return 1 + len(value) // 100 if isinstance(value, str) else 1


def _entries(value: Any) -> list[tuple[str, Any]] | None:
    """Parts of a value that is no plain one; an empty one counts as plain."""
    if isinstance(value, Mapping):
        return [(str(inner), part) for inner, part in value.items()] or None
    if isinstance(value, list) and any(isinstance(part, (Mapping, list, LeftOut)) for part in value):
        return [(str(index), part) for index, part in enumerate(value)]
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float, LeftOut)) or value is None:
        return value
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, date):
        return value.isoformat()
    return sorted(map(str, value)) if isinstance(value, set) else str(value)
