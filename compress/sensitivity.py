"""What it costs to cut each group of coupled layers alone: the result of an analysis, as data. No torch."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from compress.recipe import Criterion


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
