"""Networks for tests, with random weights and statistics, and their ONNX graphs, each exported once.

network = random_unet(base=16, depth=2, skip="add")
graph = exported(network, channels=1, size_multiple=4)
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch
from support.shared import shared
from torch import Tensor, nn

from compress.models import build
from export.to_onnx import export_onnx

TINY: dict[str, Any] = {"channels": 1, "classes": 3, "base": 16, "depth": 2}


def random_unet(seed: int = 0, **arguments: Any) -> nn.Module:
    """`random_network` of the factory "unet"."""
    return random_network("unet", seed, **arguments)


def random_network(factory: str, seed: int = 0, **arguments: Any) -> nn.Module:
    """A network of `arguments` (by default `TINY`) in eval mode; no two channels, biases or statistics are alike."""
    return seeded(lambda: build(factory, tiny(factory, **arguments)), seed)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What `make` gives, `randomised`, the same in every process: its graph is then exported only once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomised(make())


def tiny(factory: str, **arguments: Any) -> dict[str, Any]:
    """`arguments`, completed by those of `TINY` that the factory takes."""
    untaken = {"unet": set(), "unetpp": set(), "encoder-unet": {"depth"}}.get(factory, {"base", "depth"})
    return {name: value for name, value in TINY.items() if name not in untaken} | arguments


def randomised(network: nn.Module) -> nn.Module:
    """`network` itself, in eval mode, with biases and statistics as training might leave them."""
    for name, tensor in network.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            nn.init.normal_(tensor, 0, 0.3)
        elif name.endswith("running_var") or tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.5, 2)
    return network.eval()


class Mobile(nn.Module):
    """An inverted residual with a depthwise convolution, and logits that are a sum at two resolutions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        wide = 3 * width
        self.size_multiple = 2
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width))
        self.fine = nn.Conv2d(width, 3, 1)
        self.coarse = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width, 3, 1), nn.Upsample(scale_factor=2))

    def forward(self, image_NCHW: Tensor) -> Tensor:
        x = self.stem(image_NCHW)
        x = x + self.project(self.depthwise(self.expand(x)))
        out: Tensor = self.fine(x) + self.coarse(x)
        return out


class Mixer(nn.Module):
    """Matrix products over the channels of each pixel and over all pixels, a LeakyReLU, and a gate."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.size_multiple = 4
        self.stem = nn.Sequential(nn.Conv2d(1, width, 4, stride=4), nn.LeakyReLU(0.1))
        self.gate = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width), nn.Sigmoid())
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.head = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        x = self.stem(image_NCHW)
        x = x * self.gate(x.mean((2, 3)))[:, :, None, None]
        pixels = x.flatten(2).transpose(1, 2)
        seen = torch.softmax(self.query(pixels) @ self.key(pixels).transpose(1, 2) / 4, -1)
        pixels = pixels + seen @ self.value(pixels)
        pixels = pixels + self.mix(pixels)
        out: Tensor = self.head(pixels.transpose(1, 2).reshape(x.shape))
        return nn.functional.interpolate(out, scale_factor=4.0, mode="nearest")


class Sized(nn.Module):
    """A UNet of one level, whose map is brought to the size of the skip, in a transposed convolution's groups if
    `groups` says so, else by `F.interpolate`."""

    def __init__(self, width: int = 16, groups: int = 0) -> None:
        super().__init__()
        self.size_multiple = 2
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.down = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2, groups=groups) if groups else None
        self.fuse = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        skip = self.stem(image_NCHW).relu()
        x = self.down(nn.functional.max_pool2d(skip, 2))
        x = self.up(x) if self.up is not None else nn.functional.interpolate(x, size=skip.shape[2:])
        out: Tensor = self.head(self.fuse(torch.cat([skip, x], 1)))
        return out


class ByPixel(nn.Module):
    """Linear layers over each pixel by itself, with the channels last."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.size_multiple = 1
        self.layers = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, image_NCHW: Tensor) -> Tensor:
        out: Tensor = self.layers(image_NCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


def exported(network: nn.Module, *, channels: int = 1, size_multiple: int | None = None) -> onnx.ModelProto:
    """What `export_onnx` gives for `network`, with mask and logits. An export takes seconds, so each is done once."""
    with TemporaryDirectory() as folder:
        multiple = size_multiple or int(network.size_multiple)  # type: ignore[arg-type]
        return export_once(network, Path(folder) / "model.onnx", channels=channels, size_multiple=multiple)


def export_once(network: nn.Module, path: Path, *, channels: int, size_multiple: int) -> onnx.ModelProto:
    """`export_onnx`, but the same network is exported only once in a run of the tests, whichever process asks."""
    network.eval()
    digest = hashlib.sha256(f"{network} {channels} {size_multiple}".encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    with shared(f"{digest.hexdigest()}.onnx") as graph:
        if not graph.exists():
            part = graph.with_suffix(".part")  # when the exporter fails, no graph is left for the next caller
            export_onnx(network, part, channels=channels, size_multiple=size_multiple)
            part.rename(graph)
        path.write_bytes(graph.read_bytes())
    return onnx.load(path)
