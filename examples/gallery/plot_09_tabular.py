"""
Tabular data: how much measurement error does a model stand?
============================================================

Attacks are not about images only. For a table, ε is an error of measurement, and the question a practical one: if every
number may be off by a tenth of its spread, how many diagnoses stand? The data are the 569 tumours of scikit-learn's
breast cancer data set, with 30 measurements each.
"""

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_flatness import AttackMonitor, LocalRobustnessMonitor, RelativeFlatnessMonitor
from lightning_flatness.attacks import ThreatModel
from lightning_flatness.tracking.bound_curves import accuracies_over_epsilon

plt.style.use("tableau-colorblind10")

# %%
# The unit of epsilon
# -------------------
#
# The columns are standardised, so that ε counts standard deviations, and no value is out of range: ``lower=None`` and
# ``upper=None``. Where the raw numbers have to be attacked, ``ThreatModel(epsilon=[...], mean=[...], std=[...])`` takes
# one number per column.

table = load_breast_cancer()
numbers, diagnoses = torch.as_tensor(table.data), torch.as_tensor(table.target)
order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))
train, held_out = order[:369], order[369:]
mean, std = numbers[train].mean(0), numbers[train].std(0)
numbers = ((numbers - mean) / std).float()
training = DataLoader(TensorDataset(numbers[train], diagnoses[train]), 32, shuffle=True)
validation = DataLoader(TensorDataset(numbers[held_out], diagnoses[held_out]), 100)


class Diagnosis(LightningModule):
    """Two hidden layers on standardised numbers.

    Args:
        weight_decay: of AdamW.
    """

    def __init__(self, weight_decay: float) -> None:
        super().__init__()
        self.weight_decay = weight_decay
        self.features = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.features(numbers))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Run the model; the monitors look on."""
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=self.weight_decay)


# %%
# Train twice, measure once
# -------------------------
#
# With weight decay and without. ``lipschitz="certified"`` makes a guarantee of the distance to the decision boundary,
# for l∞, that is, for errors of all columns at once.

EPSILONS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
results = {}
for weight_decay in (0.0, 1.0):
    seed_everything(0, verbose=False)
    model = Diagnosis(weight_decay)
    Trainer(max_epochs=40, **QUIET, num_sanity_val_steps=0, limit_val_batches=0).fit(model, training)
    threat = ThreatModel(epsilon=0.1, lower=None, upper=None)
    monitors = [
        RelativeFlatnessMonitor(),
        AttackMonitor(threat=threat, epsilons=EPSILONS),
        LocalRobustnessMonitor(threat=threat, lipschitz="certified", radii=EPSILONS),
    ]
    Trainer(callbacks=monitors, **QUIET).validate(model, validation, verbose=False)
    row = {key: value for monitor in monitors for key, value in monitor.history()[-1].items()}
    with torch.no_grad():
        noisy = [
            model(ThreatModel(epsilon=epsilon, lower=None, upper=None).random_start(numbers[held_out])).argmax(1)
            for epsilon in EPSILONS
        ]
    noise = [float((seen == diagnoses[held_out]).double().mean()) for seen in noisy]
    results[f"weight decay {weight_decay:g}"] = row, noise

# %%
# Noise, worst case, guarantee
# ----------------------------
#
# Random errors of up to half a standard deviation in every column change next to nothing. Errors of a tenth of it,
# chosen by an adversary, cost diagnoses. In between, nobody knows: the truth is in the hatched region, below what the
# attacks leave and above what is certified.
#
# The title gives κ of the typical tumour. The network without weight decay is the flatter one by far, and by no means
# the one that stands more: it is flat because it is sure.

figure, panels = plt.subplots(1, 2, figsize=(9, 4.4), sharey=True, layout="constrained")
for axes, (name, (row, noise)) in zip(panels, results.items(), strict=True):
    curves = accuracies_over_epsilon(row)
    certified, attacked = (curves[kind][1] for kind in ("certified", "attacks, linf"))
    axes.fill_between(EPSILONS, certified, attacked, facecolor="none", edgecolor="0.7", hatch="//", label="the truth")
    axes.plot(EPSILONS, noise, ":D", color="0.4", label="random errors")
    axes.plot(EPSILONS, attacked, marker="o", label="left by attacks")
    axes.plot(EPSILONS, certified, marker="s", label="certified")
    axes.set(title=f"{name}: median κ = {row['flatness/median']:.1g}", xlabel="ε, in standard deviations of a column")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(visible=True, alpha=0.25)
panels[0].set_ylabel("accuracy")
panels[1].legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.93))
plt.show()
