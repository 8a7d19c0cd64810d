"""The figures of a comparison: what report.json holds.

mIoU is between 0 and 1; latency is in milliseconds, from uint8 image to uint8 mask at batch 1.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from export.machine import Machine
from export.manifest import Precision
from export.timing import Samples


class Part(BaseModel):
    """Figures that belong together, as a JSON file holds them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Latency(Part):
    """Milliseconds of one model with a number of threads."""

    p50: float
    p95: float
    p99: float
    samples: tuple[float, ...]
    """Raw times in the order in which they were taken."""

    @classmethod
    def of(cls, samples: Samples) -> "Latency":
        return cls(
            p50=samples.median, p95=samples.percentile(95), p99=samples.percentile(99), samples=samples.milliseconds
        )


class ModelResult(Part):
    """One model of the comparison."""

    name: str
    bundle: str
    """Name of the bundle's folder."""
    precision: Precision
    recipe: tuple[str, ...] = ()
    """How it was made: the settings that differ from the defaults, as `--set` takes them."""
    weights: str | None = None
    """SHA-256 of the checkpoint's weights; None for a model from elsewhere."""
    made_for: str | None = None
    """The runtime that it was made for, if that is not the one it was timed on."""
    cut_from: str | None = None
    """SHA-256 of the weights that pruning started from; None if the network was trained as it is."""
    params: int
    macs: int
    """Multiply-accumulates of one image, as the manifest counts them."""
    size_bytes: int
    """Of model.onnx."""
    miou: float | None
    """None if it was not scored and the manifest names no accuracy."""
    miou_interval: tuple[float, float] | None
    """95 % bootstrap over images."""
    miou_split: str | None
    """The split that `miou` is of."""
    miou_data: str | None = None
    """Fingerprint of the dataset that `miou` is of; None where that is not known."""
    iou_per_class: dict[str, float | None]
    """None for a class that occurs neither in truth nor in prediction; empty where nothing was scored."""
    timed_at: tuple[int, int] | None = None
    """Height and width of the image that the graph was given, padding included; None in earlier reports, where it was
    that of the settings."""
    latency_ms: Latency
    """With `Settings.threads`."""
    latency_one_thread_ms: Latency
    """With one thread, which is how the server runs by default."""
    gain: float
    """Median latency of the reference over this model's."""
    throughput_images_s: float
    """Images a second with `Settings.concurrency` one-thread runs of one shared session at a time."""
    load_ms: float | None
    """To create the session in a fresh process; None if that process failed."""
    peak_memory_mib: float | None
    """Largest resident set of a fresh process that holds this model and the runtime; None if it failed."""

    def scored_like(self, other: "ModelResult") -> bool:
        """Whether both were scored, on the same split of the same data, as far as that is known."""
        if self.miou is None or other.miou is None or self.miou_split != other.miou_split:
            return False
        data = {self.miou_data, other.miou_data} - {None}
        classes = {tuple(one.iou_per_class) for one in (self, other) if one.iou_per_class}
        return len(data) <= 1 and len(classes) <= 1


class DataUsed(Part):
    """What the models were scored and timed on."""

    name: str
    """Of the dataset's folder."""
    fingerprint: str
    split: str
    images: int

    @classmethod
    def of(cls, folder: Path, fingerprint: str, split: str, images: int) -> "DataUsed":
        return cls(name=folder.resolve().name, fingerprint=fingerprint, split=split, images=images)


class Settings(Part):
    """How it was measured."""

    threads: int
    height: int
    width: int
    """Of the image that the reference was given, padding included."""
    rounds: int
    warmup: int
    concurrency: int
    real_images: bool
    """False: latency was measured on noise."""


class Goals(Part):
    """What the compressed model is held to, against the reference; None: nothing is asked."""

    speedup: float | None = None
    max_drop: float | None = None
    """mIoU that may be lost, absolute: 0.02 is two points."""
    above_lookup_table: float | None = None
    """mIoU by which the reference must beat the best grey-value look-up table."""


class Verdict(Part):
    """One thing that a reader should know before believing the headline."""

    ok: bool
    text: str
    """Names what holds, or what does not."""
    detail: str
    """The figures behind it."""


class GroupWidth(Part):
    """Coupled layers that were made narrower together, or a single convolution."""

    layer: str
    """The first of them."""
    width: int
    """Channels before."""
    kept: int
    importance_lost: float | None = None
    """Share of the importance of its channels that was cut with them; None after several rounds, of which each has an
    importance of its own."""
    milliseconds_spared: float | None = None
    """By the latency table: what keeping the group whole would cost; None after several rounds, or without a table."""


class Measurement(Part):
    """What every report tells, whatever was measured."""

    schema_version: int = 1
    title: str
    command: str
    """Reproduces the report."""
    date: str
    """ISO 8601, UTC."""
    machine: Machine
    notes: tuple[str, ...] = ()
    """What a reader should know about the figures; also what the report lacks, and why."""


class Report(Measurement):
    """A comparison of models, and everything that is needed to judge and reproduce it.

    `speedup` and `miou_drop` are of the last model, the most compressed one, against the reference.
    """

    data: DataUsed | None
    settings: Settings
    models: tuple[ModelResult, ...]
    reference: str
    compressed: str
    speedup: float
    miou_drop: float | None
    """Reference minus compressed; negative where the compressed model scores higher."""
    miou_drop_interval: tuple[float, float] | None
    """95 % paired bootstrap over images; None where the models were not scored here."""
    lookup_table_miou: float | None = None
    """mIoU of the best grey-value look-up table: what colour alone is worth on this data."""
    widths: tuple[GroupWidth, ...] = ()
    """What pruning cut, in the order of the network's layers."""
    widths_of: str | None = None
    """The model whose convolutions `widths` are; None where they are the groups of the run's pruned network."""
    goals: Goals = Goals()
    verdicts: tuple[Verdict, ...] = ()
    failures: tuple[str, ...] = ()
    """What could not be measured, and why."""

    @property
    def reference_model(self) -> ModelResult:
        return self.models[0]

    @property
    def compressed_model(self) -> ModelResult:
        return self.models[-1]

    @property
    def ok(self) -> bool:
        """Every verdict holds and nothing failed."""
        return all(verdict.ok for verdict in self.verdicts) and not self.failures
