"""What every peer computes: an image file in, a PNG of class indices out, by the bundle's own graph.

Users of these frameworks write this much by hand, except for the session's options: those are our server's
(`export.runtime.session_options`, which these environments lack), so that all run the same kernels.
"""

import io
import os
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

MODEL = "PEER_MODEL"
"""Environment variable: the file model.onnx."""
WORKERS = "PEER_WORKERS"
PORT = "PEER_PORT"


class Model:
    """One session in this process."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("optimization.disable_specified_optimizers", "WeightBiasQuantization")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session: Any = ort.InferenceSession(os.environ[MODEL], options, providers=["CPUExecutionProvider"])
        self._mode = "L" if self._session.get_inputs()[0].shape[3] == 1 else "RGB"

    def segment(self, file: bytes) -> bytes:
        """Decode, run, encode."""
        with Image.open(io.BytesIO(file)) as image:
            pixels = np.asarray(image.convert(self._mode))
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        [mask] = self._session.run(["mask"], {"image": pixels[None]})
        stream = io.BytesIO()
        Image.fromarray(mask[0]).save(stream, "PNG")
        return stream.getvalue()
