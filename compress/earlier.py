"""What an earlier run left in the folder of `compress run`, held against recipe and data before anything is made; and
the data against what they were when a run began.

A step sees by itself that it is not up to date, but a later one only after the hours of those before it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.data.folder import Dataset, open_dataset
from compress.progress import say
from compress.recipe import Recipe
from compress.steps import differences, in_short, interrupted_inputs, interrupted_training, read_record
from export.errors import UsageError, WorkFailedError

RECIPE = "recipe.toml"
PARENTS: Mapping[str, tuple[str, ...]] = {
    "dense": (),
    "dense-fp32": ("dense",),
    "dense-int8": ("dense",),
    "pruned": ("dense",),
    "pruned-fp32": ("pruned",),
    "int8": ("pruned",),
    "report": ("dense-fp32", "dense-int8", "pruned-fp32", "int8"),
}
"""Folders of a run in their order, and those that each is made from, beside the data."""
TRAINED = {
    "dense": ("data", "model", "train"),
    "dense-int8": ("data", "model", "train", "quantize"),
    "pruned": ("data", "model", "train", "prune"),
    "int8": ("data", "model", "train", "prune", "quantize"),
}
"""Folders of steps that train, and what of a recipe decides what becomes of them."""


def require_ours(path: Path) -> None:
    """Raises UsageError for a recipe that no run has written: it is the user's, and all settings would replace it."""
    if not path.exists():
        return
    try:
        ours = Recipe.load(path).to_toml() == path.read_text(encoding="utf-8")
    except UsageError:
        ours = False
    if not ours:
        raise UsageError(f"{path} was not written by a run, and would be replaced; give another --out, or move it away")


def require_nothing_lost(recipe: Recipe, out: Path) -> None:
    """Raises UsageError where an interrupted training in `out` was started by another recipe."""
    if not (out / RECIPE).exists():
        return
    earlier, now = (_deciding(each) for each in (Recipe.load(out / RECIPE), recipe))
    for name, sections in TRAINED.items():
        changed = differences(*({section: tree[section] for section in sections} for tree in (earlier, now)))
        if changed:
            _require_no_training(out, name, f"of another recipe: {in_short(changed)}. ")


def look_at_data(out: Path, fingerprint: str) -> None:
    """Say which finished steps in `out` are made anew, because they, or what they are made from, were made of other
    data than that of `fingerprint`.

    Raises UsageError where an interrupted training could not be gone on with for that.
    """
    of_others: list[str] = []
    for name, parents in PARENTS.items():
        follows = any(parent in of_others for parent in parents)
        if follows or interrupted_inputs(out / name).get("data", fingerprint) != fingerprint:
            _require_no_training(out, name, "of an earlier run on other data. With that data, ")
        if follows or _inputs(out / name).get("data", fingerprint) != fingerprint:
            of_others.append(name)
    anew = [name for name in of_others if _inputs(out / name)]
    if anew:
        say(f"the data is not what the earlier run was made of; made anew: {', '.join(anew)}")


def require_unchanged(dataset: Dataset) -> None:
    """Raises WorkFailedError where the files of `dataset` are not what they were when it was opened."""
    if open_dataset(dataset.path, channels=dataset.channels).fingerprint != dataset.fingerprint:
        raise WorkFailedError(
            f"{dataset.path} was changed while the run was at work, and networks of different data cannot be compared; "
            "the same command makes anew what the change concerns"
        )


def _inputs(folder: Path) -> Mapping[str, str]:
    """Of the finished step, by role; nothing where there is none."""
    inputs = (read_record(folder) or {}).get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def _require_no_training(out: Path, name: str, why: str) -> None:
    """Raises UsageError with `why`, where a training of the step `name` was interrupted."""
    partial = interrupted_training(out / name)
    if partial is not None:
        raise UsageError(
            f"{partial} holds an interrupted training {why}compress run {out / RECIPE} --out {out} continues it; to "
            "start anew, remove that folder, or give another --out"
        )


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, without settings that change no result."""
    return recipe.model_dump(
        mode="json", exclude={"data": {"path", "cache_gb"}, "prune": {"analysis_images", "latency_table"}}
    )
