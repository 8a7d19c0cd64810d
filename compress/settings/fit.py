"""A stretch of gradient descent: what training, the recovery after pruning and training for INT8 have in common."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compress.settings.common import LearningRate, OwnName, Positive, Seed, Settings, Share


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
    cross_entropy_weight: Annotated[float, Field(ge=0)] = 0.0
    """Of cross-entropy beside focal loss, with the same class weights and label smoothing."""
    own: OwnName | None = None
    """A loss of your own beside the others: `file.py:function`, called with logits NKHW and classes NHW, 255 for void
    (`ignore_index=255`); it gives a scalar."""
    own_weight: Annotated[float, Field(gt=0)] = 1.0
    """Of that."""
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
        if self.cross_entropy_weight and self.pixel != "focal":
            raise ValueError(f"cross_entropy_weight is for what stands beside focal loss, and pixel is {self.pixel!r}")
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

    @model_validator(mode="after")
    def _wakes_what_stands_still(self) -> Self:
        if self.stage_epochs and not self.epochs:
            raise ValueError("stage_epochs is for what stands still at first: set epochs, or leave it out")
        return self


class FitSettings(Settings):
    """One stretch of gradient descent; training and the recovery after pruning both have one."""

    SECTION: ClassVar[str] = "train"
    """Where they stand in a recipe, for what is told of them."""

    epochs: Positive = 60
    """Times that every training image is shown."""
    batch_size: Positive = 8
    """Images of one step."""
    micro_batch: Positive | None = None
    """Images that pass through the network at a time, the gradients of all added up before the step; None: the batch.
    BatchNorm, Dice and the like see those images alone."""
    learning_rate: LearningRate = 1e-3
    """Peak of the schedule, for AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2 regularisation of kernels, decoupled from the gradient; not of biases and BatchNorm. Source: Loshchilov and
    Hutter 2019 (arXiv:1711.05101)."""
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
    """Validations without a better epoch after which training ends; counted from `keep_from` on, and from `swa.start`
    where there is one: nothing ends before there is an average. None: all epochs."""
    save_every: Positive | None = None
    """Epochs between checkpoints that are kept beside the best and the last, each validated; None keeps only those."""
    encoder_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Learning rate of a pretrained encoder's deepest stage over that of the rest."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of each stage of a pretrained encoder over that of the next deeper one; 1: all learn alike. Source:
    discriminative fine-tuning, Howard and Ruder 2018 (arXiv:1801.06146)."""
    freeze: FreezeSettings = FreezeSettings()
    teacher_weight: Share = 0.5
    """Where there is a teacher: share of the loss that follows its logits; the rest follows the masks."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Of both softmaxes. Source: Hinton et al. 2015 (arXiv:1503.02531)."""
    attention_weight: Annotated[float, Field(ge=0)] = 0.0
    """Of a second thing to follow, beside the teacher's logits: where its convolutions answer strongly, whatever their
    widths. Source: Zagoruyko and Komodakis 2017 (arXiv:1612.03928)."""
    seed: Seed = 0
    """Of all that is drawn: the first weights, the order of the images, what augmentation does."""

    @model_validator(mode="after")
    def _micro_batches_are_of_the_batch(self) -> Self:
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(f"micro_batch {self.micro_batch} is more than batch_size {self.batch_size}")
        return self
