"""The results of `compress bench widths` as data, a table and files. No torch."""
