"""The command ``lightning-flatness``: Lightning's command line, with the curves shown at the end of a fit."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from typing import Any, NoReturn
from warnings import catch_warnings, filterwarnings, warn

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from lightning_flatness.tracking.csv_log import read_epochs
from lightning_flatness.tracking.curves import curves_figure
from lightning_flatness.tracking.head_scaling import scaling_figure, scaling_rows
from lightning_flatness.tracking.tables import attacks_table, bounds_table, curves_table, fitting
from lightning_flatness.tracking.wandb_run import stay_offline_without_key


def _command(name: str) -> Callable[[Sequence[str]], None]:
    """A command whose module is imported when it is called."""

    def run(arguments: Sequence[str]) -> None:
        import_module(f"lightning_flatness.commands.{name}").main(arguments)

    return run


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "compare": _command("compare"),
    "dashboard": _command("dashboard"),
}
"""Name → command, of those that Lightning does not have."""
_ABOUT = {
    "fit": "train, and measure at every validation epoch",
    "validate": "measure a checkpoint on the validation data",
    "test": "measure a checkpoint on the test data",
    "predict": "predict with a checkpoint",
    "compare": "put runs beside one another, in a page or in tables",
    "dashboard": "set up a workspace in Weights & Biases",
}
_EXTRA = {"jsonargparse": "'jsonargparse[signatures]>=4.42,<5'", "matplotlib": "'matplotlib>=3.8,<4'"}
"""Package that only this command needs → what to install."""
_NO_MEMBER_FITS = "Does not validate against any of the Union"
"""How jsonargparse begins its list of all types that a value does not have, of which the cause is the first."""
_HELP = (
    "example: lightning-flatness fit --config configs/mnist.yaml; "
    f"further commands, each with a --help of its own: {', '.join(COMMANDS)}. The first puts runs beside one another, "
    "in a page or in tables; the second sets up a workspace in Weights & Biases."
)
_FIT_HELP = (
    "Monitors are callbacks: --trainer.callbacks+=RelativeFlatnessMonitor --trainer.callbacks+=AttackMonitor "
    "--trainer.callbacks.epsilon=0.03 (in the units of the data, before any normalisation), or a list in a "
    "configuration file. "
    "--trainer.callbacks.help=lightning_flatness.AttackMonitor lists the settings of one. "
    "A CSVLogger lets the curves be printed and drawn at the end."
)


class BriefParser(LightningArgumentParser):
    """Lightning's parser, which says what is wrong without listing every argument first."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the process with the mistake in one line.

        Args:
            message: all that is known of the mistake.
            ex: what led to it.
        """
        if not self.exit_on_error:  # a parser of one class, whose mistakes another parser explains
            super().error(message, ex)
        _fail(_mistake(message, ex))


class FlatnessCLI(LightningCLI):
    """Lightning's command line; after a fit with a ``CSVLogger``, it prints the curves and draws them."""

    def instantiate_classes(self) -> None:
        """Make what the configuration names; what this library refuses costs a line, no traceback."""
        try:
            super().instantiate_classes()
        except (ValueError, ImportError) as error:
            refusal = _own_refusal(error)
            if refusal is None:
                raise
            _fail(str(refusal))

    def after_fit(self) -> None:
        """Show the curves on the first process."""
        loggers = [logger for logger in self.trainer.loggers if isinstance(logger, CSVLogger)]
        if loggers and self.trainer.is_global_zero:
            metrics_file = Path(loggers[0].log_dir) / "metrics.csv"
            if metrics_file.is_file():
                show_curves(metrics_file)


