"""What mixed precision is worth on this machine: time and memory of a training step, and the mIoU that it costs.

The one part of `benchmarks` that trains, and so the one that imports torch; the command line asks for torch before it
comes here. What it finds is kept and shown by `benchmarks.report.amp`, which does not need it.
"""
