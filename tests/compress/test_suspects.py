"""Masks that were drawn wrongly are named first, with what is wrong about them."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from support.datasets import write_dataset

from compress.checkpoint import Checkpoint
from compress.cli.main import main
from compress.suspects import doubted, suspects
from export.bundle import Bundle
from export.errors import ShapeError
from export.images import decode_indices, encode_mask

CLASSES = ("background", "disc")


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images like those of the training; in the masks of two, the classes of the upper rows are swapped."""
    path = write_dataset(
        tmp_path_factory.mktemp("data") / "spoiled",
        counts={"train": 8, "val": 1, "test": 1},
        size=(48, 64),
        classes=CLASSES,
    )
    masks = sorted((path / "train" / "masks").iterdir())
    for mask, rows in ((masks[2], 24), (masks[5], 8)):
        labels = decode_indices(mask).copy()
        labels[:rows] = 1 - labels[:rows]
        mask.write_bytes(encode_mask(labels))
    return path


@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
def test_what_was_spoiled_is_named_first(trained: Checkpoint, float_bundle: Bundle, spoiled: Path, kind: str) -> None:
    names = sorted(mask.stem for mask in (spoiled / "train" / "masks").iterdir())
    found = suspects({"checkpoint": trained.path, "bundle": float_bundle.path}[kind], spoiled, count=3)
    assert len(found) <= 3
    assert [Path(suspect.name).stem for suspect in found[:2]] == [names[2], names[5]]
    assert found[0].doubt > 0.25
    assert {found[0].drawn, found[0].answered} == set(CLASSES)
    assert found[0].share <= 0.5


def test_doubt_is_how_much_surer_the_model_is_of_something_else() -> None:
    truth = np.array([[0, 0, 1, 255]], dtype=np.uint8)
    p = np.array([[[0.9, 0.2, 0.5, 0.0]], [[0.1, 0.8, 0.5, 1.0]]], dtype=np.float32)
    suspect = doubted("x", truth, p, CLASSES)
    assert suspect is not None
    assert suspect.doubt == pytest.approx(0.6 / 3)
    assert (suspect.drawn, suspect.answered) == CLASSES
    assert suspect.share == pytest.approx(1 / 3)


def test_what_is_agreed_with_or_void_is_no_suspect() -> None:
    p = np.array([[[0.9, 0.9]], [[0.1, 0.1]]], dtype=np.float32)
    for label in (0, 255):
        assert doubted("x", np.full((1, 2), label, dtype=np.uint8), p, CLASSES) is None


def test_a_mask_of_another_size_is_refused_by_name() -> None:
    p = np.full((2, 4, 6), 0.5, dtype=np.float32)
    for size in ((4, 5), (5, 6), (6, 4)):
        with pytest.raises(ShapeError, match=r"x: the mask has shape .*, the image \(4, 6\)"):
            doubted("x", np.zeros(size, dtype=np.uint8), p, CLASSES)


def test_the_command_names_them(
    trained: Checkpoint, spoiled: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["compress", "data", "suspects", str(spoiled), "--model", str(trained.path), "--count", "1"]
    outs = []
    for options in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", [*line, *options])
        with contextlib.suppress(SystemExit):
            main()
        outs.append(capfd.readouterr().out)
    (suspect,) = json.loads(outs[1])["suspects"]
    assert outs[0].startswith(f"{suspect['name']}: doubt {suspect['doubt']:.3f}")
