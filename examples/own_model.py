"""A network of your own, as `compress train` takes it: a LinkNet (Chaurasia and Culurciello 2017, arXiv:1707.03718).

    compress train --data DIR --out run/dense --model examples/own_model.py:LinkNet --set model.arguments.width=32

segpress asks for a function or class that takes `channels` and `classes`, besides keywords of your own, and returns an
`nn.Module` from float images NCHW to logits NKHW of the same height and width. `size_multiple` may be left out.

What is fast in INT8: BatchNorm right after each convolution and ReLU right after that, nearest-neighbour upsampling,
additions instead of concatenations, and widths in multiples of 16.
"""

from itertools import pairwise

from torch import Tensor, nn


class LinkNet(nn.Module):
    """A residual encoder of `depth` halvings, and a decoder to which the encoder's features are added."""

    def __init__(self, *, channels: int, classes: int, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.size_multiple = 2**depth
        self.stem = conv_bn_relu(channels, width)
        self.down = nn.ModuleList(Residual(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Up(b, a) for a, b in pairwise(widths))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = [self.stem(images)]
        for block in self.down:
            features.append(block(features[-1]))
        x = features.pop()
        for block in reversed(self.up):
            x = block(x) + features.pop()
        logits: Tensor = self.head(x)
        return logits


class Residual(nn.Module):
    """Halves height and width."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn_relu(channels_in, channels_out, stride=2),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 1, stride=2, bias=False), nn.BatchNorm2d(channels_out)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.shortcut(x)
        return out.relu()


class Up(nn.Sequential):
    """Doubles height and width; the channels are narrowed first, where there are few pixels."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            conv_bn_relu(channels_in, channels_out, kernel=1),
            nn.Upsample(scale_factor=2, mode="nearest"),
            conv_bn_relu(channels_out, channels_out),
        )


def conv_bn_relu(channels_in: int, channels_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )
