"""The results of `compress bench peers` as data, tables and files. No torch, no web framework."""
