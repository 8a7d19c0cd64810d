"""Crops, zoomed as they are taken: real pixels wherever the image has any, and a mask that follows."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.datasets import write_dataset

from compress.data.crop import Side, Window, resample
from compress.data.folder import open_dataset
from compress.data.loader import Batch, TrainingImages
from export.images import PAD_VALUE, encode_image, encode_mask
from export.scoring import VOID

HEIGHT, WIDTH = 120, 160


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> TrainingImages:
    """Each pixel shows its position: red is its row, green its column, and its class is its row."""
    path = tmp_path_factory.mktemp("data") / "maps"
    classes = [f"row {row}" for row in range(HEIGHT)]
    write_dataset(path, counts={"train": 4, "val": 1, "test": 1}, size=(HEIGHT, WIDTH), channels=3)
    (path / "classes.json").write_text(f'{{"classes": {classes}}}'.replace("'", '"'))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    for split in ("train", "val", "test"):
        for image in (path / split / "images").iterdir():
            image.write_bytes(encode_image(np.dstack([rows, columns, rows])))
            (path / split / "masks" / image.name).write_bytes(encode_mask(rows))
    return TrainingImages(open_dataset(path), size=None, crop=(64, 48), multiple=8)


def batches(images: TrainingImages, zoom: tuple[float, float], epochs: int = 5) -> list[Batch]:
    return [batch for number in range(epochs) for batch in images.epoch(number, 2, zoom=zoom)]


@pytest.mark.parametrize("zoom", [0.6, 0.8, 1.0, 1.4, 2.0, 5.0])
def test_a_zoomed_crop_shows_what_is_there_at_that_scale(maps: TrainingImages, zoom: float) -> None:
    places = set()
    for batch in batches(maps, (zoom, zoom)):
        assert batch.images_NCHW.shape == (2, 3, 64, 48)
        assert not (batch.masks_NHW == VOID).any()
        for image, mask in zip(batch.images_NCHW.float(), batch.masks_NHW.float(), strict=True):
            rows, columns = image[0], image[1]
            assert torch.equal(rows, rows[:, :1].expand_as(rows))
            # Both ends are rounded to whole numbers, and clamped at the edges of the image.
            assert float(rows[-1, 0] - rows[0, 0]) == pytest.approx(63 / zoom, abs=2)
            assert float(columns[0, -1] - columns[0, 0]) == pytest.approx(47 / zoom, abs=2)
            # The nearest pixel is at most half a pixel away, and rounding adds at most as much.
            assert (mask - rows).abs().max() <= 1
            places.add((int(rows[0, 0]), int(columns[0, 0])))
    assert len(places) > 15


def test_zoom_is_drawn_for_each_image_over_the_whole_range(maps: TrainingImages) -> None:
    images = [image for batch in batches(maps, (0.6, 2.0), 20) for image in batch.images_NCHW.float()]
    seen = [63 / float(image[0, -1, 0] - image[0, 0, 0]) for image in images]
    assert min(seen) < 0.75
    assert max(seen) > 1.8
    assert len({round(factor, 2) for factor in seen}) > 30


def test_what_is_beyond_a_small_image_is_void_and_padding(maps: TrainingImages) -> None:
    for batch in batches(maps, (0.25, 0.25)):
        image, mask = batch.images_NCHW, batch.masks_NHW
        there = mask != VOID
        assert there[:, :30, :40].all()
        assert there.sum() == 2 * 30 * 40
        assert (image[~there[:, None].expand_as(image)] == PAD_VALUE).all()


@examples(max_examples=40)
@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 60), st.integers(0, 9))
def test_resampling_agrees_with_torch(start: int, length: int, shown: int, beyond: int) -> None:
    full = 61
    generator = torch.Generator().manual_seed(start)
    image = torch.randint(0, 256, (full, full, 2), generator=generator).to(torch.uint8)
    mask = torch.randint(0, 256, (full, full), generator=generator).to(torch.uint8)
    side = Side(start, length, shown, shown + beyond, full)
    taken = side.pixels
    images, masks = resample(
        image[taken, taken][None], mask[taken, taken][None], [Window(side, side)], (shown + beyond,) * 2
    )

    source = slice(start, start + length)
    nearest = F.interpolate(mask[source, source][None, None], (shown, shown), mode="nearest-exact")[0, 0]
    # Half way between two pixels either is the nearest; rounding decides, so these are left out.
    sure = torch.tensor([i for i in range(shown) if (2 * i + 1) * length % (2 * shown)], dtype=torch.long)
    assert torch.equal(masks[0, :shown, :shown][sure][:, sure], nearest[sure][:, sure])
    smooth = F.interpolate(
        image[source, source].permute(2, 0, 1)[None].float(), (shown, shown), mode="bilinear", align_corners=False
    )[0]
    # Only where torch does not clamp at the edge of the window: here the image goes on beyond it.
    inside = [i for i in range(shown) if 0 <= (i + 0.5) * length / shown - 0.5 <= length - 1]
    found = images[0, :shown, :shown].permute(2, 0, 1).float()
    index = torch.tensor(inside, dtype=torch.long)
    assert ((found - smooth)[:, index][:, :, index].abs() <= 0.51).all()
    assert (images[0, shown:] == PAD_VALUE).all()
    assert (masks[0, :, shown:] == VOID).all()


def test_images_of_a_batch_do_not_see_each_other(tmp_path: Path) -> None:
    """A large window enlarges the batch; the padding around smaller ones must not bleed into them."""
    path = write_dataset(tmp_path / "d", counts={"train": 2, "val": 1, "test": 1}, size=[(40, 40), (20, 20)])
    for image in (path / "train" / "images").iterdir():
        side = 40 if image.name.startswith("0000") else 20
        image.write_bytes(encode_image(np.full((side, side, 1), 7, np.uint8)))
    images = TrainingImages(open_dataset(path), size=None, crop=(32, 32), multiple=8)
    for batch in batches(images, (0.7, 1.6)):
        there = batch.masks_NHW != VOID
        assert (batch.images_NCHW[:, 0][there] == 7).all()
        assert (batch.images_NCHW[:, 0][~there] == PAD_VALUE).all()
