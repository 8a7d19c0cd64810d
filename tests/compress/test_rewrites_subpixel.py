"""Convolutions over an upsampled map concatenated with others, whose upsampled part is computed on the small map."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support.networks import exported, random_network, random_unet

from compress.quantize.ptq import Quantizer
from compress.quantize.qat import QuantizedNetwork
from compress.quantize.rewrites import SubPixel
from export.runtime import OnnxModel
from export.to_onnx import with_outputs

Arrays = dict[str, NDArray[np.float32]]


def decoder(
    small: int,
    beside: tuple[int, ...],
    out: int,
    *,
    place: int = 0,
    bias: bool = True,
    scale: float = 2,
    resize: dict[str, Any] | None = None,
    **conv: Any,
) -> onnx.ModelProto:
    """A 3x3 convolution over `a` (`small` channels, half the size), upsampled, at `place` among the maps b0, b1 ..."""
    rng = np.random.default_rng(small + 10 * out)
    maps = [f"b{i}" for i in range(len(beside))]
    maps.insert(place, "up")
    shape = (out, (small + sum(beside)) // conv.get("group", 1), 3, 3)
    tensors: Arrays = {
        "scales": np.array([1, 1, scale, scale], np.float32),
        "net.weight": rng.normal(size=shape).astype(np.float32),
    }
    if bias:
        tensors["net.bias"] = rng.normal(size=out).astype(np.float32)
    given = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nodes = [
        helper.make_node("Resize", ["a", "", "scales"], ["up"], "resize", **{**given, **(resize or {})}),
        helper.make_node("Concat", maps, ["cat"], "cat", axis=1),
        helper.make_node("Conv", ["cat", *list(tensors)[1:]], ["y"], "conv", **{"pads": [1] * 4, **conv}),
    ]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", small, "h", "w"]),
            *(
                helper.make_tensor_value_info(f"b{i}", TensorProto.FLOAT, ["batch", width, "h2", "w2"])
                for i, width in enumerate(beside)
            ),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", out, "h3", "w3"])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def maps(small: int, beside: tuple[int, ...], batch: int, size: tuple[int, int]) -> Arrays:
    rng = np.random.default_rng(3)
    height, width = size
    found = {"a": rng.normal(size=(batch, small, height, width)).astype(np.float32)}
    for i, channels in enumerate(beside):
        found[f"b{i}"] = rng.normal(size=(batch, channels, 2 * height, 2 * width)).astype(np.float32)
    return found


def run(model: onnx.ModelProto, feeds: Arrays) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]  # type: ignore[no-any-return]


@settings(max_examples=30)
@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(1, 4),
    st.data(),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_the_small_map_gives_what_the_large_one_gave_borders_too(
    small: int, beside: list[int], out: int, data: st.DataObject, bias: bool, batch: int, size: tuple[int, int]
) -> None:
    place = data.draw(st.integers(0, len(beside)))
    plain = decoder(small, tuple(beside), out, place=place, bias=bias)
    before, form = plain.SerializeToString(), SubPixel()
    other = form.apply(plain, form.places(plain))
    assert plain.SerializeToString() == before
    onnx.checker.check_model(other, full_check=True)
    assert "Resize" not in {node.op_type for node in other.graph.node}
    feeds = maps(small, tuple(beside), batch, size)
    expected = ReferenceEvaluator(plain).run(None, feeds)[0]
    np.testing.assert_allclose(ReferenceEvaluator(other).run(None, feeds)[0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(other, feeds), expected, rtol=1e-4, atol=1e-4)


def read_by_another(tensor: str) -> onnx.ModelProto:
    model = decoder(2, (3,), 4)
    model.graph.node.append(helper.make_node("Relu", [tensor], ["z"], "other"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * 4))
    return model


@pytest.mark.parametrize(
    "model",
    [
        read_by_another("cat"),
        read_by_another("up"),
        decoder(2, (), 4),
        decoder(2, (3,), 4, pads=[0, 0, 0, 0]),
        decoder(2, (3,), 4, strides=[2, 2]),
        decoder(2, (3,), 4, pads=[2, 2, 2, 2], dilations=[2, 2]),
        decoder(2, (4,), 4, group=2),
        decoder(2, (3,), 4, scale=3),
        decoder(2, (3,), 4, resize={"mode": "linear"}),
        decoder(2, (3,), 4, resize={"nearest_mode": "ceil"}),
    ],
)
def test_what_is_unlike_is_left_alone(model: onnx.ModelProto) -> None:
    form = SubPixel()
    assert form.places(model) == {}
    assert form.apply(model, ["conv"]).SerializeToString() == model.SerializeToString()


def images() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 4, 6, 1), dtype=np.uint8)
    return np.kron(blocks, np.ones((1, 8, 8, 1), np.uint8))


@pytest.mark.parametrize("network", [random_unet(), random_network("unetpp")], ids=["unet", "unet++"])
def test_a_network_answers_alike_in_float_and_is_integers_alone_in_int8(network: torch.nn.Module) -> None:
    graph, form, x = with_outputs(exported(network), "mask"), SubPixel(), images()
    places = form.places(graph)
    assert places
    other = form.apply(graph, places)
    plain, rewritten = (OnnxModel(model.SerializeToString()) for model in (graph, other))
    assert plain.inputs == rewritten.inputs
    for size in ((32, 48), (20, 36), (4, 12)):
        for batch in (1, 3):
            cut = x[:batch, : size[0], : size[1]]
            assert (plain.masks(cut) == rewritten.masks(cut)).mean() > 0.999
    made = Quantizer(other, iter(x), target="auto").quantized("minmax")
    assert made.float_layers == ()
    int8 = OnnxModel(made.graph.SerializeToString())
    assert (int8.masks(x) == plain.masks(x)).mean() > 0.9
    trained = QuantizedNetwork(made.graph, made.parent)
    logits = trained(torch.from_numpy((x - 128.0) / 128).float().permute(0, 3, 1, 2))
    assert (logits.argmax(1).numpy() == int8.masks(x)).mean() > 0.95
