"""The log keys."""

import re
from pathlib import Path

import pytest
import torch

from docs import key_tables
from lightning_flatness.metrics import AttackTrajectory, LocalRobustnessBound, LossBoundCheck, RelativeFlatness
from lightning_flatness.tracking import keys
from tests.metrics.problems import head_inputs
from tests.metrics.trajectories import POSITIONS, trajectory_points

CONSTANTS = {
    name: value
    for name, value in vars(keys).items()
    if name.isupper() and isinstance(value, str) and value.startswith("flatness/")
}


def test_every_constant_of_the_group_is_documented():
    assert set(CONSTANTS.values()) == set(keys.FLATNESS_KEYS)
    assert len(set(CONSTANTS.values())) == len(CONSTANTS)


@pytest.mark.parametrize("name", CONSTANTS)
def test_keys_can_be_sorted_and_filtered_in_a_dashboard(name):
    assert re.fullmatch(r"[a-z0-9_]+/[a-z0-9_]+", CONSTANTS[name])
    assert CONSTANTS[name] == f"{keys.FLATNESS_GROUP}/{name.lower()}"


@pytest.mark.parametrize("key", keys.FLATNESS_KEYS)
def test_every_key_is_described(key):
    assert len(keys.FLATNESS_KEYS[key].split()) > 3


def test_every_value_of_the_metric_has_a_key():
    metric = RelativeFlatness()
    metric.update(**head_inputs())
    assert {f"flatness/{name}" for name in metric.compute()} == set(keys.FLATNESS_KEYS) - {keys.TOP_EIGENVALUE}


DOCUMENTED = [key for group in key_tables.GROUPS.values() for key in group]


def page(name):
    return (Path(__file__).parents[2] / "docs" / f"{name}.md").read_text(encoding="utf-8")


def test_tables_of_the_documentation_are_made_from_the_keys():
    assert key_tables.with_tables(page("log_keys")) == page("log_keys"), "run: python -m docs.key_tables"
    assert {key.partition("/")[0] for key in DOCUMENTED} == set(keys.GROUPS)


def test_no_table_of_the_documentation_is_another():
    assert page("log_keys").count("| key |") == len(key_tables.GROUPS)


def test_rows_of_a_table():
    assert key_tables.table({"a/{x}": "norm |W|, {x}"}).splitlines()[2:] == [r"| `a/{x}` | norm \|W\|, {x} |"]


@pytest.mark.parametrize("key", DOCUMENTED)
def test_the_reading_of_every_key_is_told_once(key):
    _, by_key = page("reading_the_curves").split("## Flatness, key by key")
    entries = [entry.split(": ", maxsplit=1) for entry in by_key.split("\n- ")[1:]]
    told = [text for names, text in entries if f"`{key}`" in names]
    assert len(told) == 1
    assert len(told[0].split()) > 3


def test_every_value_of_a_trajectory_has_a_key():
    metric = AttackTrajectory(POSITIONS)
    metric.update(trajectory_points())
    assert {keys.trajectory_key(name) for name in metric.compute()} == set(keys.TRAJECTORY_KEYS)
    charts = {keys.TRAJECTORY_CHART, keys.TRAJECTORY_EPOCHS_CHART}
    assert not charts & set(keys.TRAJECTORY_KEYS)


@pytest.mark.parametrize("part", ["correct", "wrong", "all"])
def test_histograms_have_keys_of_the_same_form_that_are_no_scalars(part):
    key = keys.histogram_key(part)
    assert re.fullmatch(rf"flatness/[a-z0-9_]+_{part}", key)
    assert key not in keys.FLATNESS_KEYS


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "flatness/median"),
        ({"group": "flatness_maxeig"}, "flatness_maxeig/median"),
        ({"testing": True}, "test_flatness/median"),
        ({"dataloader_idx": 1, "num_dataloaders": 3}, "flatness/median/dataloader_idx_1"),
        ({"dataloader_idx": 0, "num_dataloaders": 2}, "flatness/median/dataloader_idx_0"),
        (
            {"group": "own", "testing": True, "dataloader_idx": 2, "num_dataloaders": 3},
            "test_own/median/dataloader_idx_2",
        ),
    ],
)
def test_full_key(arguments, expected):
    assert keys.full_key(keys.MEDIAN, **arguments) == expected


def test_every_value_of_the_bounds_has_a_key():
    logits, target, weight = torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.eye(2)
    check = LossBoundCheck()
    check.update(logits, target, weight, logits, logits.flip(1), reach=torch.ones(1))
    names = set(check.compute())
    for certified in (True, False):
        metric = LocalRobustnessBound({"{radius}": 0.1}, 0.1, certified=certified)
        metric.update(logits, target, weight, 1.0)
        names |= {name for name in metric.compute() if not name.endswith(keys.INTERVAL_ENDS)}
    assert {keys.bound_key(name) for name in names} == set(keys.BOUND_KEYS)


@pytest.mark.parametrize("radius", [1 / 255, 8 / 255, 2.5 / 255, 0.025, 0.3, 1.0, 1.255, 1.5, 12.0, 1e-5])
def test_radii_can_be_read_back_from_their_labels(radius):
    label = keys.radius_label(radius)
    assert re.fullmatch(r"[0-9_]+", label)
    assert keys.label_radius(label) == pytest.approx(radius, rel=5e-4)
    assert keys.threat_label("l2", radius) == f"l2_{label}"


@pytest.mark.parametrize("label", ["pgd", "", "8_255_low", "0_1_2", "x_1", "worst_case"])
def test_other_labels_name_no_radius(label):
    assert keys.label_radius(label) is None


@pytest.mark.parametrize("testing", [True, False])
@pytest.mark.parametrize("num_dataloaders", [1, 2])
@pytest.mark.parametrize("group", ["own", "of my own"])
def test_plain_keys_undo_the_full_ones(group, testing, num_dataloaders):
    where = {"testing": testing, "dataloader_idx": num_dataloaders - 1, "num_dataloaders": num_dataloaders}
    logged = keys.full_key(keys.MEDIAN, group=group, **where)
    others = ["val_loss", keys.full_key(keys.MEDIAN, group=group, testing=not testing), keys.TIGHTNESS]
    found = keys.plain_keys([logged, *others], own_group=keys.FLATNESS_GROUP, group=group, **where)
    assert found == {logged: keys.MEDIAN}
