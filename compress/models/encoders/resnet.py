"""ResNet-18 and ResNet-34, with torchvision's parameter names, so that its weights fit.

Source: He et al. 2016 (arXiv:1512.03385). N batch, C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from compress.models.blocks import kaiming
from compress.models.encoders.base import Encoder
from compress.models.encoders.stem import IMAGENET, fold
from compress.models.parts import Addition
from export.errors import RecipeError

LAYERS: Mapping[str, tuple[int, int, int, int]] = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


class ResNet(Encoder):
    """A 7x7 stem and four layers of basic blocks; features after the stem and after each layer."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.name = name
        self.channels = channels
        self.widths = {2: 64, 4: 64, 8: 128, 16: 256, 32: 512}
        self.conv1 = kaiming(nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False))
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        first, second, third, fourth = LAYERS[name]
        self.layer1 = _layer(64, 64, first, stride=1)
        self.layer2 = _layer(64, 128, second, stride=2)
        self.layer3 = _layer(128, 256, third, stride=2)
        self.layer4 = _layer(256, 512, fourth, stride=2)

    def forward(self, image_NCHW: Tensor) -> list[Tensor]:
        features = [self.relu(self.bn1(self.conv1(image_NCHW)))]
        x = self.maxpool(features[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features

    def from_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the state dict of a torchvision ResNet; its head is kept as it is."""
        return fold(state, IMAGENET, self.channels, weight="conv1.weight", constant="bn1.running_mean")

    def load_pretrained(self) -> None:
        raise RecipeError(
            "model.pretrained",
            [
                f"{self.name} comes without weights, only efficientnet-lite and timm's encoders have them; start "
                f"from a state dict of torchvision's {self.name} with --init FILE, or set model.pretrained=false"
            ],
        )


class BasicBlock(Addition, nn.Module):
    """Two 3x3 convolutions whose result is added to their input, through a 1x1 convolution where shapes differ."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.adds = True
        self.conv1 = kaiming(nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False))
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = kaiming(nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False))
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            shortcut = kaiming(nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False))
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels_out))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = self.downsample(x_NCHW)
        if self.adds:
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x_NCHW))))) + out
        activated: Tensor = self.relu(out)
        return activated

    def inner(self) -> str | None:
        """See `Addition`."""
        return "conv1" if self.adds and isinstance(self.downsample, nn.Identity) else None

    def drop(self) -> None:
        """See `Addition`."""
        self.adds = False
        del self.conv1, self.bn1, self.conv2, self.bn2


def _layer(channels_in: int, channels_out: int, blocks: int, *, stride: int) -> nn.Module:
    rest: Sequence[nn.Module] = [BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(channels_in, channels_out, stride), *rest)
