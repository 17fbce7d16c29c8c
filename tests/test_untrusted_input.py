"""No file that is read can run code: the package neither unpickles nor evaluates anything."""

import ast
from pathlib import Path

import pytest

import lightning_flatness

PACKAGE = Path(lightning_flatness.__file__).parent
MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "numpy.load",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
}
# A call is safe by one of these keywords.
SAFE = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}
# Call or import → why it may be in this file of the package. Each has to be there.
ALLOWED = {("tracking/runs/_config.py", "yaml.load"): "its loader derives from SafeLoader"}


def _imports(tree: ast.AST) -> dict[str, str]:
    """Full names of what the file calls by a short one."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.asname and alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: full or name for name, full in names.items()}


def _full_name(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def _is_safe(call: ast.Call, name: str) -> bool:
    keyword, safe = SAFE.get(name, ("", None))
    return any(
        given.arg == keyword and isinstance(given.value, ast.Constant) and given.value.value is safe
        for given in call.keywords
    )


def dangers(source: str) -> set[str]:
    """Names of what can run code that a file holds."""
    tree = ast.parse(source)
    names = _imports(tree)
    roots = {part for full in names.values() for part in [full.split(".")[0]]}
    calls = [(node, _full_name(node.func, names)) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return (roots & MODULES) | {name for call, name in calls if name in CALLS and not _is_safe(call, name)}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", {"pickle"}),
        ("from pickle import loads as read\nread(b'')", {"pickle"}),
        ("import torch as t\nt.load(path)", {"torch.load"}),
        ("from torch import load\nload(path, weights_only=False)", {"torch.load"}),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", {"numpy.load"}),
        ("from yaml import load\nload(text, Loader)", {"yaml.load"}),
        ("import torch.jit\ntorch.jit.load(path)", {"torch.jit.load"}),
        ("eval(text)", {"eval"}),
        ("import torch, yaml\ntorch.load(path, weights_only=True)\nyaml.safe_load(text)\nmodel.eval()", set()),
    ],
)
def test_dangers_are_found(source: str, found: set[str]) -> None:
    assert dangers(source) == found


def test_package_reads_files_as_data_only() -> None:
    paths = sorted(PACKAGE.rglob("*.py"))
    found = {(path.relative_to(PACKAGE).as_posix(), name) for path in paths for name in dangers(path.read_text())}
    assert len(paths) > 100
    assert found == ALLOWED.keys()
