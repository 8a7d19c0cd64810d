"""`quantize` makes a complete bundle that says what it is, or refuses before it makes anything."""

from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint
from support.networks import random_unet
from support.quantizing import recipe

from compress.checkpoint import Checkpoint
from compress.data.folder import open_dataset
from compress.quantize import quantize
from compress.steps import read_record
from export.bundle import Bundle, verify
from export.errors import DatasetError, UsageError


def test_a_bundle_is_whole_and_says_what_it_is(int8_bundle: Bundle, trained: Checkpoint, discs: Path) -> None:
    verify(int8_bundle.path)
    manifest = int8_bundle.manifest
    record = read_record(int8_bundle.path)
    assert record is not None
    result = record["result"]
    assert (manifest.precision, manifest.target, manifest.float_layers) == ("int8", "auto", ())
    assert manifest.accuracy is not None
    assert manifest.latency is not None
    assert (manifest.accuracy.split, manifest.accuracy.images) == ("val", 5)
    assert manifest.accuracy.miou == result["miou"]
    assert manifest.accuracy.miou_parent == result["miou_parent"]
    assert manifest.accuracy.miou_interval[0] <= result["miou"] <= manifest.accuracy.miou_interval[1]
    assert manifest.latency.milliseconds_parent is not None
    assert result["speedup"] == manifest.latency.milliseconds_parent / manifest.latency.milliseconds
    assert (manifest.latency.height, manifest.latency.width) == (48, 64)
    assert result["drop"] == pytest.approx(result["miou_parent"] - result["miou"])
    assert result["miou"] > 0.9
    assert manifest.parents["checkpoint"] == trained.weights_sha256
    assert manifest.parents["data"] == open_dataset(discs).fingerprint
    assert {"parity.json", "calibration.json", "latency.json", "step.json"} < manifest.files.keys()
    assert "path" not in manifest.recipe["data"]
    # Four bytes a weight become one; the rest is scales and shapes.
    assert int8_bundle.size_bytes < 0.6 * (trained.path / "weights.safetensors").stat().st_size


def test_what_is_up_to_date_is_returned(
    int8_bundle: Bundle, trained: Checkpoint, discs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = quantize(trained.path, discs, int8_bundle.path, recipe())
    assert again == int8_bundle
    assert "is up to date" in capfd.readouterr().err


@pytest.mark.parametrize("outputs", ["logits", "both"])
def test_a_bundle_may_give_logits(trained: Checkpoint, discs: Path, tmp_path: Path, outputs: str) -> None:
    made = quantize(
        trained.path, discs, tmp_path / "out", recipe(f"export.outputs={outputs}", "export.golden=synthetic")
    )
    assert "logits" in {output.name for output in made.manifest.outputs}
    assert verify(made.path).golden_differing.keys() == {f"0{i}-synthetic{i}" for i in range(4)}


def test_a_dataset_of_other_classes_is_refused(discs: Path, tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "ckpt", random_unet(classes=2), classes=2, class_names=("disc", "background"))
    with pytest.raises(DatasetError, match=r"its classes are \['background', 'disc'\].*order counts"):
        quantize(made.path, discs, tmp_path / "out", recipe())


def test_a_checkpoint_is_not_replaced_by_its_bundle(trained: Checkpoint, discs: Path) -> None:
    with pytest.raises(UsageError, match="is what the step starts from, and would be replaced by its result"):
        quantize(trained.path, discs, trained.path, recipe())
    assert (trained.path / "weights.safetensors").exists()
