"""Comparisons as Markdown, CSV and JSON."""

import csv
import json
import math
import re
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.comparison.formats import CSV_COLUMNS, as_csv, as_json, as_markdown
from lightning_flatness.tracking.runs import Run, read_runs

FIRST = Run(
    "first",
    "logs/first",
    [{"epoch": 0.0, "val_loss": 1 / 3, "lr": 0.1}, {"epoch": 2.0, "val_loss": math.nan, keys.ALARM: 1.0}],
    {"lr": 0.1, "seed": 0},
    {keys.MASKING_REASONS: "Because."},
    ["It crashed."],
)
SECOND = Run("second", "logs/second", [{"epoch": 0.0, "val_acc": -math.inf}], {"lr": 0.2, "seed": 0})
floats = st.floats(allow_nan=True)


def cells(text):
    return list(csv.reader(StringIO(text)))


class TestMarkdown:
    def test_it_says_everything(self):
        assert as_markdown([FIRST, SECOND]) == (
            "# Comparison of 2 runs\n\n"
            "## Alarms\n\n"
            "- first: Gradients are masked: masking/alarm was 1 in epoch 2, of 1 measured, and is on in the last. "
            "Because.\n\n"
            "## Last value (min ↓ / max ↑, in epoch)\n\n"
            "| key | first | second |\n"
            "| --- | --- | --- |\n"
            "| val_loss | nan (↓ 0.3333, 0) |  |\n"
            "| lr | 0.1 |  |\n"
            "| masking/alarm | 1 |  |\n"
            "| val_acc |  | -inf (↑ -inf, 0) |\n\n"
            "## Settings that differ\n\n"
            "| setting | first | second |\n"
            "| --- | --- | --- |\n"
            "| lr | 0.1 | 0.2 |\n\n"
            "## Sources\n\n"
            "| run | source |\n"
            "| --- | --- |\n"
            "| first | logs/first |\n"
            "| second | logs/second |\n\n"
            "## Notes\n\n"
            "- first: It crashed.\n"
        )

    def test_what_is_not_there_has_no_heading(self):
        text = as_markdown([Run("only", "here", [])])
        assert re.findall("^#.*$", text, re.MULTILINE) == ["# Comparison of 1 run", "## Sources"]

    @given(st.text(max_size=30), st.text(min_size=1, max_size=30), st.text(max_size=30))
    def test_no_text_breaks_a_table_or_becomes_markup(self, name, key, setting):
        runs = [Run(name, name, [{"epoch": 0.0, key: 1.0}], {key: setting}, {}, [setting]), Run("b", "", [])]
        lines = as_markdown(runs).splitlines()
        rows = [line for line in lines if line.startswith("|")]
        # bars that are not escaped, of two, three or four columns
        widths = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows]
        assert set(widths) <= {3, 4, 5}
        assert len(lines) == len(rows) + len([line for line in lines if line[:1] in {"#", "-", ""}])
        assert "<" not in "".join(lines)
        assert not re.search(r"(?<!\\)(?:\\\\)*[\[`]", "".join(lines))


class TestCsv:
    def test_a_line_for_each_run_and_key(self):
        assert cells(as_csv([FIRST, SECOND])) == [
            list(CSV_COLUMNS),
            ["first", "logs/first", "val_loss", "nan", "2.0", "min", repr(1 / 3), "0.0"],
            ["first", "logs/first", "lr", "0.1", "0.0", "", "", ""],
            ["first", "logs/first", "masking/alarm", "1.0", "2.0", "", "", ""],
            ["second", "logs/second", "val_acc", "-inf", "0.0", "max", "-inf", "0.0"],
        ]

    @given(floats)
    def test_numbers_come_back_exactly(self, value):
        _, line = cells(as_csv([Run("run", "", [{"epoch": 0.0, "a": value}])]))
        assert repr(float(line[3])) == repr(value)

    @pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", " ="])
    def test_no_text_is_a_formula(self, start):
        name = f'{start}HYPERLINK("http://example.com")'
        _, line = cells(as_csv([Run(name, name, [{"epoch": 0.0, name: -1.0}])]))
        assert all(text.startswith("'") and text[1] in "=+-@" for text in line[:3])
        assert line[3] == "-1.0"

    @given(st.text(max_size=30))
    def test_any_name_stays_one_cell(self, name):
        assert [len(line) for line in cells(as_csv([Run(name, name, [{"epoch": 0.0, name: 1.0}])]))][1:] in (
            [len(CSV_COLUMNS)],
            [],
        )


def exact(value):
    """Numbers as ``float`` reads them again."""
    return repr(float(value))


class TestJson:
    @staticmethod
    def load(text):
        def refuse(name):
            raise AssertionError(f"{name} is no JSON")

        return json.loads(text, parse_constant=refuse)

    def test_everything_is_in_it(self):
        content = self.load(as_json([FIRST, SECOND]))
        first, second = content["runs"]
        assert first["epochs"] == [
            {"epoch": 0.0, "val_loss": 1 / 3, "lr": 0.1},
            {"epoch": 2.0, "val_loss": "NaN", keys.ALARM: 1.0},
        ]
        assert second["epochs"] == [{"epoch": 0.0, "val_acc": "-Infinity"}]
        assert first["summary"]["val_loss"] == {
            "last": "NaN",
            "epoch_of_last": 2.0,
            "extreme": 1 / 3,
            "epoch_of_extreme": 0.0,
        }
        assert len(first["alarms"]) == 1
        assert (first["config"], first["texts"], first["notes"]) == (FIRST.config, FIRST.texts, FIRST.notes)
        assert content["differing_config"] == {"lr": ["0.1", "0.2"]}

    @given(st.lists(st.dictionaries(st.text(max_size=5), floats, max_size=4), max_size=4))
    def test_every_value_comes_back(self, rows):
        rows = [row | {"epoch": float(epoch)} for epoch, row in enumerate(rows)]
        (run,) = self.load(as_json([Run("run", "", rows)]))["runs"]
        found = [{name: exact(value) for name, value in row.items()} for row in run["epochs"]]
        assert found == [{name: exact(value) for name, value in row.items()} for row in rows]

    def test_settings_may_hold_anything(self):
        config = {"a": [math.nan, {"b": math.inf}], "c": {1, 2} and complex(1, 2), "d": "\ud800"}
        (run,) = self.load(as_json([Run("run", "", [], config)]))["runs"]
        assert run["config"] == {"a": ["NaN", {"b": "Infinity"}], "c": "(1+2j)", "d": "\ud800"}

    @pytest.mark.slow
    def test_real_runs_of_both_loggers(self, kept):
        each = [run for path in (kept.csv, kept.wandb) for run in read_runs([str(path)])]
        content = self.load(as_json(each))
        assert {run["name"] for run in content["runs"]} == {"lightning_logs/version_0", "steep"}
        for run in content["runs"]:
            assert run["alarms"][0].startswith("Gradients are masked")
            assert run["summary"][keys.RELATIVE_FLATNESS]["last"] == run["epochs"][-1][keys.RELATIVE_FLATNESS]
            assert run["notes"] == []
