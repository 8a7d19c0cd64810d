"""From the bytes of a request to its encoded masks. Only the run of the model may be shared with other requests.

H height, W width, N batch, C channels.
"""

import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.bands import counted_pixels
from export.errors import ImageError
from export.images import U8, Geometry, decode, read_header
from export.manifest import Manifest
from export.refine import Blend, count_places
from serve.metrics import Stages
from serve.predictor import Predictor
from serve.problems import ProblemError

T = TypeVar("T")

_STATUS = {"malformed": 400, "unsupported": 415, "channels": 415, "too_large": 413}


@dataclass(frozen=True)
class Sizes:
    """How images are fitted to a model, and how large they may be."""

    max_pixels: int
    """Pixels of one request, as sent and as padded for the model; and of one run of the model."""
    bucket: int = 1
    """Images are padded to multiples of this, too, so that there are fewer sizes."""
    max_windowed_pixels: int = sys.maxsize
    """Pixels of one image that is run in windows, as sent; and of all its windows together, as padded."""
    max_probabilities: int = sys.maxsize
    """Classes times pixels of the probabilities in an answer, of the logits that the model gives at once, and of what a
    row of windows gives."""

    def planned(self, height: int, width: int, manifest: Manifest) -> Geometry:
        """How an image of this size is fitted to the model; no limit is checked."""
        return Geometry.plan(height, width, size=manifest.size, multiple=math.lcm(manifest.size_multiple, self.bucket))

    def geometry(self, images: int, height: int, width: int, manifest: Manifest) -> Geometry:
        """As `planned`. Raises ProblemError 413 for images that are too large as sent, or as padded."""
        geometry = self.planned(height, width, manifest)
        for (high, wide), what in (((height, width), ""), (geometry.padded, ", padded for the model,")):
            # A single row of pixels is small, but padded to the model's multiple it is many times larger.
            pixels = images * counted_pixels(high, wide, manifest.channels)
            if pixels > self.max_pixels:
                detail = f"{images} images of {wide}x{high}{what} are {pixels} pixels, the limit is {self.max_pixels}"
                raise ProblemError(413, "too_large", f"{detail}; send fewer or smaller images, or pieces of them")
        return geometry

    def blend(self, height: int, width: int, window: tuple[int, int], manifest: Manifest) -> Blend:
        """The windows of an image of this size. Raises ProblemError 413 when they are too large, or too many."""
        count = count_places(height, window[0]) * count_places(width, window[1])
        padded = self.planned(min(height, window[0]), min(width, window[1]), manifest).padded
        pixels = counted_pixels(*padded, manifest.channels)
        if pixels > self.max_pixels:
            detail = f"a window of {padded[1]}x{padded[0]} has {pixels} pixels, the limit is {self.max_pixels}"
            raise ProblemError(413, "too_large", f"{detail}; ask for smaller windows")
        if count * pixels > self.max_windowed_pixels:
            detail = (
                f"{count} windows of {padded[1]}x{padded[0]} have {count * pixels} pixels, the limit is "
                f"{self.max_windowed_pixels}"
            )
            raise ProblemError(413, "too_large", f"{detail}; ask for larger windows, or send pieces of the image")
        row = len(manifest.classes) * min(height, window[0]) * width
        if row > self.max_probabilities:
            detail = f"a row of windows has {row} probabilities, the limit is {self.max_probabilities}"
            raise ProblemError(413, "too_large", f"{detail}; ask for lower windows, or send pieces of the image")
        return Blend((height, width), window)

    def check_probabilities(self, size: tuple[int, int], manifest: Manifest) -> None:
        """Raises ProblemError 413 when an image or window of this size has too many probabilities."""
        classes, (height, width) = len(manifest.classes), size
        values = classes * height * width
        if values > self.max_probabilities:
            detail = (
                f"{classes} classes of {width}x{height} pixels have {values} probabilities, the limit is "
                f"{self.max_probabilities}"
            )
            raise ProblemError(413, "too_large", f"{detail}; send smaller images, or pieces of them")


class Work(ABC, Generic[T]):
    """Work for one request on one model: one run of the model, or several in turn."""

    wants_logits = False
    """Whether the model is run for its logits NKHW instead of masks NHW."""
    has_run = False
    """Whether the model was run for it; False if it was refused before that."""

    def __init__(self, predictor: Predictor, stages: Stages, sizes: Sizes) -> None:
        self.predictor = predictor
        self.stages = stages
        self.sizes = sizes
        self._asked = time.perf_counter()

    @property
    def seconds_since_asked(self) -> float:
        return time.perf_counter() - self._asked

    @abstractmethod
    def fitted(self) -> U8:
        """The images NHWC to run the model on, resized and padded as it needs them. Runs in a worker thread."""

    @abstractmethod
    def finished(self, given: NDArray[Any]) -> T | object:
        """The answer, made from the model's output for those images; `serve.queue.UNFINISHED` if more is to be run."""


