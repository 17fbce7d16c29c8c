"""What is said against a run."""

import pytest

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.comparison.alarms import alarms, remarks
from lightning_flatness.tracking.runs import Run, read_runs

WHY = "By what was logged: loss_gap: the margin loss fools a further"


def run_of(*rows, config=None, texts=None, start=0):
    return Run(
        "run", "", [{"epoch": float(epoch), **row} for epoch, row in enumerate(rows, start)], config or {}, texts or {}
    )


def on(**values):
    return {keys.ALARM: 1.0, **{keys.masking_key(name): value for name, value in values.items()}}


OFF = {keys.ALARM: 0.0}
OTHER = {"val_loss": 1.0}


@pytest.mark.slow
def test_a_real_run_with_masked_gradients_says_why_whichever_logger_kept_it(kept):
    by_csv, by_wandb = (alarms(read_runs([str(path)])[0]) for path in (kept.csv, kept.wandb))
    assert by_csv[0].startswith("Gradients are masked: masking/alarm was 1 in epoch")
    assert by_wandb[0].endswith(" ".join(kept.reasons))
    for reason in kept.reasons:
        assert reason.split(":")[0] in by_csv[0]


def test_nothing_is_said_of_a_run_without_alarms():
    row = OFF | {"bound/violation_rate": 0.0, "bound/lipschitz_violation_rate": 0.0, "masking/loss_gap": 0.9}
    assert alarms(run_of(row, OTHER)) == []
    assert alarms(run_of()) == []


class TestMaskedGradients:
    def test_reasons_of_the_run_count_while_the_alarm_is_on(self):
        (words,) = alarms(run_of(OFF, OTHER, on(loss_gap=0.9), texts={keys.MASKING_REASONS: "One.\nTwo."}))
        assert words == (
            "Gradients are masked: masking/alarm was 1 in epoch 2, of 2 measured, and is on in the last. One. Two."
        )

    def test_without_words_they_come_from_the_values(self):
        (words,) = alarms(run_of(on(loss_gap=0.1), on(loss_gap=0.9)))
        assert f"in epochs 0–1, of 2 measured, and is on in the last. {WHY} 90%" in words

    def test_an_alarm_that_went_off_again_is_told_by_the_values_of_its_last_epoch(self):
        run = run_of(
            on(loss_gap=0.9), on(loss_gap=0.8), OFF | {"masking/loss_gap": 0.0}, texts={keys.MASKING_REASONS: ""}
        )
        (words,) = alarms(run)
        assert f"and is off again in the last. {WHY} 80%" in words

    def test_an_expensive_rule_holds_until_it_runs_again(self):
        (words,) = alarms(run_of(on(black_box_gap=0.5), on(), on(), OFF))
        assert "in epochs 0–2, of 4 measured, and is off again in the last. By what was logged: black_box_gap" in words

    def test_few_samples_prove_little(self):
        rows = [on(zero_gradient_rate=0.1)]
        assert "zero_gradient_rate" in alarms(run_of(*rows))[0]
        few = alarms(run_of(*rows, config={"attack_monitor.masking_samples": 5}))
        assert few[0].endswith("The values that were logged do not say why.")

    @pytest.mark.parametrize(
        ("group", "end"), [("masking", ""), ("test_masking", "/dataloader_idx_1"), ("mine_masking", "")]
    )
    def test_wherever_it_was_logged(self, group, end):
        row = {f"{group}/alarm{end}": 1.0, f"{group}/loss_gap{end}": 0.9}
        (words,) = alarms(run_of(row))
        assert f"{group}/alarm{end} was 1 in epoch 0" in words
        assert WHY in words
        (words,) = alarms(run_of(row, texts={f"{group}/reasons{end}": "Own."}))
        assert words.endswith("Own.")

    def test_words_from_a_file_are_one_line_without_control_characters(self):
        (words,) = alarms(run_of(on(), texts={keys.MASKING_REASONS: "a\x1b[2J\r\nb"}))
        assert words.isprintable()


@pytest.mark.parametrize(
    ("name", "beside", "says"),
    [
        ("violation_rate", {}, "more than the bound allows, which cannot be"),
        ("lipschitz_violation_rate", {"bound/lipschitz_certified": 3.0}, "it is called certified and is not"),
    ],
)
def test_bounds_that_were_passed(name, beside, says):
    rows = [beside | {f"bound/{name}": rate} for rate in (0.0, 0.25, 0.125, 0.0, 0.01)]
    (words,) = alarms(run_of(*rows))
    assert words.startswith(f"bound/{name} was up to 25% (in epochs 1–2, 4): ")
    assert says in words


def test_estimate_that_was_passed_is_none():
    assert not alarms(run_of({"bound/lipschitz_estimated": 3.0, "bound/lipschitz_violation_rate": 0.25}))


def attacked(group="attack", end="", worst=0.1, **robust):
    row = {f"{group}/worst_case_robust_accuracy{end}": worst}
    for label, accuracy in robust.items():
        row |= {f"{group}/{label}_robust_accuracy{end}": accuracy, f"{group}/{label}_success_rate{end}": 1 - accuracy}
    return row


