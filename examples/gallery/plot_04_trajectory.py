"""
Along an attack: first a peak, then a valley
============================================

Adversarial examples are often said to lie at sharp places of the loss. They do, for a few steps. An attack that goes on
behind the decision boundary arrives where the loss is flat again and the network sure of the wrong class: the *uncanny
valley* of `Walter et al. <https://arxiv.org/abs/2405.16918>`_
"""

# sphinx_gallery_thumbnail_number = -1

import matplotlib.pyplot as plt
from lightning.pytorch import Trainer, seed_everything

from examples.mnist import DigitClassifier, MNISTDigits
from lightning_flatness import AttackTrajectoryMonitor
from lightning_flatness.tracking.trajectory_curves import trajectory_figure

plt.style.use("tableau-colorblind10")

# %%
# Follow some digits out of their class
# -------------------------------------
#
# :class:`~lightning_flatness.AttackTrajectoryMonitor` follows 64 validation digits over 40 steps of PGD, without
# stopping where they are fooled, and measures relative flatness, loss and confidence at every step, from the attack's
# own forward passes. A second path, for comparison, goes equally far in a random direction.

seed_everything(0, verbose=False)
monitor = AttackTrajectoryMonitor(epsilon=0.3, steps=40, path=["attack", "random"], every_n_epochs=3, summary=False)
trainer = Trainer(
    max_epochs=10,
    callbacks=[monitor],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(DigitClassifier(learning_rate=3e-3), MNISTDigits())

# %%
# While the network learns
# ------------------------
#
# :func:`~lightning_flatness.tracking.trajectory_curves.trajectory_figure` draws the attack in several epochs. The peak
# is there from the start. The valley comes with the training: look at the median, at the upper middle, which ends lower
# and lower, while the loss at the same step gets larger and larger.

over_epochs = trajectory_figure(monitor.trajectories())

# %%
# Peak and valley
# ---------------
#
# In the last epoch measured, κ rises to its peak about where the labels flip, and falls behind it, while the confidence
# comes back. A flat place is no safe place: whoever looks for adversarial examples among the sharp inputs finds those
# of the first steps only.
#
# Mean and median tell different stories, and neither is wrong. The mean is carried by the few digits that are still
# near a boundary; the typical fooled digit, the median, ends about as flat as it began. ``valley_rate`` counts those
# that end flatter than they began, with a confidence above 0.9.
#
# In a random direction, at the same distance, labels stay, and there is neither peak nor valley.

last = monitor.history()[-1]
print(
    f"mean κ: {last['trajectory/clean_flatness']:.3g} at the clean digits, {last['trajectory/peak_flatness']:.3g} at "
    f"step {last['trajectory/peak_step']:.0f}, {last['trajectory/final_flatness']:.3g} at the end; "
    f"{last['trajectory/success_rate']:.0%} fooled, {last['trajectory/valley_rate']:.0%} of them in a valley"
)

latest = {one["path"]: one["curves"] for one in monitor.trajectories()}
figure, panels = plt.subplots(3, 2, figsize=(9, 7), sharex="col", sharey="row", layout="constrained")
for (upper, middle, lower), (path, curves) in zip(panels.T, latest.items(), strict=True):
    positions = curves["position"]
    upper.plot(positions, curves["neuronwise_mean"], marker="o", markersize=4, label="mean")
    upper.plot(positions, curves["neuronwise_median"], marker="s", markersize=4, label="median")
    upper.set(yscale="log", title="along PGD" if path == "attack" else "in a random direction")
    middle.plot(positions, curves["loss_mean"], marker="v", markersize=4, color="C2", label="cross-entropy, mean")
    lower.plot(positions, curves["flipped"], marker="^", markersize=4, color="C3", label="share misclassified")
    lower.plot(positions, curves["confidence_mean"], marker="D", markersize=4, color="C4", label="confidence, mean")
    lower.set(xlabel="gradient step" if path == "attack" else "distance from the digit, in ε", ylim=(-0.02, 1.02))
    for axes in (upper, middle, lower):
        axes.grid(visible=True, alpha=0.25)
for axes, label in zip(panels[:, 0], ("relative flatness κ", "loss in nats", "share, probability"), strict=True):
    axes.set_ylabel(label)
for axes in panels[:, 1]:
    axes.legend(loc="best", frameon=False)
plt.show()
