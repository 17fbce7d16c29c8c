"""What RelativeFlatnessMonitor and HeadScalingMonitor add to the validation of a ResNet-18."""

from collections import Counter
from statistics import median
from time import process_time

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from lightning_flatness.callbacks import HeadScalingMonitor, RelativeFlatnessMonitor
from lightning_flatness.functional import relative_flatness

from .measuring import CPU_TIME, alternate

TITLE = "trainer.validate of a ResNet-18 (32x32 images, 10 classes, batches of 256); CPU time, one thread"
COLUMNS = ("monitor", "ms", "added time", "time in its hooks", "forwards")
TEN_SCALES = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
HOOKS = [f"on_validation_{part}" for part in ("start", "batch_start", "batch_end", "epoch_end")]

pytestmark = CPU_TIME


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = resnet18(num_classes=10)
        self.forwards = 0

    def forward(self, images):
        self.forwards += 1
        return self.net(images)

    def validation_step(self, batch):
        images, target = batch
        self.log("val_loss", cross_entropy(self(images), target))


def _trainer(*callbacks):
    return Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def _clock_hooks(callback, clock):
    """The difference of two long times is noisy: add up the short ones as well."""

    def timed(hook):
        def run(*args, **kwargs):
            start = process_time()
            hook(*args, **kwargs)
            clock["seconds"] += process_time() - start

        return run

    for name in HOOKS:
        setattr(callback, name, timed(getattr(callback, name)))
    return callback


def test_monitor_overhead(benchmark, report):
    batches, size = (4, 256) if benchmark.enabled else (2, 8)
    dataset = TensorDataset(torch.randn(batches * size, 3, 32, 32), torch.randint(10, (batches * size,)))
    loader = DataLoader(dataset, size)
    module, clock = Classifier(), Counter()
    trainers = {
        "with": _trainer(_clock_hooks(RelativeFlatnessMonitor(), clock)),
        "without top eigenvalue": _trainer(_clock_hooks(RelativeFlatnessMonitor(top_eigenvalue_samples=0), clock)),
        "head at 10 scales": _trainer(_clock_hooks(HeadScalingMonitor(scales=TEN_SCALES), clock)),
        "none": _trainer(),
    }
    forwards, in_hooks = {}, {name: [] for name in trainers}

    def validate(name):
        before = module.forwards
        clock["seconds"] = 0
        trainers[name].validate(module, loader, verbose=False)
        forwards[name] = module.forwards - before
        in_hooks[name].append(clock["seconds"])

    seconds = alternate(benchmark, {name: lambda name=name: validate(name) for name in trainers})

    assert set(forwards.values()) == {batches}
    features = []
    module.net.fc.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    with torch.inference_mode():
        logits = torch.cat([module.eval()(images) for images, _ in loader])
        expected = relative_flatness(torch.cat(features), module.net.fc.weight, logits).mean()
    measured = trainers["with"].callback_metrics["flatness/relative_flatness"].double()
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=0)
    scaled = trainers["head at 10 scales"].callback_metrics["scaling/relative_flatness_1"].double()
    torch.testing.assert_close(scaled, expected, rtol=1e-5, atol=0)
    if benchmark.enabled:
        assert median(in_hooks["head at 10 scales"]) < 0.2 * seconds["none"]
        base = seconds["none"]
        for name, value in reversed(seconds.items()):
            shares = ((value - base) / base, median(in_hooks[name]) / base)
            report(name, f"{1e3 * value:.0f}", *(f"{share:+.1%}" for share in shares), str(forwards[name]))
