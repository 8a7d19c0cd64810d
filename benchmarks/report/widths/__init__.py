"""What `compress bench widths` found, as data, a table and files. No torch."""
