"""Two processes measure a module that FSDP2 shards as one measures it whole."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callbacks.conftest import loader, trainer
from tests.callbacks.fsdp_run import ODD, SCENARIOS, monitors
from tests.callbacks.processes import found_by, run_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # processes share the cores with whatever else runs

TRAINED = (
    "layers",
    "head",
    "block",
    "accumulated",
    "other_head",
    "bfloat16",
    "one_sample",
    "counted",
    "spent",
    "unhooked",
    "breaks",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all scenarios that two processes get through."""
    place = tmp_path_factory.mktemp("fsdp")
    run_processes("tests.callbacks.fsdp_run", place, *TRAINED, "evaluation", "tensor_parallel")
    return place


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.endswith("_seconds")} for row in history]


def values(history: list[dict[str, Any]]) -> dict[str, float]:
    """What was logged last."""
    return {key: value for key, value in without_times(history)[-1].items() if "/" in key}


def alone(scenario: str, folder: Path, callbacks: list[Any], parts: str = "layers") -> list[dict[str, float]]:
    """What one process measures of the module that was trained."""
    net = SCENARIOS[parts]()[0]
    net.load_state_dict(torch.load(folder / f"{scenario}.0.pt", weights_only=True))
    trainer(*callbacks).validate(net, loader(ODD, seed=1), verbose=False)
    return [values(callback.history()) for callback in callbacks]


def check(found: dict[str, float], expected: dict[str, float]) -> None:
    eigenvalue = "flatness/top_eigenvalue"
    if eigenvalue in expected:  # Lanczos' method meets the samples in another order
        assert found.pop(eigenvalue) == pytest.approx(expected.pop(eigenvalue), rel=2e-4)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("scenario", TRAINED)
def test_training_is_bit_for_bit_the_same(scenario: str, folder: Path) -> None:
    assert [found["same"] for found in found_by(folder, scenario)] == [True, True]


@pytest.mark.parametrize("scenario", TRAINED)
def test_processes_agree(scenario: str, folder: Path) -> None:
    first, second = (list(map(without_times, found["histories"])) for found in found_by(folder, scenario))
    assert first == second
    if scenario not in {"accumulated", "unhooked", "breaks"}:
        epochs = range(SCENARIOS[scenario]()[2].get("max_epochs", 2))
        assert {tuple(row["epoch"] for row in history) for history in first} == {(*epochs, 0)}


@pytest.mark.parametrize("scenario", ["head", "one_sample", "evaluation"])
def test_all_monitors_find_what_one_process_finds(scenario: str, folder: Path) -> None:
    callbacks = monitors(max_samples=1 if scenario == "one_sample" else None)
    histories = found_by(folder, scenario)[0]["histories"]
    for history, expected in zip(histories, alone(scenario, folder, callbacks), strict=True):
        check(values(history), expected)


def test_modules_were_evaluated_in_inference_mode(folder: Path) -> None:
    """As they are on accelerators; gradients go through the parameters all the same."""
    assert {mode for found in found_by(folder, "evaluation") for mode in found["modes"]} == {True}


@pytest.mark.parametrize("scenario", ["layers", "block", "accumulated", "other_head"])
def test_whatever_is_sharded_and_whenever_it_is_validated(scenario: str, folder: Path) -> None:
    callbacks = SCENARIOS[scenario]()[1]
    found = found_by(folder, scenario)[0]["histories"]
    for history, expected in zip(found, alone(scenario, folder, callbacks, scenario), strict=True):
        check(values(history), expected)


def test_mixed_precision_of_fsdp(folder: Path) -> None:
    flatness, attack = (values(history) for history in found_by(folder, "bfloat16")[0]["histories"])
    expected, _ = alone("bfloat16", folder, SCENARIOS["bfloat16"]()[1])
    key = "flatness/relative_flatness"
    assert flatness[key] == pytest.approx(expected[key], rel=0.05)
    assert flatness[key] != pytest.approx(expected[key], rel=1e-6)  # the weights were cast
    assert attack["attack/linf_0_3_samples"] == ODD
    assert all(map(math.isfinite, attack.values()))


def test_nothing_is_sent_in_an_attack(folder: Path) -> None:
    for found in found_by(folder, "counted"):
        (inside,), (outside,) = found["inside"], found["outside"]
        assert len(inside) > 2
        assert set(inside) == {0}
        assert min(outside) >= 2  # a forward of its own would gather the shards
        assert found["kept"] == [True]


def test_errors_in_the_midst_leave_fsdp_as_it_was(folder: Path) -> None:
    first, second = found_by(folder, "breaks")
    assert [row["epoch"] for row in second["histories"][0]] == [3, 0]
    assert sum("leaves out that point: RuntimeError: out of memory" in text for text in second["warnings"]) == 1
    assert not any("out of memory" in text for text in first["warnings"])


def test_nothing_is_gathered_once_the_passes_are_spent(folder: Path) -> None:
    """Of ten batches of 8 samples, each process attacks four; to agree takes two collectives."""
    for found in found_by(folder, "spent"):
        before, attack, after = ([sent > 2 for sent in counts[:10]] for counts in found["batches"])
        assert attack == [True] * 4 + [False] * 6
        assert before == [True] + [False] * 9  # whose attacks come later, with parameters of their own
        assert after == [True] * 4 + [False] * 6


def test_unknown_hooks_cost_a_point_and_no_process_waits(folder: Path) -> None:
    first, second = found_by(folder, "unhooked")
    assert [row["epoch"] for row in second["histories"][0]] == [1, 0]
    assert sum("leaves out that point: ValueError: The hooks of" in text for text in second["warnings"]) == 1
    assert not any("The hooks of" in text for text in first["warnings"])


def test_parameters_are_shards_wherever_a_batch_begins(folder: Path) -> None:
    """Gathered parameters would be trained by each process for itself."""
    for scenario in TRAINED:
        for found in found_by(folder, scenario):
            assert found["shards"] == found["shards_alone"]


def test_tensor_parallelism_is_refused_before_training(folder: Path) -> None:
    for found in found_by(folder, "tensor_parallel"):
        assert found["steps"] == 0
        assert len(found["refusals"]) == 6
        assert {text.split(" cannot ")[1] for text in found["refusals"]} == {
            "measure with tensor_parallel_size=2, where processes share every sample; use `data_parallel_size`, or "
            "take the checkpoint in one process by `trainer.validate`."
        }
