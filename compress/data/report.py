"""What a check of a dataset folder found: as data, and as text for people."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from compress.data.classes import VOID_NAME
from compress.data.layout import SPLITS, Split
from export.manifest import Channels

_SIZES_SHOWN = 12


class SizeCount(BaseModel):
    """How many images have one size."""

    model_config = ConfigDict(frozen=True)

    height: int
    width: int
    images: int


class DatasetReport(BaseModel):
    """What a dataset folder holds, and all that is wrong with it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    path: str
    classes: tuple[str, ...] = ()
    channels: Channels | None = None
    """What images are read as; None if no image could be read."""
    fingerprint: str | None = None
    """`Dataset.fingerprint`; None while there are problems."""
    images: dict[Split, int] = Field(default_factory=dict)
    """Pairs of image and mask in each split."""
    sizes: tuple[SizeCount, ...] = ()
    """Of the images, the commonest first."""
    pixels: dict[Split, dict[str, int]] = Field(default_factory=dict)
    """Pixels of each class, and of "void", in each split; masks with undeclared values are left out."""
    problems: tuple[str, ...] = ()
    """Errors; training refuses the folder while there are any."""
    notes: tuple[str, ...] = ()
    """What is allowed but worth knowing."""

    def share(self, split: Split, name: str) -> float:
        """The share of a split's pixels that a class, or "void", has; 0 in an empty split."""
        counts = self.pixels.get(split, {})
        return counts.get(name, 0) / (sum(counts.values()) or 1)


def render(report: DatasetReport) -> str:
    """The report as Markdown that reads well as plain text."""
    channels = {None: "unknown", 1: "1 (grey)", 3: "3 (RGB)"}.get(report.channels, f"{report.channels} (bands)")
    parts = [
        f"# Dataset {Path(report.path).name}",
        f"{report.path}\nchannels: {channels}\nfingerprint: {report.fingerprint or 'none while there are problems'}",
    ]
    if report.images:
        parts.append(_splits_table(report))
    if report.sizes:
        parts.append(_sizes_table(report))
    for title, lines in (("Problems", report.problems), ("Notes", report.notes)):
        if lines:
            parts.append(f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines))
    if not report.problems:
        parts.append("No problems found.")
    return "\n\n".join(parts) + "\n"


def _splits_table(report: DatasetReport) -> str:
    rows = [["images", *(str(report.images.get(split, 0)) for split in SPLITS)]]
    if report.pixels:
        names = [*report.classes]
        if any(report.pixels[split].get(VOID_NAME) for split in report.pixels):
            names.append(VOID_NAME)
        rows += [[name, *(f"{report.share(split, name):.2%}" for split in SPLITS)] for name in names]
    return _table(["share of pixels", *SPLITS], rows)


def _sizes_table(report: DatasetReport) -> str:
    rows = [[f"{size.width}x{size.height}", str(size.images)] for size in report.sizes[:_SIZES_SHOWN]]
    if len(report.sizes) > _SIZES_SHOWN:
        rest = report.sizes[_SIZES_SHOWN:]
        rows.append([f"{len(rest)} other sizes", str(sum(size.images for size in rest))])
    return _table(["width x height", "images"], rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]) + " |"

    rule = "".join(
        ("-" * (width + 1) + ":" if column else "-" * (width + 2)) + "|" for column, width in enumerate(widths)
    )
    return "\n".join([line(header), "|" + rule, *map(line, rows)])
