"""A ResNet-18 on CIFAR-10, from a copy of the data that you have.

Run it with ``lightning-flatness fit --config configs/cifar10_resnet18.yaml --data.root DIR``.
"""

from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_accuracy
from torchvision import datasets, models, transforms
from typing_extensions import override

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


class CIFAR10(LightningDataModule):
    """CIFAR-10, standardised; random crops and flips in training, the test images for validation.

    Args:
        root: folder that holds ``cifar-10-batches-py``.
        batch_size: samples per batch.
        num_workers: processes that load data.
        standardise: subtract the mean of each channel and divide by its standard deviation.

    Raises:
        FileNotFoundError: if the data is not there.
    """

    def __init__(self, root: str, batch_size: int = 256, num_workers: int = 4, *, standardise: bool = True) -> None:
        super().__init__()
        self.root = Path(root)
        if not (self.root / "cifar-10-batches-py").is_dir():
            raise FileNotFoundError(
                f"`root` must hold the folder cifar-10-batches-py, got {root!r}; unpack the Python version "
                "of CIFAR-10 there, or pass --data.root the folder where it is."
            )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.standardise = standardise

    def setup(self, stage: str) -> None:
        """Open both parts of the data."""
        del stage
        standardise = [transforms.ToTensor(), *[transforms.Normalize(MEAN, STD)] * self.standardise]
        augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.train_images = datasets.CIFAR10(self.root, train=True, transform=transforms.Compose(augment + standardise))
        self.test_images = datasets.CIFAR10(self.root, train=False, transform=transforms.Compose(standardise))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Training images in random order."""
        return DataLoader(
            self.train_images, self.batch_size, shuffle=True, num_workers=self.num_workers, drop_last=True
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Test images."""
        return DataLoader(self.test_images, self.batch_size, num_workers=self.num_workers)


class ResNet18(LightningModule):
    """ResNet-18 with a stem for 32×32 images, trained with SGD and a one-cycle schedule.

    Args:
        learning_rate: peak of the schedule.
        weight_decay: of SGD.
        label_smoothing: of the training loss.
    """

    def __init__(self, learning_rate: float = 0.1, weight_decay: float = 5e-4, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.network = models.resnet18(num_classes=10)
        self.network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.network.maxpool = nn.Identity()
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape ``(batch, 10)``."""
        return self.network(images)

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = self.loss(self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels), prog_bar=True)
        self.log("val_accuracy", multiclass_accuracy(logits, labels, 10, average="micro"), prog_bar=True)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[dict[str, object]]]:
        """SGD with momentum; the learning rate changes after every step."""
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.learning_rate, momentum=0.9, weight_decay=self.weight_decay, nesterov=True
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = OneCycleLR(optimizer, self.learning_rate, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]
