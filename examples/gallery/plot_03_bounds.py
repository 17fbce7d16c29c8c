"""
Bounds: certified accuracy beside the attacked one
==================================================

An attack that finds nothing proves nothing. A certificate does: with a Lipschitz constant L of the features, no
perturbation shorter than (distance to the decision boundary) / L can change a prediction. What is certified lies below
the truth, what attacks leave lies above it. For most networks the gap between the two is as wide as can be; for a
network that is built for it, it closes.
"""

import matplotlib.pyplot as plt
from lightning.pytorch import Trainer, seed_everything

from examples.lipschitz import LipschitzDigitClassifier
from examples.mnist import DigitClassifier, MNISTDigits
from lightning_flatness import AttackMonitor, LocalRobustnessMonitor
from lightning_flatness.tracking.bound_curves import accuracies_over_epsilon

plt.style.use("tableau-colorblind10")

RADII = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5)
"""Lengths of perturbations in l2, for pixels in [0, 1]."""
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

# %%
# Two networks, one measurement
# -----------------------------
#
# The ordinary network is the CNN of ``examples/mnist.py``. The other one, of ``examples/lipschitz.py``, has four layers
# that lengthen no vector, so that its features are no farther apart than the digits are.
#
# ``lipschitz="certified"`` derives an upper bound on L from the operations of the module, by a rule for each of them.
# It is sound for both networks, and far from tight for the first: the bounds of its layers multiply. Beside it,
# :class:`~lightning_flatness.AttackMonitor` attacks the same digits at the same radii.

results = {}
for name, module, epochs in (
    ("an ordinary CNN", DigitClassifier(), 4),
    ("1-Lipschitz by construction", LipschitzDigitClassifier(width=128), 6),
):
    seed_everything(0, verbose=False)
    data = MNISTDigits()
    Trainer(max_epochs=epochs, **QUIET).fit(module, data)
    bounds = LocalRobustnessMonitor(RADII[-1], norm="l2", lipschitz="certified", radii=RADII, max_samples=200)
    attacks = AttackMonitor(RADII[-1], norm="l2", epsilons=RADII, max_samples=200)
    Trainer(callbacks=[bounds, attacks], **QUIET).validate(module, data, verbose=False)
    results[name] = bounds.history()[-1] | attacks.history()[-1]

# %%
# What is known
# -------------
#
# The true robust accuracy lies in the hatched region, whatever anybody will try. For the ordinary network that says
# hardly more than the attacks do. For the other one it is a statement about every perturbation of that length: nobody
# has to believe in an attack.
#
# The price is accuracy without an attack, at the left end. And a certificate holds for the norm it was made for: one
# for l2 says little about a change of every pixel.

for name, row in results.items():
    print(
        f"{name}: L ≤ {row['bound/lipschitz_certified']:.3g}; certified radius, median "
        f"{row['bound/certified_radius_median']:.3g}; violations of the bound under attack: "
        f"{row['bound/violation_rate']:.0%}"
    )

figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
for axes, (name, row) in zip(panels, results.items(), strict=True):
    curves = accuracies_over_epsilon(row)
    (radii, certified), (_, attacked) = curves["certified"], curves["attacks, l2"]
    clean = row["attack/l2_1_5_clean_accuracy"]
    radii, certified, attacked = [0.0, *radii], [clean, *certified], [clean, *attacked]
    axes.fill_between(radii, certified, attacked, facecolor="none", edgecolor="0.7", hatch="//", label="the truth")
    axes.plot(radii, attacked, marker="o", label="left by attacks")
    axes.plot(radii, certified, marker="s", label="certified")
    axes.set(xlabel="l2 length of the perturbation", title=f"{name}, L ≤ {row['bound/lipschitz_certified']:.3g}")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(visible=True, alpha=0.25)
panels[0].set_ylabel("accuracy")
panels[1].legend(loc="lower left", frameon=False)
plt.show()
