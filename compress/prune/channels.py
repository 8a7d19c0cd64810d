"""Cut channels until the recipe's goal is met within its budget; the parent teaches what is left."""

from typing import Any

from compress.budget import Budget
from compress.models import size_multiple
from compress.models.plan import Dependencies
from compress.progress import say
from compress.prune.rounds import Rounds, Stage
from compress.prune.step import PruneStep
from compress.settings.prune import PruneSettings
from export.errors import UsageError, WorkFailedError
from export.files import write_json

GOAL = "goal.json"
STRIDE = 1.5
"""Without a speed-up goal: how many times faster than the best network so far each round should be."""
SETBACKS = 2
"""Rounds that may lose too much, each followed by one with a smaller stride; one more ends the search."""
ROUNDED = 0.05
"""A share of channels that differs by more from what was asked for is warned about."""
NO_FURTHER = 0.97
"""A round that reaches less than this share of the speed-up it was asked for has found the narrowest widths."""


def cut_channels(step: PruneStep) -> dict[str, Any]:
    """Decide which channels go, cut them and fine-tune, in as many rounds as it takes; returns the step's result.

    Raises UsageError when nothing can be cut, or the parent is fast enough already.
    """
    settings = step.recipe.prune
    rounds = Rounds(step, step.parent.network())
    way = _Way(rounds, settings, _asked(step, rounds))
    stage = way.to_the_goal() if settings.goals else way.as_far_as_allowed()
    if stage.figures is None:
        raise UsageError(f"nothing can be cut from {step.parent.path}: {_why_nothing_goes(step)}")
    plan = stage.plan
    _look_at_share(settings, plan.removed)
    result = {
        **stage.figures,
        "channels_removed": plan.removed,
        "groups": stage.figures["groups"] if len(stage.plans) == 1 else rounds.decider.groups(plan),
        "widths": {layer: list(pair) for layer, pair in plan.widths().items()},
        "rounds": [_remembered(each) for each in way.taken],
        "speedup_asked": way.asked,
    }
    rounds.keep(stage)
    return step.keep(
        stage.network,
        result,
        pruning=(*step.parent.card.pruning, plan),
        size_multiple=size_multiple(stage.network),
    )


def _look_at_share(settings: PruneSettings, removed: float) -> None:
    """Warn where widths, as multiples that are never below one, take another share of the channels than asked for."""
    if settings.ratio is not None and abs(removed - settings.ratio) > ROUNDED:
        multiple = settings.channel_multiple
        say(
            f"warning: {removed:.0%} of the channels are removed where {settings.ratio:.0%} are asked for: widths are "
            f"multiples of {multiple} and at least {multiple} (prune.channel_multiple)"
        )


def _why_nothing_goes(step: PruneStep) -> str:
    multiple = step.recipe.prune.channel_multiple
    widths = Dependencies(step.parent.network(), step.parent.card.channels).widths()
    if max(widths.values()) > multiple:
        return (
            f"the goal does not take even one step of {multiple} channels from any group of layers; ask for more, or "
            "set a smaller prune.channel_multiple"
        )
    return f"no group of layers is wider than {multiple} channels; set a smaller prune.channel_multiple"


def _asked(step: PruneStep, rounds: Rounds) -> float | None:
    """The speed-up to reach; None for other goals. Milliseconds are converted once, by a measurement that is saved."""
    settings = step.recipe.prune
    if settings.latency_ms is None:
        return settings.speedup
    saved = step.folder.decided(GOAL)
    asked: float = rounds.decider.wanted(settings.latency_ms) if saved is None else saved["speedup"]
    if asked <= 1:
        raise UsageError(
            f"{step.parent.path} already takes only {settings.latency_ms * asked:.3g} ms, and {settings.latency_ms:g} "
            "ms are asked for; ask for less"
        )
    if saved is None:
        write_json(step.folder.path / GOAL, {"speedup": asked})
        say(f"{settings.latency_ms:g} ms is a speed-up of {asked:.2f}")
    return asked


def _remembered(stage: Stage) -> dict[str, float]:
    """What the step's record keeps of a round."""
    return {"speedup": stage.speedup, "miou": stage.accuracy.miou, "drop": stage.accuracy.drop}


class _Way:
    """Runs rounds one after another, and decides when to stop or to start over."""

    def __init__(self, rounds: Rounds, settings: PruneSettings, asked: float | None) -> None:
        self._rounds = rounds
        self._settings = settings
        self._budget = Budget.of(settings)
        self.asked = asked
        self.taken: list[Stage] = []
        if self._budget.min_iou:
            self._budget.look_at_floors(rounds.parent_score.iou_per_class)

    def to_the_goal(self) -> Stage:
        """Reach the goal in `settings.rounds`; while the budget is missed, start over with twice as many.

        That makes `settings.tries` tries at most, of which the best counts.
        """
        tried: list[Stage] = []
        for count in (self._settings.rounds * 2**index for index in range(self._settings.tries)):
            try:
                stage = self._in(count)
            except WorkFailedError as error:
                if not tried:
                    raise
                say(f"warning: in {count} rounds: {error}; the best network of the tries before is kept")
                break
            if stage.figures is None:
                return stage
            tried.append(stage)
            if not (missed := self._budget.missed(stage.accuracy)):
                break
            say(f"in {count} round{'s' if count > 1 else ''}: {'; '.join(missed)}")
        return min(tried, key=self._failings)

    def as_far_as_allowed(self) -> Stage:
        """As fast as the budget allows: each round goes a stride further than the best network so far.

        The stride shrinks after each round that lost too much.
        """
        best, stride = self._rounds.parent, STRIDE
        lost: list[Stage] = []
        while len(lost) <= SETBACKS:
            asked = best.speedup * stride
            try:
                stage = self._taken(best, self._rounds.faster(best, asked))
            except WorkFailedError as error:
                if best.figures is None:
                    raise
                say(f"warning: {error}; the last network within the budget is kept")
                break
            if stage is best:
                break
            if missed := self._budget.missed(stage.accuracy):
                say(f"{stage.speedup:.2f}x is too far: {'; '.join(missed)}")
                lost.append(stage)
                stride **= 0.5
                continue
            if stage.speedup > best.speedup:
                best = stage
            if stage.speedup < NO_FURTHER * asked:
                break
        return best if best.figures is not None or not lost else min(lost, key=self._failings)

    def _in(self, count: int) -> Stage:
        stage = self._rounds.parent
        for number in range(1, count + 1):
            if self.asked is not None:
                following = self._rounds.faster(stage, self.asked ** (number / count))
            else:
                assert self._settings.ratio is not None
                following = self._rounds.fewer(stage, 1 - (1 - self._settings.ratio) ** (number / count))
            stage = self._taken(stage, following)
        return stage

    def _taken(self, before: Stage, stage: Stage) -> Stage:
        if stage is not before:
            self.taken.append(stage)
        return stage

    def _failings(self, stage: Stage) -> tuple[bool, int, float]:
        """A sort key, least for the best stage: fast enough, then the fewest limits missed, then the smallest drop."""
        slow = self.asked is not None and stage.speedup < self.asked
        return slow, len(self._budget.missed(stage.accuracy)), stage.accuracy.drop
