"""The command ``lightning-flatness compare``: put runs beside one another, in a page or in tables."""

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from shutil import copymode

from lightning_flatness.tracking.comparison.formats import as_csv, as_json, as_markdown
from lightning_flatness.tracking.runs import Run, read_runs
from lightning_flatness.tracking.runs._csv import METRICS_FILE
from lightning_flatness.tracking.runs._places import WANDB_SUFFIX

_STDOUT = "-"
_PAGE = "report.html"
_SUFFIXES = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md", ".csv": "csv", ".json": "json"}
_PAGE_SUFFIX = ".html"
_RUN_FILES = (METRICS_FILE, WANDB_SUFFIX, ".yaml")
_EXAMPLES = """\
A RUN is a folder of a CSVLogger (lightning_logs/version_0) or of an offline Weights & Biases run
(wandb/offline-run-...), a folder above such folders, or entity/project/run on a Weights & Biases server. A fit that
both loggers have kept is one run.

examples:
  lightning-flatness compare lightning_logs                     every version, in report.html
  lightning-flatness compare lightning_logs wandb --output all.html
  lightning-flatness compare runs/adam runs/sam --format md     as tables on the terminal
  lightning-flatness compare runs --output runs.csv             last, and min or max, of every key
  lightning-flatness compare runs --output runs.json            every value of every epoch
"""


def main(arguments: Sequence[str]) -> None:
    """Read the runs, write the comparison, and print where it is and what could not be read.

    Args:
        arguments: of the command line.

    Raises:
        SystemExit: with code 2 and one line on stderr if there is no such run, or the file cannot be written.
    """
    parser = _parser()
    options = parser.parse_args(list(arguments))
    with _ends_in_one_line(parser, ValueError, ModuleNotFoundError, OSError):
        output, form = _where_and_how(options)
        runs = read_runs(options.runs)
        _check_is_no_file_of_a_run(output, runs)
        if not any(run.epochs for run in runs):
            raise ValueError(" ".join(["Nothing to compare.", *(note for run in runs for note in run.notes)]))
    with _ends_in_one_line(parser, ModuleNotFoundError, OSError):
        _write(_writer(form)(runs), output)
    for run in runs:
        for note in run.notes:
            sys.stderr.write(f"{run.name}: {note}\n")
    if output != _STDOUT:
        line = f"Comparison of {len(runs)} run{'s' if len(runs) > 1 else ''}: {output}\n"
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding))


@contextmanager
def _ends_in_one_line(parser: ArgumentParser, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "lightning-flatness compare",
        description="Compare runs: flatness, bounds, attacks, alarms and settings.",
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of one or more runs, or entity/project/run")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"file to write; - for the terminal (default: {_PAGE}, or the terminal for md, csv and json)",
    )
    parser.add_argument(
        "--format",
        choices=sorted(set(_SUFFIXES.values())),
        help="default: by the suffix of FILE; html needs pip install 'plotly>=6,<7'",
    )
    return parser


def _where_and_how(options: Namespace) -> tuple[str, str]:
    """Output and format, each by the other where it was not given."""
    output, form = options.output, options.format
    if output is None:
        return (_PAGE, "html") if form in {None, "html"} else (_STDOUT, form)
    if output == _STDOUT:
        return output, form or "md"
    form = form or _SUFFIXES.get(Path(output).suffix.lower())
    if form is None:
        raise ValueError(f"`--output` must end in {', '.join(_SUFFIXES)}, got {output!r}; or pass `--format`.")
    return output, form


def _check_is_no_file_of_a_run(output: str, runs: Sequence[Run]) -> None:
    file = _real(output)
    is_in_a_run = any(file.is_relative_to(_real(run.source)) for run in runs)
    is_of_a_run = file.name.endswith(_RUN_FILES) or (is_in_a_run and file.suffix.lower() != _PAGE_SUFFIX)
    if output != _STDOUT and is_of_a_run and (file.is_file() or file.name == METRICS_FILE):
        raise ValueError(f"`--output` must not be a file of a run, got {output!r}; take another name.")


def _real(path: str) -> Path:
    return Path(os.path.realpath(path))  # unlike `Path.resolve`, without an error for links in a circle


def _writer(form: str) -> Callable[[Sequence[Run]], str]:
    if form == "html":
        from lightning_flatness.tracking.comparison.page import comparison_page  # noqa: PLC0415 - only for this one

        return comparison_page
    return {"md": as_markdown, "csv": as_csv, "json": as_json}[form]


def _write(text: str, output: str) -> None:
    # Whatever JSON can spell may stand in a setting, also halves of characters, which no encoding has.
    encoded = text.encode("utf-8", "replace")
    if output != _STDOUT:
        _write_file(encoded, output)
    elif isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.buffer.write(encoded)
        sys.stdout.buffer.flush()
    else:
        sys.stdout.write(encoded.decode("utf-8"))


def _write_file(content: bytes, output: str) -> None:
    """Write all or nothing: what was there stays until the new file is whole."""
    file = _real(output)
    if file.exists() and not file.is_file():  # a pipe or a device, which cannot be replaced
        Path(output).write_bytes(content)
        return
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        if file.exists():
            copymode(file, beside)
        beside.replace(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, output) from error
    finally:
        beside.unlink(missing_ok=True)
