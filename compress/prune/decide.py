"""Decide which channels go, by a ratio or until a speed-up is reached, and say what each group contributes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from compress.models.plan import PruningPlan
from compress.progress import say
from compress.prune.costs import NetworkCosts
from compress.prune.importance import scores_by
from compress.prune.probe import LatencyProbe, Measured
from compress.prune.recover import Recovery
from compress.prune.scores import Scores
from compress.prune.search import ByRatio, ByTable, Search, fast_enough
from compress.prune.step import PruneStep
from export.errors import ShapeError, WorkFailedError


@dataclass(frozen=True)
class Decision:
    """A plan for the network of one round, with its figures against the parent of the whole step."""

    plan: PruningPlan
    figures: Mapping[str, Any]
    """Plain values: speedup, milliseconds, what the table predicted, what each group costs and buys."""


class Decider:
    """Decides for the descendants of one parent, `network`."""

    def __init__(self, step: PruneStep, network: nn.Module, recovery: Recovery) -> None:
        self._step = step
        self._network = network
        self._recovery = recovery

    def by_ratio(self, network: nn.Module, ratio: float) -> Decision:
        """Cut the share `ratio` of the channels of `network`."""
        scores = self._scores(network)
        plan = scores.plan(ratio, self._step.recipe.prune.channel_multiple)
        measured = self._measured(network, plan)
        measured.doubt()
        return Decision(plan, {**self._figures(measured), "groups": _groups(plan, scores)})

    def by_speedup(self, network: nn.Module, before: float, wanted: float) -> Decision:
        """Cut `network`, which is `before` times faster than the parent, until it is `wanted` times faster."""
        scores = self._scores(network)
        costs = self._table_of(network)
        if costs is None:
            plan, measured = self._fast_enough(self._ratios(network, scores, before), network, before, wanted)
            measured.doubt()
            return Decision(plan, {**self._figures(measured), "groups": _groups(plan, scores)})
        search = ByTable(scores, costs)
        if costs.foreign:
            plan = search.plan(wanted / before)
            measured = self._measured(network, plan)
        else:
            plan, measured = self._fast_enough(search, network, before, wanted, predicted=search.predicted)
        predicted = before * search.predicted(plan)
        table_decides = costs.foreign is not None or measured.misleads(predicted)
        figures = {**self._figures(measured), "speedup_predicted": predicted}
        figures["groups"] = _groups(plan, scores, costs.spared(plan.kept()))
        if costs.foreign:
            say(f"the latency table, {costs.foreign}, predicted {predicted:.2f}x on {costs.machine}, and decides")
            say(f"measured here it is {measured.speedup:.2f}x")
        else:
            error = predicted / measured.speedup - 1
            say(f"the latency table predicted {predicted:.2f}x, measured {measured.speedup:.2f}x ({error:+.0%})")
            measured.doubt()
            if table_decides:
                say(f"the latency table decides instead: {predicted:.2f}x faster")
        if table_decides:
            # What the machine that will serve would measure, or this one when quiet, is unknown here and now.
            by_table = {"speedup": predicted, "milliseconds": costs.milliseconds(plan.kept())}
            figures |= {"speedup_here": measured.speedup, "milliseconds_here": measured.milliseconds, **by_table}
        return Decision(plan, figures)

    def groups(self, plan: PruningPlan) -> dict[str, dict[str, float]]:
        """What each group costs and buys under `plan`, a single cut of the parent, whatever rounds led to it."""
        scores = self._scores(self._network)
        costs = None if self._step.recipe.prune.ratio is not None else self._table_of(self._network)
        return _groups(plan, scores, None if costs is None else costs.spared(plan.kept()))

    def wanted(self, milliseconds: float) -> float:
        """The speed-up of a network that takes `milliseconds`."""
        costs = self._costs(self._network) if self._step.recipe.prune.latency_table else None
        if costs is not None and costs.foreign:
            whole = costs.milliseconds(costs.widest)
            say(
                f"warning: a latency table {costs.foreign} holds times of layers, without what lies between them, so "
                f"{milliseconds:g} ms will be exceeded there; time the result there with compress bench latency, and "
                "ask for less if it is too slow"
            )
        else:
            whole = self._probe.parent_milliseconds()
        return whole / milliseconds

    @cached_property
    def _probe(self) -> LatencyProbe:
        return self._step.probe(self._network)

    def _scores(self, network: nn.Module) -> Scores:
        step = self._step
        return scores_by(
            step.recipe.prune, network, channels=step.parent.card.channels, evidence=self._recovery.evidence()
        )

    def _table_of(self, network: nn.Module) -> NetworkCosts | None:
        """The costs by a latency table; None where the settings choose widths without one, or layers cannot be timed.

        Raises UsageError for a given table that does not fit, and where a measured one cannot be stored.
        """
        settings = self._step.recipe.prune
        if settings.search == "ratio":
            return None
        try:
            return self._costs(network)
        except (ShapeError, WorkFailedError) as error:
            if settings.latency_table is not None:
                raise
            say(f"the layers of this network cannot be timed one by one, so one threshold is used for all: {error}")
            return None

    def _costs(self, network: nn.Module) -> NetworkCosts:
        settings = self._step.recipe.prune
        return NetworkCosts.of(
            network,
            self._step.float_graph(network),
            channels=self._step.parent.card.channels,
            size=self._probe.size,
            multiple=settings.channel_multiple,
            precision=settings.precision,
            table=settings.latency_table,
            whole_parts=settings.whole_parts,
        )

    def _ratios(self, network: nn.Module, scores: Scores, before: float) -> ByRatio:
        def guess(plan: PruningPlan) -> float:
            pruned = plan.apply(network, channels=self._step.parent.card.channels)
            return self._step.guess(self._probe, pruned) / before

        return ByRatio(scores, self._step.recipe.prune.channel_multiple, guess)

    def _fast_enough(
        self,
        search: Search,
        network: nn.Module,
        before: float,
        wanted: float,
        predicted: Callable[[PruningPlan], float] | None = None,
    ) -> tuple[PruningPlan, Measured]:
        """The plan that `search` finds for a speed-up of `wanted`, and its measurement.

        `predicted`, where there is a table, is the speed-up of a plan over `network`; it counts instead of a
        measurement that misleads.
        """
        found: dict[PruningPlan, Measured] = {}

        def measure(plan: PruningPlan) -> float:
            measured = found[plan] = self._measured(network, plan)
            if predicted is not None and measured.misleads(before * predicted(plan)):
                return predicted(plan)
            return measured.speedup / before

        plan = fast_enough(search, measure, wanted / before)
        return plan, found.get(plan) or self._measured(network, plan)

    def _measured(self, network: nn.Module, plan: PruningPlan) -> Measured:
        """Time the export of `network` with `plan` applied."""
        pruned = plan.apply(network, channels=self._step.parent.card.channels)
        return self._probe.measure(self._step.graph(pruned))

    def _figures(self, measured: Measured) -> dict[str, Any]:
        return {
            "speedup": measured.speedup,
            "milliseconds": measured.milliseconds,
            "disturbed": measured.disturbed,
            "latency_size": list(self._probe.size),
        }


def _groups(
    plan: PruningPlan, scores: Scores, spared: Mapping[str, float] | None = None
) -> dict[str, dict[str, float]]:
    """By group: its widths, the share of its importance that was lost, and the milliseconds that keeping it whole would
    cost."""
    return {
        cut.layer: {
            "width": cut.width,
            "kept": cut.kept,
            "importance_lost": scores.share_of(cut),
            **({} if spared is None else {"milliseconds_spared": spared[cut.layer]}),
        }
        for cut in plan.cuts
    }
