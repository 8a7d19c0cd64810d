"""Make a bundle: train, prune, quantize, export.

Apart from `serve` so that a server never carries torch, and so that nothing in production can change a
model. It stands on `export`, which both share; `benchmarks` and the command line stand above it.
"""
