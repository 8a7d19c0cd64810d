"""What a training starts from."""

from pathlib import Path

import torch
from torch import nn

from compress import checkpoint, models
from compress.data.folder import Dataset
from compress.progress import say
from compress.recipe import Recipe
from compress.train.room import require_room
from export.errors import CheckpointError
from export.files import sha256_file


def initial_network(recipe: Recipe, dataset: Dataset, init: Path | None) -> tuple[nn.Module, dict[str, object], int]:
    """The network with the weights that training starts from, its factory's arguments, and its size multiple.

    Raises RecipeError when the images are too small for it, and CheckpointError.
    """
    arguments = {
        "channels": dataset.channels,
        "classes": len(dataset.classes),
        **recipe.model.keywords(),
    }
    torch.manual_seed(recipe.train.seed)
    network = models.build(recipe.model.factory, arguments)
    multiple = models.size_multiple(network)
    require_room(recipe.data, recipe.train, dataset, multiple)
    if init is not None:
        fresh = checkpoint.load_weights(network, _weights_file(init), skip_other_shapes=True)
        say(f"starting from {init}" + (f"; fresh: {', '.join(fresh)}" if fresh else ""))
    else:
        models.start_from_pretrained(network)
    return network, arguments, multiple


def initial_sha256(init: Path) -> str:
    """Hash of the weights in `init`, a checkpoint folder or a weights file. Raises CheckpointError."""
    path = _weights_file(init)
    if not path.is_file():
        raise CheckpointError(init, ["no such checkpoint folder or weights file"])
    return sha256_file(path)


def _weights_file(init: Path) -> Path:
    if not init.is_dir():
        return init
    source = checkpoint.load(init)
    if source.card.pruning:
        raise CheckpointError(
            init,
            ["it was pruned, and training needs a whole network; start from its parent, and prune again"],
        )
    return source.path / checkpoint.WEIGHTS
