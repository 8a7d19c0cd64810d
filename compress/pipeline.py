"""`compress run`: every step in order, each skipped when it is up to date."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.latency import report_on
from benchmarks.report.results import Goals, Report
from compress.anymodel import evaluate
from compress.checkpoint import Checkpoint
from compress.data.check import require_sound
from compress.data.folder import Dataset
from compress.data.lookup import lookup_table_miou
from compress.data.sample import write_sample
from compress.export_fp32 import export
from compress.progress import say, task
from compress.prune import prune
from compress.quantize import quantize
from compress.recipe import Recipe
from compress.steps import StepPlan, finished, running
from compress.train import train
from export.bundle import Bundle
from export.errors import BudgetMissedError, UsageError
from export.files import write_atomic

REPORT = "report.json"
PAGE = "report.html"
RECIPE = "recipe.toml"


@dataclass(frozen=True)
class Finished:
    """What a run leaves: the report, its page, and the bundle to serve."""

    report: Report
    page: Path
    bundle: Path

    def require_ok(self) -> None:
        """Raises BudgetMissedError naming each verdict that failed; everything that was made is kept."""
        failed = [f"{verdict.text}: {verdict.detail}" for verdict in self.report.verdicts if not verdict.ok]
        if failed:
            raise BudgetMissedError("the run is complete, but:" + "".join(f"\n  - {line}" for line in failed))


def run(recipe: Recipe, out: Path, *, command: str = "compress run") -> Finished:
    """Data, train, prune, quantize, export, report into folders of `out`; killed at any moment, it continues.

    `command` is what the report says makes it again. Raises what the steps raise; a missed budget raises only
    from `Finished.require_ok`, after the report is written.
    """
    if recipe.prune.ratio is None and recipe.prune.speedup is None:
        raise UsageError("the recipe does not say how much to prune; set prune.speedup or prune.ratio")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / RECIPE, recipe.to_toml())
    data = recipe.data.path
    if data is None:
        say("data.path is not set: using the built-in sample set")
        data = write_sample(out / "data").path

    dense = train(data, out / "dense", recipe)
    dense_fp32 = export(dense.path, out / "dense-fp32", recipe, data=data)
    dense_int8 = _int8_for_comparison(dense, data, out / "dense-int8", recipe)
    pruned = prune(dense.path, data, out / "pruned", recipe)
    pruned_fp32 = export(pruned.path, out / "pruned-fp32", recipe, data=data)
    pruned_int8 = quantize(pruned.path, data, out / "int8", recipe)

    bundles = {
        "dense-fp32": dense_fp32,
        "pruned-fp32": pruned_fp32,
        "dense-int8": dense_int8,
        "pruned-int8": pruned_int8,
    }
    dataset = require_sound(data, dense.card.channels)
    report = _report(out / "report", bundles, dataset, recipe, command)
    return Finished(report, out / "report" / PAGE, pruned_int8.path)


def _int8_for_comparison(dense: Checkpoint, data: Path, out: Path, recipe: Recipe) -> Bundle:
    """The dense network in INT8 stands in the table; it is held to no budget, since nobody will serve it."""
    free = recipe.quantize.model_copy(update={"force": True, "max_drop": 1.0})
    return quantize(dense.path, data, out, recipe.model_copy(update={"quantize": free}))


def _report(out: Path, bundles: Mapping[str, Bundle], dataset: Dataset, recipe: Recipe, command: str) -> Report:
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
                progress=task,
            )
            step.record(plan, {"speedup": report.speedup, "miou_drop": report.miou_drop, "ok": report.ok})
    return Report.model_validate_json((out / REPORT).read_text(encoding="utf-8"))
