"""Batches for training and validation: drawn from a seed, cropped and padded alike in image and mask."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.datasets import write_dataset

from compress.data.folder import Dataset, open_dataset
from compress.data.loader import Batch, TrainingImages, ValidationImages
from export.errors import DatasetError, ImageError
from export.images import PAD_VALUE, U8, encode_image, encode_mask, resize_image, resize_mask
from export.scoring import VOID

SIZES = [(30, 44), (40, 20), (24, 24)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images of three sizes, whose pixels are 20 · class + 10: an image shows its own mask."""
    path = write_dataset(
        tmp_path_factory.mktemp("data") / "mixed", counts={"train": 6, "val": 5, "test": 1}, size=SIZES
    )
    dataset = open_dataset(path)
    for sample in (*dataset.train, *dataset.val):
        mask = dataset.read_mask(sample)
        sample.image.write_bytes(encode_image(painted(mask)))
    return open_dataset(path)


def painted(mask_HW: U8) -> U8:
    return np.where(mask_HW == VOID, PAD_VALUE, 20 * mask_HW + 10).astype(np.uint8)[..., None]


def training(
    dataset: Dataset,
    *,
    crop: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    cache_gb: float = math.inf,
) -> TrainingImages:
    return TrainingImages(dataset, size=size, crop=crop, multiple=8, cache_gb=cache_gb)


def epoch(images: TrainingImages, seed: int = 0, batch_size: int = 2) -> list[Batch]:
    return list(images.epoch(seed, batch_size))


def shows_its_mask(batch: Batch) -> bool:
    """Whether every image shows its mask, padding included: 128 where the mask is void."""
    expected = np.stack([painted(mask) for mask in batch.masks_NHW.numpy()]).transpose(0, 3, 1, 2)
    return np.array_equal(batch.images_NCHW.numpy(), expected)


def as_plain(batch: Batch) -> tuple[object, ...]:
    return (
        batch.names,
        batch.images_NCHW.tolist(),
        batch.masks_NHW.tolist(),
        batch.seed_augmentation,
        batch.seed_network,
    )


@pytest.mark.parametrize("crop", [None, (16, 16), (8, 32), (100, 100)])
def test_image_and_mask_are_cropped_and_padded_alike(mixed: Dataset, crop: tuple[int, int] | None) -> None:
    images = training(mixed, crop=crop)
    for seed in range(5):
        for batch in epoch(images, seed):
            assert batch.images_NCHW.dtype == batch.masks_NHW.dtype == torch.uint8
            assert shows_its_mask(batch)
            height, width = batch.masks_NHW.shape[1:]
            assert height % 8 == width % 8 == 0
            if crop == (16, 16):
                assert (height, width) == (16, 16)
                assert not (batch.masks_NHW == VOID).any()


def test_an_epoch_shows_every_image_once_in_an_order_that_the_seed_decides(mixed: Dataset) -> None:
    images = training(mixed, crop=(8, 8))
    orders = []
    for seed in range(6):
        first, again = epoch(images, seed), epoch(images, seed)
        shown = [name for batch in first for name in batch.names]
        assert sorted(shown) == [sample.name for sample in mixed.train]
        assert all(torch.equal(a.images_NCHW, b.images_NCHW) for a, b in zip(first, again, strict=True))
        orders.append(tuple(shown))
    assert len(set(orders)) > 4


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.5, 2.0)])
def test_an_epoch_that_is_entered_in_the_middle_goes_on_as_it_would_have(
    mixed: Dataset, zoom: tuple[float, float]
) -> None:
    images = training(mixed, crop=(8, 16))
    for number in range(3):
        whole = list(images.epoch(number, 2, seed=5, zoom=zoom))
        for first in range(4):
            rest = list(images.epoch(number, 2, seed=5, first=first, zoom=zoom))
            assert [as_plain(batch) for batch in rest] == [as_plain(batch) for batch in whole[first:]]


