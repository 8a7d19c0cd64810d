"""From the bytes of a request to its encoded masks: decoded and fitted alone, run alone or with others, finished alone.

H height, W width, N batch, C channels.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from export.bands import counted_pixels
from export.errors import ImageError
from export.images import U8, Geometry, decode
from export.manifest import Manifest
from serve.metrics import Stages
from serve.predictor import Predictor
from serve.problems import ProblemError

T = TypeVar("T")

_STATUS = {"malformed": 400, "unsupported": 415, "channels": 415, "too_large": 413}


@dataclass(frozen=True)
class Sizes:
    """How images are brought to a model, and how large they may be."""

    max_pixels: int
    """Of what one request has, as sent and as padded for the model; and of what is run together."""
    bucket: int = 1
    """Images are padded to multiples of this, too, so that fewer sizes are met."""

    def geometry(self, images: int, height: int, width: int, manifest: Manifest) -> Geometry:
        """Raises ProblemError 413 for images that are too large as sent, or as padded."""
        geometry = Geometry.plan(
            height, width, size=manifest.size, multiple=math.lcm(manifest.size_multiple, self.bucket)
        )
        for (high, wide), what in (((height, width), ""), (geometry.padded, "padded for the model ")):
            # A single row of pixels is small, but padded to the model's multiple it is many times that.
            pixels = images * counted_pixels(high, wide, manifest.channels)
            if pixels > self.max_pixels:
                detail = f"{what}{images} of {wide}x{high} have {pixels} pixels, at most {self.max_pixels} are taken"
                raise ProblemError(413, "too_large", f"{detail}; send less, smaller images, or pieces of them")
        return geometry


class Work(Generic[T]):
    """What one request wants of one model."""

    def __init__(
        self,
        predictor: Predictor,
        stages: Stages,
        sizes: Sizes,
        read: Callable[[], Sequence[U8]],
        finish: Callable[[U8], T],
    ) -> None:
        """`read` gives images HWC of one size, `finish` makes the answer of their masks NHW; in a worker thread."""
        self.predictor = predictor
        self.stages = stages
        self.sizes = sizes
        self._read = read
        self._finish = finish
        self._asked = time.perf_counter()
        self._geometry: Geometry | None = None

    @property
    def seconds_since_asked(self) -> float:
        return time.perf_counter() - self._asked

    def fitted(self) -> U8:
        """The images NHWC as the model takes them."""
        self.stages.record("queue", self.seconds_since_asked)
        with self.stages.time("decode"):
            images = self._read()
        with self.stages.time("preprocess"):
            height, width = images[0].shape[:2]
            self._geometry = self.sizes.geometry(len(images), height, width, self.predictor.manifest)
            return np.stack([self._geometry.fit(image_HWC) for image_HWC in images])

    def finished(self, masks_NHW: U8) -> T:
        """The answer; each mask has the size of its image."""
        assert self._geometry is not None
        with self.stages.time("postprocess"):
            restored = np.stack([self._geometry.restore(mask_HW) for mask_HW in masks_NHW])
        with self.stages.time("encode"):
            return self._finish(restored)


Outcomes = list[Any]
"""Of each work what it gives, or the exception that it raised."""


def run_together(works: Sequence[Work[Any]]) -> Outcomes:
    """Do works of one predictor, those of one padded size in one run of the model.

    What is wrong with one of them is its own outcome alone.
    """
    outcomes: dict[int, Any] = {}
    groups: dict[tuple[int, ...], list[tuple[int, U8]]] = {}
    for index, work in enumerate(works):
        try:
            images_NHWC = work.fitted()
        except Exception as error:
            outcomes[index] = error
        else:
            groups.setdefault(images_NHWC.shape[1:], []).append((index, images_NHWC))
    for group in groups.values():
        for part in _parts(group, works[group[0][0]].sizes.max_pixels):
            outcomes |= _run(works, part)
    return [outcomes[index] for index in range(len(works))]


def _parts(group: list[tuple[int, U8]], max_pixels: int) -> list[list[tuple[int, U8]]]:
    """Not more pixels in one run than one request may have: memory goes by the largest run."""
    parts: list[list[tuple[int, U8]]] = []
    left = 0
    for member in group:
        pixels = math.prod(member[1].shape[:3])
        if not parts or pixels > left:
            parts.append([])
            left = max_pixels
        parts[-1].append(member)
        left -= pixels
    return parts


def _run(works: Sequence[Work[Any]], group: list[tuple[int, U8]]) -> dict[int, Any]:
    predictor = works[group[0][0]].predictor
    batch_NHWC = group[0][1] if len(group) == 1 else np.concatenate([images for _, images in group])
    begun = time.perf_counter()
    try:
        masks_NHW = predictor.predict(batch_NHWC)
    except Exception as error:
        if len(group) == 1:
            return {group[0][0]: error}
        # One of them may be to blame; alone each gets what it deserves.
        return {index: outcome for member in group for index, outcome in _run(works, [member]).items()}
    seconds = time.perf_counter() - begun
    works[group[0][0]].stages.ran_on(len(batch_NHWC))
    outcomes: dict[int, Any] = {}
    at = 0
    for index, images_NHWC in group:
        works[index].stages.record("inference", seconds)
        try:
            outcomes[index] = works[index].finished(masks_NHW[at : at + len(images_NHWC)])
        except Exception as error:
            outcomes[index] = error
        at += len(images_NHWC)
    return outcomes


def decoded(image: bytes, manifest: Manifest, *, max_pixels: int) -> U8:
    """The image HWC in a file, with the channels of the model.

    Raises ProblemError 4xx for what is none, or one that is not taken.
    """
    try:
        return decode(image, manifest.channels, max_pixels=max_pixels)
    except ImageError as error:
        raise ProblemError(_STATUS.get(error.reason, 400), error.reason, str(error)) from error
