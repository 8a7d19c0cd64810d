"""The results of `compress prune --analyze`, as a table and a picture.

They are separate from the reports on bundles because they are about groups of layers, and nothing in them is timed.
"""
