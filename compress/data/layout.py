"""Which files of a dataset folder belong together: splits, images and masks by name, nothing decoded.

DIR/{train,val,test}/{images,masks}/NAME.*     splits as folders, or
DIR/{images,masks}/NAME.*                      one pool, split by a hash of the name
DIR/classes.json
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from compress.data.classes import FILE, ClassTable
from compress.data.findings import Findings, shortened
from export.errors import DatasetError
from export.images import SUFFIXES

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Sample:
    """One image and its mask; `name` is the stem that both files share, unique within a split."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Layout:
    """What a dataset folder contains, and what is wrong with its structure."""

    path: Path
    table: ClassTable | None
    """None if classes.json cannot be used."""
    samples: Mapping[Split, tuple[Sample, ...]]
    """The pairs that could be made, even if there are problems."""
    passed_over: tuple[str, ...]
    """Files and folders whose suffix is not that of an image."""
    problems: Findings

    @classmethod
    def scan(cls, path: Path) -> "Layout":
        """List the folder, pair images with masks, split. A user's mistakes are recorded, never raised."""
        return _Scan(path).layout()

    def relative(self, file: Path) -> str:
        """`file` as a POSIX path within the dataset folder."""
        return file.relative_to(self.path).as_posix()


def split_of(kin: str) -> Split:
    """The split for the hash of a name, or of what its group matches: train, val, test as 8 to 1 to 1."""
    digit = int(hashlib.sha256(kin.encode()).hexdigest(), 16) % 10
    return "train" if digit < 8 else "val" if digit == 8 else "test"


