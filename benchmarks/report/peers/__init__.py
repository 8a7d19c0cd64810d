"""What `compress bench peers` found, as data, tables and files. No torch, no web framework."""
