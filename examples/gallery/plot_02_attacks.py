"""
Attacks: how much accuracy is left, and who says so
===================================================

Robust accuracy is a statement about an attack as much as about a network: a weak attack leaves much. Three attacks that
are called alike, and what they leave of the same network over growing ε.
"""

# sphinx_gallery_thumbnail_number = 1

from functools import partial

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Trainer, seed_everything

from examples.mnist import DigitClassifier, MNISTDigits
from lightning_flatness import RobustAccuracy, RobustAccuracyCurve
from lightning_flatness.attacks import AdaptiveAttack, ThreatModel, first_fooling_epsilon, from_torchattacks, pgd

plt.style.use("tableau-colorblind10")

seed_everything(0, verbose=False)
data, network = MNISTDigits(), DigitClassifier(learning_rate=3e-3)
trainer = Trainer(
    max_epochs=3,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(network, data)
network.eval()
images, labels = data.validation_digits[:64]

# %%
# One threat model, three attacks
# -------------------------------
#
# A :class:`~lightning_flatness.attacks.ThreatModel` says what an attacker may do, here: change every pixel by at most
# ε, inside [0, 1]. Inputs that are normalised need ``mean=`` and ``std=``; ε stays in the unit of the data.
#
# All attacks are called alike: our own :func:`~lightning_flatness.attacks.pgd` and
# :class:`~lightning_flatness.attacks.AdaptiveAttack`, and any attack of the package torchattacks, behind a guard that
# counts nothing that lies outside of the ball.

attacks = {
    "FGSM (torchattacks)": partial(from_torchattacks, "FGSM"),
    "PGD, 10 steps": lambda threat: partial(pgd, threat=threat, steps=10),
    "AdaptiveAttack": AdaptiveAttack,
}
threat = ThreatModel(epsilon=0.1)
results = {name: attack_for(threat)(network, images, labels) for name, attack_for in attacks.items()}

# %%
# :class:`~lightning_flatness.metrics.RobustAccuracy` counts. A digit is robust in the *worst case* where no attack
# fools it, which is what an attacker who may choose leaves. With 64 digits, every share has an interval worth looking
# at.

metric = RobustAccuracy(list(attacks))
metric.update({name: result.success for name, result in results.items()}, results["AdaptiveAttack"].initially_correct)
shares = metric.compute()
for name in (*attacks, "worst_case"):
    print(f"{name:26}{shares[name]:6.1%}   95 % interval {shares[f'{name}_low']:.1%} to {shares[f'{name}_high']:.1%}")

# %%
# Over epsilon
# ------------
#
# Balls are nested, so that one number per digit, the smallest ε that fools it, holds the whole curve;
# :func:`~lightning_flatness.attacks.first_fooling_epsilon` finds it by bisection.
#
# Random points of the ball fool almost nobody: that a network withstands *noise* of some size says nothing about the
# worst case of that size. One step of FGSM is fast, and leaves digits that ten steps do not. Whatever is lowest is
# nearest to the truth, which is lower still or the same: every curve here is an upper bound of the robust accuracy.

epsilons = [0.05, 0.1, 0.15, 0.2, 0.3]
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for (name, attack_for), marker in zip(attacks.items(), "os^", strict=True):
    found = first_fooling_epsilon(attack_for, network, images, labels, threat, epsilons)
    curve = RobustAccuracyCurve(epsilons)
    curve.update(found.index, found.initially_correct)
    values = curve.compute()
    axes.plot(values["epsilon"], values["robust_accuracy"], marker=marker, label=name)
    axes.fill_between(values["epsilon"], values["robust_accuracy_low"], values["robust_accuracy_high"], alpha=0.12)
with torch.no_grad():
    noisy = [network(ThreatModel(epsilon=epsilon).random_start(images)).argmax(1) for epsilon in epsilons]
axes.plot(epsilons, [(seen == labels).double().mean() for seen in noisy], ":D", color="0.4", label="random noise")
axes.set(xlabel="ε, largest change of a pixel (of 1)", ylabel="robust accuracy", ylim=(-0.02, 1.02))
axes.set_title("The weaker the attack, the more robust the network looks")
axes.grid(visible=True, alpha=0.25)
axes.legend(frameon=False, title="with 95 % intervals")
plt.show()

# %%
# What it looks like
# ------------------
#
# The first digits that :class:`~lightning_flatness.attacks.AdaptiveAttack` fools at ε = 0.1, what it adds, and what the
# network then sees in them. Nobody would misread them.

result = results["AdaptiveAttack"]
fooled = result.success.nonzero().flatten()[:6]
with torch.no_grad():
    seen = network(result.x_adv[fooled]).argmax(1)
figure, panels = plt.subplots(3, len(fooled), figsize=(9, 5), layout="constrained")
for column, (row, digit) in enumerate(zip(fooled, seen, strict=True)):
    clean, adversarial = images[row, 0], result.x_adv[row, 0]
    panels[0, column].imshow(clean, cmap="gray", vmin=0, vmax=1)
    panels[1, column].imshow(adversarial - clean, cmap="PuOr", vmin=-threat.epsilon, vmax=threat.epsilon)
    panels[2, column].imshow(adversarial, cmap="gray", vmin=0, vmax=1)
    panels[0, column].set_title(f"a {labels[row]}")
    panels[2, column].set_title(f"“a {digit}”")
for axes in panels.flat:
    axes.set(xticks=[], yticks=[])
for axes, label in zip(panels[:, 0], ("digit", "perturbation", "adversarial"), strict=True):
    axes.set_ylabel(label)
figure.suptitle("±0.1 per pixel is enough")
plt.show()
