"""Quantization-aware training: the INT8 graph itself as a torch network, which learns weights and scales."""

from compress.quantize.qat.fit import Learned, learn
from compress.quantize.qat.network import QuantizedNetwork, require_trainable

__all__ = ["Learned", "QuantizedNetwork", "learn", "require_trainable"]
