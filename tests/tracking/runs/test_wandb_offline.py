"""Reading what Weights & Biases recorded offline, whole and damaged."""

import math
import struct
import zlib
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wandb.proto import wandb_internal_pb2 as pb

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.runs import read_runs
from lightning_flatness.tracking.runs._wandb_offline import read_offline_run
from lightning_flatness.tracking.runs._wandb_records import Damage, put, records
from tests.tracking.conftest import EPOCHS

CUT = "The file ends in the middle of a record: the run crashed or still runs."
NO_END = "The file does not say that the run has ended: it crashed or still runs."


def rows_of(path, damage=None):
    rows = []
    for record in records(path, damage or Damage()):
        if record.WhichOneof("record_type") == "history":
            rows.append({})
            put(record.history.item, rows[-1])
    return rows


def written(path, *messages, start=b":W&B\xe1\xbe\x00"):
    """A file of short records."""
    chunks = [
        struct.pack("<IHB", zlib.crc32(b"\1" + message), len(message), 1) + message
        for message in (message if isinstance(message, bytes) else message.SerializeToString() for message in messages)
    ]
    path.write_bytes(start + b"".join(chunks))
    return path


def history(**values):
    record = pb.Record()
    for name, text in values.items():
        record.history.item.add(key=name, value_json=text)
    return record


def ended():
    record = pb.Record()
    record.exit.exit_code = 0
    return record


@pytest.mark.slow
class TestWhole:
    def test_values_are_those_that_were_logged(self, kept):
        (run,) = read_runs([str(kept.wandb)])
        for epoch, row in enumerate(run.epochs):
            logged = [one for one in kept.recorded.history if one.get("epoch") == epoch]
            last = {name: value for one in logged for name, value in one.items() if isinstance(value, (int, float))}
            assert {name: row[name] for name in last if name[0] != "_"} == {
                name: value for name, value in last.items() if name[0] != "_"
            }
        assert [row["epoch"] for row in run.epochs] == list(range(EPOCHS))
        assert all(keys.ALARM in row and keys.RELATIVE_FLATNESS in row for row in run.epochs)

    def test_only_numbers_and_nothing_of_the_server(self, kept):
        (run,) = read_runs([str(kept.wandb)])
        assert all(type(value) is float for row in run.epochs for value in row.values())
        assert not [name for row in run.epochs for name in row if name.startswith("_") or "histogram" in name]

    def test_name_configuration_reasons(self, kept):
        (run,) = read_runs([str(kept.wandb)])
        assert run.name == "steep"
        assert run.source == str(kept.wandb.parent)
        assert run.texts[keys.MASKING_REASONS] == "\n".join(kept.reasons) != ""
        assert run.config["width"] == 8
        assert run.config["optimizer.lr"] == 0.05
        assert run.config["optimizer.betas"] == [0.9, 0.999]
        assert run.config["label"] is None
        assert run.config["flatness_monitor.variant"] == "neuronwise"
        assert not [name for name in run.config if name.startswith("_wandb")]
        assert run.notes == []


