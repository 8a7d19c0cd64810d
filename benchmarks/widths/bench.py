"""`compress bench widths` without its command line: a checkpoint cut in four ways, and timed side by side."""

import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx
from torch import nn

from benchmarks.progress import Progress, silent
from benchmarks.report.folder import report_folder
from benchmarks.report.results import DataUsed, Latency
from benchmarks.report.widths.results import Choice, WidthsReport
from benchmarks.report.widths.write import write
from compress.models.plan import PruningPlan
from compress.prune.costs import NetworkCosts
from compress.prune.importance import scores_by
from compress.prune.recover import Recovery
from compress.prune.scores import Scores
from compress.prune.search import ByRatio, ByTable
from compress.prune.step import PruneStep, opened
from compress.prune.widths import Choices
from compress.recipe import Recipe
from compress.steps import StepFolder, StepPlan
from export.errors import UsageError
from export.machine import Machine, usable_cores
from export.runtime import OnnxModel
from export.timing import interleaved

HALVINGS = 30


def bench(
    checkpoint: Path,
    *,
    data: Path,
    out: Path,
    recipe: Recipe,
    speedup: float,
    rounds: int,
    command: str,
    progress: Progress = silent,
) -> WidthsReport:
    """Cut `checkpoint` in four ways and time all of them in one run.

    The latency table, one threshold, and the same share everywhere are held to `speedup`; counting
    multiply-accumulates is held to the damage that the table's widths do. Nothing is fine-tuned. Raises
    CheckpointError, DatasetError, UsageError.
    """
    if speedup <= 1:
        raise UsageError(f"--speedup must be larger than 1, got {speedup:g}")
    source, dataset = opened(checkpoint, data, out)
    sized = recipe.data.model_copy(update={"size": source.card.size})
    with report_folder(out), tempfile.TemporaryDirectory() as scratch:
        folder = StepFolder(Path(scratch), time.monotonic())
        step = PruneStep(folder, StepPlan("widths", {}, {}), source, dataset, recipe.model_copy(update={"data": sized}))
        comparison = _Comparison(step, speedup, rounds, progress)
        choices = comparison.choices()
    images = len(dataset.split("val"))
    report = WidthsReport(
        title="Widths chosen by measured milliseconds, and in other ways",
        command=command,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=Machine.here(),
        data=DataUsed.of(dataset.path, dataset.fingerprint, "val", images),
        precision=recipe.prune.precision,
        importance=recipe.prune.importance,
        threads=usable_cores(),
        height=comparison.size[0],
        width=comparison.size[1],
        asked=speedup,
        choices=choices,
    )
    write(report, out)
    return report


class _Comparison:
    def __init__(self, step: PruneStep, speedup: float, rounds: int, progress: Progress) -> None:
        self._step = step
        self._speedup = speedup
        self._rounds = rounds
        self._progress = progress
        self._network = step.parent.network()
        self._recovery = Recovery(step, self._network)
        self._probe = step.probe(self._network)
        self.size = self._probe.size
        settings, channels = step.recipe.prune, step.parent.card.channels
        self._scores: Scores = scores_by(settings, self._network, channels=channels, evidence=self._recovery.evidence())
        self._costs = NetworkCosts.of(
            self._network,
            step.float_graph(self._network),
            channels=channels,
            size=self.size,
            multiple=settings.channel_multiple,
            precision=settings.precision,
            table=settings.latency_table,
        )

    def choices(self) -> tuple[Choice, ...]:
        """The dense network, and the network cut in each way."""
        plans = self._plans()
        taken = self._timed({name: plan for name, (_, plan) in plans.items()})
        dense = taken["dense"].p50
        made = []
        with self._progress("scoring", len(plans)) as bar:
            for name, (how, plan) in plans.items():
                kept = plan.kept()
                made.append(
                    Choice(
                        name=name,
                        how=how,
                        widths=kept,
                        importance_lost=self._lost(plan) / self._lost(None),
                        damage=self._by_macs.loss(kept),
                        macs=round(self._by_macs.time(kept)),
                        latency_ms=taken[name],
                        speedup=dense / taken[name].p50,
                        speedup_predicted=self._costs.milliseconds(self._costs.widest) / self._costs.milliseconds(kept),
                        miou=self._recovery.score_of(self._applied(plan)).miou,
                    )
                )
                bar.advance()
        return tuple(made)

    def _plans(self) -> dict[str, tuple[str, PruningPlan]]:
        multiple = self._step.recipe.prune.channel_multiple
        by_table = ByTable(self._scores, self._costs).plan(self._speedup)
        narrowest = self._by_macs.narrowest
        asked = f"{self._speedup:g} times faster"
        plans = {
            "dense": ("nothing is cut", self._scores.plan_of({})),
            "latency table": (
                f"the narrowest widths: the table predicts no wider ones to be {asked}"
                if by_table.kept() == narrowest
                else f"the least damage of all widths that the table predicts to be {asked}",
                by_table,
            ),
            "MACs": (
                "the fewest multiply-accumulates at no more damage than the row above",
                self._of_fewest_macs(by_table),
            ),
        }
        for name, scope in (("one threshold", "global"), ("same share", "local")):
            scores = Scores(self._scores.raw, self._scores.comparable, scope)  # type: ignore[arg-type]
            plan = ByRatio(scores, multiple, self._guess).plan(self._speedup)
            what = "importance over all groups" if scope == "global" else "the channels of each group"
            which = "narrowest cut: no lighter one" if plan.kept() == narrowest else "lightest cut that"
            plans[name] = (f"of {what}, the {which} is measured {asked}", plan)
        return plans

    @cached_property
    def _by_macs(self) -> Choices:
        return self._costs.choices(self._scores.damage, count="macs")[0]

    def _of_fewest_macs(self, other: PruningPlan) -> PruningPlan:
        """Among the plans that do no more damage than `other`, the one with the fewest multiply-accumulates."""
        choices = self._by_macs
        best: Mapping[str, int] = other.kept()
        lost = choices.loss(best)
        low, high = choices.time(choices.narrowest), choices.time(best)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            found = choices.within(middle)
            if choices.loss(found) <= lost * (1 + 1e-9):
                best, high = found, middle
            else:
                low = middle
        return self._scores.plan_of(best)

    def _lost(self, plan: PruningPlan | None) -> float:
        """Importance that `plan` cuts away; None: that of all channels."""
        kept: Mapping[str, int] = dict.fromkeys(self._costs.widths, 0) if plan is None else plan.kept()
        return sum(self._scores.lost(name, width) for name, width in kept.items())

    def _guess(self, plan: PruningPlan) -> float:
        return self._step.guess(self._probe, self._applied(plan))

    def _graph(self, plan: PruningPlan) -> onnx.ModelProto:
        return self._step.graph(self._applied(plan))

    def _applied(self, plan: PruningPlan) -> nn.Module:
        return plan.apply(self._network, channels=self._step.parent.card.channels)

    def _timed(self, plans: Mapping[str, PruningPlan]) -> dict[str, Latency]:
        models = {name: OnnxModel(self._graph(plan).SerializeToString()) for name, plan in plans.items()}
        shape = (1, *self.size, self._step.parent.card.channels)
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        with self._progress("latency", self._rounds) as bar:
            calls = {name: partial(model.masks, image) for name, model in models.items()}
            taken = interleaved(calls, rounds=self._rounds, on_round=bar.advance)
        return {name: Latency.of(samples) for name, samples in taken.items()}
