"""A stretch of gradient descent: what training, the recovery after pruning and training for INT8 share."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compress.settings.common import LearningRate, OwnName, Positive, Seed, Settings, Share


class LossSettings(Settings):
    """What training minimises: a loss of single pixels, plus losses of whole classes."""

    NEEDS: ClassVar = {
        "tversky_missed": ("tversky_weight", None),
        "class_weights": ("pixel", None),
        "label_smoothing": ("pixel", None),
        "focal_gamma": ("pixel", "focal"),
        "own_weight": ("own", None),
        "ohem_threshold": ("pixel", "ohem"),
        "ohem_share": ("pixel", "ohem"),
    }

    pixel: Literal["cross-entropy", "focal", "ohem", "none"] = "cross-entropy"
    """Loss of single pixels. ohem: cross-entropy of the hard pixels alone, those that the network is not yet sure of.
    none: the other losses alone."""
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of soft Dice. With 0 for all three losses of whole classes (Dice, Tversky, Lovász), only the pixel loss is
    left."""
    tversky_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the Tversky loss, a Dice that weighs missed pixels differently from false alarms. Use it instead of
    Dice, not in addition."""
    tversky_missed: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Weight of missed pixels in the Tversky loss; false alarms get 1 minus this. 0.5 is Dice. Source: Salehi et al.
    2017 (arXiv:1706.05721)."""
    lovasz_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of Lovász-softmax, which is 1 - mIoU where the network is sure. Best used late or beside cross-entropy;
    slower, because it sorts all pixels. Source: Berman et al. 2018 (arXiv:1705.08790)."""
    class_weights: Literal["equal", "balanced"] | tuple[Annotated[float, Field(ge=0)], ...] = "equal"
    """Class weights of the pixel loss, in the order of classes.json. balanced: the inverse square root of each class's
    share of the training pixels, scaled to mean 1 over the classes that occur; 0 for the others."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over all classes. Source: Szegedy et al. 2016 (arXiv:1512.00567)."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """Exponent of focal loss: the larger it is, the less sure pixels count. Source: Lin et al. 2017
    (arXiv:1708.02002)."""
    cross_entropy_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of cross-entropy added to focal loss, with the same class weights and label smoothing."""
    own: OwnName | None = None
    """A loss of your own, added to the others: `file.py:function`. It is called with logits NKHW and classes NHW, 255
    for void (`ignore_index=255`), and returns a scalar."""
    own_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of `own`."""
    ohem_threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    """With ohem: a pixel is hard where its true class has at most this probability; 1 keeps all pixels."""
    ohem_share: Share = 0.1
    """With ohem: smallest share of a batch's pixels to keep. Where fewer are below the threshold, the hardest make it
    up. Source: Shrivastava et al. 2016 (arXiv:1604.03540)."""

    @model_validator(mode="after")
    def _some_class_counts(self) -> Self:
        if not isinstance(self.class_weights, str) and not any(self.class_weights):
            raise ValueError(f"class_weights {list(self.class_weights)} leave no class with a weight; give one above 0")
        return self

    @model_validator(mode="after")
    def _something_is_made_small(self) -> Self:
        if self.cross_entropy_weight and self.pixel != "focal":
            raise ValueError(
                f"cross_entropy_weight is for focal loss, but pixel is {self.pixel!r}: set pixel = 'focal', or leave "
                "cross_entropy_weight out"
            )
        others = (self.dice_weight, self.tversky_weight, self.lovasz_weight)
        if self.pixel == "none" and not any(others) and self.own is None:
            raise ValueError("pixel = 'none' leaves no loss to train with; give another loss a weight")
        return self


class ScheduleSettings(Settings):
    """How the learning rate rises to its peak and falls. `warmup` is the share of the steps in which it rises."""

    NEEDS: ClassVar = {
        "momentum": ("kind", "onecycle"),
        "restart_epochs": ("kind", "restarts"),
        "restart_factor": ("kind", "restarts"),
        "power": ("kind", "poly"),
    }

    kind: Literal["cosine", "onecycle", "restarts", "poly"] | OwnName = "cosine"
    """cosine: falls to zero along half a cosine. poly: falls as a power of the share of steps left. restarts: falls
    along cosines, each starting again at the peak. onecycle: rises and falls along cosines while the momentum moves the
    opposite way; a `warmup` of 0.3 is usual. All but onecycle rise linearly. A schedule of your own is
    `file.py:function`: called with step and steps, it returns the share of `learning_rate`, its own rise included."""
    momentum: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.85, 0.95)
    """With onecycle: AdamW's first beta at the peak, and at both ends."""
    restart_epochs: Positive = 10
    """With restarts: epochs of the first cosine."""
    restart_factor: Positive = 2
    """With restarts: length of each cosine, as a multiple of the one before."""
    power: Annotated[float, Field(gt=0)] = 0.9
    """With poly: the power; 1 is a straight line."""


