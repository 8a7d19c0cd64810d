"""What choosing widths by measured milliseconds is worth, compared with other ways to choose them.

It cuts networks, and so imports torch; the command line checks for torch before it imports this. Its results are stored
and shown by `benchmarks.report.widths`, which does not need torch.
"""