def test_values_of_the_user_by_the_same_names_are_no_alarm():
    theirs = {
        "constraints/violation_rate": 0.3,
        "constraints/samples": 5.0,
        "data/alarm": 2.0,
        "net/lipschitz_violation_rate": 0.5,
    }
    assert alarms(run_of(theirs)) == []
    ours = {"own/violation_rate": 0.3, "own/tightness": 2.0}
    (words,) = alarms(run_of(theirs | ours))
    assert words.startswith("own/violation_rate was up to 30%")


def test_a_certificate_is_not_blamed_for_the_estimate_of_another_monitor():
    estimated = {"bound/lipschitz_violation_rate": 0.2, "bound/lipschitz_estimated": 1.0}
    certified = {"sure/lipschitz_violation_rate": 0.0, "sure/lipschitz_certified": 9.0}
    assert alarms(run_of(estimated | certified)) == []


def test_several_validations_of_one_epoch_are_told_once():
    rows = [{"epoch": 0.0, "bound/violation_rate": 0.5}, {"epoch": 0.0, "bound/violation_rate": 0.25}]
    (words,) = alarms(Run("run", "", rows))
    assert words.startswith("bound/violation_rate was up to 50% (in epoch 0)")


class TestFooledAttacks:
    def test_an_attack_far_behind_another_is_no_evidence(self):
        run = run_of(attacked(pgd=0.9, apgd=0.1), attacked(pgd=0.8, apgd=0.2), OTHER)
        assert alarms(run) == []
        (words,) = remarks(run)
        assert words == (
            "In epoch 1, pgd leaves 80% robust accuracy where apgd leaves 20% of the same samples: the curve "
            "of pgd is no evidence of robustness."
        )

    @pytest.mark.parametrize("robust", [{"pgd": 0.3, "apgd": 0.1}, {"pgd": 0.9, "apgd": 0.9}, {}])
    def test_attacks_that_agree(self, robust):
        assert remarks(run_of(attacked(**robust))) == []

    def test_other_radii_are_not_compared(self):
        """Those of a curve over epsilon have a robust accuracy and no success rate."""
        row = attacked(pgd=0.1, linf_8_255=0.1) | {"attack/linf_1_255_robust_accuracy": 0.9}
        assert remarks(run_of(row)) == []

    def test_other_groups_and_dataloaders_are_not_compared(self):
        row = attacked(pgd=0.9) | attacked("easy", apgd=0.1) | attacked(end="/dataloader_idx_1", apgd=0.1)
        assert remarks(run_of(row)) == []

    def test_in_a_test_too(self):
        (words,) = remarks(run_of(attacked("test_attack", "/dataloader_idx_1", pgd=0.9, apgd=0.1)))
        assert words.startswith("In epoch 0, pgd leaves 90%")


@pytest.mark.parametrize(
    ("plain", "margin", "scale", "count"), [(0.9, 0.1, 1.0, 1), (0.3, 0.1, 1.0, 0), (0.9, 0.1, 100.0, 0)]
)
def test_only_the_head_as_it_was_trained_counts(plain, margin, scale, count):
    names = [keys.scaling_key(f"robust_accuracy_{loss}", scale) for loss in ("cross_entropy", "margin")]
    found = alarms(run_of(dict(zip(names, (plain, margin), strict=True))))
    assert len(found) == count
    for words in found:
        assert "leaves 90% robust accuracy and PGD on the margin 10%" in words


class TestFlatByConfidence:
    @staticmethod
    def row(flatness, confidence, robust=0.0, clean=0.9):
        return {
            keys.RELATIVE_FLATNESS: flatness,
            keys.CONFIDENCE_FACTOR: confidence,
            "attack/pgd_robust_accuracy": robust,
            "attack/pgd_success_rate": 1 - robust,
            "attack/pgd_clean_accuracy": clean,
        }

    def test_flat_confident_and_fooled(self):
        (words,) = alarms(run_of(self.row(10.0, 0.2), self.row(40.0, 0.5), self.row(0.5, 0.01, robust=0.045)))
        assert words == (
            "Flat by confidence: flatness/relative_flatness fell 80-fold from epoch 1 to 2, flatness/confidence_factor "
            "50-fold, while attack/pgd leaves 5% of the clean accuracy in epoch 2: this flatness protects nothing."
        )

    @pytest.mark.parametrize(
        "last",
        [
            {"flatness": 0.5, "confidence": 0.01, "robust": 0.4},
            {"flatness": 0.5, "confidence": 0.4},
            {"flatness": 30.0, "confidence": 0.01},
            {"flatness": 0.5, "confidence": 0.01, "clean": 0.0},
        ],
        ids=["robust", "by geometry", "still sharp", "nothing to fool"],
    )
    def test_else_nothing(self, last):
        assert alarms(run_of(self.row(40.0, 0.5, clean=0.0), self.row(**last))) == []

    def test_what_is_too_small_for_float32_is_as_flat_as_can_be(self):
        (words,) = alarms(run_of(self.row(1.0, 0.5), self.row(0.0, 0.0)))
        assert words.startswith("Flat by confidence: ")

    def test_without_an_attack_nothing_is_claimed(self):
        rows = [{keys.RELATIVE_FLATNESS: value, keys.CONFIDENCE_FACTOR: value} for value in (10.0, 0.0, 0.001)]
        assert alarms(run_of(*rows)) == []
