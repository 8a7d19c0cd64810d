"""Graphs in other forms that give the same answers and run faster in INT8.

They are apart from the quantizer, because each is a function from graph to graph that can be proven by itself. Of the
float graph, before quantization: `transposed_as_convolution`, `means_as_pooling`, `SubPixel`, equal up to rounding in
float. Of the INT8 graph, after all else, training included: `integer_forms`, which give the same integers to the last
bit. Timing decides, once, which rewrites are kept (`Rewriter`).
"""

from compress.quantize.rewrites.choose import best_of, costs, formed, gains, integer_forms
from compress.quantize.rewrites.means import means_as_pooling
from compress.quantize.rewrites.rewriter import Rewriter
from compress.quantize.rewrites.subpixel import SubPixel
from compress.quantize.rewrites.transposed import transposed_as_convolution

__all__ = [
    "Rewriter",
    "SubPixel",
    "best_of",
    "costs",
    "formed",
    "gains",
    "integer_forms",
    "means_as_pooling",
    "transposed_as_convolution",
]
