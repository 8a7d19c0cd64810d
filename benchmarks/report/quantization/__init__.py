"""What `compress quantize --analyze` found, as a table and a picture.

It is told apart from the reports on bundles because it is about layers of one graph.
"""
