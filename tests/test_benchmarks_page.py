"""The page of the benchmarks is what the stored results say."""

from pathlib import Path

import pytest

from tests.benchmarks import measuring, page
from tests.benchmarks.parts import PARTS, Part


def test_page_is_that_of_the_stored_results() -> None:
    assert page.PAGE.read_text("utf-8") == page.page(page.stored())


def test_every_benchmark_is_in_one_part() -> None:
    modules = sorted(module for part in PARTS for module in part.modules)
    assert modules == sorted(path.stem for path in (page.ROOT / "tests" / "benchmarks").glob("test_*.py"))


def test_table_is_kept_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part("norms", "Norms", ("test_norms",), "What a norm costs.")
    monkeypatch.setattr(page, "STORED", tmp_path / "kept")
    monkeypatch.setattr(page, "PARTS", (part,))
    measured: page.Measured = {
        "date": "2026-11-23",
        "minutes": 1.5,
        "passed": False,
        "processor": "a CPU",
        "python": "3.11.7",
        "packages": {"torch": "2.6.0"},
        "tables": [{"title": "Norms of x", "columns": ["norm", "ms"], "rows": [["|x|", "0.1"]]}],
    }
    assert "Not measured yet: `uv run python -m tests.benchmarks.page --only norms`" in page.page(page.stored())
    page.store(part, measured)
    text = page.page(page.stored())
    assert "**Norms of x**\n\n| norm | ms |\n| --- | --- |\n| \\|x\\| | 0.1 |" in text
    assert "failed one of its own limits" in text
    assert "| norms | 2026-11-23 | 1.5 | a CPU | 3.11.7 | torch 2.6.0 |" in text


def test_printed_tables_go_to_the_file_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_TABLES", str(tmp_path / "tables.jsonl"))
    for title in ("first", "second"):
        measuring.print_table(title, ("norm", "ms"), [("l2", "0.1")])
    assert [table["title"] for table in page.tables(tmp_path / "tables.jsonl")] == ["first", "second"]


@pytest.mark.slow
def test_results_stay_where_nothing_was_measured() -> None:
    with pytest.raises(SystemExit, match=r"pytest ended with 4 and 0 tables; the stored results of none stay\."):
        page.measure(Part("none", "None", ("test_none",), "Nothing."))
