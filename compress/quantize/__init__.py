"""INT8: calibrated, trained if asked for, and held to an accuracy budget. What the command calls."""

from compress.quantize.analyze import analyze
from compress.quantize.quantize import quantize

__all__ = ["analyze", "quantize"]
