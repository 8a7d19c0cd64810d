"""The section `prune`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compress.settings.common import LearningRate, Positive, Settings, Share, SizeHW
from compress.settings.fit import FitSettings
from export.manifest import Precision

Criterion = Literal["l2", "l1", "bn-scale", "taylor", "activation", "fpgm", "random"]
Scope = Literal["global", "local"]


class DistillSettings(FitSettings):
    """Recovery after pruning: the parent teaches."""

    SECTION: ClassVar[str] = "prune.finetune"

    epochs: Positive = 15
    learning_rate: LearningRate = 5e-4


class PruneSettings(Settings):
    """How much to cut, and how to recover. `speedup`, `latency_ms`, `ratio`, `levels` and `sparsity` exclude each
    other; without any of them the network is made as fast as `max_drop` and `min_iou` allow."""

    speedup: Annotated[float, Field(gt=1)] | None = None
    """Measured latency of the parent over that of the child, both through ONNX Runtime in `precision`."""
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    """The same goal, in milliseconds an image."""
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the channels that go, the least important first."""
    levels: Positive | None = None
    """Depth that is kept of a UNet++ with deep supervision; no channels go, and nothing has to recover."""
    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the single weights that become zero, the smallest over the whole network; shapes stay, and so does the
    latency. Zeros save bytes where the file is compressed."""
    max_drop: Share | None = None
    """mIoU that may be lost on the validation split, absolute; 0.01 is one point. None: the loss is only told."""
    min_iou: dict[str, Share] = Field(default_factory=dict)
    """Floors of the IoU on the validation split, by class."""
    rounds: Positive = 1
    """Cuts on the way to the goal, with a recovery after each. Without a goal there are as many as the budget pays."""
    tries: Positive = 2
    """Ways that are taken while `max_drop` or `min_iou` is missed at the goal, each in twice as many rounds."""
    precision: Precision = "fp32"
    """In which latency is measured: int8 where quantization follows, and what it will gain is to be counted in. Parent
    and child are quantized plainly then, without the forms and the float first layer that `compress quantize` chooses
    by the clock afterwards: goal and figures are those of plain INT8, and what ships may gain more or less over its
    parent."""
    search: Literal["table", "ratio"] = "table"
    """table: a width for every group, the least importance lost for the milliseconds that a table of measured layers
    says; ratio: one share for all (`scope` local) or one threshold of importance (global), found by bisection."""
    latency_table: Path | None = None
    """Measured by `compress bench table` on the machine that will serve; None: measured here, and kept."""
    whole_parts: bool = True
    """Where widths are chosen by the table, the deepest levels of a UNet and what residual blocks add to their input
    may go as a whole."""
    channel_multiple: Positive = 16
    """Widths are kept in multiples of this, and not below it; the INT8 and FP32 kernels step here."""
    importance: Criterion = "l2"
    """What a channel is worth. By the weights that go with it: l2 and l1, how large they are in all coupled layers;
    bn-scale, its BatchNorm scales; fpgm, how unlike the other channels it is. By training images: taylor, how much the
    loss of `finetune` would change to first order; activation, how much it fires. By chance (`finetune.seed`), the
    control: random."""
    scope: Scope = "global"
    """global: the least important channels of the whole network go; local: the same share of each group of layers, for
    `ratio` and for `search` = ratio."""
    latency_size: SizeHW | None = None
    """Height and width at which latency is measured; None: that of the validation images."""
    analysis_images: Positive | None = None
    """Validation images that `compress prune --analyze` scores on, drawn by the hash of their names; None: all."""
    finetune: DistillSettings = DistillSettings()

    GOALS: ClassVar[tuple[str, ...]] = ("speedup", "latency_ms", "ratio", "levels", "sparsity")

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if len(self.goals) > 1:
            raise ValueError(f"{', '.join(self.goals)} exclude each other; give one")
        return self

    @model_validator(mode="after")
    def _table_where_there_is_a_search(self) -> Self:
        searched = self.says_how_much and not self.goals.keys() - {"speedup", "latency_ms"}
        if self.latency_table is not None and self.says_how_much and not (searched and self.search == "table"):
            raise ValueError("latency_table is for a goal of speed, and for search = 'table'; leave it out")
        if self.scope == "local" and searched and self.search == "table":
            raise ValueError(
                "scope = 'local' cuts the same share of each group, and search = 'table' chooses a width for each: set "
                "search = 'ratio', or leave scope out"
            )
        return self

    @property
    def says_how_much(self) -> bool:
        """A goal, or a budget that may be spent."""
        return bool(self.goals or self.min_iou) or self.max_drop is not None

    @property
    def goals(self) -> dict[str, float]:
        """What was asked for, by name: none or one of `GOALS`."""
        asked = {name: getattr(self, name) for name in self.GOALS}
        return {name: value for name, value in asked.items() if value is not None}
