"""Two forms of one model, given the same images: do they give the same answers?

Float: torch against the shipped graph; |Δlogit| <= 1e-3 · max|logit|, and <= 0.01 % of the pixels may differ. INT8:
the optimised graph against the graph as written; <= 0.1 % of the pixels may differ, ties left out. A pixel is a tie
where its two best logits are less than two quantization steps apart: rounding alone decides it, and a model that is
unsure of many pixels has many. In ties, <= 5 % of the pixels may differ. Both: a batch equals its singles.

A deep network may amplify a last bit from layer to layer until masks differ. Where they do, each kernel is compared by
itself, on the inputs that the graph as written computes. If none is off by more than one step, or in more than 0.5 %
of its values, the difference is rounding that grows, and 1 % of the pixels may differ.

N batch, H height, W width, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from export.errors import ParityError
from export.images import U8, Geometry
from export.runtime import OnnxModel

if TYPE_CHECKING:
    from torch import nn

BATCHES = (1, 2, 3, 8)
LOGIT_TOLERANCE = 1e-3
FLOAT_PIXELS = 0.0001
INT8_PIXELS = 0.001
INT8_TIES = 0.05
TIE_STEPS = 2
ROUNDED_PIXELS = 0.01
"""Where each kernel by itself is right; as many as golden answers may differ in on another kind of machine."""
KERNEL_STEPS = 1
KERNEL_VALUES = 0.005


class Case(BaseModel):
    """One batch at one size."""

    model_config = ConfigDict(frozen=True)

    batch: int
    height: int
    width: int
    max_logit: float | None = None
    max_logit_difference: float | None = None
    differing_pixels: float
    """Share of all pixels of the batch; for INT8 those that differ and are no tie."""
    differing_ties: float = 0.0
    """Share of all pixels that differ and are ties."""
    batch_differs_from_singles: float
    """Share of pixels in which the batch's answer is not that of its images one by one."""


class Kernels(BaseModel):
    """Each kernel of an INT8 graph by itself: optimised against as written, on inputs from the graph as written."""

    model_config = ConfigDict(frozen=True)

    count: int
    worst: str
    """The tensor that is furthest off."""
    steps: int
    """Its largest difference, in quantization steps."""
    differing_values: float
    """The largest share of a tensor's values that differ."""

    @property
    def hold(self) -> bool:
        return self.steps <= KERNEL_STEPS and self.differing_values <= KERNEL_VALUES

    def __str__(self) -> str:
        return (
            f"of {self.count} kernels, each by itself, none is off by more than {self.steps} of 255 steps, or in more "
            f"than {self.differing_values:.3%} of its values"
        )


class Parity(BaseModel):
    """parity.json"""

    model_config = ConfigDict(frozen=True)

    kind: Literal["torch-onnxruntime", "optimised-unoptimised"]
    pixel_tolerance: float
    logit_tolerance: float | None = None
    """Relative to the largest logit."""
    cases: tuple[Case, ...]
    images: str
    """Where the images came from."""
    kernels: Kernels | None = None
    """Compared only where more pixels differ than `pixel_tolerance`."""
    miou: dict[str, float] | None = None
    """Of each form, on the same images, where there is a truth."""

    def problems(self) -> list[str]:
        """What is beyond a tolerance, a line each."""
        return list(self._problems())

    def require(self) -> None:
        """Raises ParityError when a tolerance is broken."""
        problems = self.problems()
        if problems:
            raise ParityError(
                f"{self.kind} parity does not hold:" + "".join(f"\n  - {problem}" for problem in problems)
            )

    @property
    def masks_differ(self) -> bool:
        """Whether at some size more pixels differ than may where no kernel has been looked at."""
        return any(self._differing(cases) > self.pixel_tolerance for _, cases in self._sizes())

    def _sizes(self) -> Iterator[tuple[tuple[int, int], list[Case]]]:
        for size in sorted({(case.height, case.width) for case in self.cases}):
            yield size, [case for case in self.cases if (case.height, case.width) == size]

    @staticmethod
    def _differing(cases: Sequence[Case]) -> float:
        return sum(case.batch * case.differing_pixels for case in cases) / sum(case.batch for case in cases)

    def _problems(self) -> Iterator[str]:
        if self.kernels is not None and not self.kernels.hold:
            yield (
                f"the runtime's kernel for {self.kernels.worst} is wrong: off by {self.kernels.steps} of 255 steps, "
                f"and it or another in {self.kernels.differing_values:.3%} of its values; {KERNEL_STEPS} and "
                f"{KERNEL_VALUES:.1%} are allowed"
            )
        for (height, width), cases in self._sizes():
            yield from self._problems_at(f"{height}x{width}", cases)

    def _problems_at(self, where: str, cases: Sequence[Case]) -> Iterator[str]:
        """Pixels are counted over all batches of one size: a single small image has too few to judge 0.01 % by."""
        images = sum(case.batch for case in cases)
        differing = self._differing(cases)
        allowed_pixels = ROUNDED_PIXELS if self.kernels is not None and self.kernels.hold else self.pixel_tolerance
        dependent = sum(case.batch * case.batch_differs_from_singles for case in cases) / images
        if differing > allowed_pixels:
            yield f"{where}: {differing:.3%} of the pixels differ, at most {allowed_pixels:.3%} may"
        ties = sum(case.batch * case.differing_ties for case in cases) / images
        if ties > INT8_TIES:
            yield (
                f"{where}: {ties:.3%} of the pixels differ in ties, at most {INT8_TIES:.3%} may; the network is "
                "unsure of too many pixels to be proven, train it for longer"
            )
        if dependent > self.pixel_tolerance:
            yield f"{where}: {dependent:.3%} of the pixels depend on the rest of the batch"
        if self.logit_tolerance is not None:
            # np.max keeps a NaN that any of the cases holds; the built-in max may lose it.
            allowed = self.logit_tolerance * np.max([case.max_logit or 0 for case in cases])
            difference = np.max([case.max_logit_difference or 0 for case in cases])
            if not difference <= allowed:
                yield f"{where}: logits differ by {difference:.2e}, at most {allowed:.2e} is allowed"


