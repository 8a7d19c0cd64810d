"""`export`: a checkpoint becomes a float bundle that gives torch's answers, with or without data at hand."""

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.checkpoints import write_checkpoint
from support.datasets import write_dataset
from support.networks import export_once, random_unet
from support.recipes import TINY_SETTINGS

from compress.bundling import model_name, synthetic_images
from compress.checkpoint import Checkpoint
from compress.data.folder import open_dataset
from compress.export_fp32 import export
from compress.recipe import Recipe
from compress.settings.whole import ExportSettings
from export.bundle import Bundle, load, verify
from export.errors import DatasetError, ParityError
from export.machine import instruction_set
from export.runtime import OnnxModel


def recipe(*settings: str) -> Recipe:
    return Recipe.load(None, [*TINY_SETTINGS, *settings])


def test_a_bundle_says_what_it_is(float_bundle: Bundle, trained: Checkpoint, discs: Path) -> None:
    verify(float_bundle.path)
    manifest = float_bundle.manifest
    network = trained.network()
    assert (manifest.name, manifest.precision, manifest.channels) == ("dense-fp32", "fp32", 1)
    assert (manifest.size, manifest.size_multiple) == (None, 4)
    # The size of its data, for which `compress bench table` and the load tests measure by default.
    assert manifest.own_size == manifest.usual_size == (48, 64)
    assert manifest.classes == trained.card.classes
    assert manifest.params == sum(p.numel() for p in network.parameters())
    # 3x3 convolutions at 48x64, 24x32 and 12x16; 16, 32 and 64 wide.
    macs = 9 * 48 * 64 * (16 + 256 + 32 * 16 + 256) + 9 * 24 * 32 * (512 + 1024 + 96 * 16 + 256)
    macs += 9 * 12 * 16 * (2048 + 4096) + 48 * 64 * 32
    assert manifest.macs == macs
    assert manifest.accuracy is not None
    assert manifest.accuracy.miou == pytest.approx(trained.card.miou_val, abs=1e-3)
    assert manifest.latency is None
    assert manifest.instruction_set == instruction_set()
    assert manifest.parents == {
        **trained.card.parents,
        "checkpoint": trained.weights_sha256,
        "card": trained.card_sha256,
        "data": open_dataset(discs).fingerprint,
    }
    opset = next(entry.version for entry in onnx.load(float_bundle.model_path).opset_import if not entry.domain)
    assert manifest.opset == opset


def test_parity_with_torch_is_proven_on_real_images(float_bundle: Bundle) -> None:
    parity = json.loads((float_bundle.path / "parity.json").read_text())
    assert parity["kind"] == "torch-onnxruntime"
    assert parity["images"] == "validation split"
    sizes = {(case["height"], case["width"]) for case in parity["cases"]}
    assert len(sizes) == 3
    assert (48, 64) in sizes
    assert {(case["height"], case["width"], case["batch"]) for case in parity["cases"]} == {
        (*size, batch) for size in sizes for batch in (1, 2, 3, 8)
    }
    assert parity["miou"]["torch"] == pytest.approx(parity["miou"]["onnxruntime"], abs=1e-4)


def test_golden_answers_are_those_of_torch(float_bundle: Bundle, trained: Checkpoint, discs: Path) -> None:
    dataset = open_dataset(discs)
    images = {sample.name: dataset.read_image(sample) for sample in dataset.train}
    examples = list(float_bundle.golden())
    assert len(examples) == 4
    for name, image, mask in examples:
        np.testing.assert_array_equal(image, images[name.split("-", 1)[1]])
        np.testing.assert_array_equal(mask, trained.segmenter()(image))


def test_without_data_images_are_synthetic_and_nothing_is_scored(trained: Checkpoint, tmp_path: Path) -> None:
    made = export(trained.path, tmp_path / "out", recipe())
    verify(made.path)
    assert made.manifest.accuracy is None
    assert set(made.manifest.parents) == {"data", "checkpoint", "card"}
    assert [name.split("-")[1] for name in made.manifest.golden.names] == [f"synthetic{i}" for i in range(4)]
    assert json.loads((made.path / "parity.json").read_text())["images"] == "synthetic"
    for _, image, mask in made.golden():
        np.testing.assert_array_equal(mask, trained.segmenter()(image))


def test_synthetic_images_are_the_same_everywhere_and_not_flat(trained: Checkpoint) -> None:
    names, images = zip(*synthetic_images(trained.card, 3), strict=True)
    assert names == ("synthetic0", "synthetic1", "synthetic2")
    # As measured once; other libraries may round a few pixels differently.
    figures = [(image.mean(), image.std()) for image in images]
    np.testing.assert_allclose(figures, [(167.6, 57.3), (148.2, 45.8), (171.8, 49.5)], atol=0.2)


