import pytest

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.directions import extreme_is

NEITHER = {
    keys.CONFIDENCE_FACTOR, keys.GEOMETRY_FACTOR, keys.FEATURE_NORM, keys.WEIGHT_NORM, keys.NONFINITE,
    keys.BOUND_SAMPLES, keys.BOUND_NONFINITE,
    "masking/randomness", "masking/gradient_alignment", "masking/directional_correlation",
    "masking/loss_decrease_rate", "masking/success_rate", "masking/unbounded_survival",
    *(set(keys.TRAJECTORY_KEYS) - {keys.BASIN_WIDTH, keys.TRAJECTORY_SUCCESS_RATE}),
    *keys.SCALING_COUNTS,
    keys.ALARM, keys.WRONG, keys.VIOLATION_RATE, keys.TAYLOR_VIOLATION_RATE, keys.LIPSCHITZ_VIOLATION_RATE,
}  # fmt: skip
ALL = [
    *keys.FLATNESS_KEYS, *keys.MASKING_KEYS, keys.ALARM, *keys.TRAJECTORY_KEYS, *keys.SCALING_COUNTS,
    *(key.format(radius="8_255") for key in keys.BOUND_KEYS),
]  # fmt: skip


@pytest.mark.parametrize("key", ALL)
def test_every_documented_key_is_judged_or_named_here(key):
    assert (extreme_is(key) is None) == (key in NEITHER)


@pytest.mark.parametrize("quantity", keys.ATTACK_QUANTITIES)
def test_attacks(quantity):
    neutral = {keys.SAMPLES, keys.SECONDS, keys.NONFINITE_SAMPLES, keys.REJECTED}
    neutral |= {
        quantity for quantity in keys.ATTACK_QUANTITIES if quantity.endswith(("_low", "_high", "_fool", "_mean"))
    }
    assert (extreme_is(keys.attack_key("linf_8_255", quantity)) is None) == (quantity in neutral)


@pytest.mark.parametrize("quantity", keys.SCALING_QUANTITIES)
def test_scaling(quantity):
    neutral = {"relative_flatness", "relative_flatness_median", "confidence"}
    assert (extreme_is(keys.scaling_key(quantity, 0.25)) is None) == (quantity in neutral)


@pytest.mark.parametrize(
    ("key", "extreme"),
    [
        ("flatness/relative_flatness_class_3", "min"),
        ("bound/certified_accuracy_0_5", "max"),
        ("bound/lipschitz_violation_rate", None),
        ("attack/pgd_success_rate_high", None),
        ("attack/pgd_robust_accuracy_low", None),
        ("test_trajectory/noise_basin_width", "max"),
        ("train_loss_epoch", "min"),
        ("val/Accuracy", "max"),
        ("epoch", None),
        ("lr-Adam", None),
        ("attack_acc/pgd_success_rate", "min"),
        ("attack_l2/pgd_success_rate", "min"),
        ("attack_l2_masking/success_rate", None),
        ("attack_l2_masking/alarm", None),
        ("attack_loss/pgd_robust_accuracy_low", None),
        ("attack_acc/pgd_steps_to_fool", None),
        ("bounds_acc/certified_accuracy_0_5_high", None),
        ("test_flat_b/relative_flatness/dataloader_idx_1", "min"),
        ("env/success_rate", None),
        ("val_inaccuracy", None),
        ("grad_accumulation", None),
        ("val_loss_per_account", "min"),
        ("val_acc_loss", "min"),
        ("top-1-acc", "max"),
        ("acc1", "max"),
        ("val_MulticlassAccuracy", "max"),
        ("BinaryF1Score", "max"),
        ("MeanSquaredError", "min"),
    ],
)
def test_known(key, extreme):
    assert extreme_is(key) == extreme
