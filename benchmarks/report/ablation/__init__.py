"""What `compress bench ablation` found, as data, tables, a picture and files. No torch."""
