"""The widths at which layers are measured; between them a table interpolates."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from export.errors import ShapeError
from export.latency.kinds import OTHER, LayerKey
from export.latency.layers import Layer
from export.latency.linear import Linear

STEP = 16
"""Kernel times step at its multiples (compress/README.md)."""


def grid(full: int, *, least: int = STEP) -> tuple[int, ...]:
    """Multiples of 16, two in each octave, from `least` to `full`, both of which are among them."""
    least = min(least, full)
    return (least, *(width for width in _steps(full) if width > least), *((full,) if full > least else ()))


def keys_needed(layers: Sequence[Layer], choices: Mapping[str, Sequence[int]]) -> tuple[LayerKey, ...]:
    """What a table must hold to predict `layers` for any widths among `choices` (group to widths), each key once.

    A layer without channels is not measured, so 0 among the choices asks for layers as narrow as they can get.

    Raises UsageError for a group without choices, ShapeError for layers whose channels are not known.
    """
    low = {group: min(widths) for group, widths in choices.items()}
    high = {group: max(widths) for group, widths in choices.items()}

    def between(channels: Linear) -> tuple[int, ...]:
        alone = (channels.at({**low, group: min(filter(None, choices[group]))}) for group, _ in channels.terms)
        least = channels.at(low) or min(alone, default=0)
        if not least:
            raise ShapeError("ONNX does not infer how many channels one of its maps has (tokens that become a map?)")
        return grid(channels.at(high), least=least)

    keys: dict[LayerKey, None] = {}
    for layer in layers:
        if layer.kind.op == OTHER:
            continue
        outs = between(layer.channels_out)
        pairs = product(between(layer.channels_in), outs) if layer.kind.mixes else zip(outs, outs, strict=True)
        keys.update(dict.fromkeys(LayerKey(layer.kind, *pair) for pair in pairs))
    return tuple(keys)


def _steps(below: int) -> Iterator[int]:
    """16, 32, 48, 64, 96, 128, 192 ... below `below`."""
    octave = STEP
    while octave < below:
        yield octave
        if octave > STEP and octave * 3 // 2 < below:
            yield octave * 3 // 2
        octave *= 2
