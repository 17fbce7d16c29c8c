"""The scripts of the gallery, as far as it can be told without the build of the documentation, which runs them."""

import ast
import re
from importlib import import_module
from inspect import getmembers, isclass, isfunction
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "lightning_flatness"
GALLERY = ROOT / "examples" / "gallery"
HEADER = GALLERY / "GALLERY_HEADER.rst"
SCRIPTS = sorted(GALLERY.glob("*.py"))
TITLE = re.compile(r"\n?(?P<title>\S.*)\n(?P<line>=+)\n\n\S")


def parsed(script: Path) -> ast.Module:
    return ast.parse(script.read_text(encoding="utf-8"))


def names_of(tree: ast.Module) -> list[tuple[str, str]]:
    """Module and name of everything that is imported from the package; modules as such have no place here."""
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return [(node.module, alias.name) for node in froms if node.module.split(".")[0] == PACKAGE for alias in node.names]


def public_names(module: str) -> set[str]:
    """Those in `__all__`, or those that the module itself defines without an underscore."""
    imported = import_module(module)
    own = {
        name
        for name, value in getmembers(imported, lambda x: isfunction(x) or isclass(x))
        if value.__module__ == module
    }
    return set(vars(imported).get("__all__", own))


def test_there_are_scripts() -> None:
    numbers = [int(script.name.split("_")[1]) for script in SCRIPTS]
    assert numbers == list(range(1, len(SCRIPTS) + 1))
    assert len(SCRIPTS) >= 11


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
class TestScript:
    def test_has_a_title_and_an_introduction(self, script: Path) -> None:
        found = TITLE.match(ast.get_docstring(parsed(script), clean=False) or "")
        assert found
        assert len(found["line"]) == len(found["title"])

    def test_tells_what_it_does(self, script: Path) -> None:
        assert script.read_text(encoding="utf-8").count("\n# %%\n") >= 2

    def test_ends_with_a_figure(self, script: Path) -> None:
        tree = parsed(script)
        assert ast.unparse(tree.body[-1]) == "plt.show()"
        last_block = script.read_text(encoding="utf-8").rsplit("\n# %%\n", 1)[1]
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(last_block)) if isinstance(node, ast.Call)}
        assert "plt.subplots" in calls

    def test_names_what_the_axes_show(self, script: Path) -> None:
        calls = [node for node in ast.walk(parsed(script)) if isinstance(node, ast.Call)]
        named = {word.arg for call in calls for word in call.keywords} | {ast.unparse(call.func) for call in calls}
        assert named & {"xlabel", "axes.set_xlabel"}

    def test_uses_public_names_only(self, script: Path) -> None:
        tree = parsed(script)
        imported = names_of(tree)
        assert imported
        modules = {module for module, _ in imported} | {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        assert not [part for module in modules for part in module.split(".") if part.startswith("_")]
        assert not [(module, name) for module, name in imported if name not in public_names(module)]
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not [name for name in attributes if name.startswith("_") and name != "__init__"]


def test_header_names_every_other_example() -> None:
    header = HEADER.read_text(encoding="utf-8")
    modules = [path.stem for path in (ROOT / "examples").glob("*.py")]
    assert modules
    assert [name for name in modules if f"``examples.{name}``" not in header] == []
