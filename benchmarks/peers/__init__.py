"""Other serving frameworks with the same ONNX file, under the same load as ours, and how each behaves in hard cases.

Each program in `apps` runs in its framework's own environment (`make peers`), where segpress is not installed: all they
share is the file `apps/model.py`.
"""
