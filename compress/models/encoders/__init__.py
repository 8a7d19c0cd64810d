"""Encoders: networks of classifiers, on which a UNet's decoder is built.

`make(name, channels)` returns one with fresh parameters; the decoder relies on `Encoder` alone.
"""

from compress.models.encoders import efficientnet_lite, resnet, timm_encoder
from compress.models.encoders.base import Encoder
from compress.models.encoders.efficientnet_lite import EfficientNetLite
from compress.models.encoders.resnet import ResNet
from compress.models.encoders.timm_encoder import TimmEncoder

__all__ = ["NAMES", "Encoder", "make"]

NAMES = (*resnet.LAYERS, *efficientnet_lite.STAGES)
"""`make` also takes `timm:NAME`."""


def make(name: str, channels: int) -> Encoder:
    """An encoder with fresh parameters for images of `channels` channels.

    Raises ValueError for an unknown name; for `timm:NAME` see `TimmEncoder`.
    """
    if name in resnet.LAYERS:
        return ResNet(name, channels)
    if name in efficientnet_lite.STAGES:
        return EfficientNetLite(name, channels)
    if name.startswith(timm_encoder.PREFIX):
        return TimmEncoder(name, channels)
    raise ValueError(f"no such encoder: {name!r}; known: {', '.join(NAMES)}, and timm:NAME")
