"""The page of the benchmarks: ``python -m tests.benchmarks.page`` measures, and writes ``docs/benchmarks.md``.

``--only attacks bounds`` measures those parts again; the others stay as ``docs/benchmarks/`` keeps them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import time
from typing import TypedDict

from .parts import PARTS, Part

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
STORED = ROOT / "docs" / "benchmarks"
PACKAGES = ("torch", "lightning", "torchmetrics", "torchattacks", "foolbox", "adv-lib", "curvlinops-for-pytorch")
PACKAGES += ("backpack-for-pytorch",)
INTRODUCTION = """# Benchmarks

Every table is what `uv run python -m tests.benchmarks.page` has measured: this package beside its peers, side by side
in one process, on one thread, in CPU time, so that the ratios hardly depend on what else the machine does. Rows that
this package loses are here like those that it wins. `uv sync --group peers` installs all peers. What is on this page
took {minutes:.0f} minutes; `--only {example}` after that command measures one part again and keeps the others.
"""


class Table(TypedDict):
    title: str
    columns: list[str]
    rows: list[list[str]]


class Measured(TypedDict):
    """What ``docs/benchmarks/`` keeps of one part."""

    date: str
    minutes: float
    passed: bool
    processor: str
    python: str
    packages: dict[str, str]
    tables: list[Table]


def measure(part: Part) -> Measured:
    """Run the benchmarks of a part.

    Raises:
        SystemExit: if pytest could not run them, or they print no table; failed tests are noted instead.
    """
    start = time()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "tables.jsonl"
        files = [f"tests/benchmarks/{name}.py" for name in part.modules]
        command = [sys.executable, "-m", "pytest", "--benchmark-enable", "-s", "-q", "--timeout=7200", *files]
        code = subprocess.run(  # noqa: S603 - our own command
            command, cwd=ROOT, env=os.environ | {"BENCHMARK_TABLES": str(rows)}, check=False
        ).returncode
        printed = tables(rows) if rows.is_file() else []
    if code not in {0, 1} or not printed:
        sys.exit(f"pytest ended with {code} and {len(printed)} tables; the stored results of {part.name} stay.")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "minutes": round((time() - start) / 60, 1),
        "passed": code == 0,
        "processor": _processor(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "tables": printed,
    }


def tables(file: Path) -> list[Table]:
    """What ``print_table`` has kept."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; what would end a cell is escaped."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def section(part: Part, measured: Measured | None) -> str:
    """Heading, meaning and tables of a part."""
    blocks = [f"## {part.heading}", part.meaning]
    if measured is None:
        command = f"uv run python -m tests.benchmarks.page --only {part.name}"
        return "\n\n".join([*blocks, f"*Not measured yet: `{command}`.*"])
    if not measured["passed"]:
        blocks.append("**A benchmark of this part failed one of its own limits in this run.**")
    for table in measured["tables"]:
        blocks += [f"**{table['title']}**", markdown(table["columns"], table["rows"])]
    return "\n\n".join(blocks)


def page(results: dict[str, Measured]) -> str:
    """The whole page, of what was measured now or before."""
    minutes = sum(measured["minutes"] for measured in results.values())
    sections = [section(part, results.get(part.name)) for part in PARTS]
    rows = [
        [name, one["date"], f"{one['minutes']:g}", one["processor"], one["python"], _listed(one["packages"])]
        for name, one in results.items()
    ]
    columns = ("part", "date", "minutes", "processor", "Python", "packages")
    where = ["## Where and when", "One thread each; the minutes are those of the wall.", markdown(columns, rows)]
    head = INTRODUCTION.format(minutes=minutes, example=PARTS[0].name).strip()
    return "\n\n".join([head, *sections, *where]) + "\n"


def _listed(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {found}" for name, found in packages.items())


def stored() -> dict[str, Measured]:
    """What is kept of the parts, in their order."""
    files = {part.name: STORED / f"{part.name}.json" for part in PARTS}
    return {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.is_file()}


def store(part: Part, measured: Measured) -> None:
    STORED.mkdir(exist_ok=True)
    text = json.dumps(measured, indent=1, ensure_ascii=False)
    (STORED / f"{part.name}.json").write_text(f"{text}\n", "utf-8")


def main(arguments: Sequence[str]) -> None:
    """Measure the parts, each kept as soon as it is done, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.page", description=__doc__)
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--keep", action="store_true", help="measure nothing, write the page from what is kept")
    chosen = parser.parse_args(arguments)
    for part in PARTS:
        if part.name in chosen.only and not chosen.keep:
            store(part, measure(part))
            PAGE.write_text(page(stored()), "utf-8")
    PAGE.write_text(page(stored()), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
