"""A fit that something happens to, in a process of its own; started by ``test_killed.py``."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

import json
import os
import signal
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.attacks import AttackResult, ThreatModel, pgd
from lightning_flatness.callbacks._monitor import Monitor
from tests.callbacks.conftest import Net, loader, trainer

BALL: dict[str, Any] = {"epsilon": 0.3, "lower": -5.0, "upper": 5.0, "summary": False}
EPOCHS = 4
FAULTY = 2


class Blow:
    """Sends a signal to its own process when it is told a place for the first time in the faulty epoch.

    Args:
        place: where to send it; empty for nowhere.
        sent: what to send.
    """

    def __init__(self, place: str, sent: signal.Signals) -> None:
        self.place, self.sent = place, sent
        self.epoch = -1

    def at(self, place: str) -> None:
        if place == self.place and self.epoch == FAULTY:
            self.place = ""
            os.kill(os.getpid(), self.sent)


class Struck(Net):
    def __init__(self, blow: Blow) -> None:
        super().__init__()
        self.blow = blow

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.blow.epoch = self.current_epoch
        if batch_idx == 1:
            self.blow.at("training")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx, dataloader_idx)
        if batch_idx == 1:
            self.blow.at("validation")


class Saved(Callback):
    """Strikes when the checkpoint of the epoch is written; stands behind the one that writes it."""

    def __init__(self, blow: Blow) -> None:
        self.blow = blow

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.blow.at("checkpoint")


class Attack:
    """PGD that tells where it is, and finds the model as it is while attacked."""

    def __init__(self, blow: Blow) -> None:
        self.blow = blow

    def __call__(self, logits_fn: Any, inputs: Tensor, target: Tensor, **settings: Any) -> AttackResult:
        calls = 0

        def logits(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 2:
                self.blow.at("attack")
            return logits_fn(x)

        return pgd(logits, inputs, target, ThreatModel(epsilon=0.3, lower=-5.0, upper=5.0), steps=3, **settings)


def monitors(blow: Blow) -> list[Monitor]:
    return [
        RelativeFlatnessMonitor(summary=False),
        RelativeFlatnessMonitor("maxeig", group="sharpest", every_n_epochs=2, summary=False),
        AttackMonitor(**BALL, attacks={"own": Attack(blow)}, masking_samples=5, masking_every_n=10, num_examples=0),
        AttackTrajectoryMonitor(**BALL, steps=2),
        HeadScalingMonitor(**BALL, scales=(1.0, 10.0), steps=2),
        LocalRobustnessMonitor(**BALL, lipschitz_samples=2),
    ]


def found(watching: list[Monitor]) -> dict[str, Any]:
    return {
        monitor.group: [
            {name: value for name, value in row.items() if not name.endswith("_seconds")} for row in monitor.history()
        ]
        for monitor in watching
    }


def state_of(net: Net) -> dict[str, Any]:
    """What a graceful shutdown must leave as it was."""
    return {
        "weights": [parameter.detach().double().sum().item() for parameter in net.parameters()],
        "flags": [parameter.requires_grad for parameter in net.parameters()],
        "hooks": sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules()),
        "steps": net.training_steps,
    }


def run(
    folder: Path,
    name: str,
    place: str,
    sent: signal.Signals,
    *,
    resumes: bool,
    logger: str = "csv",
    logs: Path | None = None,
    watched: bool = True,
) -> None:
    """Fit, with what was found in ``{name}.json`` of the folder, also where the fit is interrupted.

    Args:
        folder: for logs, checkpoints and what was found.
        name: of the file.
        place: where the signal comes.
        sent: the signal.
        resumes: go on from the last checkpoint.
        logger: ``"csv"`` or ``"wandb"``.
        logs: folder of the logger, where it is another one.
        watched: with monitors.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    blow = Blow(place, sent)
    net, watching = Struck(blow), monitors(blow) if watched else []
    saving = [ModelCheckpoint(folder, save_last=True, every_n_epochs=1), Saved(blow)]
    made: Any = (
        WandbLogger(save_dir=logs or folder, id="run", offline=True)
        if logger == "wandb"
        else CSVLogger(logs or folder, flush_logs_every_n_steps=1)
    )
    settings: dict[str, Any] = {"max_epochs": EPOCHS, "enable_checkpointing": True, "logger": made}
    runner = trainer(*watching, *saving, **settings)
    try:
        runner.fit(net, loader(), loader(20, seed=1), ckpt_path="last" if resumes else None)
    finally:
        report: Mapping[str, Any] = {
            "history": found(watching),
            "state": state_of(net),
            "training": net.training,
            "random": torch.get_rng_state().sum().item(),
        }
        (folder / f"{name}.json").write_text(json.dumps(report))
        with suppress(OSError):  # of its own log, on a full disk
            wandb.finish()  # as at the end of any process, but not of one that was forked


def entry(arguments: Mapping[str, Any]) -> None:
    """Run with these arguments of ``run``, as a shell would start it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts behind itself ignore it
    run(**arguments)
