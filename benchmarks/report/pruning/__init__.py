"""What `compress prune --analyze` found, as a table and a picture.

It is told apart from the reports on bundles because it is about groups of layers, and nothing in it is timed.
"""
