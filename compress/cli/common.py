"""Options that several commands share, and how a result is printed."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from compress.progress import say
from compress.recipe import Recipe, on_one_line
from export.bundle import MODEL, is_bundle
from export.errors import BudgetMissedError, UsageError

DataOption = Annotated[Path, typer.Option("--data", metavar="DIR", help="Dataset folder.")]
OutOption = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", help="Folder to write. The folder of a step is either complete or absent."),
]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", metavar="FILE", help="Recipe (TOML), or the name of a built-in one.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change one setting, such as train.epochs=20; may be repeated. `compress settings` lists them.",
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--name", metavar="NAME", help="Model name in the manifest and in URLs; default: the folder's of --out."
    ),
]
VersionOption = Annotated[
    str | None,
    typer.Option("--version", metavar="VERSION", help="Model version in the manifest and in URLs; default: 1."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads per run; default: all cores that may be used.")
]


MirrorOption = Annotated[
    bool,
    typer.Option(
        "--mirror",
        help="Test-time augmentation: the mean answer for the image and its mirror image; takes twice the time.",
    ),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        "--window",
        metavar="HxW",
        help="Sliding windows of this size, which overlap; for very large images.",
    ),
]


def _share(value: float | None) -> float | None:
    """The value of an option that takes a share; Typer adds the option's name to what is wrong."""
    if value is None or 0 <= value <= 1:
        return value
    raise typer.BadParameter(f"{value:g} is not from 0 to 1")


MaxDropOption = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        callback=_share,
        help="mIoU that may be lost on the validation split, 0 to 1; 0.01 is one point, and what quantize allows by "
        "default.",
    ),
]
MinIouOption = Annotated[
    list[str] | None,
    typer.Option(
        "--min-iou",
        metavar="CLASS=IOU",
        help="Lowest IoU allowed for a class on the validation split, 0 to 1; may be repeated.",
    ),
]


def recipe_of(source: str | None, settings: list[str] | None, **options: Any) -> Recipe:
    """The recipe with `--set` and then the command's own options (`prune__speedup=4`) applied; None means not given.

    What was set and has no effect is told.
    """
    own = [f"{name.replace('__', '.')}={on_one_line(value)}" for name, value in options.items() if value is not None]
    recipe = Recipe.load(source, [*(settings or []), *own])
    for line in recipe.without_effect():
        say(line)
    return recipe


def names_data(settings: Sequence[str] | None) -> bool:
    """Whether `--set` says where the dataset is."""
    return any(setting.replace(" ", "").startswith("data.path=") for setting in settings or [])


def usual_recipe(data: Path | None, settings: Sequence[str] | None) -> str:
    """The recipe where none is given: the demo's on the sample set, the defaults on other data."""
    return "demo" if data is None and not names_data(settings) else "default"


def floors(given: list[str] | None) -> dict[str, float] | None:
    """What `--min-iou` says, by class; None where it is not given."""
    return dict(map(_floor, given)) if given else None


def _floor(text: str) -> tuple[str, float]:
    name, _, iou = text.rpartition("=")
    try:
        if name.strip() and 0 <= float(iou) <= 1:
            return name.strip(), float(iou)
    except ValueError:
        pass
    raise typer.BadParameter(
        f"{text!r} is not CLASS=IOU with an IoU from 0 to 1, such as road=0.9", param_hint="--min-iou"
    )


def typed() -> str:
    """The command line as it was typed: what makes a report again."""
    return shlex.join(["compress", *sys.argv[1:]])


def emit(result: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """The result, on standard output."""
    sys.stdout.write((json.dumps(result, allow_nan=False) if as_json else text).rstrip() + "\n")


def require_no_run(out: Path) -> None:
    """Refuse to write a report where a run has put its own.

    Raises UsageError.
    """
    if (out / "step.json").exists():
        raise UsageError(f"{out} belongs to a run, whose report would be overwritten; give another --out")


def require_for_report(out: Path) -> None:
    """Refuse to write a report over anything but an earlier report: one of a run, a bundle, other files.

    Raises UsageError.
    """
    require_outside_bundles(out)
    require_no_run(out)
    named = {"report.md", "report.html"}
    if out.is_dir() and not (out / "report.json").exists():
        others = [path.name for path in out.iterdir() if path.name in named or path.suffix == ".png"]
        if others:
            raise UsageError(
                f"{out} holds {', '.join(sorted(others))} but no report.json, so it is no report that could be "
                "replaced; give another --out"
            )


def require_outside_bundles(out: Path) -> None:
    """Refuse to write into a bundle, whose manifest names every file in it.

    Raises UsageError.
    """
    # Other programs' folders may have a manifest.json, too.
    folders = (out, *out.absolute().parents)
    bundle = next((folder for folder in folders if is_bundle(folder) and (folder / MODEL).is_file()), None)
    if bundle is not None:
        raise UsageError(f"{out} lies in the bundle {bundle}, which would no longer verify; give another --out")


class Missed:
    """Lets a command print its figures before it fails for a budget that was missed."""

    def __init__(self) -> None:
        self._error: BudgetMissedError | None = None

    def __enter__(self) -> "Missed":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._error = error if isinstance(error, BudgetMissedError) else None
        return self._error is not None

    def reraise(self) -> None:
        """Raises what was held back."""
        if self._error is not None:
            raise self._error


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`HxW` to (height, width)."""
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise typer.BadParameter(f"{text!r} is not HEIGHTxWIDTH, such as 256x256")
    return int(height), int(width)
