"""A probe runs the kernels that its layer has in a network of that precision, and counts these alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from export.errors import UsageError
from export.latency.kinds import LayerKey, LayerKind
from export.latency.probes import Probe, probe_of
from export.manifest import Precision
from export.profiling import Kernel, optimised_graph, profiled

MAP = ((16, 24), (16, 24))
HALVED = ((16, 24), (8, 12))
DOUBLED = ((16, 24), (32, 48))
THREE = {"kernel": (3, 3), "pads": (1, 1, 1, 1)}
TWO = {"kernel": (2, 2), "strides": (2, 2)}


def key(op: str, sizes: tuple[tuple[int, int], tuple[int, int]], into: int, out: int, **fields: object) -> LayerKey:
    return LayerKey(LayerKind(op, *sizes, **fields), into, out)  # type: ignore[arg-type]


CONV = key("Conv", MAP, 16, 32, **THREE, activation="Relu")
LAYERS: dict[str, tuple[LayerKey, list[str], list[str]]] = {
    "conv": (CONV, ["Conv"], ["QLinearConv"]),
    "conv of an image": (key("Conv", MAP, 3, 16, **THREE), ["Conv"], ["QLinearConv"]),
    "conv to classes": (key("Conv", MAP, 16, 12), ["Conv"], ["QLinearConv"]),
    "strided, ReLU6": (
        key("Conv", HALVED, 16, 32, kernel=(3, 3), strides=(2, 2), pads=(0, 0, 1, 1), activation="Clip"),
        ["Conv"],
        ["QLinearConv"],
    ),
    "dilated": (
        key("Conv", MAP, 16, 16, kernel=(3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
        ["Conv"],
        ["QLinearConv"],
    ),
    "depthwise": (key("Conv", MAP, 32, 32, **THREE, groups=0, activation="Clip"), ["Conv"], ["QLinearConv"]),
    "grouped": (key("Conv", MAP, 32, 32, **THREE, groups=2), ["Conv"], ["QLinearConv"]),
    "sum": (
        key("Conv", MAP, 16, 16, **THREE, sum=True, activation="Relu"),
        ["Conv"],
        ["QLinearConv", "QLinearAdd"],
    ),
    "sigmoid": (key("Conv", MAP, 16, 16, activation="Sigmoid"), ["Conv"], ["QLinearConv", "QLinearSigmoid"]),
    "max pool": (key("MaxPool", HALVED, 16, 16, **TWO), ["MaxPool"], ["NhwcMaxPool"]),
    "average pool": (key("AveragePool", HALVED, 16, 16, **TWO), ["AveragePool"], ["QLinearAveragePool"]),
    "global pool": (
        key("GlobalAveragePool", ((16, 24), (1, 1)), 16, 16),
        ["GlobalAveragePool"],
        ["QLinearGlobalAveragePool"],
    ),
    "nearest": (key("Resize", DOUBLED, 16, 16, variant="nearest asymmetric"), ["Upsample"], ["Resize"]),
    "concat": (key("Concat", MAP, 48, 48, inputs=2), ["Concat"], ["QLinearConcat"]),
    "concat of three": (key("Concat", MAP, 80, 80, inputs=3), ["Concat"], ["QLinearConcat"]),
    "gate": (key("Mul", MAP, 16, 16, variant="channel"), ["Mul"], ["QLinearMul"]),
    "a number": (key("Mul", MAP, 16, 16, variant="constant"), ["Mul"], ["QLinearMul"]),
    "argmax": (key("ArgMax", MAP, 12, 12), ["ArgMax", "Cast"], ["ArgMax", "Cast"]),
}


def counted(probe: Probe, run: Sequence[Kernel]) -> list[str]:
    """The operators of one run that count as the layer's."""
    return [kernel.op for kernel in run if probe.microseconds([replace(kernel, microseconds=1.0)])]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_kernels_of_the_layer_count_and_no_others(
    layer: str, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked, in_float, in_integers = LAYERS[layer]
    probe = probe_of(asked, precision)
    (run,) = profiled(probe.model, probe.feeds, threads=1, runs=1)
    assert counted(probe, run) == (in_float if precision == "fp32" else in_integers)
    reference = [kernel.op for kernel in run if probe.reference_microseconds([replace(kernel, microseconds=1.0)])]
    assert reference == (["Conv"] if precision == "fp32" else ["QLinearConv"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layer", LAYERS)
def test_an_integer_probe_holds_no_float_and_no_change_of_layout(layer: str) -> None:
    graph = onnx.load_from_string(optimised_graph(probe_of(LAYERS[layer][0], "int8").model)).graph
    ops = {node.op_type for node in graph.node}
    assert not ops & {"Conv", "Transpose", "QuantizeLinear", "DequantizeLinear", "MaxPool", "Concat"}


def test_a_float_convolution_runs_on_blocks_with_its_activation_and_its_sum() -> None:
    graph = onnx.load_from_string(optimised_graph(probe_of(LAYERS["sum"][0], "fp32").model)).graph
    (node,) = [node for node in graph.node if node.op_type == "Conv" and len(node.input) == 4]
    assert node.domain == "com.microsoft.nchwc"
    assert [attribute.s for attribute in node.attribute if attribute.name == "activation"] == [b"Relu"]


def test_what_stays_in_float_counts_with_its_way_there_and_back() -> None:
    transposed = key("ConvTranspose", DOUBLED, 16, 16, **TWO)
    probe = probe_of(transposed, "int8")
    (run,) = profiled(probe.model, probe.feeds, threads=1, runs=1)
    assert {"DequantizeLinear", "ConvTranspose", "QuantizeLinear"} <= set(counted(probe, run))
    probe = probe_of(transposed, "fp32")
    (run,) = profiled(probe.model, probe.feeds, threads=1, runs=1)
    assert counted(probe, run) == ["ConvTranspose"]


@pytest.mark.parametrize(
    ("op", "channels", "expected"),
    [
        ("Door", 3, ["Transpose", "Cast", "Sub", "Div"]),
        ("ToPlain", 12, ["ReorderOutput"]),
        ("ToBlocked", 32, ["ReorderInput"]),
        ("Relu", 16, ["Relu"]),
    ],
)
def test_what_only_float_has(op: str, channels: int, expected: list[str]) -> None:
    asked = key(op, MAP, channels, channels)
    probe = probe_of(asked, "fp32")
    (run,) = profiled(probe.model, probe.feeds, threads=1, runs=1)
    assert counted(probe, run) == expected
    assert asked.kind.takes_time("fp32")
    assert not asked.kind.takes_time("int8")


def test_what_is_not_modelled_cannot_be_probed() -> None:
    asked = key("Other", MAP, 16, 16, variant="HardSwish")
    assert not asked.kind.takes_time("fp32")
    with pytest.raises(UsageError, match=r"HardSwish at 16x24, 16 -> 16 channels is not modelled"):
        probe_of(asked, "fp32")
