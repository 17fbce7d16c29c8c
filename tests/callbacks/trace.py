"""A module that a careless observer disturbs, and everything that its training leaves behind, hook by hook."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

import random
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.callbacks._monitor import Monitor
from lightning_flatness.tracking import keys
from tests.callbacks.conftest import DIM, HIDDEN, Net, samples

OURS = tuple(f"{group}/" for group in (*keys.GROUPS, "certified"))
BROAD: dict[str, Any] = {"lower": -9.0, "upper": 9.0}
"""A valid range that normal random numbers do not leave."""

_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)
_OWN_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs")
"""Those that monitors need while they watch."""


class Noisy(Net):
    """Dropout, running statistics, frozen weights and a schedule."""

    def __init__(self) -> None:
        layers = [nn.Linear(DIM, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Dropout(0.3), nn.Linear(HIDDEN, HIDDEN)]
        super().__init__(nn.Sequential(*layers))
        self.body[4].requires_grad_(requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Watched(nn.Module):
    """Keeps statistics of what passes, in evaluation mode too, as observers of a quantisation do."""

    def __init__(self) -> None:
        super().__init__()
        for name, start in {"calls": torch.zeros(()), "mean": torch.zeros(()), "seen": torch.zeros(0)}.items():
            self.register_buffer(name, start)

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean().float()
        self.seen.resize_(len(inputs)).copy_(inputs.detach()[:, 0])
        return inputs


class Talkative(Noisy):
    """Keeps statistics and logs whenever it runs; its parts are in modes that no ``train()`` or ``eval()`` gives."""

    def __init__(self) -> None:
        super().__init__()
        self.body.append(Watched())

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.body(inputs)
        self.log("activity", features.relu().mean())
        return self.head(features)

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self.body[5].train()

    def on_validation_model_train(self) -> None:
        super().on_validation_model_train()
        self.body[1].eval()


class Augmented(Dataset[Any]):
    """Samples that are other ones each time, by random numbers of three kinds."""

    def __init__(self, count: int) -> None:
        self._samples = samples(count)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:
        inputs, target = self._samples[index]
        noise = 0.1 * torch.randn(DIM) + random.gauss(0, 0.1) + np.random.normal(0, 0.1)
        return inputs + noise.float(), target


def augmented(**settings: Any) -> DataLoader[Any]:
    return DataLoader(Augmented(32), 8, shuffle=True, **settings)


def monitors(**settings: Any) -> list[Monitor]:
    """All of them, those that run the module again first: they must not disturb what the others see."""
    ours: dict[str, Any] = {**BROAD, **settings}
    attacks: dict[str, Any] = {"FAB": {"steps": 2, "n_restarts": 1}}
    radii: dict[str, Any] = {"epsilons": [0.1, 0.3], "masking_every_n": 2, "masking_samples": 4}
    return [
        HeadScalingMonitor(0.3, scales=(0.5, 1.0, 100.0), attack_samples=4, **ours),
        LocalRobustnessMonitor(0.3, lipschitz="estimated", lipschitz_samples=4, **ours),
        AttackMonitor(0.3, attacks=attacks, max_samples=8, **radii, **ours),
        LocalRobustnessMonitor(0.3, lipschitz="certified", group="certified", **ours),
        AttackTrajectoryMonitor(0.3, path=["attack", "noise"], steps=2, max_samples=4, **ours),
        RelativeFlatnessMonitor(**{name: value for name, value in settings.items() if name != "logits_fn"}),
    ]


def without_certificate() -> list[Monitor]:
    """What runs on modules of which no Lipschitz constant is known."""
    return [monitor for monitor in monitors() if monitor.group != "certified"]


def seed_all() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def draws() -> list[Any]:
    """The next random numbers of every kind."""
    return [torch.rand(1000).tolist(), np.random.random(1000).tolist(), [random.random() for _ in range(1000)]]  # noqa: S311


def settings_of_torch() -> dict[str, Any]:
    """What is switched for a whole process or thread."""
    backends = torch.backends
    found = {
        "autocast": [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "cudnn": [backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic],
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad mode": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
        "mkldnn": backends.mkldnn.enabled,
        "reduced precision": backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "threads": torch.get_num_threads(),
    }
    with suppress(RuntimeError):  # where the precision was set the newer way
        found["matmul"] = [torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32]
    with suppress(AttributeError):  # before torch 2.9
        found["fp32"] = [part.fp32_precision for part in (backends, backends.cuda.matmul, backends.mkldnn.matmul)]
    return found


def hooks(module: nn.Module, kinds: tuple[str, ...] = _HOOKS) -> dict[str, int]:
    counts = {f"{name}.{kind}": len(getattr(part, kind)) for name, part in module.named_modules() for kind in kinds}
    return {name: count for name, count in counts.items() if count}


def left_by(module: LightningModule, trainer: Trainer) -> dict[str, Any]:
    """Everything that an observer could change."""
    named = dict(module.named_parameters())
    return {
        **{f"weight {name}": value for name, value in named.items()},
        **{f"buffer {name}": value for name, value in module.named_buffers()},
        **{f"grad {name}": value.grad for name, value in named.items()},
        **{f"requires_grad {name}": value.requires_grad for name, value in named.items()},
        **{f"training {name}": part.training for name, part in module.named_modules()},
        **{f"attributes {name}": sorted(vars(part)) for name, part in module.named_modules()},
        "hooks": hooks(module, tuple(kind for kind in _HOOKS if kind not in _OWN_HOOKS)),
        "optimizer": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedule": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "metrics": {name: value for name, value in trainer.callback_metrics.items() if not name.startswith(OURS)},
        "logged": {name: value for name, value in trainer.logged_metrics.items() if not name.startswith(OURS)},
        "torch random": torch.get_rng_state(),
        "cuda random": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,
        "numpy random": np.random.get_state()[1:],
        "python random": random.getstate(),
        **settings_of_torch(),
    }


class Trace(Callback):
    """Writes down what there is at every hook; behind all monitors, so that it sees what they leave."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def _look(self, place: str, trainer: Trainer, module: LightningModule) -> None:
        self.rows.append({"hook": place, **{name: _plain(value) for name, value in left_by(module, trainer).items()}})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look("train start", trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._look("train batch start", trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._look("train batch end", trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._look("validation batch end", trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look("validation epoch end", trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look("train end", trainer, pl_module)

    def end(self, module: LightningModule) -> list[dict[str, Any]]:
        """All that was written down, with what is there after the fit."""
        return [*self.rows, {"hook": "after", "hooks": hooks(module), **settings_of_torch(), "draws": draws()}]


def _plain(value: Any) -> Any:
    """The same bits make the same plain value, NaN and -0.0 included."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().clone().contiguous().reshape(-1)  # `numpy` would share, and forbid to resize
        return value.dtype, tuple(value.shape), value.stride(), sha256(flat.view(torch.uint8).numpy()).hexdigest()
    if isinstance(value, np.ndarray):
        return sha256(value).hexdigest()
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else repr(value)


def differences(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> list[str]:
    """Where two traces differ first, and in what."""
    for index, (before, after) in enumerate(zip(left, right, strict=False)):
        if names := [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]:
            return [f"row {index}, {before['hook']}: {name}" for name in sorted(names)]
    return [] if len(left) == len(right) else [f"{len(left)} rows, not {len(right)}"]
