"""Show rare classes more often: the images that have them, and the places where they are.

H height, W width; masks are uint8, void is 255.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.scoring import VOID


def repeats(classes_of: Sequence[Iterable[int]], threshold: float) -> NDArray[np.float64]:
    """How often each image is shown in an epoch, 1 on average, given the classes in each image.

    Before scaling, the factor of an image is that of its rarest class, sqrt(threshold / share of the images that have
    it), and at least 1. Source: Gupta et al. 2019 (arXiv:1908.03195), repeat factor sampling.
    """
    held = [set(classes) for classes in classes_of]
    share = {one: sum(one in other for other in held) / len(held) for one in set().union(*held)}
    factors = np.array([max([1.0, *((threshold / share[one]) ** 0.5 for one in classes)]) for classes in held])
    shown: NDArray[np.float64] = factors / factors.mean()
    return shown


def order(rng: np.random.Generator, repeats_N: NDArray[np.float64]) -> NDArray[np.intp]:
    """As many images as there are, shuffled; image n comes `repeats_N[n]` times, rounded up or down at random."""
    count = len(repeats_N)
    # Systematic sampling: marks one apart, laid over the factors end to end.
    marks = np.arange(count) + rng.random()
    ends = np.cumsum(repeats_N) * (count / repeats_N.sum())
    drawn = np.searchsorted(ends, marks, side="right").clip(max=count - 1)
    return rng.permutation(drawn)


def classes_in(mask_HW: Tensor) -> list[int]:
    """The classes in a mask, ascending, void left out."""
    classes: list[int] = torch.bincount(mask_HW.flatten(), minlength=VOID + 1)[:VOID].nonzero().flatten().tolist()
    return classes


def place(rng: np.random.Generator, mask_HW: Tensor) -> tuple[int, int] | None:
    """A random pixel (row, column) of a class drawn evenly from those in the mask; None if all is void."""
    classes = classes_in(mask_HW)
    if not classes:
        return None
    pixels = (mask_HW == classes[int(rng.integers(len(classes)))]).nonzero()
    row, column = pixels[int(rng.integers(len(pixels)))].tolist()
    return row, column
