"""What `compress bench ops` found, as data, tables, a picture and files. No torch, and no onnx."""
