"""Measured times of layers, as a file, and the time of a network that they predict."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export.errors import UsageError, field_problems
from export.latency.grid import keys_needed
from export.latency.kinds import LayerKey, LayerKind, Pair
from export.latency.layers import Layer
from export.latency.surface import Surface
from export.machine import Machine
from export.manifest import Precision

SCHEMA_VERSION = 1

_AGAIN = "measure it again: compress bench table BUNDLE --size HxW --out FILE"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Point(_Part):
    """One layer key, measured."""

    channels_in: Annotated[int, Field(ge=1)]
    channels_out: Annotated[int, Field(ge=1)]
    microseconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """In the fastest run of its probe."""
    reference_microseconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Of the reference convolution, in its fastest run in the same probe."""

    @property
    def ratio(self) -> float:
        return self.microseconds / self.reference_microseconds


class Entry(_Part):
    """All points of one kind of layer."""

    kind: LayerKind
    points: tuple[Point, ...]


class LatencyTable(_Part):
    """Times of layers in one precision, with one number of threads, on one machine, as ratios to the reference.

    The machine is the one that will serve, not the one that reads the table.
    """

    schema_version: Literal[1] = 1
    machine: Machine
    onnxruntime: str
    precision: Precision
    threads: Annotated[int, Field(ge=1)]
    sizes: tuple[Pair, ...] = ()
    """Heights and widths of the images whose layers were measured."""
    entries: tuple[Entry, ...] = ()

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Raises UsageError for a file that is missing, damaged, or of another version."""
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise UsageError(f"{path}: no such table; {_AGAIN}") from error
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}; name the file of a table") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not JSON: {error}; delete it, and {_AGAIN}") from error
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise UsageError(f"{path}: schema_version is {version!r}, this segpress reads {SCHEMA_VERSION}; {_AGAIN}")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = field_problems(error.errors())[0]
            raise UsageError(f"{path} is damaged: {first}; delete it, and {_AGAIN}") from error

    def __contains__(self, key: LayerKey) -> bool:
        """Whether this very key was measured."""
        return key in self._measured

    def __len__(self) -> int:
        """How many keys were measured."""
        return len(self._measured)

    @property
    def reference_ms(self) -> float:
        """Milliseconds of the reference convolution when the table was measured; nan for an empty table."""
        times = [point.reference_microseconds for entry in self.entries for point in entry.points]
        return median(times) / 1e3 if times else float("nan")

    def ratio(self, key: LayerKey) -> float:
        """Time of a layer over that of the reference: as measured, bilinear between; 0 for what is not modelled.

        Raises UsageError for a layer that the table does not cover.
        """
        ratio = self._known(key)
        if ratio is None:
            raise UsageError(f"the table does not cover {key}; {_AGAIN}")
        return ratio

    def predict(
        self, layers: Sequence[Layer], widths: Mapping[str, int], *, reference_ms: float | None = None
    ) -> float:
        """Milliseconds of a network at these widths of its groups: the sum over its layers.

        `reference_ms` is what the reference takes now (`reference_now`), else what it took when the table was measured.
        Raises UsageError for a layer that the table does not cover, naming it.
        """
        return sum(self._ratios(layers, widths)) * (self.reference_ms if reference_ms is None else reference_ms)

    def require(
        self,
        layers: Sequence[Layer],
        choices: Mapping[str, Sequence[int]],
        *,
        precision: Precision,
        size: Pair,
        source: Path | str = "the table",
    ) -> None:
        """Refuse a table of another precision, image size or network, before anything rests on it.

        Raises UsageError, with what is measured, what is wanted, and what to do.
        """
        again = f"measure on the machine that will serve: compress bench table BUNDLE --size {size[0]}x{size[1]}"
        again += f" --precision {precision} --out FILE"
        if precision != self.precision:
            raise UsageError(f"{source} was measured in {self.precision} and {precision} is asked for; {again}")
        if size not in self.sizes:
            measured = ", ".join(f"{height}x{width}" for height, width in self.sizes) or "no size"
            raise UsageError(f"{source} was measured at {measured}, not at {size[0]}x{size[1]}; {again}")
        missing = [key for key in keys_needed(layers, choices) if not self.covers(key)]
        if missing:
            raise UsageError(
                f"{source} does not cover {len(missing)} layers, such as {missing[0]}: it is of another network, or "
                f"widths below 16 are asked for (prune.channel_multiple); {again}"
            )

    def covers(self, key: LayerKey) -> bool:
        """Whether `ratio` has an answer."""
        return self._known(key) is not None

    def merged(self, points: Iterable[tuple[LayerKind, Point]], sizes: Iterable[Pair] = ()) -> "LatencyTable":
        """This table with more points, which replace those of the same key, and more image sizes."""
        by_kind = {entry.kind: {(p.channels_in, p.channels_out): p for p in entry.points} for entry in self.entries}
        for kind, point in points:
            by_kind.setdefault(kind, {})[point.channels_in, point.channels_out] = point
        entries = tuple(
            Entry(kind=kind, points=tuple(point for _, point in sorted(found.items())))
            for kind, found in by_kind.items()
        )
        return self.model_copy(update={"entries": entries, "sizes": tuple(sorted({*self.sizes, *sizes}))})

    def points(self) -> Iterable[tuple[LayerKind, Point]]:
        """All that was measured."""
        return ((entry.kind, point) for entry in self.entries for point in entry.points)

    def _ratios(self, layers: Sequence[Layer], widths: Mapping[str, int]) -> list[float]:
        try:
            return [self.ratio(layer.at(widths)) for layer in layers]
        except UsageError:
            for layer in layers:
                key = layer.at(widths)
                if not self.covers(key):
                    raise UsageError(f"the table does not cover the layer {layer.name}: {key}; {_AGAIN}") from None
            raise

    def _known(self, key: LayerKey) -> float | None:
        if not key.channels_in or not key.channels_out:
            return 0.0  # it has gone with the part of the network that it belonged to
        surface = self._surfaces.get(key.kind)
        if surface is None:
            return None if key.kind.takes_time(self.precision) else 0.0
        return surface.at(*_place(key.kind, key.channels_in, key.channels_out))

    @cached_property
    def _measured(self) -> frozenset[LayerKey]:
        return frozenset(LayerKey(kind, point.channels_in, point.channels_out) for kind, point in self.points())

    @cached_property
    def _surfaces(self) -> dict[LayerKind, Surface]:
        return {
            entry.kind: Surface({_place(entry.kind, p.channels_in, p.channels_out): p.ratio for p in entry.points})
            for entry in self.entries
        }


def _place(kind: LayerKind, channels_in: int, channels_out: int) -> Pair:
    """Where a layer stands on the surface of its kind: on a line, when it has one width."""
    return (channels_in, channels_out) if kind.mixes else (channels_in, 0)
