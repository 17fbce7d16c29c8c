"""
Your own LightningModule: dictionaries, several heads
=====================================================

Batches are dictionaries with names of their own, the module has two tasks, and its forward returns a dictionary. Three
keywords tell the monitors what they need to know: ``inputs_and_targets=``, ``head=`` and ``logits_fn=``.
"""

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from examples.mnist import MNISTDigits
from lightning_flatness import AttackMonitor, RelativeFlatnessMonitor

plt.style.use("tableau-colorblind10")

# %%
# A module with two tasks
# -----------------------
#
# Which digit is it, and is it even? One trunk, two heads, one loss that adds up both.


class TwoTasks(LightningModule):
    """A shared trunk; ``digit_head`` tells ten classes apart, ``parity_head`` two."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU()),
        )
        self.digit_head = nn.Linear(64, 10)
        self.parity_head = nn.Linear(64, 2)

    def forward(self, scan: Tensor) -> dict[str, Tensor]:
        """Return the logits of both tasks."""
        features = self.trunk(scan)
        return {"digit": self.digit_head(features), "parity": self.parity_head(features)}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the sum of both losses."""
        logits = self(batch["scan"])
        losses = [nn.functional.cross_entropy(logits[task], batch[task]) for task in logits]
        return torch.stack(losses).sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Run both heads; the monitors look on."""
        self(batch["scan"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def as_dictionaries(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Make a batch of the kind that a data set of one's own may give."""
    scans, digits = (torch.stack(column) for column in zip(*samples, strict=True))
    return {"scan": scans, "digit": digits, "parity": digits % 2}


# %%
# One monitor per head
# --------------------
#
# ``group=`` is the first part of the log keys, so that two monitors of one kind do not get into each other's way.

monitors = {}
for task in ("digit", "parity"):

    def pick(batch: dict[str, Tensor], task: str = task) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one task."""
        return batch["scan"], batch[task]

    def logits(module: LightningModule, scans: Tensor, task: str = task) -> Tensor:
        """Logits of one task."""
        return module(scans)[task]

    monitors[task] = (
        RelativeFlatnessMonitor(head=f"{task}_head", inputs_and_targets=pick, group=f"flatness_{task}", summary=False),
        AttackMonitor(
            0.1, logits_fn=logits, inputs_and_targets=pick, max_samples=100, group=f"attack_{task}", summary=False
        ),
    )

seed_everything(0, verbose=False)
data = MNISTDigits()
data.setup("fit")
trainer = Trainer(
    max_epochs=6,
    callbacks=[monitor for pair in monitors.values() for monitor in pair],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(
    TwoTasks(),
    DataLoader(data.train_digits, 128, shuffle=True, collate_fn=as_dictionaries),
    DataLoader(data.validation_digits, 250, collate_fn=as_dictionaries),
)

# %%
# One trunk, two answers
# ----------------------
#
# Both heads see the same features of the same digits, and their κ differ: other rows, another number of classes. κ says
# something about a head and its loss, so that curves of one head can be compared with one another, and those of two
# heads cannot.
#
# The attacks differ as well: an adversarial digit of one task is made against that task, and the easier question is not
# the safer one by itself.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
for (task, (flatness, attacks)), color, marker in zip(monitors.items(), ("C0", "C1"), "os", strict=True):
    epochs = [row["epoch"] for row in flatness.history()]
    kappa = [row[f"flatness_{task}/geometric_mean"] for row in flatness.history()]
    left.plot(epochs, kappa, color=color, marker=marker, label=f"{task}_head")
    for name, style in (("clean_accuracy", ":"), ("robust_accuracy", "-")):
        values = [row[f"attack_{task}/linf_0_1_{name}"] for row in attacks.history()]
        right.plot(epochs, values, style, color=color, marker=marker, label=f"{task}, {name.replace('_', ' ')}")
left.set(yscale="log", ylabel="relative flatness κ, geometric mean", title="Two heads of one trunk differ in κ …")
right.set(ylim=(-0.02, 1.02), ylabel="accuracy", title="… and in what ±0.1 per pixel leaves")
for axes in (left, right):
    axes.set_xlabel("epoch")
    axes.grid(visible=True, alpha=0.25)
    axes.legend(frameon=False)
plt.show()
