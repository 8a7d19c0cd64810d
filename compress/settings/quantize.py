"""The section `quantize`."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compress.settings.common import LearningRate, Positive, Settings, Share
from compress.settings.fit import FitSettings

Calibration = Literal["minmax", "mse", "percentile", "entropy"]
Target = Literal["auto", "vnni", "avx2", "arm", "tensorrt", "openvino"]


class LearnSettings(FitSettings):
    """Quantization-aware training. It starts from the result of post-training quantization, with the float parent as
    teacher."""

    SECTION: ClassVar[str] = "quantize.finetune"

    epochs: Positive = 5
    learning_rate: LearningRate = 1e-4
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    keep_from: Share = 0.5
    """Share of the epochs after which the best one is selected. A small validation split ranks early epochs by
    chance."""
    teacher_weight: Share = 1.0
    """Share of the loss that follows the float parent's logits; the rest follows the masks. Training on masks again
    would change more than what rounding did."""

    @model_validator(mode="after")
    def _of_a_graph(self) -> Self:
        if self.freeze.epochs or self.attention_weight or self.layer_decay < 1:
            raise ValueError(
                "quantization-aware training trains a graph, which has no encoder and no layers by name: leave out "
                "freeze, attention_weight, layer_decay"
            )
        return self


class OnnxSettings(Settings):
    """What the file of a float ONNX model from elsewhere does not state. Leave these unset for a checkpoint."""

    layout: Literal["nchw", "nhwc"] | None = None
    """Layout of the model's input and logits. None: found from the position of the channels."""
    mean: tuple[float, ...] = (0.0,)
    """Subtracted from pixels scaled to 0 to 1: one value for all channels or one for each, as in torchvision's
    Normalize."""
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    """The difference is divided by this."""
    output: str | None = None
    """The tensor with the logits. None: the graph's only output, or the input of its ArgMax, Softmax or Sigmoid."""
    classes: tuple[str, ...] | None = None
    """The class of classes.json that each logit stands for; a class may appear more than once. None: all classes, in
    their order. A single logit stands for the second of two."""


class QuantizeSettings(Settings):
    """INT8, by calibration alone or with training."""

    mode: Literal["ptq", "qat"] = "ptq"
    """ptq: post-training quantization. qat: quantization-aware training after it; weights and scales learn with the
    rounding in place."""
    calibration: Calibration | Literal["auto"] = "auto"
    """How activation ranges are derived from the calibration images. auto: all methods are tried, and the one that
    keeps the most mIoU on the validation split is used."""
    calibration_images: Positive = 32
    """Images to calibrate on, chosen from the training split by the hash of their names."""
    max_drop: Share = 0.01
    """mIoU that may be lost on the validation split, absolute; 0.01 is one point."""
    min_iou: dict[str, Share] = Field(default_factory=dict)
    """Lowest IoU allowed on the validation split, by class."""
    equalise: Literal["auto"] | bool = "auto"
    """Bring the channels of each activation to similar ranges before calibration, which changes no answer in float.
    auto: only if that keeps more mIoU on the validation split."""
    bias_correction: Literal["auto"] | bool = "auto"
    """Correct the biases for the shift that rounding causes in the mean of each channel on the calibration images.
    auto: only if that keeps more mIoU on the validation split."""
    target: Target = "auto"
    """What will serve (`--for`): a processor with ONNX Runtime's CPU provider, TensorRT, or OpenVINO. auto: this
    processor. On x86 without VNNI weights take 7 bits, because U8S8 saturates. Nothing is decided by timing for
    TensorRT, OpenVINO, or a processor other than this machine's."""
    half_floats: bool = True
    """For TensorRT and OpenVINO: compute in 16 bits what stays in float, as float16 on a GPU that has it or bfloat16 on
    a processor that has it. The CPU provider computes it in float32."""
    rewrites: bool = True
    """Replace operators by an equivalent form where that measures faster in INT8 on this machine."""
    force: bool = False
    """Keep an INT8 model that is not faster than its float parent."""
    finetune: LearnSettings = LearnSettings()
    """For qat."""
    onnx: OnnxSettings = OnnxSettings()

    def without_effect(self, above: str = "") -> Iterator[str]:
        yield from super().without_effect(above)
        if not self.half_floats and self.target not in ("tensorrt", "openvino"):
            yield f"{above}half_floats has no effect for {above}target = {self.target!r}: it computes in float32"
