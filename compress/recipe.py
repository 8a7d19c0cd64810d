"""Every setting of a run, in one typed tree: TOML in, TOML out.

A recipe file holds only what differs from the defaults below. `--set train.epochs=20` changes one setting
on the line. A value that means nothing is refused with its place, its reason, and the nearest known name.
"""

import difflib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from export.errors import RecipeError
from export.manifest import ModelName

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
SizeHW = tuple[Positive, Positive]
LearningRate = Annotated[float, Field(gt=0, le=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Settings(BaseModel):
    """One branch of the tree: unknown names are refused, values are checked where they stand."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class DataSettings(Settings):
    """Which images, and in what form the model sees them."""

    path: Path | None = None
    """Dataset folder. None in `compress run`: the built-in sample set is made."""
    channels: Literal[1, 3, "auto"] = "auto"
    """Channels of the model's input; auto: 3 if any image has colour."""
    size: SizeHW | None = None
    """Every image is resized to this (height, width), masks nearest; answers are brought back."""
    crop: SizeHW | None = None
    """Random crop (height, width) that training sees; None: whole images."""


class ModelSettings(Settings):
    """The network."""

    factory: Literal["unet"] = "unet"
    """Name in `compress.models`."""
    base: Positive = 32
    """Width of the first level; deeper levels have 2, 4, 8 and 8 times as many channels."""
    depth: Annotated[int, Field(ge=1, le=6)] = 4
    """Number of poolings; sizes are multiples of 2 ** depth."""
    upsampling: Literal["nearest", "bilinear", "transposed"] = "nearest"
    """Nearest stays in integers at INT8; bilinear runs in float there, transposed never fuses."""
    skip: Literal["concat", "add", "none"] = "concat"


class AugmentSettings(Settings):
    """What training does to each batch; the mask follows exactly, void where nothing is."""

    flip_horizontal: Share = 0.5
    """Probability."""
    flip_vertical: Share = 0.0
    """Probability; for pictures without an up, such as microscopes or satellites."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Rotation is drawn from ± this."""
    scale: tuple[float, float] = (0.8, 1.25)
    """Zoom is drawn from this range."""
    brightness: Share = 0.15
    """Added to the normalised image, drawn from ± this."""
    contrast: Share = 0.15
    """The normalised image is multiplied by 1 ± this."""

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} is not a range of positive numbers")
        return self


class FitSettings(Settings):
    """One stretch of gradient descent; training and the recovery after pruning both have one."""

    epochs: Positive = 60
    batch_size: Positive = 8
    learning_rate: LearningRate = 1e-3
    """Peak of the schedule, for AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises linearly; after it a cosine falls to zero."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this L2 norm."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Of the averaged weights that are validated and saved; 0 turns averaging off."""
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of soft Dice beside cross-entropy."""
    validate_every: Positive = 1
    """Epochs between validations; the last epoch is always validated."""
    seed: Seed = 0


class TrainSettings(FitSettings):
    """Training of the dense model."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the forward pass; auto: by device, on a CPU by a timed probe. The loss is always in float32."""
    device: str = "auto"
    """auto: CUDA where there is one."""
    augment: AugmentSettings = AugmentSettings()


class DistillSettings(FitSettings):
    """Recovery after pruning: the parent teaches."""

    epochs: Positive = 15
    learning_rate: LearningRate = 5e-4
    teacher_weight: Share = 0.5
    """Share of the loss that follows the parent's logits; the rest follows the masks."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Of both softmaxes. Source: Hinton et al. 2015 (arXiv:1503.02531)."""


class PruneSettings(Settings):
    """How much to cut, and how to recover. `speedup` and `ratio` exclude each other."""

    speedup: Annotated[float, Field(gt=1)] | None = None
    """Measured latency of the parent over that of the child, both FP32 through ONNX Runtime."""
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the channels that go, the least important first over the whole network."""
    channel_multiple: Positive = 16
    """Widths are kept in multiples of this, and not below it; the INT8 and FP32 kernels step here."""
    latency_size: SizeHW | None = None
    """Height and width at which latency is measured; None: that of the validation images."""
    finetune: DistillSettings = DistillSettings()

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if self.speedup is not None and self.ratio is not None:
            raise ValueError("speedup and ratio exclude each other; give one")
        return self


class QuantizeSettings(Settings):
    """INT8 by post-training quantization."""

    mode: Literal["ptq"] = "ptq"
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How activation ranges are taken from the calibration images."""
    calibration_images: Positive = 32
    """Drawn from the training split by the hash of their names."""
    max_drop: Share = 0.01
    """mIoU that may be lost on the validation split, absolute; 0.01 is one point."""
    target: Literal["auto", "vnni", "avx2", "arm"] = "auto"
    """The machine that will serve (`--for`); without VNNI weights take 7 bits, because U8S8 saturates."""
    force: bool = False
    """Keep an INT8 model that is not faster than its float parent."""


class ExportSettings(Settings):
    """What every bundle carries."""

    name: ModelName | None = None
    """Model name in the manifest and in URLs; None: that of the bundle's folder."""
    outputs: Literal["mask", "logits", "both"] = "mask"
    golden: Literal["calibration", "synthetic"] = "calibration"
    """Where the golden inputs come from; synthetic when pixels must not leave the house."""
    golden_images: Positive = 4


class BudgetSettings(Settings):
    """What a whole run must gain and may lose: the served model against the dense one in FP32, on the test split."""

    speedup: Annotated[float, Field(gt=1)] | None = None
    """Wanted latency gain, both through ONNX Runtime in one run; None: none is asked for."""
    max_drop: Share | None = None
    """mIoU that may be lost, absolute; None: the report only states it."""
    above_lookup_table: Share | None = None
    """mIoU by which the dense model must beat the best grey-value look-up table."""


class BenchSettings(Settings):
    """The latency part of the report."""

    rounds: Positive = 50
    threads: Positive | None = None
    """None: all cores that the process may use."""


class Recipe(Settings):
    """The whole tree."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    prune: PruneSettings = PruneSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    export: ExportSettings = ExportSettings()
    budget: BudgetSettings = BudgetSettings()
    bench: BenchSettings = BenchSettings()

    @classmethod
    def load(cls, source: Path | str | None = None, overrides: list[str] | None = None) -> "Recipe":
        """Read a TOML file (or a built-in recipe by name) and apply `section.name=value` overrides.

        Raises RecipeError with everything that is wrong.
        """
        where, tree = ("(defaults)", {}) if source is None else _read(source)
        problems = [problem for text in overrides or [] if (problem := _override(tree, text))]
        if problems:
            raise RecipeError("--set", problems)
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise RecipeError(where, [_explain(item) for item in error.errors()]) from error

    def to_toml(self) -> str:
        return tomli_w.dumps(self.as_tree())

    def as_tree(self) -> dict[str, Any]:
        """Plain values, unset ones left out: what TOML and JSON can hold."""
        tree: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        return tree


def builtin_recipes() -> dict[str, Path]:
    """Recipes that ship with the package, by name."""
    folder = Path(str(resources.files("compress") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _read(source: Path | str) -> tuple[str, dict[str, Any]]:
    path = Path(source)
    if not path.suffix and not path.exists():
        path = builtin_recipes().get(str(source), path)
    try:
        return str(path), tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        known = ", ".join(builtin_recipes())
        raise RecipeError(path, [f"no such file; give a TOML file or a built-in recipe ({known})"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(path, [f"not TOML: {error}"]) from error


def _override(tree: dict[str, Any], text: str) -> str | None:
    """Put `a.b=value` into `tree`; the value is read as TOML, as plain text where it is none, and `none` unsets."""
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        return f"{text!r}: write section.name=value, such as train.epochs=20"
    branch = tree
    for name in names[:-1]:
        branch = branch.setdefault(name, {})
        if not isinstance(branch, dict):
            return f"{text!r}: {name} is a value, not a section"
    try:
        branch[names[-1]] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        branch[names[-1]] = None if value.strip() == "none" else value.strip()
    return None


def _explain(item: Any) -> str:
    place = [part for part in item["loc"] if isinstance(part, str)]
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = _names_at(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{'.'.join(place)}: no such setting; {hint}"
    if not place:
        return str(message)
    return f"{'.'.join(place)} = {item['input']!r}: {message}"


def _names_at(place: list[str]) -> list[str]:
    branch: type[BaseModel] = Recipe
    for name in place:
        field = branch.model_fields.get(name)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        branch = field.annotation
    return list(branch.model_fields)
