"""The results of `compress bench amp` as data, and that data as JSON, Markdown, pictures and a terminal's table.

`results` holds the figures and is all that is stored; everything else here only reads it. The measuring is in
`benchmarks.amp`, which needs torch; this does not.
"""
