"""The classic UNet, written to be read.

Source: Ronneberger et al. 2015 (arXiv:1505.04597), with what an INT8 runtime keeps in integers:
padded 3x3 convolutions without bias, BatchNorm, ReLU, and nearest upsampling.

Names: N batch, C channels, K classes, H height, W width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Upsampling = Literal["nearest", "bilinear", "transposed"]
Skip = Literal["concat", "add", "none"]


class ConvBlock(nn.Sequential):
    """Two 3x3 convolutions, each followed by BatchNorm and ReLU; height and width stay."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    """Double the resolution of `x`, join the encoder's map of that resolution, convolve."""

    def __init__(
        self, channels_in: int, channels_skip: int, channels_out: int, upsampling: Upsampling, skip: Skip
    ) -> None:
        super().__init__()
        self.skip = skip
        channels_up = channels_skip if skip == "add" else channels_in
        self.upsample = _upsample(channels_in, channels_up, upsampling)
        self.block = ConvBlock(channels_up + (channels_skip if skip == "concat" else 0), channels_out)

    def forward(self, x_NCHW: Tensor, skip_NCHW: Tensor) -> Tensor:
        x = self.upsample(x_NCHW)
        if self.skip == "concat":
            x = torch.cat([x, skip_NCHW], dim=1)
        elif self.skip == "add":
            x = x + skip_NCHW
        out: Tensor = self.block(x)
        return out


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
    ) -> None:
        super().__init__()
        if min(channels, classes, base, depth) < 1:
            raise ValueError(
                f"channels, classes, base and depth are at least 1, got {channels}, {classes}, {base}, {depth}"
            )
        widths = [base * min(2**level, 8) for level in range(depth + 1)]
        self.size_multiple = 2**depth
        self.stem = ConvBlock(channels, widths[0])
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(ConvBlock(widths[i], widths[i + 1]) for i in range(depth))
        ups = []
        channels_in = widths[-1]
        for level in reversed(range(depth)):
            channels_out = widths[max(level - 1, 0)]
            ups.append(Up(channels_in, widths[level], channels_out, upsampling, skip))
            channels_in = channels_out
        self.up = nn.ModuleList(ups)
        self.head = nn.Conv2d(channels_in, classes, 1)
        self.apply(_initialise)

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


def _upsample(channels_in: int, channels_out: int, upsampling: Upsampling) -> nn.Module:
    if upsampling == "transposed":
        return nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2)
    resize = (
        nn.Upsample(scale_factor=2, mode="nearest")
        if upsampling == "nearest"
        else nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    )
    if channels_in == channels_out:
        return resize
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1), resize)


def _initialise(module: nn.Module) -> None:
    """Kaiming for the convolutions that a ReLU follows (He et al. 2015, arXiv:1502.01852)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
