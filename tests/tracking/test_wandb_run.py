"""What Weights & Biases gets, read back from what it recorded."""

import os

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.wandb_media import log_histograms
from lightning_flatness.tracking.wandb_run import (
    STEP_KEY,
    define_metrics,
    record_config,
    stay_offline_without_key,
    wandb_runs,
)

HISTOGRAM = keys.histogram_key("correct")
MEDIANS = {0: 0.5, 10: 0.9, 20: 0.3}
COUNTS = [[1, 0, 7], [0, 2, 0], [0, 0, 0]]
EDGES = [-3.0, -2.5, -2.0, -1.5]


class TestStayOfflineWithoutKey:
    @pytest.fixture(autouse=True)
    def nobody(self, monkeypatch, tmp_path):
        """No mode, no key, no file."""
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))

    @staticmethod
    def store(path, host="api.wandb.ai"):
        path.write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
        path.chmod(0o600)

    def test_offline_with_nothing(self):
        stay_offline_without_key()
        assert os.environ["WANDB_MODE"] == "offline"

    @pytest.mark.parametrize("mode", ["online", "disabled", "offline"])
    def test_a_mode_is_left_as_it_is(self, mode, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", mode)
        stay_offline_without_key()
        assert os.environ["WANDB_MODE"] == mode

    @pytest.mark.parametrize(("key", "mode"), [("0" * 40, None), ("", "offline")])
    def test_a_key_in_the_environment(self, key, mode, monkeypatch):
        monkeypatch.setenv("WANDB_API_KEY", key)
        stay_offline_without_key()
        assert os.environ.get("WANDB_MODE") == mode

    def test_a_key_in_the_home_folder(self, tmp_path):
        self.store(tmp_path / ".netrc")
        stay_offline_without_key()
        assert "WANDB_MODE" not in os.environ

    def test_a_key_in_the_file_named_by_the_environment(self, monkeypatch, tmp_path):
        self.store(tmp_path / "elsewhere")
        monkeypatch.setenv("NETRC", str(tmp_path / "elsewhere"))
        stay_offline_without_key()
        assert "WANDB_MODE" not in os.environ

    def test_the_file_named_by_the_environment_is_looked_at_instead_of_the_home_folder(self, monkeypatch, tmp_path):
        self.store(tmp_path / ".netrc")
        monkeypatch.setenv("NETRC", str(tmp_path / "missing"))
        stay_offline_without_key()
        assert os.environ["WANDB_MODE"] == "offline"

    @pytest.mark.parametrize(
        ("server", "host", "mode"),
        [
            (None, "github.com", "offline"),
            (None, "api.forge.coreweave.com", None),
            ("http://wandb.example.com:8080", "wandb.example.com:8080", None),
            ("https://wandb.example.com", "api.wandb.ai", "offline"),
        ],
    )
    def test_the_key_must_be_for_the_server(self, server, host, mode, monkeypatch, tmp_path):
        self.store(tmp_path / ".netrc", host)
        if server:
            monkeypatch.setenv("WANDB_BASE_URL", server)
        stay_offline_without_key()
        assert os.environ.get("WANDB_MODE") == mode

    @pytest.mark.parametrize("content", ["machine", "nonsense here", "\n"])
    def test_a_file_that_cannot_be_read_holds_no_key(self, content, tmp_path):
        (tmp_path / ".netrc").write_text(content)
        stay_offline_without_key()
        assert os.environ["WANDB_MODE"] == "offline"

    def test_a_folder_in_place_of_the_file_holds_no_key(self, tmp_path):
        (tmp_path / ".netrc").mkdir()
        stay_offline_without_key()
        assert os.environ["WANDB_MODE"] == "offline"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, read_wandb):
    """A finished offline run of Lightning's own logger."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        logger = WandbLogger(save_dir=folder, offline=True)
        trainer = Trainer(logger=[CSVLogger(folder), logger], accelerator="cpu")
        (run,) = wandb_runs(trainer)
        define_metrics(run, [keys.MEDIAN, keys.WRONG])
        record_config(run, "flatness", {"variant": "neuronwise", "max_samples": None})
        record_config(run, "flatness", {"variant": "maxeig", "max_samples": None})
        record_config(run, "other", {"dataloaders": [0, 2]})
        for (step, median), counts in zip(MEDIANS.items(), COUNTS, strict=True):
            log_histograms(run, {HISTOGRAM: (counts, EDGES)})
            logger.log_metrics({keys.MEDIAN: median, "val_loss": 2 * median}, step=step)
        run.finish()
    return read_wandb(folder)


def test_metrics_are_summarised_by_smallest_largest_and_last_over_the_step_of_the_trainer(recorded):
    for name in (keys.MEDIAN, keys.WRONG):
        definition = recorded.metrics[name]
        assert definition.step_metric == STEP_KEY
        summary = definition.summary
        assert (summary.min, summary.max, summary.last) == (True, True, True)
        assert (summary.mean, summary.best, summary.none) == (False, False, False)
    assert recorded.summary[keys.MEDIAN] == {"min": 0.3, "max": 0.9, "last": 0.3}


def test_other_keys_keep_their_plain_summary(recorded):
    assert recorded.summary["val_loss"] == 0.6
    assert "val_loss" not in recorded.metrics


def test_settings_are_in_the_configuration_and_the_last_ones_count(recorded):
    assert recorded.config["flatness"] == {"variant": "maxeig", "max_samples": None}
    assert recorded.config["other"] == {"dataloaders": [0, 2]}


def test_histograms_are_in_the_row_of_the_scalars_of_their_step(recorded):
    assert [(row[STEP_KEY], row[keys.MEDIAN], row["val_loss"]) for row in recorded.history] == [
        (step, median, 2 * median) for step, median in MEDIANS.items()
    ]
    histograms = [row[HISTOGRAM] for row in recorded.history]
    assert [histogram["values"] for histogram in histograms] == COUNTS
    assert [histogram["bins"] for histogram in histograms] == [EDGES] * 3
    assert {histogram["_type"] for histogram in histograms} == {"histogram"}


def test_a_trainer_without_weights_and_biases_has_no_runs(tmp_path):
    assert wandb_runs(Trainer(logger=CSVLogger(tmp_path), accelerator="cpu")) == []


def test_other_processes_than_the_first_have_no_runs(tmp_path, monkeypatch):
    trainer = Trainer(logger=WandbLogger(save_dir=tmp_path, offline=True), accelerator="cpu")
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    assert wandb_runs(trainer) == []


def test_subclasses_of_the_logger_are_found_by_name(tmp_path):
    class OwnLogger(WandbLogger):
        experiment = "the run"

    trainer = Trainer(logger=OwnLogger(save_dir=tmp_path, offline=True), accelerator="cpu")
    assert wandb_runs(trainer) == ["the run"]
