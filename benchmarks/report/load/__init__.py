"""The results of `compress bench load` and `soak` as data, tables, plots and files. No torch, no web framework."""
