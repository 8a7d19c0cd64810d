"""INT8 by post-training quantization. `quantize` is what the command calls."""

from compress.quantize.quantize import quantize

__all__ = ["quantize"]
