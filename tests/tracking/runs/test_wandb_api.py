"""What a server answers, made into a run; there is no account here."""

import json
import math

import pytest

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.runs import read_runs
from lightning_flatness.tracking.runs._wandb_api import run_from_server


def as_served(value):
    """JSON has no NaN: the server writes it as a string."""
    if isinstance(value, dict):
        return {name: as_served(part) for name, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return value


@pytest.mark.slow
def test_the_rows_of_a_real_run_become_what_is_read_from_its_file(kept):
    every = dict.fromkeys(name for row in kept.recorded.history for name in row)
    rows = json.loads(json.dumps([as_served(every | row) for row in kept.recorded.history], allow_nan=False))
    config = {name: value for name, value in kept.recorded.config.items() if name != "_wandb"}
    served = run_from_server(rows, config, as_served(kept.recorded.summary), name="steep", path="me/p/id")
    (read,) = read_runs([str(kept.wandb)])
    assert served.epochs == read.epochs
    assert served.config == read.config
    assert served.texts == read.texts
    assert keys.MASKING_REASONS in served.texts
    assert (served.name, served.source, served.notes) == ("steep", "me/p/id", [])


def test_numbers_that_json_does_not_have():
    rows = [{"epoch": 0, "_step": 0, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": "words", "e": None}]
    (row,) = run_from_server(rows, {}, {}, name="", path="me/p/id").epochs
    assert set(row) == {"epoch", "a", "b", "c"}
    assert math.isnan(row["a"])
    assert (row["b"], row["c"]) == (math.inf, -math.inf)


def test_a_run_without_rows_and_name():
    run = run_from_server([], {}, {}, name=None, path="me/p/id")
    assert run.name == "me/p/id"
    assert run.notes == ["The run has no values."]
