"""INT8: calibrated, trained where that is asked for, held to a budget. What the command calls."""

from compress.quantize.analyze import analyze
from compress.quantize.quantize import quantize

__all__ = ["analyze", "quantize"]
