"""Reading the folders of Lightning's ``CSVLogger``."""

import csv
import math
import pickle
from itertools import pairwise
from time import process_time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_flatness.tracking.csv_log import read_csv_log
from lightning_flatness.tracking.runs import read_runs
from lightning_flatness.tracking.runs._config import flat
from tests.tracking.conftest import EPOCHS

CUT = "The last line has no end and was left out: the run crashed or still runs."


def folder(path, metrics="epoch,a\n0,1\n", **files):
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.csv").write_bytes(metrics.encode())
    for name, content in files.items():
        (path / f"{name}.yaml").write_text(content)
    return path


def only(path):
    (run,) = read_runs([str(path)])
    return run


@pytest.mark.slow
class TestFit:
    def test_values_are_those_in_the_file(self, kept):
        run = only(kept.csv)
        with (kept.csv / "metrics.csv").open(newline="") as file:
            records = [record for record in csv.DictReader(file) if record["epoch"]]
        for epoch, row in enumerate(run.epochs):
            last = {}
            for record in records:
                last |= {name: text for name, text in record.items() if text and record["epoch"] == str(epoch)}
            assert {name: row[name] for name in last} == {name: float(text) for name, text in last.items()}
        assert len(run.epochs) == EPOCHS
        assert run.notes == []

    def test_both_loggers_kept_the_same(self, kept):
        by_csv, by_wandb = only(kept.csv), only(kept.wandb)
        for one, other in zip(by_csv.epochs, by_wandb.epochs, strict=True):
            shared = set(one) & set(other)
            assert {name for name in one if name[:2] in {"fl", "at", "ma"}} <= shared
            assert {name: one[name] for name in shared} == {name: other[name] for name in shared}

    def test_settings_and_name(self, kept):
        run = only(kept.csv)
        assert run.config == {"width": 8, "optimizer.lr": 0.05, "optimizer.betas": [0.9, 0.999], "label": None}
        assert run.name == "lightning_logs/version_0"
        assert run.source == str(kept.csv)


