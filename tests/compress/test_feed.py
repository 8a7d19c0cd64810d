"""What reaches the network: normalised, in channels_last, augmented once, and alike whenever it is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.datasets import write_dataset

from compress.data.folder import open_dataset
from compress.data.loader import TrainingImages
from compress.recipe import AugmentSettings, FitSettings
from compress.train.clock import Clock
from compress.train.feed import Fed, Feed
from compress.train.runtime import Runtime
from export.scoring import VOID

RUNTIME = Runtime(torch.device("cpu"), "float32")
NOTHING: dict[str, Any] = {
    **{"flip_horizontal": 0.0, "rotate_degrees": 0.0, "scale": (1.0, 1.0), "brightness": 0.0, "contrast": 0.0}
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "discs", size=(64, 64), channels=3)


def fed(
    data: Path, crop: tuple[int, int] | None = None, *, first: int = 0, seed: int = 0, **settings: Any
) -> list[Fed]:
    images = TrainingImages(open_dataset(data), size=None, crop=crop, multiple=8)
    augment = AugmentSettings(**{**NOTHING, **settings})
    feed = Feed(images, FitSettings(batch_size=4, seed=seed), augment, RUNTIME, Clock(RUNTIME))
    assert feed.steps_an_epoch == 2
    return list(feed.epoch(0, first))


def test_images_are_normalised_and_laid_out_for_convolutions(data: Path) -> None:
    (batch, _) = fed(data)
    dataset = open_dataset(data)
    samples = {sample.name: sample for sample in dataset.train}
    for name, image, mask in zip(batch.names, batch.images_NCHW, batch.masks_NHW, strict=True):
        pixels = torch.tensor(dataset.read_image(samples[name])).permute(2, 0, 1)
        assert torch.equal(image, (pixels.float() - 128) / 128)
        assert torch.equal(mask, torch.tensor(dataset.read_mask(samples[name])))
    assert batch.images_NCHW.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("crop", "void"), [((32, 32), 0.0), (None, 0.75)])
def test_a_crop_is_zoomed_before_it_is_taken_and_a_whole_image_afterwards(
    data: Path, crop: tuple[int, int] | None, void: float
) -> None:
    for batch in fed(data, crop, scale=(0.5, 0.5)):
        assert float((batch.masks_NHW == VOID).float().mean()) == pytest.approx(void, abs=0.01)


@pytest.mark.parametrize("crop", [None, (32, 32)])
def test_a_step_is_fed_alike_whatever_came_before_it(data: Path, crop: tuple[int, int] | None) -> None:
    settings: dict[str, Any] = {"rotate_degrees": 20.0, "scale": (0.7, 1.4), "brightness": 0.3, "quarter_turn": 0.5}
    _, second = fed(data, crop, **settings)
    torch.rand(17)
    (again,) = fed(data, crop, first=1, **settings)
    assert again.names == second.names
    assert again.seed == second.seed
    assert torch.equal(again.images_NCHW, second.images_NCHW)
    assert torch.equal(again.masks_NHW, second.masks_NHW)
    _, other = fed(data, crop, seed=1, **settings)
    assert not torch.equal(other.images_NCHW, second.images_NCHW)
