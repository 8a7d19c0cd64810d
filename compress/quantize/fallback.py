"""The fewest layers in float with which an INT8 graph keeps its accuracy budget."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compress.budget import Accuracy, Budget
from compress.progress import say
from compress.quantize.judge import Judge, model_of
from compress.quantize.ptq import Quantized, Quantizer
from compress.recipe import Calibration
from compress.sensitivity import InFloat, QuantizationAnalysis
from compress.steps import StepFolder
from export.files import write_json

TRIED = "float_layers.json"
_LEAST_MS = 0.005
"""Of the INT8 graph: what a layer costs at least, in the ranking; below it, noise decides."""


@dataclass(frozen=True)
class _Tried:
    """A set of layers in float, and what it came to."""

    layers: tuple[str, ...]
    miou: float
    missing: float
    """What the budget still misses; 0 where it holds."""


class Fallback:
    """Looks for the layers; every set that was scored is saved, so that a killed step goes on."""

    def __init__(
        self, step: StepFolder, judge: Judge, quantizer: Quantizer, budget: Budget, analysis: QuantizationAnalysis
    ) -> None:
        self._step = step
        self._judge = judge
        self._quantizer = quantizer
        self._budget = budget
        self._analysis = analysis
        self._calibration: Calibration = analysis.calibration
        self._tried = {tuple(item["layers"]): _Tried(**_read(item)) for item in step.decided(TRIED) or []}

    def choose(self) -> Quantized:
        """By what a layer wins of the budget for each millisecond, until it holds; then each is tried without again.

        Where it cannot hold, the set with the best mIoU of those that were tried.
        """
        ranked = self._ranked()
        say(f"the budget is missed; {len(ranked)} ways to leave a layer in float would win something")
        chosen: tuple[str, ...] = ()
        for way in ranked:
            if set(way.layers) <= set(chosen):
                continue
            chosen = tuple(dict.fromkeys((*chosen, *way.layers)))
            if self._try(chosen).missing == 0:
                chosen = self._without_the_needless(chosen)
                break
        else:
            whole = _Tried((), self._analysis.miou_int8, self._missing_of_int8())
            chosen = min((*self._tried.values(), whole), key=lambda tried: (tried.missing, -tried.miou)).layers
        say(f"left in float: {', '.join(chosen) or 'nothing'}")
        return self._quantized(chosen)

    def _without_the_needless(self, chosen: tuple[str, ...]) -> tuple[str, ...]:
        """The layers that came first did so for what they win alone; a later one may do without them."""
        for name in chosen if len(chosen) > 1 else ():
            fewer = tuple(other for other in chosen if other != name)
            if fewer and self._try(fewer).missing == 0:
                chosen = fewer
        return chosen

    def _ranked(self) -> list[InFloat]:
        before = self._missing_of_int8()
        ways = [way for effect in self._analysis.layers for way in effect.ways]
        worth = {way.layers: self._won(way, before) / self._cost(way) for way in ways}
        return sorted((way for way in ways if worth[way.layers] > 0), key=lambda way: worth[way.layers], reverse=True)

    def _won(self, way: InFloat, before: float) -> float:
        return before - self._budget.missing(self._analysis.miou_float - way.miou, way.iou_per_class)

    def _cost(self, way: InFloat) -> float:
        return max(way.lost_ms, _LEAST_MS * way.milliseconds_int8)

    def _missing_of_int8(self) -> float:
        return self._budget.missing(
            self._analysis.miou_float - self._analysis.miou_int8, self._analysis.iou_per_class_int8
        )

    def _try(self, layers: tuple[str, ...]) -> _Tried:
        if layers not in self._tried:
            score = self._judge.score(model_of(self._quantized(layers).graph))
            accuracy = Accuracy.of(self._judge.parent_score, score)
            missing = self._budget.missing(accuracy.drop, accuracy.iou_per_class)
            self._tried[layers] = _Tried(layers, accuracy.miou, missing)
            write_json(self._step.path / TRIED, [vars(tried) for tried in self._tried.values()])
            say(f"mIoU {accuracy.miou:.4f} with {', '.join(layers)} in float")
        return self._tried[layers]

    def _quantized(self, layers: tuple[str, ...]) -> Quantized:
        return self._quantizer.quantized(self._calibration, dict(self._reasons(layers)))

    def _reasons(self, layers: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        for effect in self._analysis.layers:
            if effect.layer in layers:
                ways = [way for way in effect.ways if set(way.layers) <= set(layers)]
                way = max(ways, key=self._analysis.won)
                others = ", ".join(name for name in way.layers if name != effect.layer)
                yield (
                    effect.layer,
                    f"left in float for the accuracy budget: {f'with {others}' if others else 'alone'} "
                    f"{self._analysis.won(way):+.4f} mIoU for {way.lost_ms:+.2f} ms",
                )


def _read(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**item, "layers": tuple(item["layers"])}
