"""Values on their way to the trainer's loggers."""

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule

_LARGEST_LOGGED = torch.finfo(torch.float32).max
"""Lightning logs in float32."""


def loggable(values: Mapping[str, float]) -> dict[str, float]:
    """Values that are finite as they are logged; a NaN or infinity would stop ``EarlyStopping``.

    Args:
        values: by full key.
    """
    return {name: value for name, value in values.items() if abs(value) <= _LARGEST_LOGGED}


def log_values(module: LightningModule, values: Mapping[str, float], prog_bar_name: str | None) -> None:
    """Log values that are the same on every process.

    Args:
        module: being validated or tested.
        values: by full key.
        prog_bar_name: full key shown in the progress bar, or None.
    """
    for name, value in values.items():
        # The largest of equal numbers is exact where their mean is not.
        module.log(
            name,
            value,
            prog_bar=name == prog_bar_name,
            on_epoch=True,
            sync_dist=module.trainer.world_size > 1,
            reduce_fx="max",
            add_dataloader_idx=False,
        )
