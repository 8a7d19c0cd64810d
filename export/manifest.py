"""What a bundle says about itself."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from export.bands import MAX_CHANNELS
from export.files import sha256_json
from export.images import Geometry
from export.machine import InstructionSet, Machine

SCHEMA_VERSION = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
"""Of an image: 1 is grey, 3 is RGB, anything else is that many bands or pages of one file."""

_SEGMENT = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Fit for a URL and for the name of a folder: models are looked for as NAME/VERSION."""

ModelName = Annotated[str, Field(pattern=_SEGMENT)]
ModelVersion = Annotated[str, Field(pattern=_SEGMENT)]
Precision = Literal["fp32", "int8"]
Side = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TensorSignature(_Part):
    """One input or output of the graph; a named dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class FloatLayer(_Part):
    """A layer that was left in float, and why."""

    layer: str
    reason: str


class Accuracy(_Part):
    """mIoU on a split: one confusion matrix over all of it, void ignored, at the size of the original masks."""

    split: str
    protocol: str = "one confusion matrix over the split, void ignored, at mask size, ONNX Runtime"
    images: int
    miou: float
    miou_interval: tuple[float, float]
    """95 % bootstrap interval over images."""
    iou_per_class: dict[str, float | None]
    miou_parent: float | None = None
    """The same split and protocol for the model that this one was made from."""


class Latency(_Part):
    """Median time from uint8 image to uint8 mask, batch 1."""

    milliseconds: float
    milliseconds_parent: float | None = None
    """The float parent, interleaved with this model in the same process."""
    height: int
    width: int
    threads: int
    machine: Machine


class Golden(_Part):
    """Inputs with the masks that this bundle gave, and the share of pixels that may differ elsewhere."""

    names: tuple[str, ...]
    """golden/NAME.image.png (.tiff for more than four channels) and golden/NAME.mask.png."""
    tolerance_same_instructions: float = 0.001
    tolerance_other_instructions: float = 0.01
    """Kernels of another instruction set, or of another provider, round differently."""


class Manifest(_Part):
    """manifest.json. `digest` is the SHA-256 of the canonical JSON of everything else."""

    schema_version: Literal[1] = 1
    name: ModelName
    version: ModelVersion = "1"
    files: dict[str, Sha256]
    """Every other file of the folder, by relative path."""
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    channels: Channels
    size: tuple[Side, Side] | None
    """Images are resized to this (height, width) for the model, and masks back to the image's; None: not resized."""
    usual_size: tuple[Side, Side] | None = None
    """Height and width of most images that the model was scored on, for when neither `size` nor `latency` is given."""
    size_multiple: int = Field(ge=1)
    """The graph takes heights and widths that are multiples of this; images are padded up to them."""
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    """RGB of each class, for overlays."""
    precision: Precision
    float_layers: tuple[FloatLayer, ...] = ()
    instruction_set: InstructionSet
    """Of the machine that measured this bundle and computed its golden answers."""
    target: str = "auto"
    """What INT8 was made for (`--for`)."""
    half_floats: bool = False
    """Whether the target may compute float layers in 16 bits; they were measured in 32."""
    opset: int
    params: int
    macs: int
    """Multiply-accumulates of one image at the size that latency names."""
    parents: dict[str, Sha256]
    """Hashes of what this bundle was made from: checkpoint weights, dataset."""
    recipe: dict[str, Any]
    libraries: dict[str, str]
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    golden: Golden
    digest: Sha256

    @property
    def own_size(self) -> tuple[int, int] | None:
        """Height and width that the model is meant for, if known: what images are resized to, else the size at which
        its latency was measured, else that of most of its images."""
        if self.size is None and self.latency is not None:
            return self.latency.height, self.latency.width
        return self.size or self.usual_size

    def geometry(self, height: int, width: int) -> Geometry:
        """How an image of this size is fitted to the model and its mask restored."""
        return Geometry.plan(height, width, size=self.size, multiple=self.size_multiple)

    @classmethod
    def sealed(cls, **fields: Any) -> "Manifest":
        """Validate the fields and add their digest."""
        draft = cls(digest="0" * 64, **fields).model_dump(mode="json")
        return cls(**{**draft, "digest": digest_of(draft)})


def digest_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a manifest without its own digest."""
    return sha256_json({key: value for key, value in manifest.items() if key != "digest"})
