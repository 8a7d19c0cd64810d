"""What is rare is shown more often, and an epoch that is resumed in the middle has the batches that were left."""

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import write_dataset

from compress.checkpoint import Checkpoint
from compress.data import rare
from compress.data.crop import Window
from compress.data.folder import open_dataset
from compress.data.loader import TrainingImages
from compress.prune import analyze, prune
from compress.quantize import quantize
from compress.recipe import Recipe
from compress.steps import StepPlan
from compress.train import train
from export.images import encode_mask

SIDE, COUNT = 64, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of 16 images has a spot of class 2, 3x3 pixels at (50, 9); everything else is class 0."""
    path = write_dataset(
        tmp_path_factory.mktemp("data") / "spots",
        counts={"train": COUNT, "val": 1, "test": 1},
        size=(SIDE, SIDE),
        classes=("ground", "nothing", "spot"),
    )
    for index, mask in enumerate(sorted((path / "train" / "masks").iterdir())):
        labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
        if index == 0:
            labels[50:53, 9:12] = 2
        mask.write_bytes(encode_mask(labels))
    return path


def images(data: Path, rare_crops: float = 0.0, rare_images: float = 0.0) -> TrainingImages:
    return TrainingImages(
        open_dataset(data), size=None, crop=(16, 16), multiple=8, rare_crops=rare_crops, rare_images=rare_images
    )


@pytest.mark.parametrize(
    ("share", "zoom"), [(0.0, (1.0, 1.0)), (0.5, (1.0, 1.0)), (1.0, (1.0, 1.0)), (1.0, (0.5, 2.0))]
)
def test_crops_are_taken_around_each_class_of_an_image_alike(
    data: Path, share: float, zoom: tuple[float, float]
) -> None:
    shown, chosen = 0, images(data, rare_crops=share)
    for number in range(200):
        for batch in chosen.epoch(number, COUNT, zoom=zoom):
            shown += int((batch.masks_NHW == 2).any(2).any(1).sum())
    # One random crop in ten, each a sixteenth of the image, shows some of the spot; of two classes, each is drawn half
    # of the time.
    expected = share * 0.5 + (1 - share * 0.5) * 0.1
    assert shown / 200 == pytest.approx(expected, abs=0.07)


@settings(max_examples=60)
@given(
    st.integers(0, 2**20),
    st.lists(st.integers(8, 60), min_size=2, max_size=2),
    st.lists(st.integers(1, 70), min_size=2, max_size=2),
    st.sampled_from([1.0, 0.6, 1.7]),
)
def test_a_window_shows_the_pixel_that_it_is_taken_around(
    seed: int, size: list[int], crop: list[int], zoom: float
) -> None:
    rng = np.random.default_rng(seed)
    around = (int(rng.integers(size[0])), int(rng.integers(size[1])))
    window = Window.draw(rng, (size[0], size[1]), (crop[0], crop[1]), (zoom, zoom), around)
    for side, pixel, full in zip((window.rows, window.columns), around, size, strict=True):
        assert -1e-6 <= side.start <= side.start + side.length <= full + 1e-6
        assert side.start <= pixel + 0.5 <= side.start + side.length or side.length < 1


def test_images_of_rare_classes_come_more_often(data: Path) -> None:
    """The spot is in one of 16 images, which comes sqrt(0.25 * 16) = 2 times as often as the others."""
    dataset = open_dataset(data)
    rarest = min(sample.name for sample in dataset.train)
    seen: Counter[str] = Counter()
    for number in range(200):
        names = [name for batch in images(data, rare_images=0.25).epoch(number, 4) for name in batch.names]
        assert len(names) == COUNT
        seen.update(names)
    expected = 200 * COUNT / (COUNT + 1)
    assert seen.pop(rarest) == pytest.approx(2 * expected, rel=0.02)
    assert all(count == pytest.approx(expected, rel=0.1) for count in seen.values())


def test_an_epoch_is_gone_on_with_where_it_was_left(data: Path) -> None:
    chosen = images(data, rare_crops=0.7, rare_images=0.25)
    whole, rest = list(chosen.epoch(3, 4, seed=1)), list(chosen.epoch(3, 4, seed=1, first=2))
    assert [batch.names for batch in rest] == [batch.names for batch in whole[2:]]
    assert all((one.masks_NHW == other.masks_NHW).all() for one, other in zip(rest, whole[2:], strict=True))


@settings(max_examples=60)
@given(st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=30), st.floats(0.01, 1), st.integers(0, 1000))
def test_each_image_comes_as_often_as_its_factor_says(held: list[set[int]], threshold: float, seed: int) -> None:
    repeats = rare.repeats(held, threshold)
    assert repeats.mean() == pytest.approx(1)
    counts = np.bincount(rare.order(np.random.default_rng(seed), repeats), minlength=len(held))
    assert counts.sum() == len(held)
    assert (np.abs(counts - repeats) < 1 + 1e-9).all()


STEPS: dict[str, Callable[[Path, Path, Recipe], object]] = {
    "compress.train.train": lambda _, data, recipe: train(data, Path("out"), recipe),
    "compress.prune.prune": lambda parent, data, recipe: prune(parent, data, Path("out"), recipe),
    "compress.prune.analyze": lambda parent, data, recipe: analyze(parent, data, Path("out"), recipe),
    "compress.quantize.workbench": lambda parent, data, recipe: quantize(parent, data, Path("out"), recipe),
}


@pytest.mark.parametrize("module", STEPS)
def test_what_a_step_sees_of_the_data_is_in_its_key_and_nothing_else(
    module: str, trained: Checkpoint, discs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a result would pass as up to date for settings that change it, or be remade for ones that do not."""
    keys = []

    def asked(_: Path, plan: StepPlan) -> None:
        keys.append(plan.key)
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module(module), "finished", asked)
    settings = ["prune.ratio=0.5", "quantize.mode=qat", "data.crop=[16, 16]"]
    for more in ([], ["data.cache_gb=1"], ["data.rare_crops=0.5"], ["data.rare_images=0.5"], ["data.crop=[24, 24]"]):
        with pytest.raises(KeyboardInterrupt):
            STEPS[module](trained.path, discs, Recipe.load(None, [*settings, *more]))
    assert keys[0] == keys[1]
    assert len(set(keys[1:])) == 4


def test_a_mask_of_void_has_no_place() -> None:
    assert rare.place(np.random.default_rng(0), torch.full((4, 4), 255, dtype=torch.uint8)) is None
