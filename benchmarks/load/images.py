"""What the requests carry: image files, made once and sent many times, or each of a different size."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report.load.results import Requests
from compress.data.folder import open_dataset
from compress.data.layout import Split
from export.bands import lossless_format
from export.errors import UsageError
from export.images import FORMATS, U8, encode_image, resize_image

IMAGES = 16
"""Different ones, sent in turn."""
_SPLIT: Split = "test"
_JPEG_QUALITY = 90
_JPEG_CHANNELS = (1, 3)
_BLOB = 24
"""Pixels between the random points that a generated picture interpolates."""


@dataclass(frozen=True)
class Payload:
    """The bodies of the requests."""

    files: tuple[bytes, ...]
    media_type: str
    height: int
    width: int
    source: str
    """Where the pictures come from, for the report."""

    def described(self) -> Requests:
        """For a report."""
        return Requests(
            media_type=self.media_type,
            height=self.height,
            width=self.width,
            mean_bytes=float(np.mean([len(file) for file in self.files])),
            source=self.source,
        )


def payload(size: tuple[int, int], channels: int, data: Path | None = None) -> Payload:
    """Images of `size` (height, width), from the test split of the dataset in the folder `data`, else generated.

    Raises DatasetError, ImageError, and UsageError for a dataset without test images.
    """
    pictures: Sequence[U8]
    if data is None:
        pictures, source = [picture(size, channels, seed=seed) for seed in range(IMAGES)], "seeded smooth pictures"
    else:
        dataset = open_dataset(data, channels=channels)
        samples = dataset.split(_SPLIT)[:IMAGES]
        if not samples:
            raise UsageError(f"{data} has no image in its {_SPLIT} split to send")
        pictures = [resize_image(dataset.read_image(sample), size) for sample in samples]
        source = f"{dataset.path.resolve().name}, {_SPLIT} split"
    return Payload(tuple(map(encoded, pictures)), media_type(channels), *size, source)


def picture(size: tuple[int, int], channels: int, *, seed: int) -> U8:
    """A smooth picture HWC of `size` (height, width).

    No camera gives noise: it is slow to decode, and its masks are slow to encode.
    """
    height, width = size
    small = (height // _BLOB + 2, width // _BLOB + 2, channels)
    return resize_image(np.random.default_rng(seed).integers(0, 256, small, dtype=np.uint8), size)


def media_type(channels: int) -> str:
    """The media type of what `encoded` gives."""
    return FORMATS["JPEG" if channels in _JPEG_CHANNELS else lossless_format(channels)]


def encoded(image_HWC: U8) -> bytes:
    """JPEG for 1 and 3 channels, as cameras send them; lossless for others."""
    channels = image_HWC.shape[2]
    if channels not in _JPEG_CHANNELS:
        return encode_image(image_HWC)
    stream = io.BytesIO()
    image = Image.fromarray(image_HWC[..., 0] if channels == 1 else image_HWC)
    image.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()
