"""Sharpness-aware minimisation: a training that looks for flat minima.

Run it with ``lightning-flatness fit --config configs/mnist.yaml --config configs/variants/sam.yaml``.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from typing_extensions import override

from examples.mnist import DigitClassifier


class SAM(torch.optim.Adam):
    """Adam with the gradient of the place within a radius where the loss is about largest.

    Args:
        parameters: to optimise.
        radius: of the ball of weights.
        lr: of Adam.
        weight_decay: of Adam.

    References:
        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR 2021.
    """

    def __init__(
        self, parameters: Iterable[Tensor], radius: float = 0.05, *, lr: float = 1e-3, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self.radius = radius

    @override
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        loss = closure()
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(weight.grad) for weight in weights]))
        before = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight in weights:
                weight.add_(weight.grad, alpha=self.radius / (float(length) + 1e-12))
        closure()
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
        super().step()
        return loss


class SharpnessAwareDigitClassifier(DigitClassifier):
    """The digit classifier trained by SAM.

    Every step takes two losses, so that the logged ``train_loss`` is the mean of the one here and the one uphill.

    Args:
        radius: of the ball of weights.
        learning_rate: of Adam.
        weight_decay: of Adam.
        label_smoothing: of the training loss.
    """

    def __init__(
        self,
        radius: float = 0.05,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, label_smoothing)
        self.radius = radius

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return SAM(self.parameters(), self.radius, lr=self.learning_rate, weight_decay=self.weight_decay)
