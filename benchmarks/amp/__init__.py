"""What mixed precision is worth on this machine: time and memory of a training step, and the mIoU that it costs.

It trains, and so imports torch; the command line checks for torch before it imports this. Its results are stored and
shown by `benchmarks.report.amp`, which does not need torch.
"""
