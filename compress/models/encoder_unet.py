"""A UNet's decoder on a classifier's features.

The structure is the usual one of UNets with ResNet encoders (Iglovikov and Shvets 2018, arXiv:1801.05746): one
upsampling step for each stride, joined with the features of that stride, and one to full resolution.

Names: N batch, C channels, K classes, H height, W width.
"""

from torch import Tensor, nn

from compress.models import encoders
from compress.models.blocks import Block, BlockStyle, Up, Upsampling, xavier
from compress.models.self_attention import SelfAttention

WIDEST = 16
"""The greatest width of the decoder, as a multiple of `base`."""


class EncoderUNet(nn.Module):
    """Image to logits at the resolution of the image.

    The decoder is `base` channels wide at full resolution, twice that at stride 2, and so on to 16 times `base`.
    At a stride where the encoder has no features, the decoder joins nothing.

    All parameters start fresh, whatever `pretrained` says: it only records where training starts, and training then
    calls `load_pretrained`. So a checkpoint can be rebuilt without fetching pretrained weights.

    Raises ValueError for an unknown encoder, MissingExtraError or RecipeError for one of timm's that cannot be used.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        classes: int = 2,
        encoder: str = "efficientnet-lite0",
        pretrained: bool = True,
        base: int = 16,
        upsampling: Upsampling = "nearest",
        block: Block = "plain",
        squeeze_excite: bool = False,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        bottleneck_attention: bool = False,
    ) -> None:
        super().__init__()
        if min(channels, classes, base) < 1:
            raise ValueError(f"channels, classes and base must be at least 1, got {channels}, {classes}, {base}")
        style = BlockStyle(block, squeeze_excite, dropout, stochastic_depth)
        self.pretrained = pretrained
        self.encoder = encoders.make(encoder, channels)
        self.size_multiple = self.encoder.size_multiple
        self.strides = tuple(self.encoder.widths)
        self.up = nn.ModuleDict()
        channels_in, stride = self.encoder.widths[self.size_multiple], self.size_multiple
        self.attention: nn.Module = SelfAttention(channels_in) if bottleneck_attention else nn.Identity()
        while stride > 1:
            stride //= 2
            channels_out = base * min(stride, WIDEST)
            skip = self.encoder.widths.get(stride, 0)
            self.up[str(stride)] = Up(channels_in, skip, channels_out, upsampling, style=style)
            channels_in = channels_out
        self.head = xavier(nn.Conv2d(channels_in, classes, 1))

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits NKHW of a normalised float image NCHW."""
        features = dict(zip(self.strides, self.encoder(image_NCHW), strict=True))
        x = self.attention(features[self.size_multiple])
        for stride, block in self.up.items():
            skip = features.get(int(stride))
            x = block(x) if skip is None else block(x, skip)
        logits: Tensor = self.head(x)
        return logits

    def load_pretrained(self) -> None:
        """Load ImageNet weights into the encoder.

        Raises MissingExtraError or RecipeError when there are none, WorkFailedError when they cannot be fetched.
        """
        self.encoder.load_pretrained()
