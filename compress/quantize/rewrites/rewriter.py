"""Rewrites graphs into the forms that measure fastest, and remembers what was decided."""

from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import onnx

from compress.progress import say
from compress.quantize.judge import Judge, model_of
from compress.quantize.layers import Layer
from compress.quantize.rewrites.choose import (
    PLAIN,
    best_of,
    costs,
    faster_places,
    formed,
    gains,
    integer_forms,
    named,
)
from compress.quantize.rewrites.means import means_as_pooling
from compress.quantize.rewrites.subpixel import SubPixel
from compress.quantize.rewrites.transposed import transposed_as_convolution
from compress.steps import StepFolder
from export.files import write_json

DECIDED = "rewrites.json"
ROUNDS = 30

WHOLE: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto | None]] = {
    "transposed convolutions as 1x1 convolutions and DepthToSpace": transposed_as_convolution,
    "means over height and width as GlobalAveragePool": means_as_pooling,
}
"""Rewrites of a float graph, at all its places or at none."""
FORMS = "operators between integers in other forms"
STEM = "the first layer in float"

Int8 = Callable[[onnx.ModelProto, Mapping[str, str]], onnx.ModelProto]
"""Makes an INT8 graph of a float one, leaving the layers that are named in float, each with the reason."""


class Rewriter:
    """Every decision is saved in the folder of the step as it is taken, and logged in a line with both times."""

    def __init__(self, step: StepFolder, judge: Judge, int8: Int8, multiple: int) -> None:
        """`int8` may take any ranges: time does not depend on them. The sides of images are multiples of `multiple`."""
        self._step = step
        self._judge = judge
        self._int8 = int8
        self._forms = integer_forms(multiple)
        self._decided: dict[str, dict[str, Any]] = step.decided(DECIDED) or {}
        self._made: dict[bytes, tuple[onnx.ModelProto, dict[str, dict[str, float]]]] = {}

    def of_float(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """The graph to quantize: `graph`, or an equal form of it that is faster in INT8 here."""
        for what, rewrite in WHOLE.items():
            other = rewrite(graph)
            if other is not None and self._kept(what, graph, other):
                graph = other
        form = SubPixel()
        places = form.places(graph)
        if not places:
            return graph
        graph = named(graph)
        saved = self._decided.get(form.name)
        worth = saved["places"] if saved else self._worth_it(form, graph, places)
        if not worth:
            self._save(form.name, {"places": [], "kept": False})
            return graph
        other = form.apply(graph, worth)
        return other if self._kept(form.name, graph, other, places=worth) else graph

    def of_integers(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """The INT8 graph `graph` as it ships: the same integers, computed in the forms that are fastest here."""
        saved = self._decided.get(FORMS)
        if saved is None:
            measured = costs(graph, self._forms, self._judge.kernel_times)
            chosen = best_of(measured)
            saved = {"places": chosen, "kept": False, "costs": measured}
            if chosen:
                saved |= self._timed(graph, formed(graph, chosen, self._forms))
            self._save(FORMS, saved)
            if chosen:
                count = Counter(chosen.values())
                _log(f"{FORMS} ({', '.join(f'{name}: {n}' for name, n in count.items())})", saved)
        return formed(graph, saved["places"], self._forms) if saved["kept"] else graph

    def stem_in_float(self, graph: onnx.ModelProto, stem: Layer) -> str | None:
        """Why `stem`, the first layer of the float graph `graph`, is better left in float; None where it is not."""
        saved = self._decided.get(STEM)
        if saved is None:
            best, found = self._measured(graph, {})
            place = stem.nodes[0]
            taken = self._timed(best, self._best(graph, {stem.name: STEM}))
            saved = {"layer": stem.name, "place": place, "layer_ms": found.get(place, {}), **taken}
            self._save(STEM, saved)
        _log(f"{STEM} ({stem.name})", saved)
        if not saved["kept"]:
            return None
        return f"faster in float: the graph takes {saved['rewritten']:.2f} ms, with it in INT8 {saved['plain']:.2f} ms"

    def stem_figures(self) -> dict[str, Any] | None:
        """What was measured of the first layer, and the form that it got; None where nothing was measured."""
        saved = self._decided.get(STEM)
        if saved is None:
            return None
        place, forms = saved["place"], self._decided.get(FORMS, {})
        of_integers = forms["places"].get(place, PLAIN) if forms.get("kept") else PLAIN
        return {
            "layer": saved["layer"],
            "form": "float" if saved["kept"] else f"int8, {of_integers}",
            "graph_ms": {"int8": saved["plain"], "float": saved["rewritten"]},
            "layer_ms": saved["layer_ms"],
        }

    def _worth_it(self, form: SubPixel, graph: onnx.ModelProto, places: Mapping[str, tuple[str, ...]]) -> list[str]:
        """The places where the form saves time, each side in the forms of integers that are fastest for it."""
        graphs = {"plain": self._best(graph), "other": self._best(form.apply(graph, places))}
        times = self._judge.kernel_times(graphs)
        return faster_places(times["plain"], times["other"], places)

    def _kept(self, what: str, plain: onnx.ModelProto, other: onnx.ModelProto, **more: Any) -> bool:
        saved = self._decided.get(what)
        if saved is None:
            saved = {**more, **self._timed(self._best(plain), self._best(other))}
            self._save(what, saved)
        _log(what, saved)
        return bool(saved["kept"])

    def _timed(self, plain: onnx.ModelProto, other: onnx.ModelProto) -> dict[str, Any]:
        """Time both INT8 graphs in one run, and decide."""
        taken = self._judge.times(ROUNDS, plain=model_of(plain), rewritten=model_of(other))
        times = {name: samples.median for name, samples in taken.items()}
        return {**times, "kept": gains(taken["plain"], taken["rewritten"])}

    def _best(self, graph: onnx.ModelProto, in_float: Mapping[str, str] | None = None) -> onnx.ModelProto:
        """A float graph in INT8, but for the layers `in_float`, in the fastest forms."""
        return self._measured(graph, in_float or {})[0]

    def _measured(
        self, graph: onnx.ModelProto, in_float: Mapping[str, str]
    ) -> tuple[onnx.ModelProto, dict[str, dict[str, float]]]:
        """`_best`, and the milliseconds of every form at every place."""
        key = sha256(graph.SerializeToString(deterministic=True) + repr(sorted(in_float)).encode()).digest()
        if key not in self._made:
            made = self._int8(graph, in_float)
            found = costs(made, self._forms, self._judge.kernel_times)
            self._made[key] = formed(made, best_of(found), self._forms), found
        return self._made[key]

    def _save(self, what: str, decision: dict[str, Any]) -> None:
        self._decided[what] = decision
        write_json(self._step.path / DECIDED, self._decided)


def _log(what: str, saved: Mapping[str, Any]) -> None:
    kept = "kept" if saved["kept"] else "not kept"
    say(f"{what}: {saved['rewritten']:.2f} ms instead of {saved['plain']:.2f} ms in INT8, {kept}")