@pytest.mark.slow
class TestDamaged:
    def test_every_beginning_of_a_file_is_read_as_far_as_it_goes(self, long_file, tmp_path):
        data, whole = long_file.read_bytes(), rows_of(long_file)
        assert len(data) > 3 * 32768
        assert len(whole) == 60
        cut = tmp_path / "run-cut.wandb"
        blocks = chain.from_iterable(range(block - 9, block + 9) for block in range(32768, len(data), 32768))
        seen = set()
        for length in sorted({*range(0, len(data), 2003), *range(len(data) - 40, len(data)), *blocks, *range(60)}):
            cut.write_bytes(data[:length])
            rows = rows_of(cut)
            assert rows == whole[: len(rows)]
            run = read_offline_run(cut, "cut")
            assert len(run.epochs) == len(rows)
            assert run.notes
            seen.add(len(rows))
        assert len(seen) > 20

    def test_what_is_missing_is_said(self, long_file, tmp_path):
        data = long_file.read_bytes()
        cut = tmp_path / "run-cut.wandb"
        cut.write_bytes(data[:20_000])
        assert read_offline_run(cut, "").notes == [CUT]
        cut.write_bytes(data[:-3])
        assert read_offline_run(cut, "").notes == [CUT]

    def test_changed_bytes_change_no_value(self, long_file, tmp_path):
        data, whole = long_file.read_bytes(), rows_of(long_file)
        changed = tmp_path / "run-changed.wandb"
        for place in range(7, len(data), 1511):
            changed.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
            rows = rows_of(changed)
            assert all(row in whole for row in rows)
            # one block is lost at most, and the rest of the records that reach into it
            run = read_offline_run(changed, "")
            assert any("damaged part" in note or note == CUT for note in run.notes)
        assert rows

    def test_reading_goes_on_behind_a_damaged_block(self, long_file, tmp_path):
        data, whole = long_file.read_bytes(), rows_of(long_file)
        changed = tmp_path / "run-changed.wandb"
        changed.write_bytes(data[:200] + bytes(300) + data[500:])
        rows = rows_of(changed)
        assert 0 < len(rows) < len(whole)
        assert rows == whole[-len(rows) :]


class TestOdd:
    def test_no_end(self, tmp_path):
        run = read_offline_run(written(tmp_path / "run-a.wandb", history(epoch="0", a="0.1")), "name")
        assert run.epochs == [{"epoch": 0.0, "a": 0.1}]
        assert run.notes == [NO_END]
        assert run.name == "name"

    def test_ended_without_values(self, tmp_path):
        assert read_offline_run(written(tmp_path / "run-a.wandb", ended()), "").notes == [
            "run-a.wandb holds no values."
        ]

    @pytest.mark.parametrize("content", [b"", b":W", b"no such file at all", b"\x80\x04\x95pickle"])
    def test_another_file(self, content, tmp_path):
        path = tmp_path / "run-a.wandb"
        path.write_bytes(content)
        assert read_offline_run(path, "").notes == [
            "run-a.wandb is no file of Weights & Biases, or its beginning is lost.",
            "run-a.wandb holds no values.",
        ]

    def test_only_the_beginning(self, tmp_path):
        path = written(tmp_path / "run-a.wandb")
        assert read_offline_run(path, "").notes == [NO_END, "run-a.wandb holds no values."]

    def test_a_record_that_is_none(self, tmp_path):
        path = written(
            tmp_path / "run-a.wandb", history(epoch="0", a="1"), b"\xff\xff\xff", history(epoch="1"), ended()
        )
        run = read_offline_run(path, "")
        assert [row["epoch"] for row in run.epochs] == [0, 1]
        assert run.notes == ["1 damaged parts of run-a.wandb were left out."]

    def test_values_that_are_no_numbers(self, tmp_path):
        row = history(
            epoch="0", a="NaN", b="-Infinity", c='"words"', d="true", e="null", f="[1]", g='{"_type": "image"}',
            h="1e400", i="{", j="[" * 5_000, k="9" * 400, l='"NaN"',
        )  # fmt: skip
        (found,) = read_offline_run(written(tmp_path / "run-a.wandb", row, ended()), "").epochs
        assert set(found) == {"epoch", "a", "b", "h", "k", "l"}
        assert math.isnan(found["a"])
        assert math.isnan(found["l"])
        assert (found["b"], found["h"], found["k"]) == (-math.inf, math.inf, math.inf)

    def test_a_name_that_becomes_a_group_of_names(self, tmp_path):
        record = pb.Record()
        record.config.update.add(key="a", value_json="1")
        record.config.update.add(nested_key=["a", "b"], value_json="2")
        assert read_offline_run(written(tmp_path / "run-a.wandb", record, ended()), "").config == {"a.b": 2}

    @given(st.lists(st.binary(max_size=60), max_size=20), st.booleans())
    def test_any_bytes_are_no_crash(self, tmp_path_factory, parts, framed):
        path = tmp_path_factory.getbasetemp() / "run-any.wandb"
        written(path, *(parts if framed else []), start=b":W&B\xe1\xbe\x00" + (b"" if framed else b"".join(parts)))
        assert read_offline_run(path, "").notes