class AveragingSettings(Settings):
    """Stochastic weight averaging: the mean of the last epochs' weights, with BatchNorm statistics computed anew.

    The average is validated at the end, and saved if it is better than every epoch. Source: Izmailov et al. 2018
    (arXiv:1803.05407).
    """

    NEEDS: ClassVar = {"rate": ("start", None)}

    start: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the epochs after which averaging begins, such as 0.75; None: no averaging."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Learning rate while averaging, as a share of the peak. It stays constant: averaging needs epochs that differ."""


class FreezeSettings(Settings):
    """How long a pretrained encoder keeps its weights and BatchNorm statistics while the rest learns."""

    epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs in which the whole encoder is frozen."""
    stage_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs between unfreezing one stage of the encoder and the next, the deepest first; 0: all at once. Source:
    Howard and Ruder 2018 (arXiv:1801.06146)."""

    @model_validator(mode="after")
    def _wakes_what_stands_still(self) -> Self:
        if self.stage_epochs and not self.epochs:
            raise ValueError(
                "stage_epochs unfreezes what epochs froze, but epochs is 0: set epochs, or leave stage_epochs out"
            )
        return self


class FitSettings(Settings):
    """One stretch of gradient descent; training and the recovery after pruning both have one."""

    SECTION: ClassVar[str] = "train"
    """The section of the recipe that holds them, for messages."""

    epochs: Positive = 60
    """Passes over the training images."""
    batch_size: Positive = 8
    """Images per optimizer step."""
    micro_batch: Positive | None = None
    """Images that pass through the network at a time; gradients are accumulated over the batch. None: the whole batch.
    BatchNorm, Dice and similar losses see only these images."""
    learning_rate: LearningRate = 1e-3
    """Peak learning rate of the schedule, for AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2 regularisation of kernels, decoupled from the gradient; biases and BatchNorm have none. Source: Loshchilov and
    Hutter 2019 (arXiv:1711.05101)."""
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises."""
    schedule: ScheduleSettings = ScheduleSettings()
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients whose L2 norm is larger than this are scaled down to it."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the moving average of the weights, which is validated and saved; 0 turns averaging off."""
    swa: AveragingSettings = AveragingSettings()
    loss: LossSettings = LossSettings()
    validate_every: Positive = 1
    """Epochs between validations; the last epoch is always validated."""
    keep_from: Share = 0.0
    """Share of the epochs after which the best one is selected. A small validation split ranks early epochs by
    chance."""
    patience: Positive | None = None
    """Validations without a better epoch after which training ends, counted after `keep_from` and, if it is set, after
    `swa.start`, so that training does not end before there is an average. None: train all epochs."""
    save_every: Positive | None = None
    """Epochs between extra checkpoints, each validated. None: only the best and the last are kept."""
    encoder_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Learning rate of a pretrained encoder's deepest stage, as a share of the rest of the network's."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of each stage of a pretrained encoder, as a share of the next deeper stage's; 1: the same for all.
    Source: discriminative fine-tuning, Howard and Ruder 2018 (arXiv:1801.06146)."""
    freeze: FreezeSettings = FreezeSettings()
    teacher_weight: Share = 0.5
    """With a teacher: share of the loss that follows its logits; the rest follows the masks."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """With a teacher: temperature of both softmaxes. Source: Hinton et al. 2015 (arXiv:1503.02531)."""
    attention_weight: Annotated[float, Field(ge=0)] = 0.0
    """With a teacher: weight of also following its attention maps, which show where its convolutions respond strongly,
    whatever their widths. Source: Zagoruyko and Komodakis 2017 (arXiv:1612.03928)."""
    seed: Seed = 0
    """Seed of everything random: the initial weights, the order of the images, the augmentation."""

    @model_validator(mode="after")
    def _micro_batches_are_of_the_batch(self) -> Self:
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(
                f"micro_batch {self.micro_batch} is more than batch_size {self.batch_size}; lower it, or leave it out"
            )
        return self
