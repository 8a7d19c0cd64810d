"""What each part of a training recipe is worth: trainings that each differ from a base in one change alone.

It trains, and so imports torch; the command line checks for torch before it imports this. Its results are stored and
shown by `benchmarks.report.ablation`, which does not need torch.
"""
