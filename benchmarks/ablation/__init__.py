"""What each part of a training recipe is worth: trainings that differ from one another in one change alone.

It trains, and so imports torch; the command line asks for torch before it comes here. What it finds is kept and shown
by `benchmarks.report.ablation`, which does not need it.
"""
