"""A sweep of Weights & Biases on this machine, without an account.

    uv run python -m examples.local_sweep configs/sweeps/label_smoothing.yaml --folder sweep_runs

``wandb agent`` has no offline mode: it asks the server for every combination. This runs the command of the same file
for each combination of listed values, or for values drawn with a seed where there are distributions, and leaves a CSV
log of each in the folder, for ``lightning-flatness compare``. ``--max-runs N`` stops early; what follows ``--`` is
handed on, ``-- --trainer.max_epochs=5`` for example. The last epoch of a run counts here, the best one in the server.
"""

import math
import random
import subprocess
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.csv_log import Row, read_epochs

_RANDOM_RUNS = 10
"""Runs of a random sweep that does not say how many."""
Combination = dict[str, Any]
"""Parameter → value."""


class Result(NamedTuple):
    """What one run came to."""

    combination: Combination
    score: float | None
    """The metric of the sweep in the last epoch that logged it."""
    flatness: float | None
    alarm: bool
    has_failed: bool = False


def combinations(sweep: Mapping[str, Any], seed: int = 0) -> list[Combination]:
    """What to run.

    Args:
        sweep: content of the file.
        seed: of what is drawn.

    Raises:
        ValueError: if the method or a distribution is not one of those that work here.
    """
    parameters = sweep["parameters"]
    if sweep["method"] == "grid":
        choices = [options.get("values", [options.get("value")]) for options in parameters.values()]
        return [dict(zip(parameters, values, strict=True)) for values in product(*choices)]
    if sweep["method"] != "random":
        raise ValueError(f"`method` must be grid or random, got {sweep['method']!r}; bayes needs the server.")
    generator = random.Random(seed)  # noqa: S311 - no secret
    return [
        {name: _drawn(name, options, generator) for name, options in parameters.items()}
        for _ in range(sweep.get("run_cap", _RANDOM_RUNS))
    ]


def _drawn(name: str, options: Mapping[str, Any], generator: random.Random) -> Any:
    if "value" in options:
        return options["value"]
    if "values" in options:
        return generator.choice(options["values"])
    low, high = options["min"], options["max"]
    whole = isinstance(low, int) and isinstance(high, int)
    match options.get("distribution", "int_uniform" if whole else "uniform"):
        case "int_uniform":
            return generator.randint(low, high)
        case "uniform":
            return generator.uniform(low, high)
        case "log_uniform_values":
            return math.exp(generator.uniform(math.log(low), math.log(high)))
        case other:
            raise ValueError(f"`{name}` must be uniform, int_uniform or log_uniform_values, got {other!r}.")


def command(sweep: Mapping[str, Any], combination: Combination) -> list[str]:
    """The command line of a combination, as the agent would write it, with this interpreter for the program.

    Args:
        sweep: content of the file.
        combination: values of the parameters.
    """
    filled = {
        "${env}": [],
        "${program}": [sys.executable, "-m", "lightning_flatness.cli"],
        "${args}": [f"--{name}={value}" for name, value in combination.items()],
    }
    return [word for part in sweep["command"] for word in filled.get(part, [part])]


def run(sweep: Mapping[str, Any], combination: Combination, folder: Path, extra: Sequence[str] = ()) -> Result:
    """Run one combination, with a CSV log in ``folder`` and no other; one that fails has no score.

    Args:
        sweep: content of the file.
        combination: values of the parameters.
        folder: of the sweep.
        extra: further arguments.
    """
    name = _text(combination)
    log = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={folder}"]
    log += [f"--trainer.logger.name={name}", "--trainer.logger.version=0"]
    line = [*command(sweep, combination), *log, *extra]
    try:
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
        epochs = read_epochs(folder / name / "version_0" / "metrics.csv")
    except (subprocess.CalledProcessError, OSError) as error:
        sys.stderr.write(f"{name} failed: {error}\n")
        return Result(combination, None, None, alarm=False, has_failed=True)
    alarm = any(row.get(keys.ALARM, 0) > 0 for row in epochs)
    return Result(combination, _last(epochs, sweep["metric"]["name"]), _last(epochs, keys.RELATIVE_FLATNESS), alarm)


def _text(combination: Combination) -> str:
    """A name for the folder of a run: the last part of each parameter, and its value."""
    pairs = ((name.rpartition(".")[2], value) for name, value in combination.items())
    return ",".join(f"{name}={value}" for name, value in pairs)


def _last(epochs: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in epochs if key in row]
    return values[-1] if values else None


def best(sweep: Mapping[str, Any], results: Sequence[Result]) -> Result | None:
    """The best run of those with a finite score whose alarm was never on; None where there is none.

    Args:
        sweep: content of the file.
        results: of its runs.
    """
    sign = 1 if sweep["metric"]["goal"] == "maximize" else -1
    honest = [
        (sign * result.score, result)
        for result in results
        if result.score is not None and math.isfinite(result.score) and not result.alarm
    ]
    return max(honest, key=lambda pair: pair[0], default=(0.0, None))[1]


def table(sweep: Mapping[str, Any], results: Sequence[Result]) -> str:
    """Results as lines of text.

    Args:
        sweep: content of the file.
        results: of its runs.
    """
    winner = best(sweep, results)
    lines = [f"{'parameters':<40} {sweep['metric']['name']:>36} {keys.RELATIVE_FLATNESS:>28} {keys.ALARM:>14}"]
    for result in results:
        numbers = ["-" if number is None else f"{number:.4g}" for number in (result.score, result.flatness)]
        alarm = "failed" if result.has_failed else "on" if result.alarm else "off"
        line = f"{_text(result.combination):<40} {numbers[0]:>36} {numbers[1]:>28} {alarm:>14}"
        lines.append(f"{line}  best" if result is winner else line)
    return "\n".join(lines)


def new_folder(text: str) -> Path:
    """A folder that does not exist or is empty, so that nothing in it is written over.

    Args:
        text: its path.

    Raises:
        ArgumentTypeError: if there is something.
    """
    folder = Path(text)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ArgumentTypeError(f"must be new or empty, got {text!r}; take another folder.")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sweep and print what came of it.

    Args:
        arguments: by default those of the process.

    Raises:
        SystemExit: at the end if runs have failed, or as the arguments demand.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    parser = ArgumentParser(description="Run a sweep of Weights & Biases on this machine, without an account.")
    parser.add_argument("file", type=Path, help="configuration of the sweep")
    parser.add_argument("--folder", type=new_folder, default="sweep_runs", help="of the logs (default: %(default)s)")
    parser.add_argument("--max-runs", type=int, help="run only the first ones")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    options = parser.parse_args(given[:end])
    sweep = yaml.safe_load(options.file.read_text(encoding="utf-8"))
    chosen = combinations(sweep, options.seed)[: options.max_runs]
    distinct = {_text(combination): combination for combination in chosen}  # a draw may give the same one twice
    results = [run(sweep, combination, options.folder, given[end + 1 :]) for combination in distinct.values()]
    sys.stdout.write(f"{table(sweep, results)}\nLogs, for `lightning-flatness compare`: {options.folder}\n")
    failed = sum(result.has_failed for result in results)
    if failed:
        sys.exit(f"{failed} of {len(results)} runs failed.")


if __name__ == "__main__":
    main()