class _Scan:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems = Findings()
        self.passed_over: list[str] = []

    def layout(self) -> Layout:
        samples: dict[Split, tuple[Sample, ...]] = dict.fromkeys(SPLITS, ())
        table = None
        if self.path.is_dir():
            table = self._table()
            try:
                samples = self._samples(table)
            except OSError as error:
                self.problems.add(f"cannot be listed ({error}); check its permissions", str(self.path))
        elif self.path.exists():
            self.problems.add("not a folder; give the folder that holds classes.json", str(self.path))
        else:
            self.problems.add("no such folder; check the path", str(self.path))
        return Layout(self.path, table, samples, tuple(self.passed_over), self.problems)

    def _table(self) -> ClassTable | None:
        try:
            return ClassTable.load(self.path / FILE)
        except DatasetError as error:
            for problem in error.problems:
                self.problems.add(problem, FILE)
            return None

    def _samples(self, table: ClassTable | None) -> dict[Split, tuple[Sample, ...]]:
        splits_there = [split for split in SPLITS if (self.path / split).is_dir()]
        heap_there = [name for name in ("images", "masks") if (self.path / name).is_dir()]
        if splits_there and heap_there:
            what = (
                f"the split folders {', '.join(splits_there)} exist, too, and only one form is possible; "
                "move the pictures into the splits, or all of them into images and masks"
            )
            self.problems.add(what, *(f"{name}/" for name in heap_there))
        if heap_there and not splits_there:
            return self._by_hash(self._pairs(self.path), table)
        if splits_there:
            return self._by_folder(splits_there)
        self.problems.add(
            "neither the folders train, val, test nor the folders images, masks exist "
            f"(there {_are(self.path)}); make one of the two forms",
            f"{self.path}",
        )
        return dict.fromkeys(SPLITS, ())

    def _by_folder(self, there: list[Split]) -> dict[Split, tuple[Sample, ...]]:
        for split in SPLITS:
            if split not in there:
                self.problems.add(
                    f"no such folder (there {_are(self.path)}); make all of train, val, test, "
                    "or put all pictures into images and masks and let the hash of the names split them",
                    f"{split}/",
                )
        samples = {split: self._pairs(self.path / split) if split in there else () for split in SPLITS}
        for split in there:
            if (
                not samples[split]
                and (self.path / split / "images").is_dir()
                and (self.path / split / "masks").is_dir()
            ):
                self.problems.add("holds no image with a mask; put some there", f"{split}/")
        return samples

    def _by_hash(self, samples: tuple[Sample, ...], table: ClassTable | None) -> dict[Split, tuple[Sample, ...]]:
        divided: dict[Split, list[Sample]] = {split: [] for split in SPLITS}
        kin: set[str] = set()
        for sample in samples:
            family = table.kin(sample.name) if table else sample.name
            if family is None:
                what = f"`group` of {FILE} matches nothing in the name; widen it, so that related files stay together"
                self.problems.add(what, self._relative(sample.image))
                family = sample.name
            kin.add(family)
            divided[split_of(family)].append(sample)
        for split in SPLITS:
            if not divided[split]:
                self.problems.add(
                    f"the hash put none of {len(samples)} images in {len(kin)} groups there; add images, "
                    "or make the folders train, val, test by hand",
                    f"split {split}",
                )
        return {split: tuple(chosen) for split, chosen in divided.items()}

    def _pairs(self, folder: Path) -> tuple[Sample, ...]:
        missing = [name for name in ("images", "masks") if not (folder / name).is_dir()]
        for name in missing:
            what = f"no such folder (there {_are(folder)}); pictures go into images, their masks into masks"
            self.problems.add(what, self._relative(folder / name) + "/")
        if missing:
            return ()
        images, masks = self._by_stem(folder / "images"), self._by_stem(folder / "masks")
        for stem in sorted(images.keys() - masks.keys()):
            self._no_partner("mask", images[stem], folder / "masks")
        for stem in sorted(masks.keys() - images.keys()):
            self._no_partner("image", masks[stem], folder / "images")
        return tuple(Sample(stem, images[stem], masks[stem]) for stem in sorted(images.keys() & masks.keys()))

    def _no_partner(self, partner: str, file: Path, folder: Path) -> None:
        where = self._relative(folder)
        near = [path for path in folder.glob("*") if path.stem == file.stem]
        if any(_leads_nowhere(path) for path in near):
            return  # told already
        if near:
            suffixes = ", ".join(sorted(SUFFIXES))
            what = f"its {partner} {where}/{near[0].name} is not in a supported format ({suffixes}); convert it"
        else:
            what = f"no {partner} of the same name in {where}; add it, or take this one out"
        self.problems.add(what, self._relative(file))

    def _by_stem(self, folder: Path) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for file in sorted(folder.iterdir()):
            if file.name.startswith("."):
                continue
            if not file.name.isprintable():
                # Bytes that are not UTF-8, and line breaks: neither can be hashed, printed or quoted faithfully.
                what = "the file's name holds characters that cannot be printed; rename it"
                self.problems.add(what, ascii(file.name) + f" in {self._relative(folder)}")
            elif file.suffix.lower() in SUFFIXES and _leads_nowhere(file):
                what = "a link to a file that is not there; fetch that (git annex get, dvc pull), or take the link out"
                self.problems.add(what, self._relative(file))
            elif not file.is_file() or file.suffix.lower() not in SUFFIXES:
                self.passed_over.append(self._relative(file) + ("/" if file.is_dir() else ""))
            elif file.stem in found:
                what = "two files whose names differ only in the suffix; keep one of them"
                self.problems.add(what, f"{self._relative(found[file.stem])} and {self._relative(file)}")
            else:
                found[file.stem] = file
        return found

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()


def _leads_nowhere(file: Path) -> bool:
    """Whether `file` is a link to nothing: what git-annex or DVC leaves of a file that was not fetched."""
    return file.is_symlink() and not file.exists()


def _are(folder: Path) -> str:
    names: Iterable[str] = (path.name + ("/" if path.is_dir() else "") for path in sorted(folder.iterdir()))
    listed = [name for name in names if not name.startswith(".")]
    return f"are {shortened(listed)}" if listed else "is nothing"
