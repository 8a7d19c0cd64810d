"""Networks, and the allow-list through which a checkpoint names one.

A factory takes plain keyword arguments and gives an `nn.Module` from normalised images NCHW to logits NKHW,
with `size_multiple`: what height and width must be multiples of. A checkpoint stores the factory's name
and arguments, never code.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from compress.models.unet import UNet

FACTORIES: Mapping[str, Callable[..., nn.Module]] = {"unet": UNet}


def build(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised network.

    Raises KeyError for an unknown factory, TypeError or ValueError for arguments that it does not take.
    """
    return FACTORIES[factory](**arguments)


def size_multiple(model: nn.Module) -> int:
    """What height and width of the model's input must be multiples of."""
    return int(getattr(model, "size_multiple", 1))
