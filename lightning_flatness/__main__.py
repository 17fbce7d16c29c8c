"""The command, as ``python -m lightning_flatness``."""

from lightning_flatness.cli import main

main()
