"""The command ``lightning-flatness dashboard``: set up a workspace, and a report, in Weights & Biases."""

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning_flatness.tracking import dashboard, keys
from lightning_flatness.tracking.wandb_run import STEP_KEY

_STDOUT = Path("-")
_EXAMPLES = """\
example: lightning-flatness dashboard --entity me --project robust
         lightning-flatness dashboard --entity me --project robust --attack linf_8_255 --report
         lightning-flatness dashboard --entity me --project robust --dry-run dashboard.json
"""


def main(arguments: Sequence[str]) -> None:
    """Save the dashboard and print where it is, or write what would be saved.

    Args:
        arguments: of the command line.

    Raises:
        SystemExit: with code 2 and one line on stderr if something is missing or wrong.
    """
    parser = _parser()
    options = parser.parse_args(list(arguments))
    try:
        views = _views(options)
    except (ValueError, ModuleNotFoundError) as error:
        _fail(parser, str(error))
    if options.dry_run is None:
        _save(parser, views)
    else:
        _write(parser, views, options.dry_run)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "lightning-flatness dashboard",
        description="Set up a workspace in Weights & Biases that shows every log key.",
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--entity", required=True, help="user or team (required)")
    parser.add_argument("--project", required=True, help="project of the runs (required)")
    _add_what_is_shown(parser)
    parser.add_argument("--report", action="store_true", help="also make a report that explains the keys")
    parser.add_argument(
        "--dry-run",
        nargs="?",
        type=Path,
        const=_STDOUT,
        metavar="FILE",
        help="write the specification as JSON to FILE or the terminal instead; needs neither account nor network",
    )
    return parser


def _add_what_is_shown(parser: ArgumentParser) -> None:
    parser.add_argument("--name", default=dashboard.NAME, help="title of what is made (default: %(default)s)")
    parser.add_argument(
        "--attack",
        default=keys.WORST_CASE,
        metavar="LABEL",
        help="whose robust accuracy is compared with flatness (default: %(default)s, which is logged only where there "
        "are several attacks; with one, linf_8_255 for example)",
    )
    parser.add_argument(
        "--clean-accuracy",
        metavar="KEY",
        help=f"log key of the accuracy without an attack (default: that of LABEL; {dashboard.OWN_ACCURACY} for "
        f"{keys.WORST_CASE})",
    )
    parser.add_argument(
        "--hyperparameter",
        action="append",
        metavar="NAME",
        help=f"axis of the parallel coordinates, may be repeated (default: {', '.join(dashboard.HYPERPARAMETERS)})",
    )
    parser.add_argument(
        "--x-axis",
        default=STEP_KEY,
        metavar="KEY",
        help="axis of the curves, such as epoch (default: %(default)s)",
    )


def _views(options: Namespace) -> dict[str, Any]:
    """What to save, by its name."""
    settings = {
        "name": options.name,
        "attack": options.attack,
        "clean_accuracy": options.clean_accuracy,
        "hyperparameters": options.hyperparameter or dashboard.HYPERPARAMETERS,
        "x_axis": options.x_axis,
    }
    views: dict[str, Any] = {"workspace": dashboard.workspace(options.entity, options.project, **settings)}
    if options.report:
        views["report"] = dashboard.report(options.entity, options.project, **settings)
    return views


def _write(parser: ArgumentParser, views: dict[str, Any], file: Path) -> None:
    text = json.dumps({name: dashboard.specification(view) for name, view in views.items()}, indent=2) + "\n"
    if file == _STDOUT:
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        _fail(parser, f"cannot write {file}: {error.strerror}")
    sys.stderr.write(f"Written to {file}.\n")


def _save(parser: ArgumentParser, views: dict[str, Any]) -> None:
    for name, view in views.items():
        try:
            view.save()
        except Exception as error:  # noqa: BLE001, RUF100 - no key, no network, no such project: each has its own class
            reason = " ".join(str(error).split()) or type(error).__name__
            _fail(parser, f"the {name} was not saved: {reason} (--dry-run needs neither account nor network)")
        sys.stdout.write(f"{name}: {view.url}\n")


def _fail(parser: ArgumentParser, reason: str) -> NoReturn:
    parser.exit(2, f"{parser.prog}: {reason}\n")