class TestMetrics:
    @given(st.lists(st.floats(), min_size=1, max_size=8))
    def test_every_float_is_read_to_the_last_digit(self, tmp_path_factory, values):
        path = tmp_path_factory.getbasetemp() / "floats.csv"
        path.write_text("epoch,a\n" + "".join(f"{epoch},{value!r}\n" for epoch, value in enumerate(values)))
        log = read_csv_log(path)
        assert list(map(repr, (row["a"] for row in log.epochs))) == list(map(repr, values))
        assert log.notes == []

    @given(st.text(max_size=200))
    def test_any_text_is_no_crash(self, tmp_path_factory, text):
        path = tmp_path_factory.getbasetemp() / "any.csv"
        path.write_bytes(b"epoch,a\n" + text.encode("utf-8", "replace"))
        assert all("epoch" in row for row in read_csv_log(path).epochs)

    def test_every_beginning_of_a_file(self, tmp_path):
        lines = ["epoch,step,a,b\r\n", *(f"{epoch},{epoch * 7},{epoch / 7!r},nan\r\n" for epoch in range(5))]
        text = "".join(lines)
        path = folder(tmp_path / "run") / "metrics.csv"
        path.write_bytes(text.encode())
        whole = read_csv_log(path).epochs
        for length in range(len(text)):
            path.write_bytes(text[:length].encode())
            log = read_csv_log(path)
            assert repr(log.epochs) == repr(whole[: len(log.epochs)])
            assert (CUT in log.notes) == (not text[:length].endswith(("\n", "\r")) and length > 0)

    def test_cells_that_are_no_numbers_are_told(self, tmp_path):
        run = only(folder(tmp_path / "run", "epoch,a,b\n0,1,tensor(0.5)\n1,x,2\n"))
        assert run.epochs == [{"epoch": 0, "a": 1}, {"epoch": 1, "b": 2}]
        assert run.notes == ["2 cells are not numbers and were left out, first 'tensor(0.5)' of 'b'."]

    def test_lines_of_another_length_are_told(self, tmp_path):
        run = only(folder(tmp_path / "run", "epoch,a,b\n0,1\n1,2,3,4\n2,3,4\n"))
        assert run.epochs == [{"epoch": 0, "a": 1}, {"epoch": 1, "a": 2, "b": 3}, {"epoch": 2, "a": 3, "b": 4}]
        assert run.notes == ["2 lines have more or fewer cells than the header."]

    @pytest.mark.parametrize("epoch", ["nan", "inf", "-inf"])
    def test_an_epoch_that_is_none(self, epoch, tmp_path):
        run = only(folder(tmp_path / "run", f"epoch,a\n{epoch},1\n3,2\n"))
        assert run.epochs == [{"epoch": 3, "a": 2}]

    def test_only_epochs_that_are_none(self, tmp_path):
        assert only(folder(tmp_path / "run", "epoch,a\nnan,1\n")).epochs == [{"epoch": 0, "a": 1}]

    def test_a_cell_that_is_too_long(self, tmp_path):
        run = only(folder(tmp_path / "run", f"epoch,a\n0,1\n1,{'9' * 200_000}\n2,3\n"))
        assert run.epochs == [{"epoch": 0, "a": 1}]
        assert run.notes == ["The rest from line 3 on cannot be read: field larger than field limit (131072)."]

    @pytest.mark.parametrize("text", ["", "epoch,a\n"])
    def test_a_run_without_values_is_kept(self, text, tmp_path):
        run = only(folder(tmp_path / "run", text))
        assert run.epochs == []
        assert run.notes == ["metrics.csv holds no values."]

    def test_infinities_stay(self, tmp_path):
        (row,) = only(folder(tmp_path / "run", "epoch,a,b,c\n0,nan,inf,-inf\n")).epochs
        assert math.isnan(row["a"])
        assert (row["b"], row["c"]) == (math.inf, -math.inf)

    def test_a_mark_of_byte_order_is_no_part_of_a_name(self, tmp_path):
        assert only(folder(tmp_path / "run", "\ufeffepoch,a\n4,1\n")).epochs == [{"epoch": 4, "a": 1}]


class Executed:
    """Leaves a trace where it is unpickled or constructed."""

    trace = ""

    def __reduce__(self):
        return (open, (self.trace, "w"))


