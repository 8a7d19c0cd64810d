"""What `compress` and `serve` both stand on: bundles, images, ONNX, running it, scoring it, timing it.

It is a package of its own so that a server can run a bundle without torch, and so that training,
evaluation and serving share one copy of every step between image bytes and mask. It imports nothing
from the packages above it.
"""
