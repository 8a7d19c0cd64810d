"""UNet++: the levels of a UNet joined by nested decoders, so that one training gives networks of several depths.

Sources: Zhou et al. 2018 (arXiv:1807.10165) and 2020 (arXiv:1912.05074).

Names: N batch, C channels, K classes, H height, W width; node (i, j) is the j-th map at resolution 1 / 2**i, and
depth d is the network that ends in node (0, d): a UNet of d poolings and all smaller ones inside it.
"""

from torch import Tensor, nn

from compress.models.blocks import Block, BlockStyle, ConvBlock, Up, Upsampling, xavier
from compress.models.self_attention import SelfAttention
from compress.models.unet import level_widths


class UNetPlusPlus(nn.Module):
    """Image to logits at the resolution of the image, from the deepest of its depths.

    Column 0 is the encoder of `UNet`, with its widths; node (i, j) sees all nodes (i, 0) ... (i, j - 1) of its row and
    what comes up from node (i + 1, j - 1), and is as wide as its row. With `deep_supervision` each depth has a head;
    without it the deepest alone has one.

    `levels` cuts the network to that depth: only what leads to node (0, levels) is built. With the full network's
    weights of the same names it gives the same logits as the head of that depth in the full network.

    Raises ValueError when `levels` is not a depth of the network, or is given without `deep_supervision`.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        classes: int = 2,
        base: int = 32,
        depth: int = 4,
        upsampling: Upsampling = "nearest",
        deep_supervision: bool = True,
        block: Block = "plain",
        squeeze_excite: bool = False,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        bottleneck_attention: bool = False,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        widths = level_widths(channels=channels, classes=classes, base=base, depth=depth)
        _require_head(levels, depth, deep_supervision)
        style = BlockStyle(block, squeeze_excite, dropout, stochastic_depth)
        self.levels = levels or depth
        self.size_multiple = 2**self.levels
        self.stem = ConvBlock(channels, widths[0], style)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(ConvBlock(widths[i], widths[i + 1], style) for i in range(self.levels))
        attends = bottleneck_attention and self.levels == depth  # no smaller depth sees the deepest level
        self.attention: nn.Module = SelfAttention(widths[-1]) if attends else nn.Identity()
        self.nodes = nn.ModuleDict(
            {
                _name(i, j): Up(widths[i + 1], j * widths[i], widths[i], upsampling, style=style)
                for i, j in _nodes(self.levels)
            }
        )
        headed = range(1, self.levels + 1) if deep_supervision else [self.levels]
        self.heads = nn.ModuleDict({str(d): xavier(nn.Conv2d(widths[0], classes, 1)) for d in headed})

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits NKHW of a normalised float image NCHW, from the deepest head."""
        return self.all_logits(image_NCHW)[-1]

    def all_logits(self, image_NCHW: Tensor) -> list[Tensor]:
        """Logits NKHW of each depth that has a head, the deepest last."""
        rows = [[self.stem(image_NCHW)]]
        for block in self.down:
            rows.append([block(self.pool(rows[-1][0]))])
        rows[-1] = [self.attention(rows[-1][0])]
        for i, j in _nodes(self.levels):
            rows[i].append(self.nodes[_name(i, j)](rows[i + 1][j - 1], *rows[i]))
        return [head(rows[0][int(depth)]) for depth, head in self.heads.items()]


def _nodes(levels: int) -> list[tuple[int, int]]:
    """The decoder's nodes, each after those that it sees; those of a smaller depth come first."""
    return [(d - j, j) for d in range(1, levels + 1) for j in range(1, d + 1)]


def _name(i: int, j: int) -> str:
    return f"{i}_{j}"


def _require_head(levels: int | None, depth: int, deep_supervision: bool) -> None:
    if levels is None:
        return
    if not 1 <= levels <= depth:
        raise ValueError(f"levels must be a depth of the network, 1 to {depth}, got {levels}")
    if not deep_supervision:
        raise ValueError(
            "levels needs deep_supervision: without it only the deepest level has learned to give masks; "
            "to cut afterwards, train with model.deep_supervision=true"
        )
