"""Sphinx configuration."""

project = "lightning_flatness"
author = "The lightning_flatness authors"
copyright = f"2026, {author}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "images"]
html_theme = "furo"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
add_module_names = False
napoleon_use_ivar = True
# Other projects' inventories are not downloaded.
nitpick_ignore_regex = [(r"py:.*", r"(torch|torchmetrics|lightning|collections|typing|matplotlib|rich)\..*")]
