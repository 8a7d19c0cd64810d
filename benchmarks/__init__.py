"""Sets models, servers and peers beside each other, and reports what came out.

It is a package of its own because a comparison knows several things at once that must not know one
another: bundles, datasets, later servers and other toolchains. So it stands above `compress`, `serve`
and `export`, and only the command line and the pipeline stand above it. It makes no model and changes
none, but for `amp`, which times training; elsewhere torch is never imported, so that a machine which
only serves can measure as well.
"""