@pytest.mark.parametrize("size", [None, (2, 3)])
def test_synthetic_images_suit_a_network_that_takes_any_size(trained: Checkpoint, size: tuple[int, int] | None) -> None:
    card = trained.card.model_copy(update={"size_multiple": 1, "size": size})
    shapes = {image.shape[:2] for _, image in synthetic_images(card, 2)}
    assert shapes == {size or (32, 32)}


def test_work_is_counted_at_the_size_of_most_images(trained: Checkpoint, tmp_path: Path) -> None:
    """Latency is measured there, too, whatever images prove the parity."""
    counts, sizes = {"train": 3, "val": 3, "test": 3}, [(96, 96), (32, 48), (32, 48)]
    data = write_dataset(tmp_path / "mixed", counts=counts, size=sizes, classes=trained.card.classes)
    made = export(trained.path, tmp_path / "out", recipe(), data=data)
    assert made.manifest.usual_size == (32, 48)
    whole = export(trained.path, tmp_path / "whole", recipe(), data=write_dataset(tmp_path / "d", size=(32, 48)))
    assert made.manifest.macs == whole.manifest.macs


def test_pixels_can_stay_in_the_house(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    made = export(trained.path, tmp_path / "out", recipe("export.golden=synthetic"), data=discs)
    assert all("synthetic" in name for name in made.manifest.golden.names)
    assert made.manifest.accuracy is not None


@pytest.mark.parametrize("outputs", ["mask", "logits", "both"])
def test_a_bundle_gives_what_is_asked_for(trained: Checkpoint, tmp_path: Path, outputs: str) -> None:
    made = export(trained.path, tmp_path / "out", recipe(f"export.outputs={outputs}", "export.golden_images=1"))
    verify(made.path)
    names = {"mask": ["mask"], "logits": ["logits"], "both": ["mask", "logits"]}[outputs]
    assert [output.name for output in made.manifest.outputs] == names
    ((_, image, mask),) = made.golden()
    np.testing.assert_array_equal(made.segmenter().segment(image), mask)
    if outputs != "mask":
        logits = OnnxModel(made.model_path).logits(image[None])
        np.testing.assert_array_equal(logits.argmax(1)[0], mask)


def test_images_of_any_size_are_resized_as_in_training(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "ckpt", random_unet(), size=(20, 28))
    made = export(checkpoint.path, tmp_path / "out", recipe())
    assert (made.manifest.size, made.manifest.size_multiple) == ((20, 28), 4)
    image = np.random.default_rng(0).integers(0, 256, (33, 51, 1), dtype=np.uint8)
    mask = made.segmenter().segment(image)
    assert mask.shape == (33, 51)
    assert np.mean(mask != checkpoint.segmenter()(image)) < 0.005


def test_a_graph_that_is_not_the_network_never_becomes_a_bundle(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(network: Any, path: Path, **keywords: Any) -> onnx.ModelProto:
        graph = export_once(network, path, **keywords)
        head = next(tensor for tensor in graph.graph.initializer if tensor.name == "model.head.weight")
        head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(1.05), head.name))
        return graph

    monkeypatch.setattr(import_module("compress.export_fp32"), "export_onnx", wrong)
    with pytest.raises(ParityError, match="torch-onnxruntime parity does not hold"):
        export(trained.path, tmp_path / "out", recipe(), data=discs)
    assert not (tmp_path / "out").exists()


def test_what_is_up_to_date_is_returned(
    float_bundle: Bundle, trained: Checkpoint, discs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export(trained.path, float_bundle.path, recipe(), data=discs) == float_bundle
    assert "is up to date" in capfd.readouterr().err


def test_a_damaged_bundle_is_made_again(
    float_bundle: Bundle, trained: Checkpoint, discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / float_bundle.path.name
    shutil.copytree(float_bundle.path, out)
    with (out / "model.onnx").open("r+b") as file:
        file.write(b"damaged")
    made = export(trained.path, out, recipe(), data=discs)
    assert made.manifest.golden == float_bundle.manifest.golden
    assert "model.onnx does not match its hash" in capfd.readouterr().err
    assert export(trained.path, out, recipe(), data=discs) == made


def test_a_dataset_of_other_classes_is_refused(discs: Path, tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "ckpt", random_unet())
    with pytest.raises(DatasetError, match="was made for"):
        export(made.path, tmp_path / "out", recipe(), data=discs)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("int8", "int8"), ("my model, v2", "my-model-v2"), ("--", "model"), ("été", "t"), (".hidden", "hidden")],
)
def test_a_model_is_named_after_its_folder(folder: str, name: str, tmp_path: Path) -> None:
    assert model_name(ExportSettings(), tmp_path / folder) == name
    assert model_name(ExportSettings(name="chosen"), tmp_path / folder) == "chosen"


def test_a_named_model_keeps_its_name(trained: Checkpoint, tmp_path: Path) -> None:
    made = export(trained.path, tmp_path / "out", recipe("export.name=coast.v2"))
    assert load(made.path).manifest.name == "coast.v2"
