"""`compress run`: every step in order, each skipped when it is up to date."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.latency import report_on
from benchmarks.report.folder import to_open
from benchmarks.report.results import Goals, GroupWidth, Report
from compress.anymodel import evaluate
from compress.data.folder import Dataset
from compress.data.lookup import lookup_table_miou
from compress.data.sample import write_sample
from compress.earlier import RECIPE, look_at_data, require_nothing_lost, require_ours, require_unchanged
from compress.export_fp32 import export
from compress.lookahead import look_ahead
from compress.progress import say, task
from compress.prune import prune
from compress.quantize import quantize
from compress.recipe import Recipe
from compress.steps import StepPlan, finished, locked, result_of, running
from compress.train import train
from export import bundle
from export.bundle import Bundle
from export.errors import BudgetMissedError, ParityError, UsageError
from export.files import make_folder, write_atomic

REPORT = "report.json"


@dataclass(frozen=True)
class Finished:
    """What a run leaves: the report, its page, and the bundle to serve."""

    report: Report
    page: Path
    bundle: Path
    missed: tuple[str, ...]
    """Budgets of single steps that were missed; the run went on with the best that they found."""

    def require_ok(self) -> None:
        """Raises BudgetMissedError naming each verdict that failed; everything that was made is kept."""
        failed = [*self.missed]
        failed += [f"{verdict.text}: {verdict.detail}" for verdict in self.report.verdicts if not verdict.ok]
        if failed:
            raise BudgetMissedError("the run is complete, but:" + "".join(f"\n  - {line}" for line in failed))


def run(recipe: Recipe, out: Path, *, command: str = "compress run") -> Finished:
    """Run all steps into folders of `out`, from the data to the report; a run killed at any moment can continue.

    `command` is what the report names to make it again. Raises what the steps raise, except for a missed budget: the
    run goes on with the best that was found, and `Finished.require_ok` raises afterwards.
    """
    if not recipe.prune.says_how_much:
        raise UsageError(
            "the recipe does not say how much to prune; set prune.speedup, or another goal or budget in [prune]"
        )
    dataset = None if recipe.data.path is None else look_ahead(recipe, recipe.data.path)
    require_ours(out / RECIPE)
    make_folder(out)
    # The folder of each step is locked by itself; this is for what lies beside them, such as the recipe.
    with locked(out, out):
        require_nothing_lost(recipe, out)
        if dataset is None:
            say("data.path is not set: using the built-in sample set")
            dataset = look_ahead(recipe, write_sample(out / "data").path)
        look_at_data(out, dataset.fingerprint)
        write_atomic(out / RECIPE, recipe.to_toml())
        return _run(recipe, dataset, out, command)


def _run(recipe: Recipe, dataset: Dataset, out: Path, command: str) -> Finished:
    data = dataset.path
    dense = train(data, out / "dense", recipe)
    require_unchanged(dataset)
    dense_fp32 = export(dense.path, out / "dense-fp32", recipe, data=data)
    missed: list[str] = []
    # Here INT8 that is not faster is a verdict of the report, not a reason to have no report.
    forced = recipe.model_copy(update={"quantize": recipe.quantize.model_copy(update={"force": True})})
    # The dense network in INT8 is only a line of the table and is never served, so it is held to no budget.
    without: list[str] = []
    with _kept([]):
        try:
            quantize(dense.path, data, out / "dense-int8", forced)
        except ParityError as error:
            without.append(f"dense-int8 is left out: {error}")
            say(without[-1])
    with _kept(missed):
        prune(dense.path, data, out / "pruned", recipe)
    require_unchanged(dataset)
    pruned_fp32 = export(out / "pruned", out / "pruned-fp32", recipe, data=data)
    with _kept(missed):
        quantize(out / "pruned", data, out / "int8", forced)
    require_unchanged(dataset)

    bundles = {
        "dense-fp32": dense_fp32,
        "pruned-fp32": pruned_fp32,
        **({} if without else {"dense-int8": bundle.load(out / "dense-int8")}),
        "pruned-int8": bundle.load(out / "int8"),
    }
    cut = result_of(out / "pruned").get("groups", {})
    widths = [GroupWidth(layer=layer, **figures) for layer, figures in cut.items()]
    report = _report(out / "report", bundles, dataset, recipe, command, widths, without)
    return Finished(report, to_open(out / "report"), out / "int8", tuple(missed))


@contextmanager
def _kept(missed: list[str]) -> Iterator[None]:
    """Note a missed budget and go on: the step has kept the best that it found."""
    try:
        yield
    except BudgetMissedError as error:
        say(f"budget missed: {error}")
        missed.append(str(error))


def _report(
    out: Path,
    bundles: Mapping[str, Bundle],
    dataset: Dataset,
    recipe: Recipe,
    command: str,
    widths: Sequence[GroupWidth],
    notes: Sequence[str],
) -> Report:
    settings: dict[str, Any] = {
        "bench": recipe.bench.model_dump(mode="json"),
        "budget": recipe.budget.model_dump(mode="json"),
    }
    inputs = {name: made.manifest.digest for name, made in bundles.items()} | {"data": dataset.fingerprint}
    plan = StepPlan("report", inputs, settings)
    if finished(out, plan):
        say(f"{out} is up to date")
    else:
        with running(out, plan) as step:
            scores = {name: evaluate(made.path, dataset.path, split="test") for name, made in bundles.items()}
            report = report_on(
                bundles,
                scores,
                dataset=dataset,
                threads=recipe.bench.threads,
                rounds=recipe.bench.rounds,
                out=step.path,
                title="Dense, pruned and INT8, side by side",
                command=command,
                goals=Goals(
                    speedup=recipe.budget.speedup,
                    max_drop=recipe.budget.max_drop,
                    above_lookup_table=recipe.budget.above_lookup_table,
                ),
                lookup_table_miou=lookup_table_miou(dataset),
                widths=widths,
                notes=notes,
                progress=task,
            )
            step.record(plan, {"speedup": report.speedup, "miou_drop": report.miou_drop, "ok": report.ok})
    return Report.model_validate_json((out / REPORT).read_text(encoding="utf-8"))
