"""A training that takes a tenth of a second, and ways to end it before it is done.

images, validation = splits(tmp_path / "data")
fitted = fit(Pixelwise(), (images, validation), tmp_path / "fit", epochs=4)
with before_each_step(kill_at(3)), pytest.raises(Killed):
    fit(...)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from support.datasets import Size, write_dataset
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from compress.checkpoint import ModelCard
from compress.data.folder import open_dataset
from compress.data.loader import TrainingImages, ValidationImages
from compress.settings.augment import AugmentSettings
from compress.settings.fit import FitSettings
from compress.train.loop import Fit, Fitted
from compress.train.objective import Teacher
from compress.train.precision import Precision
from compress.train.runtime import Runtime
from compress.train.sparsity import Penalty

CPU = torch.device("cpu")
CARD = ModelCard(
    factory="unet",
    arguments={"channels": 1, "classes": 2, "base": 4, "depth": 2},
    channels=1,
    classes=("background", "disc"),
    colours=((0, 0, 0), (255, 255, 255)),
    size=None,
    size_multiple=4,
    parents={},
)

Splits = tuple[TrainingImages, ValidationImages]


def splits(path: Path, *, size: Size | Sequence[Size] = (24, 24), **images: Any) -> Splits:
    """Eight images to train on and three to validate; `images` are settings of `TrainingImages`."""
    dataset = open_dataset(write_dataset(path, size=size, counts={"train": 8, "val": 3, "test": 1}))
    training = TrainingImages(dataset, **{"size": None, "crop": None, "multiple": 8, **images})
    return training, ValidationImages(dataset, size=None, multiple=8)


def fit(
    network: nn.Module,
    data: Splits,
    folder: Path,
    *,
    precision: Precision = "float32",
    device: torch.device = CPU,
    teacher: Teacher | None = None,
    penalty: Penalty | None = None,
    augment: AugmentSettings | None = None,
    kind: type[FitSettings] = FitSettings,
    **settings: Any,
) -> Fitted:
    """Two steps an epoch, unless `settings` say otherwise."""
    folder.mkdir(exist_ok=True)
    chosen = kind(**{"epochs": 4, "batch_size": 4, "learning_rate": 0.05, "ema_decay": 0.9, **settings})
    augment = augment or AugmentSettings(flip_vertical=0.5)
    return Fit(network, CARD, *data, chosen, augment, Runtime(device, precision), folder, teacher, penalty).run("fit")


class Pixelwise(nn.Module):
    """The smallest network: grey value, normalised, to two logits. The training passes that `broken` picks see NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Conv2d(1, 2, 1)
        nn.init.constant_(self.head.weight, 0.1)
        nn.init.zeros_(self.get_parameter("head.bias"))
        self.forwards = 0
        self.broken: Callable[[int], bool] = lambda _: False

    def forward(self, image: Tensor) -> Tensor:
        if self.training:
            self.forwards += 1
            if self.broken(self.forwards):
                image = image * torch.nan
        logits: Tensor = self.head(self.norm(image))
        return logits


def _stage(channels_in: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, 3, 1), nn.BatchNorm2d(3), nn.ReLU())


class Stages(nn.Module):
    """An encoder of three stages, two of them in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _stage(1)
        self.levels = nn.ModuleList([_stage(3), _stage(3)])

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.stem(image)
        for level in self.levels:
            x = level(x)
        return x


class OnAnEncoder(nn.Module):
    """An encoder of three stages of 1x1 convolutions, by default marked as pretrained, and a head of two logits."""

    def __init__(self, *, pretrained: bool = True) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.encoder = Stages()
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(image))
        return logits


class Killed(BaseException):
    """As sudden as a signal."""


@contextmanager
def before_each_step(hook: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """Call `hook` before every step of any optimizer."""
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: hook(optimizer))
    try:
        yield
    finally:
        handle.remove()


def kill_at(step: int) -> Callable[[torch.optim.Optimizer], None]:
    """A hook for `before_each_step` that raises `Killed` at the given step, counted from 1."""
    steps = 0

    def hook(_: torch.optim.Optimizer) -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            raise Killed

    return hook
