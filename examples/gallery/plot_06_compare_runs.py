"""
Comparing runs: the best curve is the one not to trust
======================================================

Three trainings of one network, read back from their logs, side by side. One of them stands out by its robust accuracy
under an ordinary attack. It is also the one of which an alarm says why not to believe it.
"""

# sphinx_gallery_thumbnail_number = -1

from functools import partial
from tempfile import TemporaryDirectory
from textwrap import fill

import matplotlib.pyplot as plt
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from examples.compare_runs import ConfidentDigitClassifier
from examples.mnist import DigitClassifier, MNISTDigits
from lightning_flatness import AttackMonitor, RelativeFlatnessMonitor
from lightning_flatness.tracking.comparison.alarms import alarms
from lightning_flatness.tracking.comparison.summary import differing_config, summarise
from lightning_flatness.tracking.curves import curves_figure
from lightning_flatness.tracking.runs import read_runs

plt.style.use("tableau-colorblind10")

# %%
# Three runs
# ----------
#
# Two are ordinary. In the third, from ``examples/compare_runs.py``, the head is multiplied by 50 during every
# validation, which changes no decision: by construction it is exactly as robust as the first one. Every run gets two
# attacks, the monitor's own and PGD of torchattacks, and writes a log with Lightning's ``CSVLogger``.

RUNS = {
    "plain": DigitClassifier,
    "label smoothing": partial(DigitClassifier, label_smoothing=0.2),
    "head × 50": ConfidentDigitClassifier,
}
EPSILON = 0.2
WEAK, WORST = "attack/pgd_robust_accuracy", "attack/worst_case_robust_accuracy"

folder = TemporaryDirectory()
for name, build in RUNS.items():
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=3,
        callbacks=[
            RelativeFlatnessMonitor(summary=False),
            AttackMonitor(
                epsilon=EPSILON, attacks={"PGD": {"steps": 10}}, max_samples=100, every_n_epochs=2, summary=False
            ),
        ],
        logger=CSVLogger(folder.name, name="", version=name),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(build(), MNISTDigits())

# %%
# Read them again
# ---------------
#
# :func:`~lightning_flatness.tracking.runs.read_runs` takes folders of ``CSVLogger`` and of Weights & Biases, also of
# crashed runs. :func:`~lightning_flatness.tracking.comparison.alarms.alarms` says in words what speaks against a run.

runs = read_runs([folder.name])
for run in runs:
    print(f"{run.name}: {len(run.epochs)} epochs, {len(alarms(run))} alarms")
    for paragraph in alarms(run):
        print(fill(paragraph, 100, initial_indent="  - ", subsequent_indent="    "))
print("settings that differ:", differing_config(runs))

# %%
# One run has all of its curves in one picture, and ``lightning-flatness compare FOLDER --output report.html`` overlays
# those of all runs in a page that needs no network.

alarmed = next(run for run in runs if alarms(run))
curves_of_one_run = curves_figure(alarmed.epochs)

# %%
# Flatness and robustness, twice
# ------------------------------
#
# Hollow: the robust accuracy that PGD on the cross-entropy leaves. Filled: what the stronger of the two attacks leaves.
# By the hollow points, the flattest network would be the most robust one, and theory confirmed. By the filled ones it
# is as robust as the plain one, which it is.
#
# Three runs are no study. They show how to look: alarms first, then the worst case, then flatness.

figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
labels = []
for place, run in enumerate(runs):
    last = {key: summary.last for key, summary in summarise(run).items()}
    weak, worst, kappa = (last[key] for key in (WEAK, WORST, "flatness/geometric_mean"))
    axes.plot([worst, weak], [place, place], ":", color="0.4")
    axes.plot(weak, place, "oC0", markersize=11, markerfacecolor="none", label=None if place else "PGD")
    axes.plot(worst, place, "oC1", markersize=11, label=None if place else "worst case of two attacks")
    labels.append(f"{run.name}\nκ {f'= {kappa:.2g}' if kappa else '< 1e-38'}")
    if alarms(run):
        axes.annotate("alarm", (weak, place), xytext=(12, -4), textcoords="offset points", color="C3")
axes.set(yticks=range(len(runs)), yticklabels=labels, ylim=(-0.5, len(runs) - 0.5), xlim=(0, 1.02))
axes.set(xlabel=f"robust accuracy at ε = {EPSILON:g}", title="The flattest run looks the most robust, and is not")
axes.grid(visible=True, axis="x", alpha=0.25)
axes.legend(frameon=False, loc="upper right")
folder.cleanup()
plt.show()
