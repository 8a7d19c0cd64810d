"""What a training keeps besides its best epoch: the last and every n-th, each a checkpoint that commands accept."""

import json
from pathlib import Path

import pytest
import torch
from support.datasets import write_dataset

from compress import checkpoint
from compress.anymodel import evaluate
from compress.checkpoint import Checkpoint
from compress.recipe import Recipe
from compress.train import train

SETTINGS = [
    *("model.base=8", "model.depth=2", "train.epochs=5", "train.batch_size=4", "train.precision=float32"),
    *("train.ema_decay=0.5", "train.learning_rate=0.02", "train.save_every=2", "train.validate_every=3"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "discs", size=(24, 32))


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return train(data, tmp_path_factory.mktemp("runs") / "dense", Recipe.load(None, SETTINGS))


def test_the_last_epoch_and_every_other_one_are_kept(made: Checkpoint, data: Path) -> None:
    folders = {path.name for path in made.path.iterdir() if path.is_dir()}
    assert folders == {"last", "epoch-0002", "epoch-0004"}
    history = {epoch["epoch"]: epoch.get("miou") for epoch in json.loads((made.path / "history.json").read_text())}
    assert [number for number, miou in history.items() if miou is not None] == [2, 3, 4, 5]
    kept = {"epoch-0002": 2, "epoch-0004": 4, "last": 5}
    for name, number in kept.items():
        source = checkpoint.load(made.path / name)
        assert source.card.miou_val == history[number]
        assert source.card.model_copy(update={"miou_val": None}) == made.card.model_copy(update={"miou_val": None})
        assert evaluate(source.path, data, split="val").miou == pytest.approx(history[number])
    assert len({checkpoint.load(made.path / name).weights_sha256 for name in kept}) == 3


def test_only_the_best_and_the_last_are_kept_unless_more_are_asked_for(data: Path, tmp_path: Path) -> None:
    one = train(data, tmp_path / "out", Recipe.load(None, [*SETTINGS, "train.save_every=none"]))
    assert [path.name for path in one.path.iterdir() if path.is_dir()] == ["last"]


def test_a_training_starts_from_one_that_was_kept(made: Checkpoint, data: Path, tmp_path: Path) -> None:
    source = checkpoint.load(made.path / "epoch-0002")
    # So slow that its weights are still those from which it started.
    recipe = Recipe.load(None, [*SETTINGS, "train.epochs=1", "train.learning_rate=1e-9"])
    again = train(data, tmp_path / "again", recipe, init=source.path)
    assert again.card.parents["init"] == source.weights_sha256
    weights, expected = (dict(one.network().named_parameters()) for one in (again, source))
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)


def test_the_record_says_how_the_time_was_shared(made: Checkpoint) -> None:
    result = json.loads((made.path / "step.json").read_text())["result"]
    shares = result["throughput"]
    assert 0 < shares["data_share"] + shares["augmentation_share"] < 1
    ratio = shares["feed_images_per_second"] / shares["network_images_per_second"]
    fed = shares["data_share"] + shares["augmentation_share"]
    assert ratio == pytest.approx((1 - fed) / fed)
