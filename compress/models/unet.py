"""The classic UNet, written to be read.

Source: Ronneberger et al. 2015 (arXiv:1505.04597), with what an INT8 runtime keeps in integers:
padded 3x3 convolutions without bias, BatchNorm, ReLU, and nearest upsampling.

Names: N batch, C channels, K classes, H height, W width.
"""

from typing import cast

from torch import Tensor, nn

from compress.models.blocks import Block, BlockStyle, ConvBlock, Skip, Up, Upsampling, xavier
from compress.models.parts import Leveled
from compress.models.self_attention import SelfAttention


class UNet(Leveled, nn.Module):
    """Image to logits at the resolution of the image.

    Widths are `base`, 2, 4, 8 and again 8 times `base` (for four poolings; no level is wider than 8 times
    `base`), and the decoder mirrors them: `base = 64` has 19 convolutions, 13.4 M parameters and 31.1 GMAC at 256x256.

    Height and width of the input must be multiples of `size_multiple`; whoever receives an image pads it
    (`export.images`).
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
        stochastic_depth: float = 0.0,
        bottleneck_attention: bool = False,
    ) -> None:
        super().__init__()
        widths = level_widths(channels=channels, classes=classes, base=base, depth=depth)
        style = BlockStyle(block, squeeze_excite, dropout, stochastic_depth)
        self.size_multiple = 2**depth
        self.stem = ConvBlock(channels, widths[0], style)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(ConvBlock(widths[i], widths[i + 1], style) for i in range(depth))
        self.attention: nn.Module = SelfAttention(widths[-1]) if bottleneck_attention else nn.Identity()
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
        maps = [self.stem(image_NCHW)]
        for block in self.down:
            maps.append(block(self.pool(maps[-1])))
        maps[-1] = self.attention(maps[-1])
        # Without the deepest level, the decoder begins with the encoder's map of the level above it.
        x = maps.pop() if len(maps) > len(self.up) else None
        for block, skip in zip(list(self.up)[-len(maps) :], reversed(maps), strict=True):
            x = block(x, skip)
        logits: Tensor = self.head(x)
        return logits

    def levels(self) -> list[tuple[str, ...]]:
        """For each level that can be removed, the deepest first: the modules that only this level needs.

        One pooling always stays. Without concatenation no level can be removed: the decoder needs the level below.
        """
        if self.up[-1].skip != "concat":
            return []
        joins = {level: len(self.up) - level for level in range(2, len(self.down) + 1)}
        return [
            (f"down.{level - 1}", f"up.{step - 1}" if step else "attention", f"up.{step}.upsample")
            for level, step in reversed(joins.items())
        ]

    def drop_level(self) -> None:
        """Remove the first of `levels`; the caller adapts the layers that read its channels."""
        step = len(self.up) - len(self.down)
        if step:
            self.up[step - 1] = nn.Identity()  # the others keep their names
        else:
            self.attention = nn.Identity()
        cast(Up, self.up[step]).upsample = None
        del self.down[-1]
        self.size_multiple //= 2


def level_widths(*, channels: int, classes: int, base: int, depth: int) -> list[int]:
    """Widths of the encoder's levels, for `depth` poolings: they double down to 8 times `base`.

    Raises ValueError when an argument is below 1.
    """
    if min(channels, classes, base, depth) < 1:
        raise ValueError(
            f"channels, classes, base and depth must be at least 1, got {channels}, {classes}, {base}, {depth}"
        )
    return [base * min(2**level, 8) for level in range(depth + 1)]
