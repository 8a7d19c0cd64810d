"""What single parts of a network cost, as data: groups of layers that are cut, layers that are quantized. No torch."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from compress.settings.prune import Criterion
from compress.settings.quantize import Calibration


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SingleCut(_Part):
    """A network in which one group is narrower and all others are whole, not fine-tuned."""

    share: float
    """Of the channels that should stay; the width is a multiple near it."""
    kept: int
    miou: float
    """On the validation images, in torch float32, with BatchNorm statistics taken again."""


class GroupSensitivity(_Part):
    """One group, and what was cut of it, the widest first; nothing where it is at its floor already."""

    group: str
    width: int
    cuts: tuple[SingleCut, ...]


class Analysis(_Part):
    """Every group of a checkpoint."""

    parent: str
    """Its folder."""
    data: str
    """Of the dataset."""
    images: int
    """Of the validation split, that were scored."""
    importance: Criterion
    """By which the channels that go were chosen."""
    multiple: int
    """Widths are multiples of this."""
    shares: tuple[float, ...]
    miou_parent: float
    groups: tuple[GroupSensitivity, ...]
    """In the order of the network's layers."""

    def lost(self, cut: SingleCut) -> float:
        """mIoU of the parent less that of the cut network; below zero where it gained."""
        return self.miou_parent - cut.miou

    def mean_lost(self, group: GroupSensitivity) -> float:
        """mIoU over all that was cut of the group."""
        return sum(map(self.lost, group.cuts)) / len(group.cuts)

    def most_sensitive_first(self) -> Sequence[GroupSensitivity]:
        """The groups of which something was cut."""
        return sorted((group for group in self.groups if group.cuts), key=self.mean_lost, reverse=True)

    def at_their_floor(self) -> Sequence[GroupSensitivity]:
        """The groups of which nothing can be cut."""
        return [group for group in self.groups if not group.cuts]


class InFloat(_Part):
    """An INT8 graph with some layers in float."""

    layers: tuple[str, ...]
    miou: float
    """On the validation split."""
    iou_per_class: Mapping[str, float | None]
    milliseconds: float
    milliseconds_int8: float
    """Of the graph without any layer in float, in the same run."""

    @property
    def lost_ms(self) -> float:
        """What it costs; below zero where it is faster."""
        return self.milliseconds - self.milliseconds_int8


class LayerEffect(_Part):
    """A layer of an INT8 graph, and what comes back with it in float."""

    layer: str
    operator: str
    sqnr_db: float | None
    """Signal to quantization noise of what the layer gives, in an INT8 graph: 10 log10(sum x**2 / sum (x - x8)**2);
    None where nothing is lost."""
    alone: InFloat
    """The others stay as they are, so what the layer gives is still rounded for its readers."""
    with_readers: InFloat | None
    """What the layer gives stays in float, too; None where nobody but the end of the graph reads it."""

    @property
    def ways(self) -> tuple[InFloat, ...]:
        """Both, where there are two."""
        return (self.alone,) if self.with_readers is None else (self.alone, self.with_readers)


class QuantizationAnalysis(_Part):
    """Every layer of a network that has been quantized."""

    parent: str
    """The checkpoint's folder."""
    data: str
    images: int
    """Of the validation split."""
    calibration: Calibration
    miou_float: float
    miou_int8: float
    iou_per_class_int8: Mapping[str, float | None]
    size: tuple[int, int]
    """Height and width at which was timed."""
    threads: int
    layers: tuple[LayerEffect, ...]
    """In the order of the network."""

    def won(self, way: InFloat) -> float:
        """mIoU that comes back; below zero where it goes."""
        return way.miou - self.miou_int8

    def most_won(self, effect: LayerEffect) -> float:
        """By the better of its ways."""
        return max(map(self.won, effect.ways))

    def most_won_first(self) -> Sequence[LayerEffect]:
        """By mIoU that comes back."""
        return sorted(self.layers, key=self.most_won, reverse=True)
