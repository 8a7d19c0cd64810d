"""A model and a dataset must mean the same thing by a class number."""

from collections.abc import Sequence
from pathlib import Path

from compress.data.folder import Dataset
from export.errors import DatasetError


def require_classes(dataset: Dataset, classes: Sequence[str], model: Path) -> None:
    """Raises DatasetError when the dataset's classes are not those of the model, in order."""
    if tuple(classes) != dataset.classes:
        raise DatasetError(
            dataset.path,
            [f"its classes are {list(dataset.classes)}, {model} was made for {list(classes)}; order counts"],
        )
