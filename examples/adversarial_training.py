"""The digit classifier trained on its own adversarial examples, made by the attack engine of this package.

Run it with ``lightning-flatness fit --config configs/mnist.yaml --config configs/variants/adversarial.yaml``.
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

from examples.mnist import DigitClassifier
from lightning_flatness.attacks import ThreatModel, pgd


def attacked(module: nn.Module, images: Tensor, labels: Tensor, epsilon: float, steps: int, seed: int) -> Tensor:
    """Raise the loss of each image within an linf ball, on the network as it is in evaluation.

    Images that it takes for another class already are left as they are.

    Args:
        module: maps images to logits, in training mode.
        images: with values in [0, 1].
        labels: true classes.
        epsilon: radius of the ball.
        steps: gradient steps.
        seed: of the random starts.
    """
    module.eval()
    result = pgd(
        module,
        images,
        labels,
        ThreatModel(epsilon=epsilon),
        steps=steps,
        step_size=2.5 * max(epsilon, 1e-6) / steps,
        stop_when_fooled=False,
        generator=torch.Generator().manual_seed(seed),
    )
    module.train()
    return result.x_adv


class AdversarialDigitClassifier(DigitClassifier):
    """Adversarial training after Madry et al., ICLR 2018: before every step, the images that are right are attacked.

    They attack the wrong ones too, which are trained on as they are here. The radius grows over the first half of the
    training; at its full size from the start, small networks learn nothing.

    Args:
        epsilon: largest radius of the linf ball, for pixels in [0, 1].
        steps: gradient steps of the attack.
        learning_rate: of Adam.
        weight_decay: of Adam.
        label_smoothing: of the training loss.
    """

    def __init__(
        self,
        epsilon: float = 0.1,
        steps: int = 7,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, label_smoothing)
        self.epsilon = epsilon
        self.steps = steps

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        progress = self.trainer.global_step / int(self.trainer.estimated_stepping_batches)
        radius = self.epsilon * min(1.0, 2 * progress)
        x_adv = attacked(self, images, labels, radius, self.steps, seed=self.trainer.global_step)
        return super().training_step((x_adv, labels), batch_idx)
