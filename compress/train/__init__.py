"""Train a network with mixed precision. `train` is what the command calls."""

from compress.train.train import train

__all__ = ["train"]
