"""Self-attention over all positions of a feature map: context that a convolution, which sees only neighbours, misses.

Names: N batch, C channels, D channels within, H height, W width, P positions (H x W).
"""

import torch
from torch import Tensor, nn

from compress.models.blocks import xavier


class SelfAttention(nn.Module):
    """The input plus, at each position, a mean over all positions, weighted by how similar they are.

    The embedded-Gaussian non-local block: single-head scaled dot-product attention with 1x1 convolutions to half of
    the channels for query, key and value, and one back to all of them. Its BatchNorm's scale starts at zero, so that
    the block starts as the identity. Sources: Wang et al. 2018 (arXiv:1711.07971); the scale is that of Vaswani et al.
    2017 (arXiv:1706.03762).

    Memory and time grow with the square of the number of positions: sixteenfold for twice the height and width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        within = max(channels // 2, 1)
        self.query, self.key, self.value = (xavier(nn.Conv2d(channels, within, 1)) for _ in range(3))
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.output = nn.Sequential(xavier(nn.Conv2d(within, channels, 1, bias=False)), norm)
        # Of the original width: removing a silent channel then does not change what the others give.
        self.scale = within**-0.5

    def forward(self, x_NCHW: Tensor) -> Tensor:
        query_NDP = self.query(x_NCHW).flatten(2) * self.scale
        key_NDP, value_NDHW = self.key(x_NCHW).flatten(2), self.value(x_NCHW)
        share_NPP = torch.softmax(query_NDP.transpose(1, 2) @ key_NDP, dim=-1)
        taken_NDP = value_NDHW.flatten(2) @ share_NPP.transpose(1, 2)
        out: Tensor = x_NCHW + self.output(taken_NDP.reshape(value_NDHW.shape))
        return out
