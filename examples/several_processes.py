"""The digits with two processes, on GPUs or on a CPU: ``uv run python -m examples.several_processes --strategy ddp``.

``--strategy fsdp2`` shards the network. Where a launcher has started the processes, as ``torchrun --nproc-per-node 2 -m
examples.several_processes`` and ``srun`` do, Lightning joins them.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.fsdp import FSDPModule, fully_shard

from examples.mnist import DigitClassifier, MNISTDigits
from lightning_flatness import AttackMonitor, RelativeFlatnessMonitor


class ShardedClassifier(DigitClassifier):
    """The network with its parameters in pieces, one for each process."""

    def configure_model(self) -> None:
        """Shard the layers, once."""
        if isinstance(self, FSDPModule):  # Lightning asks for it in every stage
            return
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.features, mesh=mesh)
        fully_shard(self, mesh=mesh)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Train, and return the history of the flatness."""
    parser = argparse.ArgumentParser(prog="python -m examples.several_processes", description=__doc__)
    parser.add_argument("--strategy", choices=["ddp", "fsdp2"], default="ddp", help="default: %(default)s")
    parser.add_argument("--devices", type=int, default=2, help="processes on this machine; default: %(default)s")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu; default: %(default)s")
    parser.add_argument("--epochs", type=int, default=3, help="default: %(default)s")
    settings = parser.parse_args(arguments)

    is_sharded = settings.strategy == "fsdp2"
    strategy: Strategy = (
        ModelParallelStrategy(data_parallel_size=settings.devices, tensor_parallel_size=1)
        if is_sharded
        else DDPStrategy()
    )
    seed_everything(0, verbose=False)
    flatness = RelativeFlatnessMonitor()
    trainer = Trainer(
        max_epochs=settings.epochs,
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=strategy,
        callbacks=[flatness, AttackMonitor(epsilon=0.1)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(ShardedClassifier() if is_sharded else DigitClassifier(), MNISTDigits())
    return flatness.history()


if __name__ == "__main__":
    main()
