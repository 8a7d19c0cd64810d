"""`compress bench ablation` without its command line: a recipe and changes of it in, a report out."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.ablation.changes import BASE, Change, changed, read_changes
from benchmarks.report.ablation.results import AblationReport, Run, Variant
from benchmarks.report.ablation.write import write
from benchmarks.report.folder import report_folder
from benchmarks.report.plots import shortcomings
from benchmarks.report.results import DataUsed
from compress.anymodel import evaluate
from compress.data.folder import Dataset, open_dataset
from compress.data.sample import write_sample
from compress.progress import say
from compress.recipe import Recipe
from compress.steps import read_record
from compress.train import train
from export.errors import BusyError, MissingExtraError, SegpressError, UsageError
from export.files import write_json
from export.machine import Machine

WORK = "trainings"
"""Folder of the trainings, inside that of the report."""


@dataclass
class _Trial:
    """A change, the recipe that it makes, and how its trainings went."""

    change: Change
    recipe: Recipe
    seeds: int
    runs: list[Run]
    failure: str | None = None
    left_out: str | None = None

    def folder(self, work: Path, seed: int) -> Path:
        place = work / self.change.group
        return (place / self.change.name if self.change.name else place) / f"seed-{seed}"


def bench(
    out: Path,
    *,
    recipe: str | None,
    settings: Sequence[str] = (),
    changes: Path | None = None,
    groups: Sequence[str] = (),
    seeds: int = 3,
    seeds_by_group: Mapping[str, int] | None = None,
    data: Path | None = None,
    command: str,
) -> AblationReport:
    """Train `recipe` with `settings`, as it is and with each of `changes`, and write what each is worth into `out`.

    `changes` is a TOML file, by default the list that comes with the program; only its `groups` are tried where any are
    named. Each is trained from seeds 0, 1, ...: `seeds` of them, or as many as `seeds_by_group` says. Trainings are
    kept in `out` and never repeated; an interrupted one goes on. `data` defaults to the recipe's, else to the built-in
    sample set, which is then written into `out`. A change that fails is a row of the report, and is tried again the
    next time. Raises UsageError for bad input, and what the training of the base raises.
    """
    tried = read_changes(changes, groups=groups)
    by_group = seeds_by_group or {}
    if (fewest := min([seeds, *by_group.values()])) < 1:
        raise UsageError(f"a change needs one training or more, got {fewest}")
    if unknown := by_group.keys() - {change.group for change in tried}:
        raise UsageError(f"no change is in the group {', '.join(sorted(unknown))}; leave out its number of seeds")
    named = "changes" if changes is None else str(changes)
    plain = Recipe.load(recipe, list(settings))
    trials = [
        _Trial(change, chosen, by_group.get(change.group, seeds), [])
        for change, chosen in zip(tried, changed(recipe, settings, tried, named=named), strict=True)
    ]
    base = _Trial(Change(BASE, "", ()), plain, max((trial.seeds for trial in trials), default=1), [])
    data = data or plain.data.path
    with report_folder(out):
        dataset = write_sample(out / "data") if data is None else open_dataset(data, channels=plain.data.channels)
        _train_all(base, [trial for trial in trials if trial.recipe != plain], out / WORK, dataset)
        report = AblationReport.of(
            base.runs,
            [_variant(trial, same=trial.recipe == plain) for trial in trials if trial.left_out is None],
            title="What each part of the training is worth",
            command=command,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=Machine.here(),
            data=DataUsed.of(dataset.path, dataset.fingerprint, "test", len(dataset.split("test"))),
            images={split: len(dataset.split(split)) for split in ("train", "val", "test")},
            recipe=plain.as_tree(),
            notes=(*_notes(trials), *shortcomings("picture")),
        )
        write(report, out)
    return report


def _train_all(base: _Trial, others: Sequence[_Trial], work: Path, dataset: Dataset) -> None:
    """Train seed by seed, the base first, so that an interruption leaves all changes equally far along."""
    order = [(trial, seed) for seed in range(base.seeds) for trial in (base, *others) if seed < trial.seeds]
    start, fresh = time.monotonic(), 0
    for done, (trial, seed) in enumerate(order):
        left = f", about {(time.monotonic() - start) / fresh * (len(order) - done) / 60:.0f} min left" if fresh else ""
        if trial.failure is not None or trial.left_out is not None:
            continue
        say(f"training {done + 1} of {len(order)}{left}: {trial.change.group} {trial.change.name}, seed {seed}")
        folder = trial.folder(work, seed)
        fresh += not folder.exists()
        try:
            trial.runs.append(_run(folder, dataset, trial.recipe, seed))
        except BusyError:
            raise
        except MissingExtraError as error:
            if trial is base:
                raise
            trial.left_out = str(error)
        except SegpressError as error:
            if trial is base:
                raise
            trial.failure = f"seed {seed}: {error}"
            say(f"{trial.change} failed: {error}")


def _run(folder: Path, dataset: Dataset, recipe: Recipe, seed: int) -> Run:
    settings = recipe.train.model_copy(update={"seed": seed})
    trained = train(dataset.path, folder, recipe.model_copy(update={"train": settings}))
    record = read_record(folder) or {}
    return Run(
        seed=seed,
        val=record["result"]["miou"],
        test=_judged(trained.path, dataset.path, record["key"]),
        train=record["result"]["miou_train"],
        best_epoch=record["result"]["best_epoch"],
        seconds=record["seconds"],
    )


def _judged(folder: Path, data: Path, key: str) -> float:
    """mIoU on the test split, which is used once, when the network is done: no epoch is chosen by it."""
    kept = folder.with_name(f"{folder.name}.test.json")
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["key"] == key:
            return float(found["miou"])
    miou = evaluate(folder, data, split="test").miou
    write_json(kept, {"key": key, "miou": miou})
    return miou


def _variant(trial: _Trial, *, same: bool) -> Variant:
    return Variant(
        group=trial.change.group,
        name=trial.change.name,
        settings=trial.change.settings,
        same_as_base=same,
        runs=tuple(trial.runs),
        failure=trial.failure,
    )


def _notes(trials: Iterable[_Trial]) -> Iterable[str]:
    for trial in trials:
        if trial.left_out is not None:
            yield f"{trial.change} was left out: {trial.left_out}"
