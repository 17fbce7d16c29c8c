"""
Without a Trainer: the metrics in a loop of one's own
=====================================================

No Lightning here: a plain PyTorch loop, and metrics that take features, logits and the weight of the head. The question
is what makes a network flatter while it learns: its features, its head, or its confidence.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from examples.mnist import MNISTDigits
from lightning_flatness import AttackSuccessRate, RelativeFlatness
from lightning_flatness.attacks import ThreatModel, pgd
from lightning_flatness.functional import flatness_factors, relative_flatness

plt.style.use("tableau-colorblind10")

# %%
# A network in two parts
# ----------------------
#
# The metrics need the input of the last layer. It is at hand where a network is written as features and head.

torch.manual_seed(0)
data = MNISTDigits()
data.setup("fit")
images, labels = data.validation_digits[:]
features = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()),
    *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU()),
)
head = nn.Linear(64, 10)
network = nn.Sequential(features, head)
optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

# %%
# Train, and measure after every epoch
# ------------------------------------
#
# :class:`~lightning_flatness.metrics.RelativeFlatness` and
# :class:`~lightning_flatness.metrics.AttackSuccessRate` are metrics of torchmetrics: any batching, any number of
# processes.
#
# For one digit, κ = ‖φ‖² · G · C exactly: squared length of its features, geometry of the head, and confidence factor
# C = tr H\ :sub:`z`. :func:`~lightning_flatness.functional.flatness_factors` gives the three. A product of means is no
# mean of products; logarithms add up, so that the means of log ‖φ‖², log G and log C explain the mean of log κ without
# a remainder.

rows = []
for _ in range(12):
    network.train()
    for inputs, target in data.train_dataloader():
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), target).backward()
        optimizer.step()
    network.eval()
    flatness, attacked = RelativeFlatness(), AttackSuccessRate()
    with torch.no_grad():
        phi = features(images)
        logits = head(phi)
        flatness.update(phi, head.weight, logits, labels)
        parts = flatness_factors(phi, head.weight, logits)
        log_kappa = relative_flatness(phi, head.weight, logits, log=True)
    result = pgd(network, images[:200], labels[:200], ThreatModel(epsilon=0.1), steps=10)
    attacked.update(result.success, result.initially_correct)
    rows.append({
        "κ": log_kappa.mean(),
        "features ‖φ‖²": 2 * parts.feature_norm.log().mean(),
        "geometry of the head": parts.geometry().log().mean(),
        "confidence factor": parts.logit_trace.log().mean(),
        "mean of κ": flatness.compute()["relative_flatness"],
        **attacked.compute(),
    })

# %%
# What made it flatter
# --------------------
#
# The bars add up to the line: the change of the typical κ since the first epoch, in powers of ten. Features and head
# make the loss *sharper*. All of the flatness, and more, is confidence, of a network that sees the same digits again
# and again. The accuracy under attack, in the title, knows nothing of it.
#
# This is one network and one optimiser. With weight decay, label smoothing or another loss, the parts may be others;
# that is why they are logged.

print(f"mean of κ: {rows[0]['mean of κ']:.3g} after the first epoch, {rows[-1]['mean of κ']:.3g} after the last")
epochs = list(range(len(rows)))
change = {name: [float(row[name] - rows[0][name]) / torch.log(torch.tensor(10.0)) for row in rows] for name in rows[0]}
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
above = below = torch.zeros(len(rows))
for name, hatch in (("features ‖φ‖²", ""), ("geometry of the head", "//"), ("confidence factor", "..")):
    part = torch.tensor(change[name])
    axes.bar(epochs, part, bottom=torch.where(part > 0, above, below), label=name, hatch=hatch, alpha=0.8)
    above, below = above + part.clamp(min=0), below + part.clamp(max=0)
axes.plot(epochs, change["κ"], "k-o", label="relative flatness κ")
axes.axhline(0, color="0.4", linewidth=0.8)
axes.set(xlabel="epoch", ylabel="change of the mean of log₁₀ since epoch 0 (down: flatter)")
axes.set_title(
    f"Flatter by confidence alone; robust accuracy {rows[0]['robust_accuracy']:.0%} → {rows[-1]['robust_accuracy']:.0%}"
)
axes.legend(frameon=False, loc="lower left")
plt.show()
