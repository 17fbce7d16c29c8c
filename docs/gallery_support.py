"""What the gallery of examples needs from the build: quiet libraries, and the figures that the package returns."""

import logging
import warnings
from typing import Any

import lightning.pytorch  # noqa: F401 - sets the level of its logger, which must not happen later
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

_MEANT = (
    ".*does not have many workers.*",
    ".*The number of training batches.*",
    ".*LeafSpec.*",
    "Ordinary attacks on the cross-entropy may be fooled.*",
)
"""Warnings about small data in the main process, of Lightning's own calls, and of an alarm that a page shows itself."""


def silence(gallery_conf: dict[str, Any], script: str) -> None:
    """Leave out of a page what Lightning says of every training.

    Args:
        gallery_conf: of sphinx-gallery.
        script: that runs next.
    """
    del gallery_conf, script
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in _MEANT:
        warnings.filterwarnings("ignore", message)


def package_figures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Show the figures that a block has got from functions of the package, of which pyplot does not know.

    Has to run before sphinx-gallery's own scraper, which takes those of pyplot, and closes them.

    Args:
        block: of the script.
        block_vars: what the block has left.
        gallery_conf: of sphinx-gallery.

    Returns:
        The pictures in reStructuredText.
    """
    del block
    names, paths = block_vars["example_globals"], []
    seen = names.setdefault("__seen_figures__", [])
    new = {id(value): value for value in names.values() if isinstance(value, Figure) and value not in seen}
    for figure in new.values():
        if figure.canvas.manager is None:
            paths.append(next(block_vars["image_path_iterator"]))
            figure.savefig(paths[-1])
    seen += new.values()
    return figure_rst(paths, gallery_conf["src_dir"])
