"""Sphinx configuration."""

from pathlib import Path

from lightning_flatness.tracking import keys

project = "lightning_flatness"
author = "The lightning_flatness authors"
copyright = f"2026, {author}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_*_keys.md"]
html_theme = "furo"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
add_module_names = False
napoleon_use_ivar = True
# Other projects' inventories are not downloaded.
nitpick_ignore_regex = [(r"py:.*", r"(torch|torchmetrics|lightning|collections|typing|matplotlib|rich)\..*")]

_attack_keys = {keys.attack_key("{label}", name): meaning for name, meaning in keys.ATTACK_QUANTITIES.items()}
for _name, _meanings in {"flatness": keys.FLATNESS_KEYS, "attack": _attack_keys, "masking": keys.MASKING_KEYS}.items():
    _rows = "".join(f"| `{key}` | {meaning} |\n" for key, meaning in _meanings.items())
    Path(__file__).with_name(f"_{_name}_keys.md").write_text(f"| key | meaning |\n|---|---|\n{_rows}")