def show_curves(metrics_file: Path) -> None:
    """Print the curves of a run as tables, and draw them into ``curves.png`` beside ``metrics_file``.

    What a multiplied head has shown in the last epoch that measured it is drawn into ``scaling.png``.

    Args:
        metrics_file: ``metrics.csv`` of a ``CSVLogger``.
    """
    from rich.console import Console  # noqa: PLC0415 - slow to import

    epochs = read_epochs(metrics_file)
    console = Console()
    for table in (curves_table(epochs), attacks_table(epochs), bounds_table(epochs)):
        if table.row_count:
            console.print(*fitting(table, console.width), sep="")
    figures = {"curves.png": curves_figure(epochs)}
    scalings = [rows for row in epochs if (rows := scaling_rows(row))]
    if scalings:
        figures["scaling.png"] = scaling_figure(scalings[-1])
    console.print(f"Curves: {metrics_file}", soft_wrap=True, highlight=False)
    for name, figure in figures.items():
        picture = metrics_file.with_name(name)
        try:
            figure.savefig(picture, dpi=120)
        except OSError as error:  # a full disk is no reason to call a fit failed
            warn(f"The picture {picture} is not written: {type(error).__name__}: {error}", stacklevel=2)
        else:
            console.print(f"Picture: {picture}", soft_wrap=True, highlight=False)


def _mistake(message: str, error: BaseException | None) -> str:
    """What jsonargparse says, without the types that a value might have had too."""
    places: list[str] = []
    while error is not None and error.__cause__ is not None and _NO_MEMBER_FITS in message:
        places.append(message.partition(_NO_MEMBER_FITS)[0])
        error = error.__cause__
        message = str(error)
    return "".join([*dict.fromkeys(places), message])


def _own_refusal(error: BaseException | None) -> BaseException | None:
    """The first of the causes of an error that was raised in this package."""
    while error is not None:
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]  # none where it was never raised
        if frames and str(frames[-1].f_globals["__name__"]).partition(".")[0] == __package__:
            return error
        error = error.__cause__
    return None


def _fail(reason: str) -> NoReturn:
    sys.stderr.write(f"lightning-flatness: error: {' '.join(reason.split())}\n")
    sys.exit(2)


def _list_of_commands(problem: str) -> str:
    lines = [f"  {name:<10} {about}" for name, about in _ABOUT.items()]
    return "\n".join([f"lightning-flatness: error: {problem}", *lines, "Each has a --help of its own."])


def _version() -> str:
    try:
        return version("lightning-flatness")
    except PackageNotFoundError:  # a source tree that is only on the search path
        return "unknown, not installed"


def _parser_settings() -> dict[str, Any]:
    """What the help says; Lightning hands the entry of a subcommand to the parser of that one."""
    return {
        "prog": "lightning-flatness",  # whichever file was started
        "description": "Train with Lightning, and see how flat and how robust the model is at every validation epoch.",
        "epilog": _HELP,
        "version": _version(),
        "fit": {"epilog": _FIT_HELP},
    }


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Modules and configurations of the folder it is called in can be named in the arguments. Weights & Biases stays
    offline unless there is a key for it.

    Args:
        args: arguments; by default those of the process.

    Raises:
        SystemExit: if there is no such command, the packages of the extra ``cli`` are missing, or as the arguments
            demand.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments and arguments[0] in COMMANDS:
        COMMANDS[arguments[0]](arguments[1:])
        return
    if not arguments or (arguments[0] not in _ABOUT and not arguments[0].startswith("-")):
        problem = f"there is no command {arguments[0]!r}" if arguments else "say what to do"
        sys.stderr.write(f"{_list_of_commands(problem)}\n")
        sys.exit(2)
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        sys.exit(
            f"lightning-flatness needs {', '.join(missing)}: pip install {' '.join(_EXTRA[name] for name in missing)}"
        )
    sys.path.insert(0, str(Path.cwd()))
    stay_offline_without_key()
    with catch_warnings():
        # of Lightning's own code, which nobody who starts a fit can change
        filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        FlatnessCLI(
            args=None if args is None else arguments,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs=_parser_settings(),
            parser_class=BriefParser,
        )


if __name__ == "__main__":
    main()
