"""Rounds from the parent to the goal: each a cut and a recovery, saved so that a killed run continues with them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import nn

from compress import checkpoint
from compress.budget import Accuracy
from compress.models import size_multiple
from compress.models.plan import PruningPlan
from compress.progress import say
from compress.prune.decide import Decider, Decision
from compress.prune.recover import HISTORY, Recovery
from compress.prune.step import PruneStep
from compress.steps import StepFolder
from compress.train.sparsity import keep_zeros
from export.errors import UsageError, WorkFailedError
from export.files import write_json
from export.scoring import Score

PLAN = "pruning_plan.json"
DECISION = "decision.json"
DONE = "round.json"


@dataclass(frozen=True)
class Stage:
    """The parent, or the network that some rounds have made of it."""

    network: nn.Module
    """On the CPU."""
    speedup: float = 1.0
    """Against the parent."""
    plans: tuple[PruningPlan, ...] = ()
    """One after the other, from the parent to here."""
    figures: Mapping[str, Any] | None = None
    """Of the last round: what was decided, and what the recovery gave. None for the parent itself."""
    folder: StepFolder | None = None
    """Of the last round."""

    @property
    def accuracy(self) -> Accuracy:
        """Raises ValueError for the parent itself."""
        if self.figures is None:
            raise ValueError("the parent is not compared with itself")
        return Accuracy.from_result(self.figures)

    @property
    def plan(self) -> PruningPlan:
        """All that was removed, as one cut of the parent."""
        return reduce(PruningPlan.then, self.plans)

    @property
    def removed(self) -> float:
        """Share of the parent's channels that are gone."""
        return self.plan.removed if self.plans else 0.0


class Rounds:
    """Cuts and recoveries, numbered in the order in which they are asked for.

    A run that was killed asks for the same rounds again and gets what it had saved, so the same rounds follow.
    """

    def __init__(self, step: PruneStep, network: nn.Module) -> None:
        self.parent = Stage(network)
        self._step = step
        self._recovery = Recovery(step, network)
        self.decider = Decider(step, network, self._recovery)
        self._asked = 0

    def faster(self, stage: Stage, wanted: float) -> Stage:
        """`stage` cut until it is `wanted` times faster than the parent, and recovered."""
        return self._round(stage, lambda: self.decider.by_speedup(stage.network, stage.speedup, wanted))

    def fewer(self, stage: Stage, ratio: float) -> Stage:
        """`stage` cut until the share `ratio` of the parent's channels is gone, and recovered."""
        further = 1 - (1 - ratio) / (1 - stage.removed)
        return self._round(stage, lambda: self.decider.by_ratio(stage.network, max(0.0, further)))

    @property
    def parent_score(self) -> Score:
        """On the validation split."""
        return self._recovery.parent_score

    def keep(self, stage: Stage) -> None:
        """Move what the recovery of `stage` left beside the step's own files, and write the plan there."""
        assert stage.folder is not None
        for path in stage.folder.path.iterdir():
            if path.is_dir() or path.name == HISTORY:
                path.rename(self._step.folder.path / path.name)
        write_json(self._step.folder.path / PLAN, stage.plan.model_dump(mode="json"))

    def _round(self, stage: Stage, decide: Callable[[], Decision]) -> Stage:
        self._asked += 1
        folder, card = self._step.folder.scratch(f"round-{self._asked}"), self._step.parent.card
        cut, decided = self._decided(folder, decide)
        if not any(each.remove for each in cut.cuts):
            return stage
        plans = (*stage.plans, cut)
        removed = reduce(PruningPlan.then, plans).removed
        where = "by the latency table" if "speedup_here" in decided else "measured"
        say(f"cut: {removed:.0%} of the channels, {decided['speedup']:.2f}x faster than its parent, {where}")
        recovered = folder.decided(DONE)
        if recovered is None:
            child = cut.apply(stage.network, channels=card.channels)
            child_card = self._step.card(
                pruning=(*card.pruning, reduce(PruningPlan.then, plans)), size_multiple=size_multiple(child)
            )
            keep_zeros(child.to(self._recovery.device))
            recovered = self._recovery.run(child, child_card, folder.path)
            checkpoint.save(folder.path, child, child_card)
            write_json(folder.path / DONE, recovered)
        child = checkpoint.load(folder.path).network()
        return Stage(child, decided["speedup"], plans, {**decided, **recovered}, folder)

    def _decided(self, folder: StepFolder, decide: Callable[[], Decision]) -> tuple[PruningPlan, dict[str, Any]]:
        """The plan and its figures. The decision rests on timing, so it is taken once, saved, and then acted on."""
        figures = folder.decided(DECISION)
        if figures is None:
            try:
                decision = decide()
            except UsageError as error:
                if self._asked == 1:
                    raise
                # A UsageError removes the step's folder, and rounds that are done must not go with it.
                raise WorkFailedError(f"round {self._asked}: {error}") from error
            figures = dict(decision.figures)
            write_json(folder.path / PLAN, decision.plan.model_dump(mode="json"))
            write_json(folder.path / DECISION, figures)
        return PruningPlan.model_validate_json((folder.path / PLAN).read_text()), figures
