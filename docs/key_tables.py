"""The tables of the page of log keys, made from those of the package: ``python -m docs.key_tables`` writes them."""

from collections.abc import Mapping
from pathlib import Path

from lightning_flatness.tracking import keys

PAGE = Path(__file__).with_name("log_keys.md")
BAR = r"\|"
"""A bar inside a cell."""


def table(meanings: Mapping[str, str]) -> str:
    """A Markdown table of keys and what they say.

    Args:
        meanings: key → what it says.

    Returns:
        One row per key, in the order of the mapping.
    """
    rows = (f"| `{key}` | {meaning.replace('|', BAR)} |" for key, meaning in meanings.items())
    return "\n".join(["| key | meaning |", "|---|---|", *rows])


GROUPS = {
    "flatness_keys": keys.FLATNESS_KEYS,
    "attack_keys": keys.ATTACK_KEYS,
    "masking_keys": {**keys.MASKING_KEYS, keys.ALARM: keys.ALARM_MEANING},
    "bound_keys": keys.BOUND_KEYS,
    "trajectory_keys": keys.TRAJECTORY_KEYS,
    "scaling_keys": {**keys.SCALING_KEYS, **keys.SCALING_COUNTS},
}
"""Name of a table → what it lists."""


def with_tables(page: str) -> str:
    """The page, with each table made anew between ``<!-- name -->`` and ``<!-- end of name -->``."""
    for name, meanings in GROUPS.items():
        begin, end = f"<!-- {name} -->\n\n", f"\n\n<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = before + begin + table(meanings) + end + rest.split(end)[1]
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
