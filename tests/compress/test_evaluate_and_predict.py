"""Checkpoints and bundles are scored and run alike; predictions have the size of their image."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundles import expected_mask, tiny_bundle
from support.datasets import write_dataset

from compress import predict as predict_module
from compress.anymodel import evaluate, load_model
from compress.checkpoint import Checkpoint
from compress.data.folder import open_dataset
from compress.predict import predict
from export.bundle import Bundle
from export.errors import BundleError, DatasetError, UsageError
from export.images import decode, decode_indices, encode_image, encode_mask
from export.overlay import overlay
from export.scoring import ConfusionMatrix

CLASSES = ("class-0", "class-1", "class-2")
SIZES = [(40, 56), (33, 17), (64, 64)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "mixed"
    return write_dataset(path, counts={"train": 2, "val": 2, "test": 4}, size=SIZES, classes=CLASSES, channels=3)


def test_a_checkpoint_and_its_bundles_have_the_same_score(
    trained: Checkpoint, float_bundle: Bundle, int8_bundle: Bundle, discs: Path
) -> None:
    dense, exported, int8 = (evaluate(made.path, discs) for made in (trained, float_bundle, int8_bundle))
    assert dense.images == exported.images == tuple(sample.name for sample in open_dataset(discs).test)
    assert exported.miou == pytest.approx(dense.miou, abs=1e-3)
    assert int8.miou == pytest.approx(dense.miou, abs=0.05)
    assert dense.miou > 0.9
    assert [load_model(made.path).kind for made in (trained, float_bundle)] == ["checkpoint", "bundle"]


def test_a_score_is_that_of_the_masks(tiny: Bundle, mixed: Path) -> None:
    dataset = open_dataset(mixed)
    matrix = ConfusionMatrix(3)
    for sample in dataset.val:
        matrix.update(dataset.read_mask(sample), expected_mask(dataset.read_image(sample), 3))
    score = evaluate(tiny.path, mixed, split="val", threads=1)
    assert score.miou == matrix.miou
    np.testing.assert_array_equal(score.counts.sum(axis=0), matrix.counts)
    assert score.classes == CLASSES


def test_threads_are_heeded(trained: Checkpoint, discs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    evaluate(trained.path, discs, threads=1)
    assert asked[-1] == 1


def test_what_cannot_be_scored_is_refused(tiny: Bundle, mixed: Path, discs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is neither a bundle \(manifest.json\) nor a checkpoint \(model.json\)"):
        evaluate(tmp_path, mixed)
    with pytest.raises(DatasetError, match="was made for"):
        evaluate(tiny.path, discs)
    with pytest.raises(DatasetError, match="no such folder"):
        evaluate(tiny.path, tmp_path / "nowhere")
    damaged = Path(shutil.copytree(tiny.path, tmp_path / "damaged"))
    (damaged / "parity.json").unlink()
    with pytest.raises(BundleError, match=r"parity\.json is missing"):
        evaluate(damaged, mixed)


def test_a_mask_of_another_size_than_its_image_is_named(tiny: Bundle, mixed: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(mixed, tmp_path / "data"))
    mask = sorted((data / "test" / "masks").iterdir())[0]
    mask.write_bytes(encode_mask(np.zeros((5, 7), np.uint8)))
    with pytest.raises(
        DatasetError, match=rf"test/masks/{mask.name}: the mask is 7x5, its image .*; give the mask that"
    ):
        evaluate(tiny.path, data)


def test_a_split_that_is_all_void_has_no_score(tiny: Bundle, tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "void", classes=CLASSES, channels=3, table={"ignore_index": 9})
    for mask in (path / "test" / "masks").iterdir():
        mask.write_bytes(encode_mask(np.full((64, 64), 9, np.uint8)))
    with pytest.raises(DatasetError, match="test: every mask is void everywhere"):
        evaluate(tiny.path, path)
    assert evaluate(tiny.path, path, split="val").miou > 0


def test_every_image_gets_a_mask_and_an_overlay_of_its_size(tiny: Bundle, mixed: Path, tmp_path: Path) -> None:
    written = predict(tiny.path, mixed / "test" / "images", tmp_path / "out", threads=1)
    assert [made.image.name for made in written] == ["0004.png", "0005.png", "0006.png", "0007.png"]
    for made in written:
        image = decode(made.image, 3)
        mask = decode_indices(made.mask)
        np.testing.assert_array_equal(mask, expected_mask(image, 3))
        painted = decode(made.overlay, 3)
        assert painted.shape == image.shape
        np.testing.assert_array_equal(painted, overlay(image, mask, tiny.manifest.colours))
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert files == [f"{part}/000{i}.png" for part in ("masks", "overlays") for i in range(4, 8)]


def test_a_checkpoint_predicts_what_its_bundle_predicts(
    trained: Checkpoint, float_bundle: Bundle, discs: Path, tmp_path: Path
) -> None:
    for made in (trained, float_bundle):
        predict(made.path, discs / "test" / "images", tmp_path / made.path.name)
    for mask in (tmp_path / trained.path.name / "masks").iterdir():
        other = tmp_path / float_bundle.path.name / "masks" / mask.name
        assert np.mean(decode_indices(mask) != decode_indices(other)) < 0.001


def test_an_overlay_shows_image_and_colour_half_and_half() -> None:
    image = np.array([[[100], [200]]], dtype=np.uint8)
    painted = overlay(image, np.array([[0, 1]], np.uint8), ((0, 0, 0), (255, 0, 100)))
    np.testing.assert_array_equal(painted, [[[50, 50, 50], [227, 100, 150]]])
    tall = overlay(
        np.tile(image, (150, 1, 1)), np.tile(np.array([[0, 1]], np.uint8), (150, 1)), ((0,) * 3, (255, 0, 100))
    )
    np.testing.assert_array_equal(tall, np.tile(painted, (150, 1, 1)))


def test_a_single_image_and_every_suffix(tiny: Bundle, tmp_path: Path) -> None:
    image = encode_image(np.zeros((5, 5, 3), np.uint8))
    (tmp_path / "images").mkdir()
    for name in ("a.png", "B.PNG", "c.jpeg", "notes.txt"):
        (tmp_path / "images" / name).write_bytes(image)
    written = predict(tiny.path, tmp_path / "images", tmp_path / "out")
    assert [made.mask.name for made in written] == ["B.png", "a.png", "c.png"]
    (single,) = predict(tiny.path, tmp_path / "images" / "a.png", tmp_path / "one")
    assert single.mask == tmp_path / "one" / "masks" / "a.png"


def test_hidden_files_are_passed_over(tiny: Bundle, mixed: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(mixed / "test" / "images", images)
    (images / "._0004.png").write_bytes(b"what another system keeps beside a file")
    assert len(predict(tiny.path, images, tmp_path / "out")) == 4


def test_every_file_that_is_no_image_is_named_and_nothing_is_written(tiny: Bundle, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    good = encode_image(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    (images / "good.png").write_bytes(good)
    (images / "good.jpg").write_bytes(good)
    (images / "text.png").write_text("hello")
    (images / "empty.jpg").touch()
    (images / "cut.png").write_bytes(good[: len(good) // 2])
    (images / "folder.png").mkdir()
    with pytest.raises(UsageError) as caught:
        predict(tiny.path, images, tmp_path / "out")
    message = str(caught.value)
    assert "nothing was written" in message
    for name in ("text.png", "empty.jpg", "cut.png", "folder.png"):
        assert f"{images / name}: " in message, name
    assert "good.png and good.jpg would be written to the same good.png" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("images", "out"),
    [
        ("data/test/images", "data/test"),
        ("data/test/images", "data/nowhere/../test"),
        ("heap/images", "heap"),
        ("classes/mine", "classes"),
        ("x/masks", "x"),
        ("x/overlays", "x"),
        ("x/masks/a.png", "x"),
        ("link", "x"),
        ("photos", "project"),
    ],
)
def test_neither_drawn_masks_nor_images_are_replaced(tiny: Bundle, tmp_path: Path, images: str, out: str) -> None:
    write_dataset(tmp_path / "data", channels=3)
    write_dataset(tmp_path / "heap", channels=3, counts=2)
    (tmp_path / "data" / "nowhere").mkdir()
    for folder in ("x/masks", "x/overlays", "classes/mine"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(encode_image(np.zeros((5, 5, 3), np.uint8)))
    (tmp_path / "classes" / "classes.json").touch()
    for drawn in ("photos/a.png", "photos/b.png", "project/masks/b.png"):
        (tmp_path / drawn).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / drawn).write_bytes(encode_image(np.zeros((5, 5, 3), np.uint8)))
    (tmp_path / "link").symlink_to(tmp_path / "x" / "masks")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="give another --out"):
        predict(tiny.path, tmp_path / images, tmp_path / out)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("what", ["nowhere", "empty", "only-text"])
def test_a_folder_without_images(tiny: Bundle, tmp_path: Path, what: str) -> None:
    for name in ("empty", "only-text"):
        (tmp_path / name).mkdir()
    (tmp_path / "only-text" / "a.txt").touch()
    with pytest.raises(UsageError, match=f"{what}.*(no such file or folder|holds no image)"):
        predict(tiny.path, tmp_path / what, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_package_exposes_predict() -> None:
    assert predict_module.predict is predict
