"""What `compress bench load` found, as data, tables, a plot and files. No torch, no web framework."""
