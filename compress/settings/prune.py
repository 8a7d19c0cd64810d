"""The section `prune`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compress.settings.common import LearningRate, Positive, Settings, Share, SizeHW
from compress.settings.fit import FitSettings
from export.manifest import Precision

Criterion = Literal["l2", "l1", "bn-scale", "taylor", "activation", "fpgm", "random"]
Scope = Literal["global", "local"]


class DistillSettings(FitSettings):
    """Fine-tuning after pruning, with the parent as teacher."""

    SECTION: ClassVar[str] = "prune.finetune"

    epochs: Positive = 15
    learning_rate: LearningRate = 5e-4


class PruneSettings(Settings):
    """How much to cut, and how to recover. Of `speedup`, `latency_ms`, `ratio`, `levels` and `sparsity` only one may be
    set. Without any of them the network is made as fast as `max_drop` and `min_iou` allow."""

    speedup: Annotated[float, Field(gt=1)] | None = None
    """Speed-up to reach: latency of the parent over that of the child, both measured through ONNX Runtime in
    `precision`."""
    latency_ms: Annotated[float, Field(ge=1e-6)] | None = None
    """The same goal in milliseconds per image."""
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the channels to remove, the least important first; widths are rounded to `channel_multiple`."""
    levels: Positive | None = None
    """Depth to keep of a UNet++ with deep supervision. No channels are removed, and nothing has to recover."""
    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the single weights to set to zero, the smallest of the whole network. Shapes and latency stay the same.
    Zeros save bytes where the file is compressed."""
    max_drop: Share | None = None
    """mIoU that may be lost on the validation split, absolute; 0.01 is one point. None: the loss is only reported."""
    min_iou: dict[str, Share] = Field(default_factory=dict)
    """Lowest IoU allowed on the validation split, by class."""
    rounds: Positive = 1
    """Cuts on the way to the goal, each followed by fine-tuning. Without a goal there are as many as the budget
    allows."""
    tries: Positive = 2
    """Attempts at the goal while `max_drop` or `min_iou` is missed, each in twice as many rounds as the one before."""
    precision: Precision = "fp32"
    """Precision in which latency is measured: int8 if quantization follows and its gain should count. Parent and child
    are then quantized plainly, without the operator forms and the float first layer that `compress quantize` later
    chooses by timing. Goal and figures are those of plain INT8, so the model that ships may gain more or less over its
    parent."""
    search: Literal["table", "ratio"] = "table"
    """table: a width for each group of layers, doing the least damage for the milliseconds that a table of measured
    layers predicts; damage is the importance lost, which weighs more the less of a group is left. ratio: one share for
    all groups (`scope` local) or one threshold of importance (global), found by bisection."""
    latency_table: Path | None = None
    """Table from `compress bench table` on the machine that will serve. None: layers are timed here and the times
    cached."""
    whole_parts: bool = True
    """With `search` = table, the deepest levels of a UNet and what residual blocks add to their input may be removed
    entirely."""
    channel_multiple: Positive = 16
    """Widths stay multiples of this and never fall below it. The default is the step of the INT8 and FP32 kernels."""
    importance: Criterion = "l2"
    """How the importance of a channel is judged. By its weights: l2 and l1, their size in all coupled layers; bn-scale,
    its BatchNorm scales; fpgm, how unlike the other channels it is. By training images: taylor, the first-order change
    of the loss of `finetune`; activation, how strongly it fires. By chance (`finetune.seed`), as a control: random."""
    scope: Scope = "global"
    """global: the least important channels of the whole network are removed. local: the same share of each group of
    layers, for `ratio` and for `search` = ratio."""
    latency_size: SizeHW | None = None
    """Height and width at which latency is measured. None: those of `data.size` in the model's training, else the most
    common of the dataset."""
    analysis_images: Positive | None = None
    """Validation images that `compress prune --analyze` scores on, chosen by the hash of their names; None: all."""
    finetune: DistillSettings = DistillSettings()

    NEEDS: ClassVar = {"whole_parts": ("search", "table")}
    GOALS: ClassVar[tuple[str, ...]] = ("speedup", "latency_ms", "ratio", "levels", "sparsity")
    SEARCH: ClassVar = ("search", "whole_parts")
    CHANNELS: ClassVar = ("rounds", "tries", "channel_multiple", "importance", "scope")
    IDLE: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ratio": SEARCH,
        **dict.fromkeys(("levels", "sparsity"), SEARCH + CHANNELS),
    }
    """Settings that have no effect beside a goal: they are for a search of widths, or for cutting channels at all."""

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if len(self.goals) > 1:
            raise ValueError(f"{', '.join(self.goals)} exclude each other; give one")
        return self

    @model_validator(mode="after")
    def _table_where_there_is_a_search(self) -> Self:
        searched = self.says_how_much and not self.goals.keys() - {"speedup", "latency_ms"}
        if self.latency_table is not None and self.says_how_much:
            if not searched:
                raise ValueError("latency_table is for a goal of speed; leave it out, or ask for a speedup")
            if self.search != "table":
                raise ValueError("latency_table is for search = 'table'; set that, or leave latency_table out")
        if self.scope == "local" and searched and self.search == "table":
            raise ValueError(
                "scope = 'local' cuts the same share of each group, but search = 'table' chooses a width for each: set "
                "search = 'ratio', or leave scope out"
            )
        return self

    def without_effect(self, above: str = "") -> Iterator[str]:
        yield from super().without_effect(above)
        for goal in self.goals.keys() & self.IDLE.keys():
            for name in self.IDLE[goal]:
                if self._is_changed(name):
                    yield f"{above}{name} has no effect beside {above}{goal}"
        has_budget = self.max_drop is not None or bool(self.min_iou)
        if self.goals.keys() & {"speedup", "latency_ms", "ratio"} and not has_budget and self._is_changed("tries"):
            yield f"{above}tries has no effect without {above}max_drop or {above}min_iou"
        if has_budget and not self.goals:
            for name in ("rounds", "tries"):
                if self._is_changed(name):
                    yield f"{above}{name} has no effect without a goal: as many rounds are made as the budget allows"

    def _is_changed(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @property
    def says_how_much(self) -> bool:
        """A goal, or a budget that may be spent."""
        return bool(self.goals or self.min_iou) or self.max_drop is not None

    @property
    def goals(self) -> dict[str, float]:
        """The goals that were set, by name: none or one of `GOALS`."""
        asked = {name: getattr(self, name) for name in self.GOALS}
        return {name: value for name, value in asked.items() if value is not None}
