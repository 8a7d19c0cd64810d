"""Which form each place of a graph takes: the one that measures fastest on this machine."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx

from compress.quantize.rewrites.dealt import Dealt
from compress.quantize.rewrites.edit import Editor
from compress.quantize.rewrites.folded import Folded
from compress.quantize.rewrites.matrix import AsMatrix
from compress.quantize.rewrites.repeated import Repeated
from export.timing import Samples

MARGIN = 0.01
"""Share of a graph's time that a rewrite must save to be kept."""
PLACE_MARGIN = 0.05
"""The same for a single place, whose time is less certain."""
PLAIN = "plain"
"""Name, in what is saved, of the form that a place had."""

KernelTimes = Mapping[str, float]
"""Milliseconds by the name of the node."""
Profiler = Callable[[Mapping[str, onnx.ModelProto]], Mapping[str, KernelTimes]]
"""Times the nodes of several graphs, given by name, in turns."""


class Form(Protocol):
    """Another way to compute the same at a place in a graph; a place is the name of a node."""

    @property
    def name(self) -> str: ...

    def places(self, model: onnx.ModelProto) -> Mapping[str, Sequence[str]]:
        """The places where `model` can take this form, and the nodes that it replaces there."""

    def apply(self, model: onnx.ModelProto, places: Collection[str]) -> onnx.ModelProto:
        """`model` with `places` in this form, except those that cannot take it; `model` itself is not changed."""


def integer_forms(multiple: int) -> tuple[Form, ...]:
    """The forms for an INT8 graph whose images' sides are multiples of `multiple`; all give the same integers."""
    folds = [Folded(columns, inputs, multiple) for columns in (2, 4) for inputs in (True, False)]
    return (*folds, AsMatrix(), Repeated(), Dealt())


def costs(model: onnx.ModelProto, forms: Iterable[Form], profile: Profiler) -> dict[str, dict[str, float]]:
    """Milliseconds of every place that could take one of `forms`, by the name of the form; `PLAIN` as it is.

    Every form is timed at all places at once, and each place by itself.
    """
    found = {form.name: (form, places) for form in forms if (places := form.places(model))}
    if not found:
        return {}
    graphs = {name: form.apply(model, places) for name, (form, places) in found.items()}
    times = profile({PLAIN: named(model), **graphs})
    return {
        place: {
            PLAIN: cost_of((place,), times[PLAIN]),
            **{name: cost_of((place,), times[name]) for name, (_, places) in found.items() if place in places},
        }
        for place in dict.fromkeys(place for _, places in found.values() for place in places)
    }


def best_of(measured: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """From the result of `costs`, the fastest form of every place where that gains on what is there."""
    chosen = {}
    for place, times in measured.items():
        best = min((name for name in times if name != PLAIN), key=lambda name: times[name])
        if _less(times[best], times[PLAIN]):
            chosen[place] = best
    return chosen


def formed(model: onnx.ModelProto, chosen: Mapping[str, str], forms: Iterable[Form]) -> onnx.ModelProto:
    """`model` with every place in the form that `best_of` chose."""
    for form in forms:
        places = [place for place, name in chosen.items() if name == form.name]
        if places:
            model = form.apply(model, places)
    return model


def faster_places(plain: KernelTimes, other: KernelTimes, places: Mapping[str, Sequence[str]]) -> list[str]:
    """Those of `places` that take less time in `other` than the nodes that they replace take in `plain`."""
    return [place for place, replaced in places.items() if _less(cost_of((place,), other), cost_of(replaced, plain))]


def gains(plain: Samples, other: Samples) -> bool:
    """Whether `other` is faster by more than the noise: the upper end of the 95 % interval of the median of the ratios
    within a round is below 1 by `MARGIN`."""
    ratios = np.sort(np.array(other.milliseconds) / np.array(plain.milliseconds))
    # The interval of a median by order statistics: sqrt(n) / 2 is the deviation of how many values lie below it.
    upper = math.ceil(len(ratios) / 2 + 0.98 * math.sqrt(len(ratios)))
    return bool(ratios[min(upper, len(ratios)) - 1] < 1 - MARGIN)


def cost_of(nodes: Iterable[str], times: KernelTimes) -> float:
    """Milliseconds of `nodes` and of all that has been put in their place."""
    wanted = tuple(nodes)
    return sum(
        taken for name, taken in times.items() if any(name == node or name.startswith(f"{node}/") for node in wanted)
    )


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which every node has the name by which forms know it."""
    return Editor(model).done()


def _less(cost: float, plain: float) -> bool:
    """Whether `cost` is less by the margin; it is 0 for nodes that a profile does not have."""
    return 0 < cost < (1 - PLACE_MARGIN) * plain
