"""What a diagnosis of gradient masking says, as tests ask for it."""

from lightning_flatness.attacks import MaskingDiagnosis, masking_reasons

THOROUGH_ONLY = {"temperature_gap", "black_box_gap"}


def means(diagnosis: MaskingDiagnosis) -> dict[str, float]:
    return {name: signal.mean().item() for name, signal in diagnosis.signals.items() if signal.count}


def samples(diagnosis: MaskingDiagnosis) -> int:
    return int(diagnosis.signals["success_rate"].count)


def fired(diagnosis: MaskingDiagnosis) -> list[str]:
    """Names of the rules that fire, each judged by the number of samples that its signal has."""
    counts = {name: int(signal.count) for name, signal in diagnosis.signals.items()}
    return [reason.split(":")[0] for reason in masking_reasons(means(diagnosis), counts)]


def alarms(diagnosis: MaskingDiagnosis) -> set[str]:
    return set(fired(diagnosis))
