"""Make a bundle: train, prune, quantize, export.

Separate from `serve`, so that a server never carries torch and nothing in production can change a model. Built on
`export`, which both share; `benchmarks` and the command line stand above it.
"""
