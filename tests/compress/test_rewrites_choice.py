"""Which form is kept: one that is faster by more than the noise, decided once, and reported with both times."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.networks import exported, random_unet

from compress.quantize.door import normalised_tensor
from compress.quantize.judge import Judge
from compress.quantize.layers import first_layer
from compress.quantize.ptq import Quantizer
from compress.quantize.rewrites import Rewriter, best_of, costs, formed, gains, integer_forms
from compress.quantize.rewrites.choose import KernelTimes, faster_places
from compress.quantize.rewrites.folded import Folded
from compress.quantize.rewrites.repeated import Repeated
from compress.steps import StepFolder
from export.files import write_json
from export.timing import Samples
from export.to_onnx import with_outputs


class Stopwatch(Judge):
    """A judge whose times the tests set: of kernels by their operator, of whole graphs by their name."""

    def __init__(self, of_kernels: Mapping[str, float], *, whole: Mapping[str, float]) -> None:
        self._of_kernels = of_kernels
        self._whole = whole
        self.looked = 0

    def kernel_times(self, graphs: Mapping[str, onnx.ModelProto]) -> dict[str, dict[str, float]]:
        self.looked += 1
        return {
            name: {node.name: self._of_kernels.get(node.op_type, 0.0) for node in graph.graph.node}
            for name, graph in graphs.items()
        }

    def times(self, rounds: int, **_: Any) -> dict[str, Samples]:
        self.looked += 1
        return {name: Samples((milliseconds,) * rounds) for name, milliseconds in self._whole.items()}


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return with_outputs(exported(random_unet()), "mask")


def int8(model: onnx.ModelProto, in_float: Mapping[str, str] | None = None) -> onnx.ModelProto:
    images = (np.full((16, 16, 1), grey, np.uint8) for grey in (0, 90, 255))
    return Quantizer(model, images, target="vnni").quantized("minmax", in_float).graph


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def rewriter(folder: Path, clock: Judge) -> Rewriter:
    return Rewriter(StepFolder(folder, 0.0), clock, int8, 4)


def test_a_gain_is_one_that_the_noise_of_rounds_does_not_explain() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 30)

    def samples(milliseconds: float, spread: float) -> Samples:
        return Samples(tuple(milliseconds + spread * noise[::-1]))

    plain = Samples(tuple(100 + noise))
    assert gains(plain, samples(95, 1))
    assert gains(plain, samples(95, 4))
    assert not gains(plain, samples(95, 25))
    assert not gains(plain, samples(100, 1))
    assert not gains(plain, samples(99.5, 0))
    assert not gains(plain, samples(105, 1))


def test_drift_that_both_share_hides_no_gain() -> None:
    drift = np.linspace(100, 300, 30)
    assert gains(Samples(tuple(drift)), Samples(tuple(0.9 * drift)))


def test_every_place_takes_the_form_that_is_fastest_there(graph: onnx.ModelProto) -> None:
    plain = int8(graph)
    two, four = Folded(2, True, 4), Folded(4, True, 4)
    first, second = list(four.places(plain))[:2]
    taken = {"plain": {first: 5.0, second: 5.0}, two.name: {first: 4.0, second: 4.9}}
    taken[four.name] = {first: 2.0, f"{first}/folded/gives/viewed": 1.0, second: 0.0}

    def profile(_: Mapping[str, onnx.ModelProto]) -> Mapping[str, KernelTimes]:
        return taken

    # The second place gains too little to be certain in one form, and has no time in the other.
    assert best_of(costs(plain, [two, four], profile)) == {first: four.name}
    taken[four.name] = {first: 2.0, f"{first}/folded/gives/viewed": 3.0}
    assert best_of(costs(plain, [two, four], profile)) == {first: two.name}


def test_a_place_counts_all_that_it_replaces() -> None:
    plain = {"conv": 3.0, "cat": 2.0, "resize": 2.0, "convolution": 50.0}
    places = {"conv": ("conv", "cat", "resize")}
    assert faster_places(plain, {"conv": 1.0, "conv/up": 4.0, "convolution": 50.0}, places) == ["conv"]
    assert faster_places(plain, {"conv": 1.0, "conv/up": 4.0, "conv/up/dealt": 1.9}, places) == []


def test_the_faster_forms_leave_and_are_not_measured_again(
    graph: onnx.ModelProto, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = Stopwatch({"Resize": 3.0, "Concat": 1.0, "Conv": 1.0}, whole={"plain": 5.0, "rewritten": 4.0})
    first = rewriter(tmp_path, clock)
    other = first.of_float(graph)
    assert "Resize" not in operators(other)  # Resize, Concat and Conv took 5 ms, and two Convs take 2
    said = capfd.readouterr().err
    assert "upsampled parts of convolutions on the small map: 4.00 ms instead of 5.00 ms in INT8, kept" in said
    again = rewriter(tmp_path, Stopwatch({}, whole={}))
    assert again.of_float(graph).SerializeToString() == other.SerializeToString()


def test_forms_of_integers_are_decided_once_for_whatever_ranges(
    graph: onnx.ModelProto, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = Stopwatch({"Resize": 3.0, "Concat": 1.0}, whole={"plain": 5.0, "rewritten": 4.0})
    plain = int8(graph)
    made = rewriter(tmp_path, clock).of_integers(plain)
    assert "Resize" not in operators(made)
    form = Repeated()
    assert (
        made.SerializeToString()
        == formed(plain, dict.fromkeys(form.places(plain), form.name), [form]).SerializeToString()
    )
    assert f"({form.name}: 2): 4.00 ms instead of 5.00 ms in INT8, kept" in capfd.readouterr().err
    unused = Stopwatch({}, whole={})
    assert rewriter(tmp_path, unused).of_integers(plain).SerializeToString() == made.SerializeToString()
    assert unused.looked == 0


def test_what_is_not_faster_as_a_whole_is_left_by_bytes(
    graph: onnx.ModelProto, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = Stopwatch({"Resize": 3.0, "Concat": 1.0, "Conv": 1.0}, whole={"plain": 5.0, "rewritten": 4.99})
    plain = int8(graph)
    chooser = rewriter(tmp_path, clock)
    assert chooser.of_integers(plain) is plain
    assert "4.99 ms instead of 5.00 ms in INT8, not kept" in capfd.readouterr().err
    assert operators(chooser.of_float(graph)) == operators(graph)


def test_nothing_is_timed_as_a_whole_where_no_place_gains(graph: onnx.ModelProto, tmp_path: Path) -> None:
    clock = Stopwatch({}, whole={})  # `times` would find no figures
    chooser = rewriter(tmp_path, clock)
    assert operators(chooser.of_float(graph)) == operators(graph)
    plain = int8(graph)
    assert chooser.of_integers(plain) is plain


def test_real_kernels_are_found_by_the_names_of_their_nodes(graph: onnx.ModelProto) -> None:
    """In the runtime's profile, each form has times at the places where it was applied: it can be compared."""
    from compress.quantize.judge import model_of

    class Card:
        size, size_multiple, channels = (16, 16), 4, 1

    plain = int8(graph)
    judge = Judge(None, Card(), model_of(graph), (16, 16))  # type: ignore[arg-type]
    for form in integer_forms(4):
        places = form.places(plain)
        times = judge.kernel_times({"plain": plain, "other": form.apply(plain, places)})
        for place in places:
            assert times["plain"][place] > 0
            assert sum(time for name, time in times["other"].items() if name.startswith(place)) > 0


