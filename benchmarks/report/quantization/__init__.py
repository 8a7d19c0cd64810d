"""The results of `compress quantize --analyze`, as a table and a picture.

They are separate from the reports on bundles because they are about layers of one graph.
"""
