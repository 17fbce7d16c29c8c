"""
Scaling the head: flat as you like, and no more robust
======================================================

Multiply weight and bias of the last layer by 100. Every decision stays, and so does every adversarial example. Yet the
loss becomes flat without bounds, and an ordinary attack reports a robust network. This is what flatness bought by
confidence is worth.
"""

# sphinx_gallery_thumbnail_number = -1

from textwrap import fill

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Trainer, seed_everything

from examples.mnist import DigitClassifier, MNISTDigits
from lightning_flatness import HeadScalingMonitor
from lightning_flatness.attacks import AdaptiveAttack, ThreatModel, masking_reasons, masking_signals
from lightning_flatness.tracking.head_scaling import scaling_figure

plt.style.use("tableau-colorblind10")

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
EPSILON = 0.2
SCALES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)

# %%
# Measure without touching the model
# ----------------------------------
#
# :class:`~lightning_flatness.HeadScalingMonitor` works out what a multiplied head would show, from one forward pass of
# the model as it is, and attacks it at every scale: by PGD on the cross-entropy, by PGD on the margin of the logits,
# and with the inputs that fool at scale 1.

seed_everything(0, verbose=False)
data, network = MNISTDigits(), DigitClassifier(learning_rate=3e-3)
Trainer(max_epochs=5, **QUIET).fit(network, data)
monitor = HeadScalingMonitor(epsilon=EPSILON, scales=SCALES, summary=False)
Trainer(callbacks=[monitor], **QUIET).validate(network, data, verbose=False)
rows = monitor.table()

# %%
# Everything that it has measured is drawn by
# :func:`~lightning_flatness.tracking.head_scaling.scaling_figure`: with the scale, confidence comes close to 1 whatever
# the accuracy is, so that calibration suffers.

every_curve = scaling_figure(rows)

# %%
# How to notice
# -------------
#
# Nobody multiplies heads. But long training, or a loss that rewards it, makes a network confident in much the same way,
# and the symptoms are those of masked gradients. :func:`~lightning_flatness.attacks.masking_signals` looks for them,
# and :func:`~lightning_flatness.attacks.masking_reasons` puts what it finds in words; during a training,
# :class:`~lightning_flatness.AttackMonitor` does both and logs ``masking/alarm``. Its attack is an
# :class:`~lightning_flatness.attacks.AdaptiveAttack`, which is not fooled.

images, labels = data.validation_digits[:64]
network.eval()
threat = ThreatModel(epsilon=EPSILON)
honest = {}
for scale in (SCALES[0], SCALES[-1]):

    def logits_fn(inputs: torch.Tensor, scale: float = scale) -> torch.Tensor:
        """Logits of the network with a multiplied head."""
        return scale * network(inputs)

    result = AdaptiveAttack(threat)(logits_fn, images, labels)
    honest[scale] = float((result.initially_correct & ~result.success).double().mean())
    diagnosis = masking_signals(logits_fn, images, labels, threat)
    signals = {name: float(signal.mean()) for name, signal in diagnosis.signals.items()}
    reasons = masking_reasons(signals, int(result.initially_correct.sum()))
    print(f"head × {scale:g}: AdaptiveAttack leaves {honest[scale]:.0%}; {len(reasons)} reasons for an alarm")
    for reason in reasons:
        print(fill(reason, 100, initial_indent="  - ", subsequent_indent="    "))

# %%
# The finding
# -----------
#
# Left: κ of the typical digit falls by many orders of magnitude. (The *mean* first rises, carried by the few digits
# near a boundary, which get sharper.) Right: PGD on the cross-entropy finds less and less, because its gradients are
# exactly 0 in float32. Attacks that do not rely on them find the same as before.
#
# All points of a column are the same classifier. A curve of κ, or of the robust accuracy by an ordinary attack, that
# improves along with confidence is no evidence of robustness.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
scales = [row["scale"] for row in rows]
left.plot(scales, [row["relative_flatness"] for row in rows], marker="o", label="mean")
left.plot(scales, [row["relative_flatness_median"] for row in rows], marker="s", label="median")
left.set(yscale="log", ylim=(1e-60, 1e6), ylabel="relative flatness κ (small is flat)", title="The loss becomes flat …")
right.plot(scales, [row["robust_accuracy_cross_entropy"] for row in rows], marker="o", label="PGD on the cross-entropy")
right.plot(scales, [row["robust_accuracy_margin"] for row in rows], marker="s", label="PGD on the margin")
right.plot(*zip(*honest.items(), strict=True), "D", color="C3", markersize=9, label="AdaptiveAttack")
right.plot(scales, [row["clean_accuracy"] for row in rows], ":", color="0.4", label="no attack")
right.set(ylim=(-0.02, 1.02), ylabel="robust accuracy", title="… and an ordinary attack fails")
for axes in (left, right):
    axes.set(xscale="log", xlabel="scale of the head: the same decisions")
    axes.grid(visible=True, alpha=0.25)
    axes.legend(frameon=False)
plt.show()
