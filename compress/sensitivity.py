"""What cutting single groups of layers costs, and what quantizing single layers costs, as data. No torch."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from compress.settings.prune import Criterion
from compress.settings.quantize import Calibration


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SingleCut(_Part):
    """A network in which one group is narrower and all others are whole, not fine-tuned."""

    share: float
    """Share of the channels that should stay; the width is the nearest multiple."""
    kept: int
    miou: float
    """On the validation images, in torch float32, with BatchNorm statistics recomputed."""


class GroupSensitivity(_Part):
    """One group and its cuts, the widest first; none where it is already at its floor."""

    group: str
    width: int
    cuts: tuple[SingleCut, ...]


class Analysis(_Part):
    """Every group of a checkpoint."""

    parent: str
    """Its folder."""
    data: str
    """Folder of the dataset."""
    images: int
    """How many images of the validation split were scored."""
    importance: Criterion
    """The criterion that chose the channels to cut."""
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
        """Mean mIoU lost over the group's cuts."""
        return sum(map(self.lost, group.cuts)) / len(group.cuts)

    def most_sensitive_first(self) -> Sequence[GroupSensitivity]:
        """The groups that were cut."""
        return sorted((group for group in self.groups if group.cuts), key=self.mean_lost, reverse=True)

    def at_their_floor(self) -> Sequence[GroupSensitivity]:
        """The groups that cannot be cut."""
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
        """The time that the float layers cost; below zero where they are faster."""
        return self.milliseconds - self.milliseconds_int8


class LayerEffect(_Part):
    """A layer of an INT8 graph, and what is regained with it in float."""

    layer: str
    operator: str
    sqnr_db: float | None
    """Signal to quantization noise of the layer's output, in an INT8 graph: 10 log10(sum x**2 / sum (x - x8)**2);
    None where nothing is lost."""
    alone: InFloat
    """The other layers stay in INT8, so the layer's output is still rounded for its readers."""
    with_readers: InFloat | None
    """Its readers are in float, too, and so is its output; None where only the end of the graph reads it."""

    @property
    def ways(self) -> tuple[InFloat, ...]:
        """Both, where there are two."""
        return (self.alone,) if self.with_readers is None else (self.alone, self.with_readers)


class QuantizationAnalysis(_Part):
    """Every layer of a quantized network."""

    parent: str
    """The checkpoint's folder."""
    data: str
    images: int
    """How many images of the validation split were scored."""
    calibration: Calibration
    miou_float: float
    miou_int8: float
    iou_per_class_int8: Mapping[str, float | None]
    size: tuple[int, int]
    """Height and width at which the graphs were timed."""
    threads: int
    layers: tuple[LayerEffect, ...]
    """In the order of the network."""

    def won(self, way: InFloat) -> float:
        """mIoU regained; below zero where more is lost."""
        return way.miou - self.miou_int8

    def most_won(self, effect: LayerEffect) -> float:
        """mIoU regained in the better of its ways."""
        return max(map(self.won, effect.ways))

    def most_won_first(self) -> Sequence[LayerEffect]:
        """The layers by mIoU regained."""
        return sorted(self.layers, key=self.most_won, reverse=True)
