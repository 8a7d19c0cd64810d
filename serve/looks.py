"""How one image is run, as a whole or in windows, and what comes of it: its mask, and probabilities of its classes.

K classes, H height, W width, N batch, C channels.
"""

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.images import U8, Geometry
from export.manifest import Manifest
from export.refine import Blend, Figures
from export.runtime import gives_logits, softmax
from serve.metrics import Stages
from serve.pipeline import Sizes, WholeWork, Work, decoded, size_of
from serve.predictor import Predictor
from serve.problems import ProblemError
from serve.queue import UNFINISHED

T = TypeVar("T")

Halves = NDArray[np.float16]

WINDOW_PATTERN = r"^[0-9]{1,5}x[0-9]{1,5}$"

LEAST_WINDOW = 64
"""Pixels of either side. In smaller windows a network sees next to nothing, and a run costs more than its pixels."""


@dataclass(frozen=True)
class Found:
    """The result for one image."""

    image_HWC: U8
    mask_HW: U8
    probabilities_KHW: Halves | None = None
    """None unless they were asked for."""


Finish = Callable[[Found], T]


@dataclass(frozen=True)
class Look:
    """What a request asks for beside the mask, and how it wants the image to be run."""

    probabilities: bool = False
    window: tuple[int, int] | None = None
    """(height, width), as `compress predict --window` takes it; None for the image as a whole."""

    @classmethod
    def asked(cls, manifest: Manifest, *, probabilities: bool, window: str | None) -> "Look":
        """The look that a request for this model asks for; `window` must be HEIGHTxWIDTH.

        Raises ProblemError 400 for one that is not, or too small, and for what the model cannot give.
        """
        look = cls(probabilities, None if window is None else _parsed(window))
        if (look.probabilities or look.window) and not gives_logits(manifest):
            detail = f"{manifest.name} gives only masks, and this needs probabilities"
            raise ProblemError(400, "no_logits", f"{detail}; serve a bundle that was exported with --outputs both")
        if look.window and manifest.size is not None:
            height, width = manifest.size
            detail = f"{manifest.name} resizes every image to {width}x{height}"
            raise ProblemError(400, "window", f"{detail}, and would see windows magnified; leave the window out")
        return look

    def work(self, predictor: Predictor, stages: Stages, sizes: Sizes, content: bytes, finish: Finish[T]) -> Work[T]:
        """The work on the image file `content`; `finish` makes the answer, in a worker thread."""
        if self.window is not None:
            return _Windows(predictor, stages, sizes, content, finish, self.window, keeps=self.probabilities)
        if self.probabilities:
            return _Probabilities(predictor, stages, sizes, content, finish)
        images: list[U8] = []

        def read() -> list[U8]:
            images.append(decoded(content, predictor.manifest, max_pixels=sizes.max_pixels))
            return images

        return WholeWork(predictor, stages, sizes, read, lambda masks_NHW: finish(Found(images[0], masks_NHW[0])))


class _OfLogits(Work[T]):
    """Work on one image that needs the model's logits. Its limits are checked before the image is decoded."""

    wants_logits = True

    def __init__(self, predictor: Predictor, stages: Stages, sizes: Sizes, content: bytes, finish: Finish[T]) -> None:
        super().__init__(predictor, stages, sizes)
        self._content = content
        self._finish = finish
        self._image_HWC: U8 | None = None

    def _image(self, max_pixels: int) -> U8:
        """The image; decoded the first time."""
        if self._image_HWC is None:
            self.stages.record("queue", self.seconds_since_asked)
            with self.stages.time("decode"):
                self._plan(*size_of(self._content, max_pixels=max_pixels))
                self._image_HWC = decoded(self._content, self.predictor.manifest, max_pixels=max_pixels)
        return self._image_HWC

    @abstractmethod
    def _plan(self, height: int, width: int) -> None:
        """Plan the runs for an image of this size. Raises ProblemError 413 if it is too large."""

    def _answer(self, mask_HW: U8, probabilities_KHW: Halves | None) -> T:
        assert self._image_HWC is not None
        with self.stages.time("encode"):
            return self._finish(Found(self._image_HWC, mask_HW, probabilities_KHW))


