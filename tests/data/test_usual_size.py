"""The size at which latency is measured by default: the one that most images have."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.datasets import write_dataset

from compress.data.evaluation import usual_size
from compress.data.folder import open_dataset


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(32, 48)] * 3 + [(64, 64)], (32, 48)),
        ([(64, 64)] + [(32, 48)] * 3, (32, 48)),
        ([(32, 48), (64, 64)] * 2, (64, 64)),  # equally common: the larger, in either order
        ([(64, 64), (32, 48)] * 2, (64, 64)),
    ],
)
def test_most_images_decide_and_then_the_larger(
    tmp_path: Path, sizes: list[tuple[int, int]], expected: tuple[int, int]
) -> None:
    path = write_dataset(tmp_path / "d", counts={"train": 2, "val": 1, "test": 1})
    pairs = zip(sorted(path.glob("*/images/*")), sorted(path.glob("*/masks/*")), sizes, strict=True)
    for image, mask, size in pairs:
        Image.fromarray(np.full(size, 90, np.uint8)).save(image)
        Image.fromarray(np.zeros(size, np.uint8)).save(mask)
    assert usual_size(open_dataset(path)) == expected
