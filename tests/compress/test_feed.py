"""What reaches the network: normalised, in channels_last, augmented once, and the same whenever a step is repeated."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.datasets import write_dataset

from compress.data.folder import open_dataset
from compress.data.loader import TrainingImages
from compress.data.mixing import cutmixed
from compress.settings.augment import AugmentSettings
from compress.settings.fit import FitSettings
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


def test_mixup_blends_each_image_with_the_one_before_it_and_hands_its_mask_on(data: Path) -> None:
    shares = []
    for seed in range(8):
        for plain, batch in zip(fed(data, seed=seed), fed(data, seed=seed, mixup=0.5, mixup_alpha=0.5), strict=True):
            assert torch.equal(batch.masks_NHW, plain.masks_NHW)
            if batch.second is None:
                assert torch.equal(batch.images_NCHW, plain.images_NCHW)
                continue
            share = batch.second.share
            expected = plain.images_NCHW * (1 - share) + plain.images_NCHW.roll(1, 0) * share
            torch.testing.assert_close(batch.images_NCHW, expected)
            assert torch.equal(batch.second.masks_NHW, plain.masks_NHW.roll(1, 0))
            assert batch.images_NCHW.is_contiguous(memory_format=torch.channels_last)
            shares.append(share)
    assert 3 <= len(shares) <= 13
    assert 0 < min(shares) < 0.2 < max(shares) <= 0.5


def test_cutmix_takes_a_rectangle_of_the_image_before_with_its_mask(data: Path) -> None:
    taken = []
    for seed in range(8):
        for plain, batch in zip(fed(data, seed=seed), fed(data, seed=seed, cutmix=1.0), strict=True):
            assert batch.second is None
            own, other = plain.images_NCHW, plain.images_NCHW.roll(1, 0)
            from_other = (batch.images_NCHW != own).any(1)
            assert torch.equal(torch.where(from_other[:, None], other, own), batch.images_NCHW)
            differs = batch.masks_NHW != plain.masks_NHW
            assert torch.equal(batch.masks_NHW[differs], plain.masks_NHW.roll(1, 0)[differs])
            rows, columns = from_other.any(2).sum(1), from_other.any(1).sum(1)
            taken += (rows * columns / 64**2).tolist()
    assert min(taken) < 0.1
    assert max(taken) > 0.6


def test_cutmix_is_drawn_for_each_image_and_its_box_is_the_same_in_image_and_mask() -> None:
    torch.manual_seed(0)
    masks = torch.arange(200, dtype=torch.uint8)[:, None, None].expand(200, 32, 32).contiguous()
    images, moved = cutmixed(AugmentSettings(cutmix=0.25), masks[:, None].float(), masks)
    assert torch.equal(images[:, 0], moved.float())
    assert 25 < int((moved != masks).any(2).any(1).sum()) < 75


def test_boxes_are_as_large_as_the_beta_distribution_says() -> None:
    """The ends are likely at a small alpha, the middle at a large one, and all sizes equally at 1."""
    masks = torch.arange(200, dtype=torch.uint8)[:, None, None].expand(200, 32, 32).contiguous()
    small = {}
    for alpha in (0.1, 1.0, 20.0):
        torch.manual_seed(0)
        _, moved = cutmixed(AugmentSettings(cutmix=1.0, cutmix_alpha=alpha), masks[:, None].float(), masks)
        shares_N = (moved != masks).float().mean((1, 2))
        small[alpha] = float((shares_N < 0.05).float().mean())
    assert small[20.0] == 0
    assert 0 < small[1.0] < 0.2
    assert small[0.1] > 0.3


def test_a_single_image_has_nobody_to_mix_with() -> None:
    image, mask = torch.rand(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)
    assert torch.equal(cutmixed(AugmentSettings(cutmix=1.0), image, mask)[0], image)
