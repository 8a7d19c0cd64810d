"""Requests of the Open Inference Protocol through Triton's own clients, unchanged."""

import io
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.images import U8


def image_input(client: ModuleType, tensor: NDArray[Any], datatype: str, **how: Any) -> Any:
    """The tensor `image`; `client` is tritonclient.http or tritonclient.grpc."""
    given = client.InferInput("image", list(tensor.shape), datatype)
    given.set_data_from_numpy(tensor, **how)
    return given


def files_tensor(files: Sequence[bytes]) -> NDArray[np.object_]:
    """Image files as a BYTES tensor."""
    return np.array(files, dtype=object)


def file_of(image_HWC: U8, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, form)
    return buffer.getvalue()


def some_images(count: int, height: int, width: int, *, seed: int = 0) -> U8:
    """Images NHWC of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
