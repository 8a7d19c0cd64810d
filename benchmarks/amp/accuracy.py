"""What mixed precision costs in mIoU: pairs of trainings that differ in nothing but their precision.

The seed gives both trainings of a pair the same initial weights and the same images in the same order. Every training
is a step of its own in the work folder, so an interrupted comparison continues where it stopped.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.report.amp.results import Accuracy, SeedScore, Supply
from benchmarks.report.results import DataUsed
from compress.anymodel import evaluate
from compress.data.folder import Dataset, open_dataset
from compress.data.layout import Split
from compress.data.sample import write_sample
from compress.progress import say
from compress.recipe import Recipe
from compress.steps import result_of
from compress.train import train
from compress.train.precision import Choice, Precision, choose, kept_choice
from export.files import make_folder

SPLIT: Split = "test"
"""Best epochs are chosen on the validation split, so it would flatter both."""


def reduced_choice(folder: Path, recipe: Recipe, device: torch.device) -> Choice:
    """What `compress train` chooses on `device`; where the probe decides, it does so once for `folder`."""
    if recipe.train.precision != "auto":
        return choose(recipe.train.precision, device)
    make_folder(folder)
    return kept_choice(folder, "auto", device)


def compare(
    folder: Path, recipe: Recipe, *, precision: Precision, seeds: Sequence[int], data: Path | None = None
) -> Accuracy:
    """Train in float32 and in `precision` from each of `seeds`, and score both on the test split.

    `data` defaults to the recipe's, else to the built-in sample set, which is then written into `folder`. Raises what
    `compress.train.train` and `compress.anymodel.evaluate` raise.
    """
    data = data or recipe.data.path
    dataset = write_sample(folder / "data") if data is None else open_dataset(data, channels=recipe.data.channels)
    scores, supplies = [], []
    for seed in seeds:
        say(f"seed {seed}: float32 against {precision}")
        trained = {kind: _trained(folder, dataset, recipe, kind, seed) for kind in ("float32", precision)}
        float32, reduced = (evaluate(path, dataset.path, split=SPLIT).miou for path in trained.values())
        scores.append(SeedScore(seed=seed, float32=float32, reduced=reduced))
        supplies += [supply for kind, path in trained.items() if (supply := _supply(path, kind, seed))]
    return Accuracy.of(
        scores,
        data=DataUsed.of(dataset.path, dataset.fingerprint, SPLIT, len(dataset.split(SPLIT))),
        recipe=recipe.as_tree(),
        precision=precision,
        supplies=supplies,
    )


def _trained(folder: Path, dataset: Dataset, recipe: Recipe, precision: str, seed: int) -> Path:
    settings = recipe.train.model_copy(update={"precision": precision, "seed": seed})
    out = folder / f"{precision}-seed-{seed}"
    return train(dataset.path, out, recipe.model_copy(update={"train": settings})).path


def _supply(trained: Path, precision: str, seed: int) -> Supply | None:
    """None for a training that was too short to time."""
    found = result_of(trained)["throughput"]
    if found is None:
        return None
    return Supply(
        precision=precision,
        seed=seed,
        feed_images_s=found["feed_images_per_second"],
        network_images_s=found["network_images_per_second"],
    )
