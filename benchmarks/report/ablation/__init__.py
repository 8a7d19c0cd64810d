"""The results of `compress bench ablation` as data, tables, a picture and files. No torch."""
