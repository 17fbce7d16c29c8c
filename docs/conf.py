"""Sphinx configuration."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]  # for gallery_support, and for the modules of examples
project = "lightning_flatness"
author = "The lightning_flatness authors"
copyright = f"2026, {author}"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
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

# Every script of the gallery runs in the build, and the build fails where one does.
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "image_scrapers": ("gallery_support.package_figures", "matplotlib"),
    "reset_modules": ("matplotlib", "gallery_support.silence"),
    "remove_config_comments": True,
    "capture_repr": (),
    "min_reported_time": 1,
    "download_all_examples": False,
    "show_signature": False,
}
