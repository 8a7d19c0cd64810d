"""Compare what an earlier `compress run` left in its folder with recipe and data before anything is made, and the data
with what they were when the run began.

Each step notices by itself that it is not up to date, but a later one only after the hours that earlier ones take.
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
"""The folders of a run in order, and those that each is made from, besides the data."""
TRAINED = {
    "dense": ("data", "model", "train"),
    "dense-int8": ("data", "model", "train", "quantize"),
    "pruned": ("data", "model", "train", "prune"),
    "int8": ("data", "model", "train", "prune", "quantize"),
}
"""Folders of steps that train, and the sections of a recipe that decide their results."""


def require_ours(path: Path) -> None:
    """Raises UsageError for a recipe that no run has written: it is the user's, and would be overwritten."""
    if not path.exists():
        return
    try:
        ours = Recipe.load(path).to_toml() == path.read_text(encoding="utf-8")
    except UsageError:
        ours = False
    if not ours:
        raise UsageError(f"{path} was not written by a run, and would be replaced; give another --out, or move it away")


def require_nothing_lost(recipe: Recipe, out: Path) -> None:
    """Raises UsageError where an interrupted training in `out` was started with another recipe."""
    if not (out / RECIPE).exists():
        return
    earlier, now = (_deciding(each) for each in (Recipe.load(out / RECIPE), recipe))
    for name, sections in TRAINED.items():
        changed = differences(*({section: tree[section] for section in sections} for tree in (earlier, now)))
        if changed:
            _require_no_training(out, name, f"of another recipe: {in_short(changed)}. ")


def look_at_data(out: Path, fingerprint: str) -> None:
    """Log which finished steps in `out` are made again, because they, or what they are made from, rest on other data
    than that of `fingerprint`.

    Raises UsageError where that keeps an interrupted training from continuing.
    """
    stale: list[str] = []
    for name, parents in PARENTS.items():
        follows = any(parent in stale for parent in parents)
        if follows or interrupted_inputs(out / name).get("data", fingerprint) != fingerprint:
            _require_no_training(out, name, "of an earlier run on other data. With that data, ")
        if follows or _inputs(out / name).get("data", fingerprint) != fingerprint:
            stale.append(name)
    again = [name for name in stale if _inputs(out / name)]
    if again:
        say(f"the data is not that of the earlier run; these steps are made again: {', '.join(again)}")


def require_unchanged(dataset: Dataset) -> None:
    """Raises WorkFailedError where the files of `dataset` are not what they were when it was opened."""
    if open_dataset(dataset.path, channels=dataset.channels).fingerprint != dataset.fingerprint:
        raise WorkFailedError(
            f"{dataset.path} was changed during the run, and networks made from different data cannot be compared; the "
            "same command makes again what the change affects"
        )


def _inputs(folder: Path) -> Mapping[str, str]:
    """The inputs of the finished step in `folder`, by role; empty where there is none."""
    inputs = (read_record(folder) or {}).get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def _require_no_training(out: Path, name: str, why: str) -> None:
    """Raises UsageError, giving `why`, where a training of the step `name` was interrupted."""
    partial = interrupted_training(out / name)
    if partial is not None:
        raise UsageError(
            f"{partial} holds an interrupted training {why}compress run {out / RECIPE} --out {out} continues it; to "
            "start over, remove that folder, or give another --out"
        )


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, without settings that change no result."""
    return recipe.model_dump(
        mode="json", exclude={"data": {"path", "cache_gb"}, "prune": {"analysis_images", "latency_table"}}
    )
