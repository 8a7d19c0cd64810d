"""Training uses the loss that the recipe asks for, on the pixels of a dataset with void among them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kornia.losses import focal_loss
from support.checkpoints import write_checkpoint
from support.datasets import write_dataset
from support.fits import before_each_step
from support.networks import random_unet
from torch import Tensor

from compress.data.folder import open_dataset
from compress.recipe import Recipe
from compress.train import train
from compress.train.pixels import Pixels
from compress.train.regions import lovasz, soft_dice, tversky
from export.errors import RecipeError
from export.images import decode_indices, encode_mask
from export.scoring import VOID

CLASSES = ("ground", "left", "right")
EQUAL = [1.0, 1.0, 1.0]
ONE_STEP = [
    *("model.base=8", "model.depth=1", "train.epochs=1", "train.batch_size=4", "train.precision=float32"),
    *("train.augment.flip_horizontal=0", "train.augment.rotate_degrees=0", "train.augment.scale=[1, 1]"),
    *("train.augment.brightness=0", "train.augment.contrast=0", "train.loss.dice_weight=0"),
    "train.clip_norm=1e9",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images to train on; two columns of each mask are void."""
    path = tmp_path_factory.mktemp("data") / "discs"
    write_dataset(
        path, counts={"train": 4, "val": 1, "test": 1}, size=(16, 24), classes=CLASSES, table={"ignore_index": 9}
    )
    for mask in (path / "train" / "masks").iterdir():
        labels = decode_indices(mask).copy()
        labels[:, :2] = 9
        mask.write_bytes(encode_mask(labels))
    return path


def cross_entropy(weights: list[float], smoothing: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda logits, target: F.cross_entropy(
        logits, target, torch.tensor(weights), ignore_index=VOID, label_smoothing=smoothing
    )


def balanced(logits: Tensor, target: Tensor) -> Tensor:
    shares = torch.bincount(target[target != VOID]) / (target != VOID).sum()
    return cross_entropy((shares**-0.5).tolist())(logits, target)


def focal(logits: Tensor, target: Tensor) -> Tensor:
    total: Tensor = focal_loss(logits, target, None, 3.0, "sum", ignore_index=VOID)
    return total / (target != VOID).sum()


def focal_and_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return focal(logits, target) + 0.5 * cross_entropy(EQUAL)(logits, target)


def with_dice(logits: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(EQUAL)(logits, target) + 0.5 * soft_dice(Pixels.of(logits, target))


def with_tversky(logits: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(EQUAL)(logits, target) + 0.5 * tversky(Pixels.of(logits, target), 0.9)


def with_lovasz(logits: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(EQUAL)(logits, target) + 0.5 * lovasz(Pixels.of(logits, target))


def hard_half(logits: Tensor, target: Tensor) -> Tensor:
    costs = F.cross_entropy(logits, target, ignore_index=VOID, reduction="none")[target != VOID]
    return costs.sort(descending=True).values[: len(costs) // 2].mean()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ([], cross_entropy(EQUAL)),
        (["label_smoothing=0.3"], cross_entropy(EQUAL, smoothing=0.3)),
        (["class_weights=[0.2, 1, 5]"], cross_entropy([0.2, 1, 5])),
        (["class_weights=balanced"], balanced),
        (["pixel=focal", "focal_gamma=3"], focal),
        (["pixel=focal", "focal_gamma=3", "cross_entropy_weight=0.5"], focal_and_cross_entropy),
        (["dice_weight=0.5"], with_dice),
        (["tversky_weight=0.5", "tversky_missed=0.9"], with_tversky),
        (["lovasz_weight=0.5"], with_lovasz),
        (["pixel=ohem", "ohem_threshold=1e-6", "ohem_share=0.5"], hard_half),
    ],
    ids=["cross-entropy", "smoothed", "weighted", "balanced", "focal", "focal-ce", "dice", "tversky", "lovasz", "ohem"],
)
def test_a_step_descends_the_loss_that_is_asked_for(
    data: Path, tmp_path: Path, chosen: list[str], expected: Callable[[Tensor, Tensor], Tensor]
) -> None:
    start = random_unet(channels=1, base=8, depth=1, classes=3)
    init = write_checkpoint(tmp_path / "start", start, channels=1, base=8, depth=1, classes=3).path
    recipe = Recipe.load(None, [*ONE_STEP, *(f"train.loss.{setting}" for setting in chosen)])
    gradients: list[Tensor] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        gradients.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])

    with before_each_step(look):
        made = train(data, tmp_path / "out", recipe, init=init)
    (epoch,) = json.loads((made.path / "history.json").read_text())

    dataset = open_dataset(data)
    pairs = [(dataset.read_image(sample), dataset.read_mask(sample)) for sample in dataset.train]
    images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2)
    target = torch.from_numpy(np.stack([mask for _, mask in pairs])).long()
    logits = start.train()((images - 128.0) / 128)
    loss = expected(logits, target)
    assert epoch["loss"] == pytest.approx(loss.item(), rel=1e-4)
    if chosen:
        assert epoch["loss"] != pytest.approx(cross_entropy(EQUAL)(logits, target).item(), rel=1e-2)
    loss.backward()  # type: ignore[no-untyped-call]
    # The optimizer has the kernels in a group before the others.
    wanted = [p.grad for p in sorted(start.parameters(), key=lambda p: p.ndim == 1) if p.grad is not None]
    torch.testing.assert_close(gradients, wanted, rtol=1e-3, atol=1e-5)


def test_weights_for_other_classes_are_refused(data: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(None, [*ONE_STEP, "train.loss.class_weights=[1, 2]"])
    with pytest.raises(RecipeError, match="2 weights for 3 classes"):
        train(data, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()
