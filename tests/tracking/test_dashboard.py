"""The dashboard shows what is logged, all of it, and nothing else."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

import json
import re
from itertools import chain

import pytest
import torch
import wandb
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from wandb_workspaces.reports.v2 import Report
from wandb_workspaces.reports.v2.internal import ReportViewspec
from wandb_workspaces.workspaces import Workspace
from wandb_workspaces.workspaces.internal import View

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.attacks import ThreatModel, pgd
from lightning_flatness.tracking import dashboard, keys
from lightning_flatness.tracking.dashboard import report, specification, workspace
from lightning_flatness.tracking.wandb_run import STEP_KEY
from tests.tracking.dashboard_keys import config_names, documented, exact_keys, panels, regexes, summary_keys
from tests.wandb_reader import RecordedRun, read_run

BUILDERS = {"workspace": workspace, "report": report}
LOGGED = list(chain.from_iterable(documented().values()))
EPSILON = 0.2


@pytest.fixture(params=BUILDERS)
def view(request):
    return specification(BUILDERS[request.param]("me", "robust"))


def shown_by(view, key):
    return key in exact_keys(view) or any(re.search(regex, key) for regex in regexes(view))


def test_every_exact_key_is_documented(view):
    assert exact_keys(view) <= set(LOGGED)


def test_every_expression_finds_a_documented_key_or_a_part_of_one(view):
    classes = {
        keys.class_key(keys.RELATIVE_FLATNESS, 3),
        keys.class_key(keys.attack_key("pgd", keys.ROBUST_ACCURACY), 3),
    }
    intervals = {f"{keys.accuracy_key(0.5, certified=True)}_low"}
    for regex in regexes(view):
        assert any(re.search(regex, key) for key in {*LOGGED, *classes, *intervals}), regex
        assert "(?" not in regex, "not every engine can look around"


@pytest.mark.parametrize(("key", "examples"), documented().items())
def test_every_documented_key_is_shown_by_workspace_and_report(key, examples):
    for build in BUILDERS.values():
        view = specification(build("me", "robust"))
        assert all(shown_by(view, example) for example in examples), key


@pytest.mark.parametrize("key", ["val_loss", "flatness/unknown", "own_flatness/median", "attack/examples"])
def test_other_keys_are_not_shown(key, view):
    assert not shown_by(view, key)


@pytest.mark.parametrize(
    ("quantity", "other"),
    [(keys.STEPS_TO_FOOL, keys.STEPS_TO_FOOL_MEAN), (keys.ROBUST_ACCURACY, keys.ROBUST_ACCURACY_LOW)],
)
def test_an_expression_does_not_find_longer_names(quantity, other, view):
    (regex,) = [one for one in regexes(view) if one.endswith(f"_{quantity}$")]
    assert re.search(regex, keys.attack_key("pgd", quantity))
    assert not re.search(regex, keys.attack_key("pgd", other))


def test_summaries_name_the_last_value_which_is_what_metrics_are_defined_with(view):
    found = summary_keys(view) - {dashboard.OWN_ACCURACY}
    assert found >= {f"{keys.RELATIVE_FLATNESS}.last", f"{keys.ALARM}.last", "attack/worst_case_robust_accuracy.last"}
    worst = keys.attack_key(keys.WORST_CASE, keys.ROBUST_ACCURACY)
    assert {name.removesuffix(".last") for name in found} <= {*LOGGED, worst}
    assert all(name.endswith(".last") for name in found)


def test_alarms_are_on_top_and_pinned():
    first, *others = specification(workspace("me", "robust"))["spec"]["section"]["panelBankConfig"]["sections"]
    assert (first["name"], first["pinned"], first["isOpen"]) == ("Alarms", True, True)
    assert {keys.ALARM, keys.VIOLATION_RATE, keys.LIPSCHITZ_VIOLATION_RATE} == exact_keys(first)
    names = [section["name"] for section in others]
    assert names == ["Comparison", "Flatness", "Bounds", "Attacks", "Masking", "Trajectory", "Scaling"]
    assert not any(section["pinned"] for section in others)


def test_report_has_a_heading_for_each_group_and_says_what_keys_mean():
    blocks = specification(report("me", "robust"))["spec"]["blocks"]
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    assert headings == ["Alarms", "Comparison", *["Flatness", "Bounds", "Attacks", "Masking", "Trajectory", "Scaling"]]
    text = "\n".join(block["content"] for block in blocks if block["type"] == "markdown-block")
    for key in documented():
        assert f"`{key}`: " in text


@pytest.mark.parametrize("build", BUILDERS.values())
def test_the_attack_decides_what_is_compared(build):
    found = specification(build("me", "robust", attack="linf_8_255"))
    scatters = [panel["config"] for panel in panels(found) if panel["viewType"] == "Scatter Plot"]
    axes = {(scatter["xAxis"], scatter["yAxis"]) for scatter in scatters}
    assert axes == {
        ("summary:flatness/relative_flatness.last", "summary:attack/linf_8_255_robust_accuracy.last"),
        ("summary:flatness/relative_flatness.last", "summary:attack/linf_8_255_clean_accuracy.last"),
    }


@pytest.mark.parametrize(
    ("key", "entry"),
    [("acc", "acc"), ("val/acc", "val/acc"), ("attack/pgd_clean_accuracy", "attack/pgd_clean_accuracy.last")],
)
def test_clean_accuracy_of_ones_own_has_a_plain_summary(key, entry):
    assert entry in summary_keys(specification(workspace("me", "robust", clean_accuracy=key)))


def test_hyperparameters_lead_into_dictionaries(view):
    assert config_names(view) == [f"config:{name}.value" for name in dashboard.HYPERPARAMETERS]
    own = specification(workspace("me", "robust", hyperparameters=["lr", "attack_monitor.threat.epsilon"]))
    assert config_names(own) == ["config:lr.value", "config:attack_monitor.value.threat.epsilon"]


@pytest.mark.parametrize("build", BUILDERS.values())
def test_runs_are_overlaid_over_the_axis(build):
    for arguments, axis in (({}, STEP_KEY), ({"x_axis": "epoch"}, "epoch")):
        found = specification(build("me", "robust", **arguments))
        lines = [panel["config"] for panel in panels(found) if panel["viewType"] == "Run History Line Plot"]
        assert {line["xAxis"] for line in lines} == {axis}


@pytest.mark.parametrize("build", BUILDERS.values())
@pytest.mark.parametrize("attack", ["", "attack/pgd_robust_accuracy"])
def test_a_key_is_no_label(build, attack):
    with pytest.raises(ValueError, match=rf"^`attack` must be a label as in attack/\{{label\}}_.*, got '{attack}'\.$"):
        build("me", "robust", attack=attack)


def test_json_leads_back_to_the_workspace():
    built = workspace("me", "robust", name="Mine")
    text = json.dumps(specification(built))
    read = Workspace._from_model(View.model_validate_json(text))
    assert (read.entity, read.project, read.name) == ("me", "robust", "Mine")
    assert json.loads(text) == specification(read)


@pytest.mark.filterwarnings("ignore:Failed to validate block type")  # of the comments that no block has
def test_json_leads_back_to_the_report():
    text = json.dumps(specification(report("me", "robust")))
    read = Report._from_model(ReportViewspec.model_validate_json(text))
    assert isinstance(read, Report)
    assert exact_keys(specification(read)) == exact_keys(json.loads(text))


class Classifier(LightningModule):
    """Classifies points of the unit square, some of them wrongly."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 8), nn.Tanh())
        self.head = nn.Linear(8, 2)

    def forward(self, inputs):
        return self.head(self.body(inputs))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log(dashboard.OWN_ACCURACY, (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def points():
    inputs = torch.rand(48, 2, generator=torch.Generator().manual_seed(0))
    target = (inputs[:, 0] > inputs[:, 1]).long()
    target[::12] = 1 - target[::12]
    return DataLoader(TensorDataset(inputs, target), 16)


def attack(logits_fn, inputs, target, *, generator, clean_logits):
    threat = ThreatModel(epsilon=EPSILON)
    return pgd(logits_fn, inputs, target, threat, steps=3, generator=generator, clean_logits=clean_logits)


def monitors(lipschitz):
    part = {"max_samples": 40}
    return [
        RelativeFlatnessMonitor(num_classes=2),
        AttackMonitor(EPSILON, attacks={"own": attack}, epsilons=[0.1], num_classes=2, masking_every_n=1, **part),
        LocalRobustnessMonitor(EPSILON, lipschitz=lipschitz, lipschitz_samples=8, **part),
        AttackTrajectoryMonitor(EPSILON, path=["attack", "noise"], lower=0.0, upper=1.0),
        HeadScalingMonitor(EPSILON, scales=(0.25, 1.0, 100.0)),
    ]


def recorded_fit(folder, lipschitz):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        torch.manual_seed(0)
        trainer = Trainer(
            callbacks=monitors(lipschitz),
            logger=WandbLogger(save_dir=folder, offline=True),
            max_epochs=8,
            check_val_every_n_epoch=4,
            accelerator="cpu",
            devices=1,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(), points(), points())
        wandb.finish()
    return read_run(folder)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> list[RecordedRun]:
    """Two short fits with every monitor: what is estimated and what is certified exclude each other."""
    return [recorded_fit(tmp_path_factory.mktemp(kind), kind) for kind in ("estimated", "certified")]


@pytest.mark.slow
class TestRealRuns:
    def test_every_exact_key_is_in_the_history(self, recorded, view):
        logged = {name for run in recorded for row in run.history for name in row}
        assert exact_keys(view) - logged == set()
        assert {STEP_KEY, "epoch"} <= logged

    def test_every_expression_finds_curves(self, recorded, view):
        logged = {name for run in recorded for row in run.history for name in row}
        assert [regex for regex in regexes(view) if not any(re.search(regex, name) for name in logged)] == []

    def test_every_summary_is_there(self, recorded, view):
        for run in recorded:
            for entry in summary_keys(view):
                key = entry.removesuffix(".last")
                value = run.summary[key]["last"] if entry != key else run.summary[key]
                assert isinstance(value, (int, float))

    def test_every_curve_that_monitors_log_is_shown(self, recorded, view):
        scalars = {
            name
            for run in recorded
            for row in run.history
            for name, value in row.items()
            if name.partition("/")[0] in keys.GROUPS and isinstance(value, (int, float))
        }
        pseudo = {name for name in scalars if name.endswith((".ncols", ".nrows"))}
        assert [name for name in sorted(scalars - pseudo) if not shown_by(view, name)] == []