class TestSettings:
    def test_both_files_count(self, tmp_path):
        run = only(folder(tmp_path / "run", hparams="lr: 0.1", config="trainer: {max_epochs: 3}"))
        assert run.config == {"trainer.max_epochs": 3, "lr": 0.1}

    def test_python_objects_are_left_out_and_nothing_runs(self, tmp_path):
        trace = tmp_path / "trace"
        Executed.trace = str(trace)
        dump = yaml.dump({"size": (1, 2), "loss": Executed(), "kind": Executed, "lr": 0.1})
        assert "!!python/object/apply" in dump
        run = only(folder(tmp_path / "run", hparams=dump))
        assert run.config == {"size": [1, 2], "lr": 0.1}
        assert len(run.notes) == 2
        assert "The setting 'loss' was left out: it is a Python object (python/object/apply:" in run.notes[1]
        assert not trace.exists()

    def test_a_pickle_is_not_read(self, tmp_path):
        Executed.trace = str(tmp_path / "trace")
        place = folder(tmp_path / "run")
        (place / "hparams.yaml").write_bytes(pickle.dumps(Executed()))
        assert "hparams.yaml cannot be read" in only(place).notes[0]
        assert not (tmp_path / "trace").exists()

    @pytest.mark.parametrize(
        "text", ["a: [", "a: !!timestamp x", "a: !!int ''", "a: !!bool x", "a: 2023-99-99", "? [1]: 2\n? {}: 1", "\x07"]
    )
    def test_what_cannot_be_read_is_told(self, text, tmp_path):
        run = only(folder(tmp_path / "run", hparams=text))
        assert run.config == {}
        assert len(run.notes) == 1
        assert run.notes[0].startswith("hparams.yaml cannot be read: ")

    def test_a_list_holds_no_settings(self, tmp_path):
        run = only(folder(tmp_path / "run", hparams="[1, 2]"))
        assert run.notes == ["hparams.yaml holds no names and values."]

    def test_deep_nesting_is_no_crash(self, tmp_path):
        run = only(folder(tmp_path / "run", hparams="a: " + "[" * 3_000))
        assert run.notes[0].startswith("hparams.yaml cannot be read: ")

    @pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
    def test_an_empty_file_is_no_note(self, text, tmp_path):
        assert only(folder(tmp_path / "run", hparams=text)).notes == []

    def test_a_value_that_holds_itself(self, tmp_path):
        run = only(folder(tmp_path / "run", hparams="a: &a [*a, *a]\nb: &b {c: *b}"))
        assert len(run.config) <= 10_000
        assert run.notes == ["Settings after the first 10000 were left out."]

    def test_one_long_list_many_times_is_quick(self, tmp_path):
        text = f"a: &a [{'0, ' * 20_000}]\nb: [{'*a, ' * 2_000}]"
        start = process_time()
        run = only(folder(tmp_path / "run", hparams=text))
        assert process_time() - start < 15
        assert sum(map(len, run.config.values())) <= 100_000
        assert run.notes == ["Settings after the first 5 were left out."]

    def test_one_long_text_many_times_is_cut(self, tmp_path):
        text = f"a: &a {'x' * 400_000}\nb: [{'*a, ' * 5_000}]\nc: 1"
        run = only(folder(tmp_path / "run", hparams=text))
        assert list(run.config) == ["a"]
        assert run.notes == ["Settings after the first 1 were left out."]

    def test_merged_keys_are_refused_and_quick(self, tmp_path):
        lines = ["lr: 0.1", "a0: &a0 {x: 1}"]
        lines += [f"a{depth + 1}: &a{depth + 1} {{<<: [*a{depth}, *a{depth}], y: 2}}" for depth in range(40)]
        start = process_time()
        run = only(folder(tmp_path / "run", hparams="\n".join(lines)))
        assert process_time() - start < 5
        assert run.config == {"lr": 0.1, "a0.x": 1, **{f"a{depth}.y": 2 for depth in range(1, 41)}}
        assert run.notes[0] == "The setting 'a1.<<' was left out: keys are not merged."
        assert len(run.notes) == 40

    def test_a_file_too_large_is_not_read(self, tmp_path):
        run = only(folder(tmp_path / "run", hparams=f"a: {'x' * 1_000_000}"))
        assert run.config == {}
        assert run.notes == ["hparams.yaml is too large for settings and was not read."]

    def test_a_whole_number_too_large_to_be_written_is_text(self, tmp_path):
        text = f"a: 0x{'f' * 5_000}\nb: 0x{'f' * 100}\n? 0x{'e' * 5_000}\n: 1"
        config = {"a": "0xffffffffffffffffff…", "b": 16**100 - 1, "0xeeeeeeeeeeeeeeeeee…": 1}
        assert only(folder(tmp_path / "run", hparams=text)).config == config

    def test_laughs(self, tmp_path):
        names = "abcdefghijkl"
        lines = ["a: &a [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
        lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in pairwise(names)]
        run = only(folder(tmp_path / "run", hparams="\n".join(lines)))
        assert len(run.config) == 10_000
        assert run.notes == ["Settings after the first 10000 were left out."]

    def test_values_are_plain(self, tmp_path):
        run = only(folder(tmp_path / "run", hparams="a: 2024-02-03\nb: !!set {y, x}\nc: {}\n1: {true: []}"))
        assert run.config == {"a": "2024-02-03", "b": ["x", "y"], "c": "{}", "1.True": []}

    @given(
        st.recursive(
            st.none() | st.integers() | st.text(), lambda part: st.lists(part) | st.dictionaries(st.text(), part)
        )
    )
    def test_flat_values_are_plain(self, value):
        def is_plain(part):
            return part is None or isinstance(part, (str, int, float))

        for part in flat({"a": value}).values.values():
            assert is_plain(part) or (isinstance(part, list) and all(map(is_plain, part)))
