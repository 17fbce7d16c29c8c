"""The tables of the page of log keys, made from the keys and meanings that the package itself has."""

from collections.abc import Mapping

from lightning_flatness.tracking import keys

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
"""Name of a substitution → what its table lists."""
SUBSTITUTIONS = {name: table(meanings) for name, meanings in GROUPS.items()}
"""What ``{{ name }}`` stands for on a page."""
