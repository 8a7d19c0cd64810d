"""Whether images are large enough to train on: BatchNorm needs more than one pixel at the deepest level."""

from compress.data.folder import Dataset
from compress.settings.data import DataSettings
from compress.settings.fit import FitSettings
from export.errors import RecipeError
from export.images import read_header


def require_room(data: DataSettings, settings: FitSettings, dataset: Dataset, multiple: int) -> None:
    """Raise RecipeError for crops or images of which a network that reduces `multiple` pixels to one leaves one pixel.

    The batches are those of `settings`, the images the training split's, at `data.size`.
    """
    crop = data.crop
    if crop is not None and (min(crop) < multiple or max(crop) == multiple):
        raise RecipeError("data.crop", [_too_small(crop, multiple)])
    headers = [read_header(sample.image) for sample in dataset.split("train")]
    sizes = [data.size or (header.height, header.width) for header in headers]
    small = [size for size in sizes if max(size) <= multiple]
    # Beside a larger image a small one is padded, and several images at once give one pixel each.
    batch = min(settings.batch_size, len(sizes))
    taken = min(settings.micro_batch or batch, batch)
    one_alone = taken == 1 or batch % taken == 1
    if len(small) == len(sizes) or (one_alone and len(small) >= batch):
        raise RecipeError("data.size", [_too_small(small[0], multiple)])


def _too_small(size: tuple[int, int], multiple: int) -> str:
    return f"{list(size)} is too small: the model reduces {multiple} pixels to one"
