"""
Quickstart: flatness, bounds and attacks in one fit
===================================================

Is the flat minimum that a classifier has found worth anything? Three monitors join an ordinary training, which stays
bit for bit what it is: one logs how flat the loss is in the weight of the last layer, one how far an input would have
to move before its prediction can change, and one how often attacks succeed. The network is the small CNN of
``examples/mnist.py``, the data 5,000 real MNIST digits.
"""

# sphinx_gallery_thumbnail_number = -1

import matplotlib.pyplot as plt
from lightning.pytorch import Trainer, seed_everything

from examples.mnist import DigitClassifier, MNISTDigits
from lightning_flatness import AttackMonitor, LocalRobustnessMonitor, RelativeFlatnessMonitor
from lightning_flatness.tracking.curves import curves_figure

plt.style.use("tableau-colorblind10")

# %%
# Train as usual
# --------------
#
# Pixels are in [0, 1], and ``epsilon`` is in the same unit: every pixel may change by 0.1. The attacks are tried on the
# first 200 of the 1,000 validation digits, and the Lipschitz constants estimated on 32. The table that ends the fit is
# that of the monitors.

seed_everything(0, verbose=False)
flatness = RelativeFlatnessMonitor()
attacks = AttackMonitor(epsilon=0.1, max_samples=200)
bounds = LocalRobustnessMonitor(epsilon=0.1, lipschitz_samples=32)
trainer = Trainer(
    max_epochs=6,
    callbacks=[flatness, attacks, bounds],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(DigitClassifier(), MNISTDigits())

# %%
# Every curve
# -----------
#
# A monitor's ``history()`` is what it has logged, one dictionary per epoch; Lightning's loggers get the same values
# under the same keys. :func:`~lightning_flatness.tracking.curves.curves_figure` draws all of them. What is dotted is
# estimated, and guarantees nothing.

histories = (flatness.history(), attacks.history(), bounds.history())
rows = [flat | attacked | bounded for flat, attacked, bounded in zip(*histories, strict=True)]
every_curve = curves_figure(rows)

# %%
# What to read first
# ------------------
#
# Once the features have found their length, the typical digit, the median, gets flatter from epoch to epoch. Two
# questions follow, and the same rows of the log answer both.
#
# *Why is it flatter?* Relative flatness is a product: of the squared length of the features, of the geometry of the
# head, and of the confidence factor tr H\ :sub:`z` = Σ p(1 − p). Only the last one falls. The network has become surer
# of its answers, and that is all that the flatness shows.
#
# *Does it protect?* Only an attack can tell. A good part of the digits that are classified right do not survive a
# change of 0.1 per pixel. The lowest curve is the share for which the distance to the decision boundary, divided by an
# estimate of how fast the features move, says that they do; since it rests on an estimate, it is no guarantee.

epochs = [row["epoch"] for row in rows]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 5), layout="constrained")
for name, power, marker, label in (
    ("flatness/median", 1, "o", "relative flatness κ (median)"),
    ("flatness/confidence_factor", 1, "s", "confidence factor tr H_z"),
    ("flatness/feature_norm", 2, "^", "squared feature norm ‖φ‖²"),
):
    left.plot(epochs, [(row[name] / rows[0][name]) ** power for row in rows], marker=marker, label=label)
left.set(yscale="log", xlabel="epoch", ylabel="relative to the first epoch", title="Flatter, because more confident")
for name, marker, label in (
    ("attack/linf_0_1_clean_accuracy", "o", "no attack"),
    ("attack/linf_0_1_robust_accuracy", "s", "under attack"),
    ("bound/estimated_accuracy_0_1", "^", "by an estimated bound"),
):
    right.plot(epochs, [row[name] for row in rows], marker=marker, label=label)
right.set(ylim=(-0.02, 1.02), xlabel="epoch", ylabel="accuracy", title="… and still fooled by ±0.1 per pixel")
for axes in (left, right):
    axes.grid(visible=True, alpha=0.25)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
plt.show()
