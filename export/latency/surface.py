"""Interpolation between measured widths: bilinear, as the time of a convolution is in its channels in and out."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from itertools import product

from export.latency.kinds import Pair


class Surface:
    """Values at pairs of widths: exact at these, and between them never beyond the values around."""

    def __init__(self, values: Mapping[Pair, float]) -> None:
        self._values = values
        self._asked: dict[Pair, float | None] = {}
        self._ins = sorted({x for x, _ in values})
        self._outs = sorted({y for _, y in values})

    def at(self, x: int, y: int) -> float | None:
        """None outside the measured widths. Answers are cached, because a search repeats its questions."""
        asked = x, y
        if asked not in self._asked:
            self._asked[asked] = self._between(x, y)
        return self._asked[asked]

    def _between(self, x: int, y: int) -> float | None:
        """From the nearest four corners that were all measured: layers of one kind need not share their widths."""
        for (x0, x1), (y0, y1) in product(_around(self._ins, x), list(_around(self._outs, y))):
            corners = [self._values.get(corner) for corner in ((x0, y0), (x0, y1), (x1, y0), (x1, y1))]
            low_low, low_high, high_low, high_high = corners
            if low_low is None or low_high is None or high_low is None or high_high is None:
                continue
            share_x, share_y = _share(x0, x, x1), _share(y0, y, y1)
            low = low_low + share_y * (low_high - low_low)
            high = high_low + share_y * (high_high - high_low)
            return low + share_x * (high - low)
        return None


def _around(widths: list[int], width: int) -> Iterator[Pair]:
    """Pairs that `width` lies between, the nearest first."""
    below = widths[: bisect_right(widths, width)][::-1]
    above = widths[bisect_left(widths, width) :]
    yield from product(below, above)


def _share(low: int, width: int, high: int) -> float:
    return (width - low) / (high - low) if high > low else 0.0