class WholeWork(Work[T]):
    """The masks of images of one size, each run as a whole."""

    def __init__(
        self,
        predictor: Predictor,
        stages: Stages,
        sizes: Sizes,
        read: Callable[[], Sequence[U8]],
        finish: Callable[[U8], T],
    ) -> None:
        """`read` gives images HWC of one size, `finish` makes the answer from their masks NHW; both run in a worker
        thread."""
        super().__init__(predictor, stages, sizes)
        self._read = read
        self._finish = finish
        self._geometry: Geometry | None = None

    def fitted(self) -> U8:
        self.stages.record("queue", self.seconds_since_asked)
        with self.stages.time("decode"):
            images = self._read()
        with self.stages.time("preprocess"):
            height, width = images[0].shape[:2]
            self._geometry = self.sizes.geometry(len(images), height, width, self.predictor.manifest)
            return np.stack([self._geometry.fit(image_HWC) for image_HWC in images])

    def finished(self, given: NDArray[Any]) -> T:
        """Each mask has the size of its image."""
        assert self._geometry is not None
        with self.stages.time("postprocess"):
            restored = np.stack([self._geometry.restore(mask_HW) for mask_HW in given])
        with self.stages.time("encode"):
            return self._finish(restored)


Outcomes = list[Any]
"""For each piece of work its result, the exception that it raised, or `serve.queue.UNFINISHED`."""


def run_together(works: Sequence[Work[Any]]) -> Outcomes:
    """Do one turn of `works`, all of one predictor; those with the same padded size share a run of the model.

    An exception from one of them is the outcome of that one alone.
    """
    outcomes: dict[int, Any] = {}
    groups: dict[tuple[Any, ...], list[tuple[int, U8]]] = {}
    for index, work in enumerate(works):
        try:
            images_NHWC = work.fitted()
        except Exception as error:
            outcomes[index] = error
        else:
            groups.setdefault((*images_NHWC.shape[1:], work.wants_logits), []).append((index, images_NHWC))
    for group in groups.values():
        for part in _parts(group, works[group[0][0]].sizes.max_pixels):
            outcomes |= _run(works, part)
    return [outcomes[index] for index in range(len(works))]


def _parts(group: list[tuple[int, U8]], max_pixels: int) -> list[list[tuple[int, U8]]]:
    """Split a group so that no run has more pixels than one request may have: the largest run sets the memory used."""
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
    first = works[group[0][0]]
    run = first.predictor.logits if first.wants_logits else first.predictor.predict
    batch_NHWC = group[0][1] if len(group) == 1 else np.concatenate([images for _, images in group])
    begun = time.perf_counter()
    try:
        given = run(batch_NHWC)
    except Exception as error:
        if len(group) == 1:
            return {group[0][0]: error}
        # One of them may be the cause; run alone, the others get their answers.
        return {index: outcome for member in group for index, outcome in _run(works, [member]).items()}
    seconds = time.perf_counter() - begun
    first.stages.ran_on(len(batch_NHWC))
    outcomes: dict[int, Any] = {}
    at = 0
    for index, images_NHWC in group:
        works[index].has_run = True
        works[index].stages.record("inference", seconds)
        try:
            outcomes[index] = works[index].finished(given[at : at + len(images_NHWC)])
        except Exception as error:
            outcomes[index] = error
        at += len(images_NHWC)
    return outcomes


def decoded(image: bytes, manifest: Manifest, *, max_pixels: int) -> U8:
    """The image HWC in a file, with the channels of the model.

    Raises ProblemError 4xx for a file that is not an image, or not one that is accepted.
    """
    with _client_errors(image):
        return decode(image, manifest.channels, max_pixels=max_pixels)


def size_of(image: bytes, *, max_pixels: int) -> tuple[int, int]:
    """Height and width of the image in a file, before it is decoded.

    Raises ProblemError as `decoded` does.
    """
    with _client_errors(image):
        header = read_header(image, max_pixels=max_pixels)
        return header.height, header.width


@contextmanager
def _client_errors(image: bytes) -> Iterator[None]:
    """Turn errors of the image into problems with a 4xx status: the client has to mend them."""
    if not image:
        raise ProblemError(400, "empty", "the file is empty; send one image file")
    try:
        yield
    except ImageError as error:
        raise ProblemError(_STATUS.get(error.reason, 400), error.reason, str(error)) from error
