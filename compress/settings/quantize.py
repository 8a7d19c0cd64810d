"""The section `quantize`."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compress.settings.common import LearningRate, Positive, Settings, Share
from compress.settings.fit import FitSettings

Calibration = Literal["minmax", "mse", "percentile", "entropy"]
Target = Literal["auto", "vnni", "avx2", "arm", "tensorrt", "openvino"]


class LearnSettings(FitSettings):
    """Quantization-aware training, which starts from what post-training quantization gave; the float parent teaches."""

    SECTION: ClassVar[str] = "quantize.finetune"

    epochs: Positive = 10
    learning_rate: LearningRate = 1e-4
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99

    @model_validator(mode="after")
    def _of_a_graph(self) -> Self:
        if self.freeze.epochs or self.attention_weight or self.layer_decay < 1:
            raise ValueError(
                "what learns is a graph, without an encoder or layers: leave out freeze, attention_weight, layer_decay"
            )
        return self


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
    min_iou: dict[str, Share] = Field(default_factory=dict)
    """Floors of the IoU on the validation split, by class."""
    equalise: Literal["auto"] | bool = "auto"
    """Bring the channels of each activation to like ranges before calibration, which changes no answer in float; auto:
    where that keeps more mIoU on the validation split."""
    bias_correction: Literal["auto"] | bool = "auto"
    """Take out of the biases by what rounding moves the mean of each channel on the calibration images; auto: where
    that keeps more mIoU on the validation split."""
    target: Target = "auto"
    """What will serve (`--for`): a machine for ONNX Runtime's CPU provider, where without VNNI weights take 7 bits
    because U8S8 saturates; or TensorRT or OpenVINO. Nothing is decided by the clock for them, or for a processor that
    this machine is not."""
    half_floats: bool = True
    """Let TensorRT or OpenVINO, where INT8 is made for them, compute in 16 bits what stays in float: float16 on a GPU
    that has it, bfloat16 on a processor that has it. The CPU provider computes it in float32."""
    rewrites: bool = True
    """Put operators into an equal form where that measures faster in INT8 here."""
    force: bool = False
    """Keep an INT8 model that is not faster than its float parent."""
    finetune: LearnSettings = LearnSettings()
    """Of qat."""
    onnx: OnnxSettings = OnnxSettings()