@pytest.mark.parametrize(("rewritten", "form"), [(4.0, "float"), (6.0, f"int8, {Repeated().name}")])
def test_the_first_layer_is_tried_in_float_and_all_that_was_measured_is_told(
    graph: onnx.ModelProto, tmp_path: Path, capfd: pytest.CaptureFixture[str], rewritten: float, form: str
) -> None:
    """In INT8, its form is the one that was chosen for the place of its node."""
    clock = Stopwatch({"Conv": 3.0}, whole={"plain": 5.0, "rewritten": rewritten})
    first = rewriter(tmp_path, clock)
    assert first.stem_figures() is None
    stem = first_layer(graph, normalised_tensor(graph.graph))
    assert stem is not None
    assert stem.name == "stem.0"
    reason = first.stem_in_float(graph, stem)
    told = "faster in float: the graph takes 4.00 ms, with it in INT8 5.00 ms" if rewritten < 5 else None
    assert reason == told
    verdict = "kept" if told else "not kept"
    assert f"(stem.0): {rewritten:.2f} ms instead of 5.00 ms in INT8, {verdict}" in capfd.readouterr().err
    write_json(
        tmp_path / "rewrites.json",
        {
            **json.loads((tmp_path / "rewrites.json").read_text()),
            "operators between integers in other forms": {
                "places": {stem.nodes[0]: Repeated().name},
                "kept": True,
            },
        },
    )
    again = rewriter(tmp_path, Stopwatch({}, whole={}))
    assert again.stem_in_float(graph, stem) == reason
    found = again.stem_figures()
    assert found is not None
    assert (found["layer"], found["form"]) == ("stem.0", form)
    assert found["graph_ms"] == {"int8": 5.0, "float": rewritten}
    assert found["layer_ms"]["plain"] == 3.0
    assert set(found["layer_ms"]) > {"plain", "2 columns read and made at once"}
