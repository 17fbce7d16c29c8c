"""Lightning callbacks: observe, update, log."""

from lightning_flatness.callbacks.attack import AttackMonitor
from lightning_flatness.callbacks.attack_trajectory import AttackTrajectoryMonitor
from lightning_flatness.callbacks.flatness import RelativeFlatnessMonitor

__all__ = ["AttackMonitor", "AttackTrajectoryMonitor", "RelativeFlatnessMonitor"]
