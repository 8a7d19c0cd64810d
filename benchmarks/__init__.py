"""Compares models, training recipes and servers, and reports what was measured.

It is a package of its own because a comparison knows several things at once that must not know one
another: bundles, datasets, servers and other frameworks. So it stands above `compress`, `serve`
and `export`, and only the command line and the pipeline stand above it. Only `ablation`, `amp` and
`widths`, which train networks or cut them, import torch, so that a machine that only serves can
measure as well.
"""
