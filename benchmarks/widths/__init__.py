"""What choosing widths by measured milliseconds is worth, beside the other ways to choose them.

It cuts networks, and so imports torch; the command line asks for torch before it comes here. What it finds is kept and
shown by `benchmarks.report.widths`, which does not need it.
"""
