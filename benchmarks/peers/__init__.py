"""Other serving frameworks with the same ONNX file, under the same load as ours, and how each behaves when it is hard.

The programs in `apps` run in an environment of their framework's own (`make peers`), where nothing of segpress is
installed: what they share is the file beside them, `apps/model.py`.
"""
