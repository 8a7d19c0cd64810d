"""Layers that stay in float so that an INT8 graph keeps its accuracy budget: few, found greedily, because the smallest
set of all would take a measurement of each set."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from compress.progress import say, task
from compress.quantize.judge import Judge, model_of
from compress.quantize.ptq import Quantized, Quantizer
from compress.sensitivity import InFloat, QuantizationAnalysis
from compress.settings.quantize import Calibration
from compress.steps import StepFolder
from export.files import write_json

TRIED = "float_layers.json"
ROUNDS = 15
_LEAST_MS = 0.005
"""Least cost of a layer in the ranking, as a share of the INT8 graph's time; below it, noise would decide."""


@dataclass(frozen=True)
class _Tried:
    """A set of layers in float, and what was measured with it."""

    layers: tuple[str, ...]
    miou: float
    missing: float
    """What the budget still misses; 0 where it holds."""
    milliseconds: float
    milliseconds_parent: float
    """Of the float parent, in the same run."""

    @property
    def gains(self) -> bool:
        """Whether it is faster than the float parent."""
        return self.milliseconds < self.milliseconds_parent


class Fallback:
    """Searches for the layers; every set that was measured is saved, so that a killed step continues."""

    def __init__(
        self,
        step: StepFolder,
        judge: Judge,
        quantizer: Quantizer,
        analysis: QuantizationAnalysis,
        *,
        shipped: Callable[[onnx.ModelProto], onnx.ModelProto],
        must_gain: bool,
    ) -> None:
        """With `must_gain`, only sets that are faster than the float parent are accepted, in the form in which
        `shipped` would let them leave. The budget is the judge's."""
        self._step = step
        self._judge = judge
        self._quantizer = quantizer
        self._budget = judge.budget
        self._shipped = shipped
        self._analysis = analysis
        self._must_gain = must_gain
        self._calibration: Calibration = analysis.calibration
        self._tried = {tuple(item["layers"]): _Tried(**_read(item)) for item in step.decided(TRIED) or []}

    def choose(self) -> Quantized:
        """Add the layers that regain most of the budget per millisecond until it holds, then drop those not needed.

        A layer that would make the graph no faster than its float parent is passed over, if it must be faster. Where
        the budget cannot hold, the set is chosen that comes nearest to it of those that were tried.
        """
        ranked = self._ranked()
        say(f"the budget is missed; {len(ranked)} ways to leave a layer in float would bring it nearer")
        chosen: tuple[str, ...] = ()
        with task("layers in float", len(ranked)) as bar:
            for way in ranked:
                bar.advance()
                if set(way.layers) <= set(chosen):
                    continue
                tried = self._try(tuple(dict.fromkeys((*chosen, *way.layers))))
                if not self._allowed(tried):
                    continue
                chosen = tried.layers
                if tried.missing == 0:
                    chosen = self._without_needless(chosen)
                    break
            else:
                chosen = self._nearest()
        say(f"left in float: {', '.join(chosen) or 'nothing'}")
        return self._quantized(chosen)

    def _nearest(self) -> tuple[str, ...]:
        """The set nearest to the budget of those that were tried, or none in float."""
        near = {tried.layers: (tried.missing, -tried.miou) for tried in self._tried.values() if self._allowed(tried)}
        near[()] = (self._missing_of_int8(), -self._analysis.miou_int8)
        return min(near, key=lambda layers: near[layers])

    def _allowed(self, tried: _Tried) -> bool:
        return tried.gains or not self._must_gain

    def _without_needless(self, chosen: tuple[str, ...]) -> tuple[str, ...]:
        """Drop layers that were ranked first for what they win alone, where those added later suffice."""
        for name in chosen if len(chosen) > 1 else ():
            fewer = tuple(other for other in chosen if other != name)
            if fewer and (tried := self._try(fewer)).missing == 0 and self._allowed(tried):
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
            made = model_of(self._shipped(self._quantized(layers).graph))
            kept = self._judge.kept(self._judge.score(made))
            taken = self._judge.times(ROUNDS, parent=self._judge.parent, child=made)
            times = taken["child"].median, taken["parent"].median
            self._tried[layers] = tried = _Tried(layers, kept.miou, kept.missing, *times)
            write_json(self._step.path / TRIED, [vars(one) for one in self._tried.values()])
            slow = "" if self._allowed(tried) else f", {times[0]:.2f} ms: no faster than the float parent, passed over"
            say(f"mIoU {kept.miou:.4f} with {', '.join(layers)} in float{slow}")
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
