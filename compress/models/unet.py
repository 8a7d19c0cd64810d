"""The classic UNet, written to be read.

Source: Ronneberger et al. 2015 (arXiv:1505.04597), with what an INT8 runtime keeps in integers:
padded 3x3 convolutions without bias, BatchNorm, ReLU, and nearest upsampling.

Names: N batch, C channels, K classes, H height, W width.
"""

from torch import Tensor, nn

from compress.models.blocks import Block, BlockStyle, ConvBlock, Skip, Up, Upsampling, xavier


class UNet(nn.Module):
    """Image to logits at the resolution of the image.

    Widths are `base`, 2, 4, 8 and again 8 times `base` (for four poolings; the deepest level never
    grows past 8 x), and the decoder mirrors them: `base = 64` has 19 convolutions, 13.4 M parameters and 31.1
    GMAC at 256x256. Height and width of the input must be multiples of `size_multiple`; whoever
    receives an image pads it (`export.images`).
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        classes: int = 2,
        base: int = 32,
        depth: int = 4,
        upsampling: Upsampling = "nearest",
        skip: Skip = "concat",
        block: Block = "plain",
        squeeze_excite: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = level_widths(channels=channels, classes=classes, base=base, depth=depth)
        style = BlockStyle(block, squeeze_excite, dropout)
        self.size_multiple = 2**depth
        self.stem = ConvBlock(channels, widths[0], style)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(ConvBlock(widths[i], widths[i + 1], style) for i in range(depth))
        ups = []
        channels_in = widths[-1]
        for level in reversed(range(depth)):
            channels_out = widths[max(level - 1, 0)]
            ups.append(Up(channels_in, widths[level], channels_out, upsampling, skip, style))
            channels_in = channels_out
        self.up = nn.ModuleList(ups)
        self.head = xavier(nn.Conv2d(channels_in, classes, 1))

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits NKHW of a normalised float image NCHW."""
        x = self.stem(image_NCHW)
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(self.pool(x))
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(x, skip)
        logits: Tensor = self.head(x)
        return logits


def level_widths(*, channels: int, classes: int, base: int, depth: int) -> list[int]:
    """Widths of the encoder's levels, for `depth` poolings: they double down to 8 times `base`.

    Raises ValueError for arguments that make no network.
    """
    if min(channels, classes, base, depth) < 1:
        raise ValueError(
            f"channels, classes, base and depth are at least 1, got {channels}, {classes}, {base}, {depth}"
        )
    return [base * min(2**level, 8) for level in range(depth + 1)]
