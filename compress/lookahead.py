"""Find out before a run begins what its later steps would refuse after hours of training."""

from pathlib import Path

from compress import models
from compress.budget import Budget
from compress.data.check import require_sound
from compress.data.evaluation import usual_size
from compress.data.folder import Dataset
from compress.prune.levels import require_levels
from compress.quantize.workbench import require_unsigned
from compress.recipe import Recipe
from compress.train.freeze import require_encoder
from compress.train.precision import pick_device
from compress.train.room import require_room
from compress.train.usable import require_usable
from export.images import padded_size
from export.latency.table import LatencyTable


def look_ahead(recipe: Recipe, data: Path) -> Dataset:
    """The dataset, if nothing is wrong with it or with what `recipe` asks of pruning and quantization on it.

    Raises DatasetError, RecipeError, UsageError.
    """
    dataset = require_sound(data, recipe.data.channels, scored=("val", "test"))
    for settings in (recipe.prune, recipe.quantize):
        Budget.of(settings).require_classes(dataset.classes)
    pick_device(recipe.train.device)
    require_usable(recipe.prune.finetune, dataset.classes)
    if recipe.quantize.mode == "qat":
        require_unsigned(recipe.quantize)
        require_usable(recipe.quantize.finetune, dataset.classes)
    _require_network(recipe, dataset)
    return dataset


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
