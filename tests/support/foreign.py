"""Networks and graphs that others might have made, and how they are brought into our form.

path = write(Theirs(), tmp_path / "m.onnx", (2, 3, 32, 40))
adopted = adopted_from(path, OnnxSettings())
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.quantize.adopt import Adopted, adopt
from compress.quantize.foreign import read
from compress.settings.quantize import OnnxSettings
from export.runtime import OnnxModel

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Theirs(nn.Module):
    """Two scales, padded convolutions, normalised as torchvision does; knows nothing of this project."""

    def __init__(self, *, logits: int = 2, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(4), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(32, logits, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.first(x)
        coarse = F.interpolate(self.deep(fine), scale_factor=4.0, mode="nearest")
        out: Tensor = self.head(torch.cat([coarse, fine], 1))
        return out


class Nhwc(nn.Module):
    """The same, channels last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


class NhwcLogits(Nhwc):
    """Channels first in, classes last out, as converters that transpose only the input leave it."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x).permute(0, 2, 3, 1)
        return out


class Probabilities(Nhwc):
    """Channels last, and probabilities in place of logits."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x.permute(0, 3, 1, 2))
        shares = torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, 1)
        return shares.permute(0, 2, 3, 1)


class Above(nn.Module):
    """Only which pixels belong to the class, not with what probability."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) > 0.5


class Masked(Nhwc):
    """The same, with ArgMax at its end."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x).argmax(1)
        return out


def normalised(images_NHWC: np.ndarray[Any, Any]) -> Tensor:
    """Normalised as their data loader does it."""
    pixels = torch.from_numpy(images_NHWC.copy()).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).reshape(1, 3, 1, 1)) / torch.tensor(STD).reshape(1, 3, 1, 1)


def write(network: nn.Module, path: Path, shape: tuple[int, ...], *, free: bool = True) -> Path:
    """Export with torch's exporter alone."""
    batch, other = torch.export.Dim("n", min=1, max=64), torch.export.Dim.AUTO
    dims = {i: batch if i == 0 else (other if size > 4 else torch.export.Dim.STATIC) for i, size in enumerate(shape)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about itself
        program = torch.onnx.export(
            network.eval(), (torch.zeros(shape),), dynamic_shapes=(dims,) if free else None, dynamo=True, verbose=False
        )
    assert program is not None
    program.save(str(path))
    return path


IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), dtype=np.uint8)


def answers(adopted: Adopted, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return OnnxModel(adopted.model.SerializeToString()).logits(images)


def adopted_from(path: Path, declared: OnnxSettings, *classes: str) -> Adopted:
    return adopt(read(path, declared), declared, classes or ("background", "disc"))


def written(text: str, path: Path, *, opset: int = 17, more: str = "") -> Path:
    """The graph `text`, in ONNX's own notation; `more` is other opsets."""
    head = f'<ir_version: 8, opset_import: ["": {opset}{more}]> m '
    onnx.save(onnx.parser.parse_model(head + text), str(path))
    return path
