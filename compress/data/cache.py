"""Images and masks, decoded once and kept within a budget; those beyond it are read each time they are needed.

C channels, H height, W width; arrays are uint8, void in a mask is 255.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from compress.data.folder import Dataset, Sample
from export.images import resize_image, resize_mask
from export.machine import usable_cores

IMAGES_AHEAD = 16
"""Images read ahead, in whole batches: enough to keep the cores busy, and little memory."""
SHARE_OF_THE_DEVICE = 0.5
"""Share of a GPU's free memory that images may take; activations need the rest."""


class Pair(NamedTuple):
    """One decoded sample."""

    image_HWC: Tensor
    mask_HW: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.mask_HW.shape[0], self.mask_HW.shape[1]

    @property
    def nbytes(self) -> int:
        return self.image_HWC.nbytes + self.mask_HW.nbytes


class DecodedImages:
    """The pairs of `samples`, by index; each is resized to `size` when it is decoded."""

    def __init__(
        self,
        dataset: Dataset,
        samples: Sequence[Sample],
        *,
        size: tuple[int, int] | None,
        budget_bytes: float,
        device: torch.device,
        on_image: Callable[[], None],
    ) -> None:
        """Decode from the first sample on until `budget_bytes` are used up; `on_image` is called for each one kept."""
        self._dataset = dataset
        self._samples = samples
        self._size = size
        self._kept: list[Pair] = []
        used = 0
        for (pair,) in self.in_turn([index] for index in range(len(samples))):
            used += pair.nbytes
            if used > budget_bytes:
                break
            self._kept.append(pair)
            on_image()
        self.device = device if _fits(used, device) else torch.device("cpu")
        """Where the kept pairs are stored."""
        self._kept = [Pair(pair.image_HWC.to(self.device), pair.mask_HW.to(self.device)) for pair in self._kept]

    def __len__(self) -> int:
        return len(self._samples)

    def __str__(self) -> str:
        where = "in memory" if self.device.type == "cpu" else f"on {self.device}"
        beyond = "" if len(self._kept) == len(self) else "; the others are read from disk in every epoch"
        return f"{len(self._kept)} of {len(self)} images are kept decoded {where}{beyond}"

    def in_turn(self, groups: Iterable[Sequence[int]]) -> Iterator[list[Pair]]:
        """The pairs of each group, in order; meanwhile, pairs of later groups that are not kept are read ahead.

        Raises ImageError or DatasetError when a file cannot be read.
        """
        ahead: deque[list[Pair | Future[Pair]]] = deque()
        with ThreadPoolExecutor(usable_cores()) as pool:
            try:
                for group in groups:
                    ahead.append([self._kept_or(index, pool) for index in group])
                    if sum(map(len, ahead)) - len(ahead[0]) >= IMAGES_AHEAD:
                        yield _ready(ahead.popleft())
                while ahead:
                    yield _ready(ahead.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def masks(self) -> Iterator[Tensor]:
        """Every mask; for samples that are not kept, the mask alone is read."""
        for pair in self._kept:
            yield pair.mask_HW
        for sample in self._samples[len(self._kept) :]:
            yield self._read_mask(sample)

    def _kept_or(self, index: int, pool: ThreadPoolExecutor) -> "Pair | Future[Pair]":
        return self._kept[index] if index < len(self._kept) else pool.submit(self._read, self._samples[index])

    def _read(self, sample: Sample) -> Pair:
        image = self._dataset.read_image(sample)
        if self._size is not None:
            image = resize_image(image, self._size)
        return Pair(torch.tensor(image), self._read_mask(sample))

    def _read_mask(self, sample: Sample) -> Tensor:
        mask = self._dataset.read_mask(sample)
        return torch.tensor(mask if self._size is None else resize_mask(mask, self._size))


def _ready(group: Sequence[Pair | Future[Pair]]) -> list[Pair]:
    return [item if isinstance(item, Pair) else item.result() for item in group]


def _fits(nbytes: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return nbytes <= SHARE_OF_THE_DEVICE * free