class _Probabilities(_OfLogits[T]):
    """Mask and probabilities of an image that is run as a whole."""

    _geometry: Geometry

    def _plan(self, height: int, width: int) -> None:
        manifest = self.predictor.manifest
        self._geometry = self.sizes.geometry(1, height, width, manifest)
        for size in ((height, width), self._geometry.padded):
            self.sizes.check_probabilities(size, manifest)

    def fitted(self) -> U8:
        image_HWC = self._image(self.sizes.max_pixels)
        with self.stages.time("preprocess"):
            return self._geometry.fit(image_HWC)[None]

    def finished(self, given: NDArray[Any]) -> T:
        """The mask is the same as in an answer without probabilities."""
        [logits_KHW] = given
        with self.stages.time("postprocess"):
            mask_HW = self._geometry.restore(_best(logits_KHW))
            probabilities_KHW = self._geometry.restore_figures(softmax(logits_KHW)).astype(np.float16)
        return self._answer(mask_HW, probabilities_KHW)


class _Windows(_OfLogits[T]):
    """The mask of an image that is run in windows, one each turn; with the probabilities if it `keeps` them."""

    _blend: Blend
    _geometry: Geometry

    def __init__(
        self,
        predictor: Predictor,
        stages: Stages,
        sizes: Sizes,
        content: bytes,
        finish: Finish[T],
        window: tuple[int, int],
        *,
        keeps: bool,
    ) -> None:
        super().__init__(predictor, stages, sizes, content, finish)
        self._window = window
        self._keeps = keeps
        self._turn = 0
        self._masks: list[U8] = []
        self._probabilities: list[Halves] = []

    def _plan(self, height: int, width: int) -> None:
        manifest = self.predictor.manifest
        self._blend = self.sizes.blend(height, width, self._window, manifest)
        self._geometry = self.sizes.planned(min(height, self._window[0]), min(width, self._window[1]), manifest)
        self.sizes.check_probabilities(self._geometry.padded, manifest)
        if self._keeps:
            self.sizes.check_probabilities((height, width), manifest)

    def fitted(self) -> U8:
        image_HWC = self._image(self.sizes.max_windowed_pixels)
        with self.stages.time("preprocess"):
            return self._geometry.fit(image_HWC[self._blend.windows[self._turn]])[None]

    def finished(self, given: NDArray[Any]) -> T | object:
        [logits_KHW] = given
        with self.stages.time("postprocess"):
            self._turn += 1
            strip_KHW = self._blend.add(self._geometry.restore_figures(softmax(logits_KHW)))
            if strip_KHW is not None:
                self._masks.append(_best(strip_KHW))
                if self._keeps:
                    self._probabilities.append(strip_KHW.astype(np.float16))
            if not self._blend.is_complete:
                return UNFINISHED
            mask_HW = np.concatenate(self._masks)
            probabilities_KHW = np.concatenate(self._probabilities, axis=1) if self._keeps else None
        return self._answer(mask_HW, probabilities_KHW)


def _best(figures_KHW: Figures) -> U8:
    mask_HW: U8 = figures_KHW.argmax(axis=0).astype(np.uint8)
    return mask_HW


def _parsed(window: str) -> tuple[int, int]:
    if not re.fullmatch(WINDOW_PATTERN, window):
        # What was sent is not repeated: it may be long.
        detail = "the window is not HEIGHTxWIDTH in pixels, such as 512x512"
        raise ProblemError(400, "window", f"{detail}; leave it out to have the image run as a whole")
    height, _, width = window.partition("x")
    sides = int(height), int(width)
    if min(sides) < LEAST_WINDOW:
        detail = f"windows have at least {LEAST_WINDOW} pixels on each side, not {window}"
        raise ProblemError(400, "window", f"{detail}; ask for larger ones")
    return sides
