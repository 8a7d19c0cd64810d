"""The figures of an epoch: equal to torchmetrics' at the size of the masks, and kept in the history."""

import json
from pathlib import Path

import pytest
import torch
from support.datasets import write_dataset
from support.networks import random_unet
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from compress import checkpoint
from compress.checkpoint import Checkpoint
from compress.data.folder import open_dataset
from compress.data.loader import ValidationImages
from compress.train.validation import validate

CPU = torch.device("cpu")


def test_a_network_is_scored_at_the_size_of_the_masks(tmp_path: Path) -> None:
    """The sizes fit neither the network nor each other."""
    path = write_dataset(tmp_path / "mixed", size=[(25, 38), (33, 17)], classes=("a", "b", "c"))
    dataset, network = open_dataset(path), random_unet()
    metrics = validate(network, ValidationImages(dataset, size=None, multiple=4), CPU).metrics

    confusion = MulticlassConfusionMatrix(3)
    accuracy, f1 = MulticlassAccuracy(3, average="micro"), MulticlassF1Score(3, average="none")
    for sample in dataset.val:
        image = torch.from_numpy(dataset.read_image(sample).copy()).permute(2, 0, 1)[None]
        truth = torch.from_numpy(dataset.read_mask(sample).copy()).long()
        height, width = truth.shape
        padding = (0, -width % 4, 0, -height % 4)
        with torch.no_grad():
            logits = network(torch.nn.functional.pad((image - 128.0) / 128, padding))
        guess = logits.argmax(1)[0, :height, :width]
        for oracle in (confusion, accuracy, f1):
            oracle.update(guess, truth)
    tree = metrics.as_tree()
    assert tree["confusion"] == confusion.compute().tolist()
    assert tree["accuracy"] == pytest.approx(float(accuracy.compute()))
    assert list(tree["dice_per_class"].values()) == pytest.approx(f1.compute().tolist())


def test_the_history_holds_every_figure_of_every_epoch(trained: Checkpoint, discs: Path) -> None:
    history = json.loads((trained.path / "history.json").read_text(), parse_constant=pytest.fail)
    assert [epoch["epoch"] for epoch in history] == list(range(1, 9))
    best = max(history, key=lambda epoch: float(epoch["miou"]))
    assert best["miou"] == trained.card.miou_val
    images = ValidationImages(open_dataset(discs), size=None, multiple=trained.card.size_multiple)
    for epoch, made in ((best, trained), (history[-1], checkpoint.load(trained.path / "last"))):
        expected = validate(made.network(), images, CPU).metrics.as_tree()
        assert {name: epoch[name] for name in expected} == expected
        assert all(other.keys() >= expected.keys() for other in history)
    assert len({json.dumps(epoch["confusion"]) for epoch in history}) > 1