def test_every_step_of_every_epoch_has_seeds_of_its_own(mixed: Dataset) -> None:
    images = training(mixed)
    batches = [batch for seed in (0, 1) for number in (0, 1) for batch in images.epoch(number, 2, seed=seed)]
    assert len({seed for batch in batches for seed in (batch.seed_augmentation, batch.seed_network)}) == 2 * 12


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_what_the_budget_does_not_hold_is_read_anew_and_makes_no_difference(
    mixed: Dataset, tmp_path: Path, share: float, kept: int
) -> None:
    shutil.copytree(mixed.path, tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    # A pixel takes a byte in the image and one in the mask; sizes take turns, so half the images are half the bytes.
    everything = training(dataset)
    total_gb = sum(2 * dataset.read_mask(sample).size for sample in dataset.train) / 1e9
    some = training(dataset, crop=None, cache_gb=share * total_gb)
    beyond = "" if kept == 6 else "; the others are read from disk in every epoch"
    assert str(some.decoded) == f"{kept} of 6 images are kept decoded in memory{beyond}"
    for number in range(2):
        pairs = zip(some.epoch(number, 2), everything.epoch(number, 2), strict=True)
        assert all(as_plain(batch) == as_plain(other) for batch, other in pairs)
    np.testing.assert_array_equal(some.class_pixels(2), everything.class_pixels(2))
    # Only the images that are kept outlive their files.
    for sample in dataset.train[:kept]:
        sample.image.unlink()
    assert len(list(some.epoch(0, 2))) == 3
    if kept < 6:
        dataset.train[-1].image.unlink()
        with pytest.raises(ImageError, match=dataset.train[-1].image.name):
            list(some.epoch(0, 2))


def test_pixels_are_counted_by_class_without_void(mixed: Dataset) -> None:
    masks = np.concatenate([mixed.read_mask(sample).ravel() for sample in mixed.train])
    np.testing.assert_array_equal(training(mixed).class_pixels(3), np.bincount(masks, minlength=3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cache_gb", [0.0, math.inf])
def test_batches_on_a_gpu_are_those_on_the_cpu(mixed: Dataset, cache_gb: float) -> None:
    device = torch.device("cuda")
    there = TrainingImages(mixed, size=None, crop=(16, 16), multiple=8, cache_gb=cache_gb, device=device)
    if cache_gb:
        assert there.decoded.device.type == "cuda"
    for batch, other in zip(there.epoch(0, 2), training(mixed, crop=(16, 16)).epoch(0, 2), strict=True):
        assert batch.images_NCHW.device.type == batch.masks_NHW.device.type == "cuda"
        assert torch.equal(batch.images_NCHW.cpu(), other.images_NCHW)
        assert torch.equal(batch.masks_NHW.cpu(), other.masks_NHW)


def test_crops_come_from_everywhere(mixed: Dataset) -> None:
    images = training(mixed, crop=(16, 16))
    seen = {tuple(batch.masks_NHW.flatten().tolist()) for seed in range(20) for batch in epoch(images, seed, 1)}
    assert len(seen) > 40


@pytest.mark.parametrize(("batch_size", "batches", "shown"), [(1, 6, 6), (4, 1, 4), (6, 1, 6), (50, 1, 6)])
def test_batches_are_full_unless_there_are_too_few_images(
    mixed: Dataset, batch_size: int, batches: int, shown: int
) -> None:
    images = training(mixed)
    assert images.batches(batch_size) == batches
    assert sum(len(batch.names) for batch in epoch(images, batch_size=batch_size)) == shown


def test_images_are_resized_once_and_masks_nearest(mixed: Dataset) -> None:
    samples = {sample.name: sample for sample in mixed.train}
    for batch in epoch(training(mixed, size=(24, 40))):
        for name, image_CHW, mask_HW in zip(batch.names, batch.images_NCHW, batch.masks_NHW, strict=True):
            image, mask = mixed.read_image(samples[name]), mixed.read_mask(samples[name])
            np.testing.assert_array_equal(image_CHW.permute(1, 2, 0), resize_image(image, (24, 40)))
            np.testing.assert_array_equal(mask_HW, resize_mask(mask, (24, 40)))
            assert set(mask_HW.flatten().tolist()) <= {0, 1}


def test_progress_is_told_image_by_image(mixed: Dataset) -> None:
    told: list[int] = []
    images = TrainingImages(mixed, size=None, crop=None, multiple=8, on_image=lambda: told.append(1))
    assert len(told) == len(images) == 6


@pytest.mark.parametrize("size", [None, (16, 24)])
def test_predictions_come_back_at_the_size_of_the_masks(mixed: Dataset, size: tuple[int, int] | None) -> None:
    validation = ValidationImages(mixed, size=size, multiple=16)

    def masks_of(images_NCHW: torch.Tensor) -> U8:
        assert images_NCHW.shape[2] % 16 == images_NCHW.shape[3] % 16 == 0
        grey = images_NCHW[:, 0].numpy()
        return np.where(np.abs(grey.astype(int) - 30) < 10, 1, 0).astype(np.uint8)

    found = list(validation.predictions(masks_of, batch_size=2))
    assert sorted(name for name, _, _ in found) == [sample.name for sample in mixed.val]
    for name, truth, prediction in found:
        sample = next(sample for sample in mixed.val if sample.name == name)
        np.testing.assert_array_equal(truth, mixed.read_mask(sample))
        if size is None:
            np.testing.assert_array_equal(prediction, truth)
        assert prediction.shape == truth.shape


@pytest.mark.parametrize(("pixels", "largest"), [(10**9, 3), (2 * 64 * 64, 2), (1, 1)])
def test_no_more_pixels_are_validated_at_a_time_than_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: int, largest: int
) -> None:
    data = write_dataset(tmp_path / "data", counts={"train": 1, "val": 3, "test": 1}, size=(64, 64))
    monkeypatch.setattr("compress.data.loader._BATCH_PIXELS", pixels)
    counts: list[int] = []

    def masks_of(images_NCHW: torch.Tensor) -> U8:
        counts.append(len(images_NCHW))
        return images_NCHW[:, 0].numpy()

    assert len(list(ValidationImages(open_dataset(data), size=None, multiple=16).predictions(masks_of))) == 3
    assert max(counts) == largest


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.5, 2), (1.0, 5)])
def test_what_the_budget_does_not_hold_is_validated_all_the_same(
    mixed: Dataset, tmp_path: Path, share: float, kept: int
) -> None:
    shutil.copytree(mixed.path, tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    # Bytes of the images, padded to multiples of 8, and of their masks.
    sizes = [dataset.read_mask(sample).shape for sample in dataset.val]
    total_gb = sum((h + -h % 8) * (w + -w % 8) + h * w for h, w in sizes) / 1e9
    everything = ValidationImages(dataset, size=None, multiple=8)
    some = ValidationImages(dataset, size=None, multiple=8, cache_gb=share * total_gb)
    beyond = "" if kept == 5 else "; the others are read from disk in every validation"
    assert str(some) == f"{kept} of 5 images are kept decoded in memory{beyond}"

    def answered(images: ValidationImages) -> list[tuple[str, list[int], list[int]]]:
        masks = images.predictions(lambda images_NCHW: images_NCHW[:, 0].numpy(), batch_size=2)
        return [(name, truth.tolist(), prediction.tolist()) for name, truth, prediction in masks]

    assert answered(some) == answered(everything)
    shutil.rmtree(dataset.path / "val")
    if kept == 5:
        assert len(answered(some)) == 5
    else:
        with pytest.raises(ImageError, match="no such file"):
            answered(some)


def test_a_split_in_which_nothing_can_be_scored_is_refused(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "void", table={"ignore_index": 7})
    for mask in (path / "val" / "masks").iterdir():
        mask.write_bytes(encode_mask(np.full((64, 64), 7, np.uint8)))
    with pytest.raises(DatasetError, match="val: every mask is void everywhere"):
        ValidationImages(open_dataset(path), size=None, multiple=16)
