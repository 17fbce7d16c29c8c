"""Runs as the monitors log them, made of formulas."""

from math import exp, inf, nan
from random import Random

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.runs import Run

SCALES = (0.1, 0.5, 1.0, 2.0, 10.0, 50.0)
REASON = (
    "the margin loss fools a further 58% of the samples that the cross-entropy does not: report the margin attack's "
    "robust accuracy"
)


def wobble(epoch, seed):
    """A number in (-1, 1) that looks random."""
    return ((epoch * 7919 + seed * 104729) % 997) / 498.5 - 1


def made_row(epoch, seed, *, robustness, kappa, masked):
    """Values of one epoch; a masked run is flat, high under plain attacks and falls to others."""
    learned = 1 - exp(-(epoch + 1) / 8)
    noise = 0.02 * wobble(epoch, seed)
    attacked = 0.62 * learned if masked else robustness * learned
    worst = 0.02 if masked else 0.94 * attacked
    flat = kappa * (1.4 - learned) * (1 + 4 * noise) * (1e-4 if masked else 1)
    row = {
        "epoch": float(epoch),
        "train_loss": 1.8 * exp(-epoch / 9) + 0.1 + abs(noise),
        "val_loss": 1.7 * exp(-epoch / 10) + 0.3 + noise,
        "val_acc": 0.3 + 0.6 * learned + noise,
        keys.RELATIVE_FLATNESS: flat,
        keys.MEDIAN: 0.4 * flat,
        keys.GEOMETRIC_MEAN: 0.3 * flat,
        keys.P90: 2.5 * flat,
        keys.P99: 6.1 * flat,
        keys.CONFIDENCE_FACTOR: 0.4 * (1.3 - learned) * (1e-5 if masked else 1),
        keys.GEOMETRY_FACTOR: 12 + 3 * noise,
        keys.FEATURE_NORM: 4 + 3 * learned + noise,
        keys.WEIGHT_NORM: (50 if masked else 1) * (1 + learned),
        keys.CORRECT: 0.7 * flat,
        keys.WRONG: 3.1 * flat,
        "bound/certified_accuracy_2_255": 0.4 * worst,
        "bound/estimated_accuracy_8_255": 0.7 * worst,
        keys.DECISION_RADIUS_MEDIAN: 0.2 + learned,
        keys.LIPSCHITZ_ESTIMATED: 3 + learned,
        keys.BOUND_LOSS_INCREASE: 0.5 + 2 * flat,
        keys.TIGHTNESS: 2.2 + noise,
        keys.VIOLATION_RATE: 0.0,
        keys.ALARM: float(masked),
        "masking/zero_gradient_rate": 0.46 if masked else 0.0,
        "masking/loss_gap": 0.58 * learned if masked else 0.01,
        "masking/gradient_alignment": 0.62 + noise,
    }
    for label, accuracy in (("linf_8_255", attacked), ("worst_case", worst)):
        row[keys.attack_key(label, keys.ROBUST_ACCURACY)] = accuracy + 0.3 * noise
        row[keys.attack_key(label, keys.SUCCESS_RATE)] = 1 - accuracy
        row[keys.attack_key(label, keys.SAMPLES)] = 512.0
    if epoch % 5 == 4:
        peak = flat * (3 + 2 * learned)
        row |= {
            keys.CLEAN_FLATNESS: flat,
            keys.PEAK_FLATNESS: peak,
            keys.PEAK_STEP: 4.0,
            keys.FINAL_FLATNESS: 0.3 * flat,
            keys.VALLEY_RATE: 0.5 if masked else 0.1 + abs(noise),
            keys.BASIN_WIDTH: 0.02 + 0.01 * learned,
        }
        for scale in SCALES:
            row[keys.scaling_key("relative_flatness", scale)] = flat * exp(-0.2 * scale)
            row[keys.scaling_key("loss", scale)] = 0.4 * scale**0.5
            row[keys.scaling_key("confidence", scale)] = 1 - 0.7 * exp(-scale)
            row[keys.scaling_key("robust_accuracy_cross_entropy", scale)] = min(0.9, attacked + 0.01 * scale)
            row[keys.scaling_key("robust_accuracy_margin", scale)] = worst
    return row


def made_run(name, seed, *, epochs=30, robustness=0.4, kappa=1.0, masked=False, **config):
    rows = [
        made_row(epoch, seed, robustness=robustness, kappa=kappa, masked=masked and epoch > 3)
        for epoch in range(epochs)
    ]
    texts = {keys.MASKING_REASONS: REASON} if masked else {}
    settings = {"seed": seed, "model.head_scale": 50.0 if masked else 1.0, "trainer.max_epochs": epochs, **config}
    return Run(name, f"logs/{name}/metrics.csv", rows, settings, texts)


def six_runs():
    """Five that are what they seem, and one whose head was multiplied by 50."""
    return [
        made_run("sgd", 1, robustness=0.08, kappa=3.0, optimizer="SGD", weight_decay=0.0),
        made_run("sgd, weight decay", 2, robustness=0.12, kappa=1.2, optimizer="SGD", weight_decay=5e-4),
        made_run("sam", 3, robustness=0.2, kappa=0.4, optimizer="SAM", weight_decay=5e-4),
        made_run("head × 50", 4, robustness=0.1, kappa=2.0, masked=True, optimizer="SGD", weight_decay=5e-4),
        made_run("adversarial training", 5, robustness=0.52, kappa=0.8, optimizer="SGD", weight_decay=5e-4),
        made_run("label smoothing", 6, robustness=0.15, kappa=5.0, optimizer="AdamW", weight_decay=1e-2),
    ]


HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\u2028&lt;b&gt; %{x} ${y} `\"'"


def hostile_runs():
    """Names, keys, settings and notes that try to be markup, and numbers that are none."""
    rows = [
        {"epoch": float(epoch), f"own/{HOSTILE}": 0.1 * epoch, "flatness/relative_flatness": 0.3} for epoch in range(4)
    ]
    masked = [row | {keys.ALARM: 1.0} for row in rows]
    nothing = [{"epoch": float(epoch), "flatness/relative_flatness": nan, "val_loss": inf} for epoch in range(3)]
    return [
        Run(HOSTILE, HOSTILE, masked, {HOSTILE: HOSTILE}, {keys.MASKING_REASONS: HOSTILE}, [HOSTILE]),
        Run("twice", "a", rows, {"lr": 0.1}),
        Run("twice", "b", [*rows, {"val_acc": 0.5}], {"lr": [0.1, "<b>"]}),
        Run("", "no rows", []),
        Run("nothing but NaN", "c", nothing),
    ]


def many_runs(number, epochs, count):
    """Runs with ``count`` keys, every value unlike any other; each twentieth is masked."""
    models = [made_run("", 1, epochs=epochs, masked=masked).epochs for masked in (False, True)]
    names = [*list(models[0][0])[1:], *(f"own_{index}" for index in range(count))][:count]
    runs = []
    for seed in range(number):
        masked = seed % 20 == 7
        noise = Random(seed)  # noqa: S311 - no secret
        rows = [
            {"epoch": row["epoch"]}
            | {key: row.get(key, 0.5) * (1 + 0.3 * seed / number + 1e-3 * noise.random()) for key in names}
            for row in models[masked]
        ]
        texts = {keys.MASKING_REASONS: REASON} if masked else {}
        runs.append(Run(f"run {seed:03d}", f"logs/{seed}", rows, {"seed": seed}, texts))
    return runs
