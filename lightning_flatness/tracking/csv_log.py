"""Read what Lightning's ``CSVLogger`` wrote."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from lightning_flatness.tracking._epochs import EpochRows, Row

__all__ = ["CsvLog", "Row", "read_csv_log", "read_epochs"]

_LONGEST_QUOTED = 40


class CsvLog(NamedTuple):
    """What is in a ``metrics.csv``.

    Args:
        epochs: a row per epoch.
        notes: what could not be read, in sentences.
    """

    epochs: list[Row]
    notes: list[str]


def read_epochs(path: Path) -> list[Row]:
    """Read a ``metrics.csv`` and put what was logged in one epoch into one row; the last value of a key counts.

    Args:
        path: the file.

    Returns:
        One row per epoch, in order; cells that are empty have no entry. What was logged by step alone belongs to the
        epoch logged next.
    """
    return read_csv_log(path).epochs


def read_csv_log(path: Path) -> CsvLog:
    """Read a ``metrics.csv`` as :func:`read_epochs` does, and tell what could not be read.

    A last line without an end is left out, since its last number may be cut short; so are cells that are no numbers.
    NaN and infinities are numbers.

    Args:
        path: the file.

    Returns:
        Epochs and notes.
    """
    rows, reading = EpochRows(), _Reading()
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        records = csv.reader(reading.whole_lines(file))
        try:
            header = next(records, [])
            for record in records:
                rows.add(reading.numbers(header, record))
        except csv.Error as error:
            reading.unreadable = f"The rest from line {records.line_num} on cannot be read: {error}."
    return CsvLog(rows.in_order(), [*reading.notes(), *rows.notes()])


class _Reading:
    """What went wrong so far."""

    def __init__(self) -> None:
        self.unreadable = ""
        self._is_cut = False
        self._other_lengths = self._no_numbers = 0
        self._first_cell = ""

    def whole_lines(self, file: TextIO) -> Iterator[str]:
        for line in file:
            if not line.endswith(("\n", "\r")):
                self._is_cut = True
                return
            yield line

    def numbers(self, header: Sequence[str], record: Sequence[str]) -> Row:
        self._other_lengths += len(record) != len(header) and bool(record)
        row = {}
        for name, text in zip(header, record, strict=False):
            if not text:
                continue
            try:
                row[name] = float(text)
            except ValueError:
                self._no_numbers += 1
                self._first_cell = self._first_cell or f"{text[:_LONGEST_QUOTED]!r} of {name[:_LONGEST_QUOTED]!r}"
        return row

    def notes(self) -> list[str]:
        found = {
            "The last line has no end and was left out: the run crashed or still runs.": self._is_cut,
            f"{self._no_numbers} cells are not numbers and were left out, first {self._first_cell}.": self._no_numbers,
            f"{self._other_lengths} lines have more or fewer cells than the header.": self._other_lengths,
            self.unreadable: self.unreadable,
        }
        return [note for note, is_so in found.items() if is_so]
