"""Lightning callbacks: observe, update, log."""

from lightning_flatness.callbacks.attack import AttackMonitor
from lightning_flatness.callbacks.attack_trajectory import AttackTrajectoryMonitor
from lightning_flatness.callbacks.flatness import RelativeFlatnessMonitor
from lightning_flatness.callbacks.head_scaling import HeadScalingMonitor
from lightning_flatness.callbacks.local_robustness import LocalRobustnessMonitor

__all__ = [
    "AttackMonitor",
    "AttackTrajectoryMonitor",
    "HeadScalingMonitor",
    "LocalRobustnessMonitor",
    "RelativeFlatnessMonitor",
]
