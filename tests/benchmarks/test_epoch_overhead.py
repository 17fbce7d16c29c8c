"""What every monitor costs at its default settings, as a share of the epochs of training that it watches."""

from collections import Counter
from time import process_time

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from examples.mnist import DigitClassifier, MNISTDigits
from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)

from .measuring import CPU_TIME

TITLE = "Seconds in the hooks of a monitor, and as a share of training; CPU time, one thread, mean of the epochs"
COLUMNS = ("training", "monitor", "epoch s", "hooks s", "share", "samples")
HOOKS = [f"on_validation_{part}" for part in ("start", "batch_start", "batch_end", "epoch_end")]
HOOKS += ["on_train_batch_start", "on_train_batch_end"]
MONITORS = {
    "flatness": lambda _: RelativeFlatnessMonitor(summary=False),
    "bounds, estimated": lambda epsilon: LocalRobustnessMonitor(epsilon, summary=False),
    "bounds, certified": lambda epsilon: LocalRobustnessMonitor(epsilon, lipschitz="certified", summary=False),
    "attacks": lambda epsilon: AttackMonitor(epsilon, masking=False, summary=False),
    "attacks and masking": lambda epsilon: AttackMonitor(epsilon, summary=False),
    "trajectory": lambda epsilon: AttackTrajectoryMonitor(epsilon, summary=False),
    "scaling": lambda _: HeadScalingMonitor(summary=False),
}

pytestmark = [
    CPU_TIME,
    pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy may be fooled"),
]


class SmallImageClassifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = resnet18(num_classes=10)

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch):
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def _resnet(count=12_800):
    """Five images to train on for each to validate on, as in CIFAR-10; classes by the brightest channel and pixels."""
    images = torch.rand(count + count // 5, 3, 32, 32)
    target = 3 * images.mean((2, 3)).argmax(1) + images[:, 0, 0, :2].argmax(1)
    train, val = (TensorDataset(images[part], target[part]) for part in (slice(count), slice(count, None)))
    return SmallImageClassifier(), {
        "train_dataloaders": DataLoader(train, 128),
        "val_dataloaders": DataLoader(val, 128),
    }


def _digits():
    return DigitClassifier(), {"datamodule": MNISTDigits()}


def _clock_hooks(callback, clock):
    def timed(hook):
        def run(trainer, *args, **kwargs):
            start = process_time()
            hook(trainer, *args, **kwargs)
            if not trainer.sanity_checking:
                clock["hooks"] += process_time() - start

        return run

    for hook in HOOKS:
        setattr(callback, hook, timed(getattr(callback, hook)))


@pytest.mark.slow
@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize(("training", "epsilon", "epochs"), [("digits", 0.1, 5), ("resnet", 8 / 255, 1)])
def test_epoch_overhead(training, epsilon, epochs, monitor, benchmark, report):
    if not benchmark.enabled and (training == "resnet" or monitor != "attacks"):
        pytest.skip("the other monitors are trained with elsewhere")
    torch.manual_seed(0)
    module, data = {"digits": _digits, "resnet": _resnet}[training]()
    watch, clock = MONITORS[monitor](epsilon), Counter()
    _clock_hooks(watch, clock)
    trainer = Trainer(
        max_epochs=epochs if benchmark.enabled else 1,
        accelerator="cpu",
        logger=False,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    start = process_time()
    benchmark.pedantic(lambda: trainer.fit(module, **data), rounds=1)
    whole = process_time() - start
    row = watch.history()[-1]
    counts = [value for name, value in row.items() if name.endswith("samples")]
    epochs_run = trainer.current_epoch
    assert len(watch.history()) == epochs_run
    if benchmark.enabled:
        hooks = clock["hooks"] / epochs_run
        report(
            training,
            monitor,
            f"{whole / epochs_run - hooks:.2f}",
            f"{hooks:.3f}",
            f"{hooks / (whole / epochs_run - hooks):.1%}",
            f"{counts[0]:.0f}" if counts else "all",
        )
