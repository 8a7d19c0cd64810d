"""Find out before a run begins what its later steps would refuse after hours of training."""

from pathlib import Path

import numpy as np

from compress import models
from compress.budget import Budget
from compress.data.check import require_sound
from compress.data.evaluation import usual_size
from compress.data.folder import Dataset
from compress.own import is_own
from compress.prune.levels import require_levels
from compress.quantize.workbench import require_unsigned
from compress.recipe import Recipe
from compress.settings.fit import FitSettings
from compress.train import own
from compress.train.freeze import require_encoder
from compress.train.losses import class_weights
from compress.train.precision import pick_device
from compress.train.room import require_room
from export.images import padded_size
from export.latency.table import LatencyTable


def look_ahead(recipe: Recipe, data: Path) -> Dataset:
    """The dataset, if nothing is wrong with it or with what `recipe` asks of pruning and quantization on it.

    Raises DatasetError, RecipeError, UsageError.
    """
    dataset = require_sound(data, recipe.data.channels)
    for settings in (recipe.prune, recipe.quantize):
        Budget.of(settings).require_classes(dataset.classes)
    pick_device(recipe.train.device)
    _require_fit(recipe.prune.finetune, dataset)
    if recipe.quantize.mode == "qat":
        require_unsigned(recipe.quantize)
        _require_fit(recipe.quantize.finetune, dataset)
    _require_network(recipe, dataset)
    return dataset


def _require_fit(settings: FitSettings, dataset: Dataset) -> None:
    """Check that the user's own loss and schedule exist, and that class weights are those of the classes."""
    if settings.loss.own is not None:
        own.loss(settings.loss.own)
    if is_own(settings.schedule.kind):
        own.schedule(settings.schedule.kind)
    class_weights(settings.loss, np.ones(len(dataset.classes), dtype=np.int64), settings.SECTION)


def _require_network(recipe: Recipe, dataset: Dataset) -> None:
    """Check that the recipe's network, untrained, can be frozen and cut as the recipe asks."""
    levels, table = recipe.prune.levels, recipe.prune.latency_table
    arguments = {"channels": dataset.channels, "classes": len(dataset.classes), **recipe.model.keywords()}
    network = models.build(recipe.model.factory, arguments)
    require_encoder(network, recipe.prune.finetune)
    if levels is not None:
        require_levels(network, levels, "the recipe's network")
    else:
        require_room(recipe.data, recipe.prune.finetune, dataset, models.size_multiple(network))
    if table is not None:
        size = recipe.prune.latency_size or recipe.data.size or usual_size(dataset)
        padded = padded_size(*size, models.size_multiple(network))
        # Only an export can tell whether the table has all layers.
        LatencyTable.load(table).require((), {}, precision=recipe.prune.precision, size=padded, source=table)
