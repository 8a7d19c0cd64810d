"""Everything that is wrong with a dataset folder, found before any training, each file read once."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from compress.data.classes import FILE, VOID_NAME, ClassTable
from compress.data.evaluation import nothing_counts
from compress.data.findings import Findings, shortened
from compress.data.folder import ChannelChoice, Dataset, fingerprint_of, open_dataset
from compress.data.inspection import Inspector, OtherChannels, Seen, SeenImage, SeenMask
from compress.data.layout import SPLITS, Layout, Sample, Split
from compress.data.report import DatasetReport, SizeCount
from export.errors import DatasetError
from export.files import sha256_file
from export.machine import usable_cores
from export.manifest import Channels
from export.scoring import VOID

FEW_IMAGES = 20
"""With fewer images in val or test, a single one can move mIoU by more than a model may lose."""

Progress = Callable[[int, int], None]


def check(path: Path, channels: ChannelChoice = "auto", *, progress: Progress | None = None) -> DatasetReport:
    """Read every file of a dataset folder and report all problems at once.

    `channels` is what images are read as; for numbers other than 1 and 3, a file with another number of bands is a
    problem. `progress` is called with (pairs read, pairs in all). A user's mistakes are reported, not raised.
    """
    layout = Layout.scan(path)
    pairs = [(split, sample) for split in SPLITS for sample in layout.samples[split]]
    tally = _Tally(layout)
    # Pillow decodes and hashlib hashes without the interpreter's lock.
    pool = ThreadPoolExecutor(usable_cores())
    try:
        sights = pool.map(Inspector(layout.table, channels).look, (sample for _, sample in pairs))
        for done, ((split, sample), seen) in enumerate(zip(pairs, sights, strict=True), start=1):
            tally.add(split, sample, seen)
            if progress:
                progress(done, len(pairs))
    finally:
        # An interrupt must not wait for the rest of the folder.
        pool.shutdown(cancel_futures=True)
    return tally.report(channels)


def require_sound(
    path: Path,
    channels: ChannelChoice = "auto",
    *,
    scored: Sequence[Split] = (),
    progress: Progress | None = None,
) -> Dataset:
    """Check a dataset folder and open it.

    Raises DatasetError with everything that is wrong, and where every mask of a split in `scored` is void everywhere.
    """
    report = check(path, channels, progress=progress)
    if report.problems or report.channels is None:
        raise DatasetError(path, report.problems)
    dataset = open_dataset(path, channels=report.channels)
    for split in scored:
        if not sum(count for name, count in report.pixels[split].items() if name != VOID_NAME):
            raise nothing_counts(dataset, split)
    return dataclasses.replace(dataset, known_fingerprint=report.fingerprint)


class _Tally:
    """Counts what was seen, pair by pair, and draws the conclusions at the end."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.problems = layout.problems
        self.notes = Findings()
        self.digests: dict[str, str] = {}
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.coloured: bool | None = None
        self.places_by_picture: dict[str, list[tuple[Split, str]]] = {}
        self.pixels = {split: np.zeros(256, dtype=np.int64) for split in SPLITS}
        self.numbers: set[int] = set()
        self.masks_with_unknown_numbers: dict[str, tuple[int, ...]] = {}

    def add(self, split: Split, sample: Sample, seen: Seen) -> None:
        image_name, mask_name = self.layout.relative(sample.image), self.layout.relative(sample.mask)
        for name, sight in ((image_name, seen.image), (mask_name, seen.mask)):
            if isinstance(sight, str):
                self.problems.add(
                    "cannot be read; replace the file, or take it and its partner out", f"{name} ({sight})"
                )
            elif isinstance(sight, OtherChannels):
                self.problems.add(sight.problem, name)
            else:
                self.digests[name] = sight.digest
        if isinstance(seen.image, SeenImage):
            self._add_image(split, image_name, seen.image)
        if isinstance(seen.mask, SeenMask):
            self._add_mask(split, mask_name, seen.mask)
            if isinstance(seen.image, SeenImage) and seen.image.size != seen.mask.size:
                (height, width), (image_height, image_width) = seen.mask.size, seen.image.size
                self.problems.add(
                    "mask and image differ in size; give the mask that was drawn on this image",
                    f"{mask_name} ({width}x{height}, image {image_width}x{image_height})",
                )

    def _add_image(self, split: Split, name: str, seen: SeenImage) -> None:
        self.sizes[seen.size] += 1
        self.coloured = bool(self.coloured) or seen.coloured
        if seen.unread_pages:
            what = (
                "files with several pages, of which only the first is read; if the pages are bands, set data.channels "
                "to their number (three pages: save them as one RGB image)"
            )
            self.notes.add(what, name)
        if seen.picture is not None:
            self.places_by_picture.setdefault(seen.picture, []).append((split, name))

    def _add_mask(self, split: Split, name: str, seen: SeenMask) -> None:
        if seen.lossy:
            # Its values are noise around the true ones, so nothing is concluded from them.
            self.problems.add("JPEG changes the values of a mask; save masks as PNG from their source", name)
            return
        if self.layout.table is None:
            return
        self.numbers.update(seen.numbers)
        if not seen.unknown_numbers and not seen.unknown_colours:
            self.pixels[split] += np.array(seen.histogram)
        if seen.unknown_numbers:
            self.masks_with_unknown_numbers[name] = seen.unknown_numbers
        elif seen.unknown_colours:
            self._add_unknown_colours(name, seen, self.layout.table)
        elif seen.histogram[VOID] == sum(seen.histogram):
            self.notes.add("masks that are void everywhere; nothing can be learnt or scored there", name)
        if seen.is_palette_image and self.layout.table.palette is None:
            what = f'palette images, read by the numbers stored; declare "palette" in {FILE} to read them by colour'
            self.notes.add(what, name)

    def _add_unknown_colours(self, name: str, seen: SeenMask, table: ClassTable) -> None:
        colours = shortened([str(list(colour)) for colour in seen.unknown_colours])
        if table.palette is None:
            what = (
                f'masks in colour, and {FILE} declares no palette; add "palette" with the colour of each class, '
                f'e.g. {{"{table.classes[0]}": {list(seen.unknown_colours[0])}, ...}}, or save masks of class numbers'
            )
        else:
            what = (
                f'colours in brackets are not in the palette; add them to "palette" in {FILE} '
                f'("{VOID_NAME}" if they are not a class), or mend the masks'
            )
        self.problems.add(what, f"{name} ({colours})")

    def report(self, choice: ChannelChoice) -> DatasetReport:
        layout, table = self.layout, self.layout.table
        if table is not None:
            self._judge_numbers(table)
            self._judge_shares(table)
            self._judge_kin(table)
        self._judge_pictures()
        if layout.passed_over:
            self.notes.add("passed over, because their suffix is not that of a supported image", *layout.passed_over)
        channels: Channels | None = choice if choice != "auto" else None
        if choice == "auto" and self.coloured is not None:
            channels = 3 if self.coloured else 1
        fingerprint = None
        if not self.problems:
            fingerprint = fingerprint_of({FILE: sha256_file(layout.path / FILE), **self.digests})
        return DatasetReport(
            path=str(layout.path),
            classes=table.classes if table else (),
            channels=channels,
            fingerprint=fingerprint,
            images={split: len(samples) for split, samples in layout.samples.items()},
            sizes=tuple(SizeCount(height=h, width=w, images=n) for (h, w), n in self.sizes.most_common()),
            pixels={split: self._named_pixels(split, table) for split in SPLITS} if table else {},
            problems=tuple(self.problems.lines()),
            notes=tuple(self.notes.lines()),
        )

    def _named_pixels(self, split: Split, table: ClassTable) -> dict[str, int]:
        counts = self.pixels[split].tolist()
        return dict(zip((*table.classes, VOID_NAME), (*counts[: len(table.classes)], counts[VOID]), strict=True))

    def _judge_numbers(self, table: ClassTable) -> None:
        unknown = sorted({number for numbers in self.masks_with_unknown_numbers.values() for number in numbers})
        if not unknown:
            return
        if table.values is None:
            declared = f"the classes 0..{len(table.classes) - 1}"
        else:
            declared = f'among the "values" of {FILE}'
        void = "" if table.ignore_index is None else f" nor ignore_index {table.ignore_index}"
        what = f"mask values in brackets are not {declared}{void}; {_advice(table, sorted(self.numbers), unknown)}"
        for name, numbers in self.masks_with_unknown_numbers.items():
            self.problems.add(what, f"{name} ({shortened([str(number) for number in numbers])})")

    def _judge_shares(self, table: ClassTable) -> None:
        for split in SPLITS:
            count = len(self.layout.samples[split])
            if split != "train" and 0 < count < FEW_IMAGES:
                what = f"fewer than {FEW_IMAGES} images; its mIoU is too coarse to judge a model by"
                self.notes.add(what, f"{split} ({count})")
            if not self.pixels[split].any():
                continue
            for index, name in enumerate(table.classes):
                if not self.pixels[split][index]:
                    end = "it cannot be learnt" if split == "train" else "it cannot be scored there"
                    self.notes.add(f"never occurs in {split}; {end}", f'class "{name}"')

    def _judge_kin(self, table: ClassTable) -> None:
        if table.group is None:
            return
        splits_by_kin: dict[str, set[Split]] = {}
        for split in SPLITS:
            for sample in self.layout.samples[split]:
                if (kin := table.kin(sample.name)) is not None:
                    splits_by_kin.setdefault(kin, set()).add(split)
        for kin, splits in splits_by_kin.items():
            if len(splits) > 1:
                shared = ", ".join(split for split in SPLITS if split in splits)
                self.notes.add(
                    "groups that the folders put into several splits; scores may be too high", f"{kin} ({shared})"
                )

    def _judge_pictures(self) -> None:
        for places in self.places_by_picture.values():
            if len(places) > 1:
                names = " = ".join(name for _, name in places)
                if len({split for split, _ in places}) > 1:
                    what = "the same picture in several splits, so a score would reward learning by heart; keep one"
                    self.problems.add(what, names)
                else:
                    self.notes.add("the same picture more than once in a split", names)


def _advice(table: ClassTable, numbers: list[int], unknown: list[int]) -> str:
    """What to write into classes.json so that masks with these numbers can be read, or what to do to the masks."""
    if table.values is not None:
        return f'add each to "values" with its class, or with "{VOID_NAME}"'
    remedies = []
    if len(numbers) == len(table.classes):
        pairs = ", ".join(f'"{number}": "{name}"' for number, name in zip(numbers, table.classes, strict=True))
        remedies.append(f'if they mean the classes in this order, set "values": {{{pairs}}} in {FILE}')
    if len(unknown) == 1 and table.ignore_index is None:
        remedies.append(f'if {unknown[0]} means void, set "ignore_index": {unknown[0]} in {FILE}')
    if len(numbers) != len(table.classes):
        remedies.append(
            f'say with "values" in {FILE} which class, or "{VOID_NAME}", each number means, or mend the masks'
        )
    return "; ".join(remedies)
