"""What Weights & Biases is shown beyond scalars: histograms, adversarial examples and curves over epsilon."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_flatness.tracking.wandb_run import STEP_KEY

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST_SIDE = 112
"""Least height or width of a shown input, in pixels."""


class AdversarialExample(NamedTuple):
    """One fooled sample, on the CPU.

    Args:
        attack: label of the attack.
        target: true class.
        clean_prediction: class predicted without the attack.
        clean_confidence: its probability.
        prediction: class predicted under attack.
        confidence: its probability.
        inputs: clean input in the data's own units.
        x_adv: perturbed input in the same.
    """

    attack: str
    target: int
    clean_prediction: int
    clean_confidence: float
    prediction: int
    confidence: float
    inputs: "Tensor"
    x_adv: "Tensor"


def log_histograms(run: Any, histograms: Mapping[str, tuple[list[int], list[float]]]) -> None:
    """Put histograms into the row of the history that the next scalars complete.

    Args:
        run: a Weights & Biases run.
        histograms: key → counts and edges.
    """
    from numpy import asarray  # noqa: PLC0415 - comes with Weights & Biases
    from wandb import Histogram  # noqa: PLC0415 - takes a second, and only these runs need it

    media = {
        name: Histogram(np_histogram=(asarray(counts), asarray(edges))) for name, (counts, edges) in histograms.items()
    }
    run.log(media, commit=False)


def log_adversarial_examples(
    run: Any, table_key: str, panel_key: str, step: int, examples: Sequence[AdversarialExample]
) -> None:
    """Send adversarial examples as a table; inputs of one or three channels also as pictures, in a panel of their own.

    Args:
        run: a Weights & Biases run.
        table_key: of the table.
        panel_key: of the panel; each picture shows clean input, perturbation (grey is none) and adversarial input,
            small ones enlarged by a whole number.
        step: of the trainer.
        examples: what was fooled.
    """
    from wandb import Image, Table  # noqa: PLC0415 - takes a second, and only these runs need it

    columns: list[str | int] = list(AdversarialExample._fields[:-2])
    rows: list[list[Any]] = [list(example[:-2]) for example in examples]
    media: dict[str, Any] = {}
    if all(_is_image(example.inputs) for example in examples):
        pictures = [_picture(example.inputs, example.x_adv) for example in examples]
        columns.append("clean, perturbation, adversarial")
        rows = [[*row, Image(picture)] for row, picture in zip(rows, pictures, strict=True)]
        captions = map(_caption, examples)
        media[panel_key] = [Image(picture, caption=text) for picture, text in zip(pictures, captions, strict=True)]
    run.log({**media, table_key: Table(columns=columns, data=rows), STEP_KEY: step})


def _is_image(inputs: "Tensor") -> bool:
    return inputs.ndim == 3 and inputs.shape[0] in {1, 3}


def _picture(clean: "Tensor", x_adv: "Tensor") -> Any:
    from torch import cat  # noqa: PLC0415 - only these runs need it

    shift = x_adv - clean
    low, high = min(0.0, float(clean.min())), max(1.0, float(clean.max()))
    perturbation = 0.5 + 0.5 * shift / shift.abs().amax().clamp(min=1e-12)
    panels = [(clean - low) / (high - low), perturbation, (x_adv - low) / (high - low)]
    picture = (255 * cat(panels, dim=2).clamp(0, 1)).round().byte().movedim(0, -1)
    # whole repetitions, so that every pixel of the input stays visible as one
    factor = ceil(_SMALLEST_SIDE / max(clean.shape[1:]))
    return picture.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1).numpy()


def _caption(example: AdversarialExample) -> str:
    clean, fooled = f"{example.clean_confidence:.0%}", f"{example.confidence:.0%}"
    return f"{example.attack}: {example.clean_prediction} ({clean}) → {example.prediction} ({fooled})"


def log_epsilon_curves(
    run: Any, key: str, step: int, epsilons: Sequence[float], curves: Mapping[str, Sequence[float]]
) -> None:
    """Send a chart of robust accuracy over epsilon, one line for each of the epochs.

    Args:
        run: a Weights & Biases run.
        key: of the chart.
        step: of the trainer.
        epsilons: radii.
        curves: name → robust accuracy at each of them.
    """
    log_accuracy_curves(
        run, key, step, "Robust accuracy over epsilon", {name: (epsilons, curve) for name, curve in curves.items()}
    )


def log_accuracy_curves(
    run: Any, key: str, step: int, title: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> None:
    """Send a chart of accuracies over epsilon, each line with radii of its own.

    Args:
        run: a Weights & Biases run.
        key: of the chart.
        step: of the trainer.
        title: of the chart.
        curves: name → radii and accuracies.
    """
    log_line_chart(run, key, title, curves, "epsilon", step)


def log_line_chart(
    run: Any,
    key: str,
    title: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_name: str,
    step: int | None = None,
) -> None:
    """Send a chart of named lines.

    Args:
        run: a Weights & Biases run.
        key: of the chart.
        title: of the chart.
        curves: name → positions and values.
        x_name: of the horizontal axis.
        step: of the trainer; None to put the chart into the row that the next scalars complete.
    """
    from wandb.plot import line_series  # noqa: PLC0415 - takes a second, and only these runs need it

    chart = line_series(
        xs=[list(positions) for positions, _ in curves.values()],
        ys=[list(values) for _, values in curves.values()],
        keys=list(curves),
        title=title,
        xname=x_name,
    )
    if step is None:
        run.log({key: chart}, commit=False)
    else:
        run.log({key: chart, STEP_KEY: step})
