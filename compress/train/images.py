"""The images that a network is trained and validated on, kept as the recipe says."""

from collections.abc import Sequence

import torch

from compress.data.folder import Dataset, Sample
from compress.data.loader import TrainingImages, ValidationImages
from compress.progress import say, task
from compress.recipe import Recipe


def window_settings(recipe: Recipe) -> dict[str, object]:
    """The settings that decide which windows of which images are trained on, for a step's key.

    The size of images is not among them: it is the model's.
    """
    return recipe.data.model_dump(mode="json", include={"crop", "rare_crops", "rare_images"})


def training_images(dataset: Dataset, recipe: Recipe, multiple: int, device: torch.device) -> TrainingImages:
    """Training images, kept on `device` or in memory as the recipe says."""
    with task("decode", len(dataset.split("train"))) as bar:
        images = TrainingImages(
            dataset,
            size=recipe.data.size,
            crop=recipe.data.crop,
            multiple=multiple,
            cache_gb=recipe.data.cache_gb,
            rare_crops=recipe.data.rare_crops,
            rare_images=recipe.data.rare_images,
            device=device,
            on_image=bar.advance,
        )
    say(f"training images: {images.decoded}")
    return images


def validation_images(
    dataset: Dataset, recipe: Recipe, multiple: int, validated: Sequence[Sample] | None = None
) -> ValidationImages:
    """Validation images, kept in memory as the recipe says: those of `validated`, by default the whole split."""
    images = ValidationImages(
        dataset, size=recipe.data.size, multiple=multiple, cache_gb=recipe.data.cache_gb, samples=validated
    )
    say(f"validation images: {images}")
    return images


def training_and_validation_images(
    dataset: Dataset,
    recipe: Recipe,
    multiple: int,
    device: torch.device,
    *,
    validated: Sequence[Sample] | None = None,
) -> tuple[TrainingImages, ValidationImages]:
    """`training_images` and `validation_images` of one size multiple."""
    images = training_images(dataset, recipe, multiple, device)
    return images, validation_images(dataset, recipe, multiple, validated)
