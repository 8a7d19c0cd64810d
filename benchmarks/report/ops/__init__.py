"""The results of `compress bench ops` as data, tables, a picture and files. No torch, and no onnx."""