def batches(images: Sequence[U8], multiple: int, sizes: Sequence[tuple[int, int]]) -> Iterator[U8]:
    """Every batch size at every size (height, width): real images, resized and padded to it; uint8 NHWC."""
    for size in sizes:
        fitted = [
            Geometry.plan(*image.shape[:2], size=size, multiple=multiple).fit(image) for image in images[: max(BATCHES)]
        ]
        for batch in BATCHES:
            yield np.stack([fitted[i % len(fitted)] for i in range(batch)])


def sizes_to_prove(size: tuple[int, int], multiple: int) -> tuple[tuple[int, int], ...]:
    """The (height, width) that the model is used at and two others, none of which the exporter traced.

    The others are odd multiples of the model's `multiple`, and large enough to judge a share of pixels by.
    """

    def odd(side: int) -> int:
        return multiple * (side // multiple | 1)

    return size, (odd(80), odd(48)), (odd(112), odd(144))


def float_parity(
    network: nn.Module, shipped: OnnxModel, with_logits: OnnxModel, inputs: Iterator[U8], *, images: str
) -> Parity:
    """Torch (float32, CPU) against the graph at the optimisation level that serves."""
    import torch

    from export.to_onnx import MEAN, STD

    network = network.eval()
    cases = []
    for batch in inputs:
        with torch.inference_mode():
            tensor = (torch.from_numpy(batch).permute(0, 3, 1, 2).float() - MEAN) / STD
            expected = network(tensor).numpy()
        logits = with_logits.logits(batch)
        masks = shipped.masks(batch)
        cases.append(
            Case(
                **_place(batch),
                max_logit=float(np.abs(expected).max()),
                max_logit_difference=float(np.abs(expected - logits).max()),
                differing_pixels=_share(expected.argmax(1), masks),
                batch_differs_from_singles=_share(masks, _singles(shipped.masks, batch)),
            )
        )
    return Parity(
        kind="torch-onnxruntime",
        pixel_tolerance=FLOAT_PIXELS,
        logit_tolerance=LOGIT_TOLERANCE,
        cases=tuple(cases),
        images=images,
    )


def int8_parity(
    optimised: OnnxModel, as_written: OnnxModel, inputs: Iterator[U8], *, logit_step: float, images: str
) -> Parity:
    """The graph that serves against the graph as written: fused integer kernels may round, not err.

    `as_written` runs unoptimised and gives logits too; `logit_step` is the scale of their quantization.
    """
    cases = []
    for batch in inputs:
        masks = optimised.masks(batch)
        differs = masks != as_written.masks(batch)
        second, best = np.partition(as_written.logits(batch), (-2, -1), axis=1)[:, -2:].swapaxes(0, 1)
        tie = best - second < TIE_STEPS * logit_step
        cases.append(
            Case(
                **_place(batch),
                differing_pixels=float(np.mean(differs & ~tie)),
                differing_ties=float(np.mean(differs & tie)),
                batch_differs_from_singles=_share(masks, _singles(optimised.masks, batch)),
            )
        )
    return Parity(kind="optimised-unoptimised", pixel_tolerance=INT8_PIXELS, cases=tuple(cases), images=images)


def _place(batch_NHWC: U8) -> dict[str, int]:
    n, height, width, _ = batch_NHWC.shape
    return {"batch": n, "height": height, "width": width}


def _singles(masks: Callable[[U8], U8], batch_NHWC: U8) -> U8:
    return np.concatenate([masks(batch_NHWC[i : i + 1]) for i in range(len(batch_NHWC))])


def _share(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    return float(np.mean(a != b))
