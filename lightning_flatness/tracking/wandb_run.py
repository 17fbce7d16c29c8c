"""Weights & Biases runs: which there are, the definitions of their metrics, and their configuration."""

import os
from collections.abc import Iterable, Mapping
from netrc import NetrcParseError, netrc
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlparse

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

STEP_KEY = "trainer/global_step"
"""Key under which Lightning's ``WandbLogger`` records the step."""

_PUBLIC_HOSTS = ["api.wandb.ai", "api.forge.coreweave.com"]
"""Servers of Weights & Biases itself; the package asks the second one first since its version 0.31."""


def stay_offline_without_key() -> None:
    """Set ``WANDB_MODE=offline`` unless a mode or a key is set, or ``~/.netrc`` or ``NETRC`` holds one."""
    if "WANDB_MODE" not in os.environ and not has_wandb_key():
        os.environ["WANDB_MODE"] = "offline"


def has_wandb_key() -> bool:
    """Whether there is a key for Weights & Biases: in ``WANDB_API_KEY``, or in ``~/.netrc`` or ``NETRC``.

    Returns:
        Whether runs can be sent to the server.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    own_server = os.environ.get("WANDB_BASE_URL")
    hosts = [urlparse(own_server).netloc] if own_server else _PUBLIC_HOSTS
    try:
        passwords = netrc(os.environ.get("NETRC") or None)
    except (OSError, NetrcParseError):
        return False
    return any(passwords.authenticators(host) is not None for host in hosts)


def wandb_runs(trainer: "Trainer") -> list[Any]:
    """Runs behind the trainer's ``WandbLogger`` instances; none on other processes than the first.

    The class is told by its name, since ``lightning`` and ``pytorch_lightning`` each have one of their own.

    Args:
        trainer: of either package.

    Returns:
        Runs, as ``wandb.init`` gives them.
    """
    if not trainer.is_global_zero:
        return []
    return [
        cast(Any, logger).experiment
        for logger in trainer.loggers
        if any(base.__name__ == "WandbLogger" for base in type(logger).__mro__)
    ]


def define_metrics(run: Any, names: Iterable[str]) -> None:
    """Give each key the trainer's step as its axis, and its smallest, largest and last value as its summary.

    Args:
        run: a Weights & Biases run.
        names: exact keys; globs would also match tables and images.
    """
    run.define_metric(STEP_KEY)
    for name in names:
        run.define_metric(name, step_metric=STEP_KEY, summary="min,max,last")


def record_config(run: Any, name: str, settings: Mapping[str, Any]) -> None:
    """Write a monitor's settings into the run's configuration.

    Args:
        run: a Weights & Biases run.
        name: key in the configuration.
        settings: what was measured and how.
    """
    run.config.update({name: dict(settings)}, allow_val_change=True)
