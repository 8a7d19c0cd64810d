"""A split for scoring models: images as they are, truth at the size in which it was drawn. No torch."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

from compress.data.folder import Dataset, Sample, Split
from compress.data.layout import SPLITS
from export.errors import DatasetError
from export.images import U8, read_header


class EvaluationImages:
    """Iterate over (name, image HWC, truth HW); files are read when they are needed."""

    def __init__(self, dataset: Dataset, split: Split, samples: Sequence[Sample] | None = None) -> None:
        self.dataset = dataset
        self.samples: Sequence[Sample] = dataset.split(split) if samples is None else samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[str, U8, U8]:
        """Raises ImageError, and DatasetError for a mask of another size than its image."""
        sample = self.samples[index]
        image, truth = self.dataset.read_image(sample), self.dataset.read_mask(sample)
        if truth.shape != image.shape[:2]:
            (mask_height, mask_width), (height, width, _) = truth.shape, image.shape
            name = sample.mask.relative_to(self.dataset.path).as_posix()
            what = f"{name}: the mask is {mask_width}x{mask_height}, its image {width}x{height}"
            raise DatasetError(self.dataset.path, [f"{what}; give the mask that was drawn on this image"])
        return sample.name, image, truth

    def __iter__(self) -> Iterator[tuple[str, U8, U8]]:
        return map(self.__getitem__, range(len(self)))

    def images(self) -> Iterator[tuple[str, U8]]:
        """(name, image HWC), without the truth."""
        for sample in self.samples:
            yield sample.name, self.dataset.read_image(sample)


def nothing_counts(dataset: Dataset, split: str) -> DatasetError:
    """The error to raise for a split that has no mIoU."""
    end = "learnt" if split == "train" else "scored"
    return DatasetError(dataset.path, [f"{split}: every mask is void everywhere; nothing can be {end} there"])


def usual_size(dataset: Dataset) -> tuple[int, int]:
    """The most common (height, width), the larger of two that are equally common: latency is measured there by
    default."""
    headers = (read_header(sample.image) for split in SPLITS for sample in dataset.split(split))
    sizes = Counter((header.height, header.width) for header in headers)
    return max(sizes, key=lambda size: (sizes[size], size[0] * size[1]))


def drawn_by_name(samples: Sequence[Sample], count: int) -> tuple[Sample, ...]:
    """`count` samples, spread over the split by the hash of their names: the same ones on every machine."""
    ordered = sorted(samples, key=lambda sample: hashlib.sha256(sample.name.encode()).hexdigest())
    return tuple(ordered[:count])
