"""Where the time of a bundle goes, by operator, and what stayed in float and why.

It reads graphs, and so needs the package onnx (the extra `bench`), but no torch: the machine that serves can measure.
Its results are stored and shown by `benchmarks.report.ops`, which needs neither.
"""
