"""What the requests carry: image files of one size, made once and sent many times."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from compress.data.folder import open_dataset
from compress.data.layout import Split
from export.errors import UsageError
from export.images import FORMATS, U8, encode_image, resize_image

IMAGES = 16
"""Different ones, sent in turn."""
_SPLIT: Split = "test"
_JPEG_QUALITY = 90
_JPEG_CHANNELS = (1, 3)
_BLOB = 24
"""Pixels between the points that a made-up picture is smooth around."""


@dataclass(frozen=True)
class Payload:
    """The bodies of the requests."""

    files: tuple[bytes, ...]
    media_type: str
    height: int
    width: int
    source: str
    """Where the pictures come from, for the report."""

    @property
    def mean_bytes(self) -> float:
        return float(np.mean([len(file) for file in self.files]))


def payload(size: tuple[int, int], channels: int, data: Path | None = None) -> Payload:
    """Images of `size` (height, width): JPEG for 1 and 3 channels, else PNG.

    From the test split of the dataset in the folder `data`; without one, seeded smooth pictures: noise is what no
    camera gives, slow to decode, and its masks are slow to encode. Raises DatasetError, ImageError, and UsageError for
    a dataset whose images have other channels.
    """
    height, width = size
    if data is None:
        pictures, source = _made_up(height, width, channels), "seeded smooth pictures"
    else:
        dataset = open_dataset(data)
        if dataset.channels != channels:
            raise UsageError(f"{data} has images of {dataset.channels} channels, the model takes {channels}")
        samples = dataset.split(_SPLIT)[:IMAGES]
        if not samples:
            raise UsageError(f"{data} has no image in its {_SPLIT} split to send")
        pictures = [resize_image(dataset.read_image(sample), size) for sample in samples]
        source = f"{dataset.path.resolve().name}, {_SPLIT} split"
    if channels in _JPEG_CHANNELS:
        return Payload(tuple(map(_jpeg, pictures)), FORMATS["JPEG"], height, width, source)
    return Payload(tuple(map(encode_image, pictures)), FORMATS["PNG"], height, width, source)


def _made_up(height: int, width: int, channels: int) -> Sequence[U8]:
    random = np.random.default_rng(0)
    small = (IMAGES, height // _BLOB + 2, width // _BLOB + 2, channels)
    return [resize_image(image, (height, width)) for image in random.integers(0, 256, small, dtype=np.uint8)]


def _jpeg(image_HWC: U8) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC).save(
        stream, "JPEG", quality=_JPEG_QUALITY
    )
    return stream.getvalue()
