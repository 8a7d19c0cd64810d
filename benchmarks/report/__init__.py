"""The results of a comparison as data, and that data as JSON, Markdown, one HTML page and a terminal's table.

`results` holds the figures and is all that is stored; everything else here only reads it.
"""
