"""Equivalent forms of a graph: the same answers at every size, and integers where there was float."""

from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support.checkpoints import write_checkpoint
from support.networks import exported, random_unet
from support.recipes import TINY_SETTINGS

from compress.quantize import quantize
from compress.quantize.ptq import Quantizer, with_quantized_logits
from compress.quantize.qat import QuantizedNetwork
from compress.quantize.rewrites import Rewriter, means_as_pooling, transposed_as_convolution
from compress.recipe import Recipe
from export.bundle import verify
from export.images import U8
from export.parity import batches, int8_parity
from export.profiling import optimised_graph
from export.runtime import OnnxModel
from export.timing import Samples, interleaved
from export.to_onnx import with_outputs


def one_layer(width_in: int, width_out: int, kernel: int, *, bias: bool = True, **attributes: Any) -> onnx.ModelProto:
    """x [batch, in, h, w] through one transposed convolution."""
    rng = np.random.default_rng(width_in + 10 * width_out)
    shape = (width_in, width_out // attributes.get("group", 1), kernel, kernel)
    tensors = {"up.weight": rng.normal(size=shape).astype(np.float32)}
    if bias:
        tensors["up.bias"] = rng.normal(size=width_out).astype(np.float32)
    node = helper.make_node(
        "ConvTranspose", ["x", *tensors], ["y"], name="up", **{"strides": [kernel] * 2, **attributes}
    )
    free = ["batch", None, "height", "width"]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [free[0], width_in, *free[2:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width_out, "h2", "w2"])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]  # type: ignore[no-any-return]


@settings(max_examples=25)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 4),
    st.booleans(),
    st.integers(1, 3),
    st.tuples(*[st.integers(1, 7)] * 2),
)
def test_a_transposed_convolution_is_a_convolution_dealt_out(
    width_in: int, width_out: int, kernel: int, bias: bool, batch: int, size: tuple[int, int]
) -> None:
    """In the runtime, and by ONNX's own evaluator."""
    plain = one_layer(width_in, width_out, kernel, bias=bias)
    before = plain.SerializeToString()
    other = transposed_as_convolution(plain)
    assert other is not None
    assert plain.SerializeToString() == before
    assert [node.op_type for node in other.graph.node] == ["Conv", "DepthToSpace"]
    onnx.checker.check_model(other, full_check=True)
    x = np.random.default_rng(0).normal(size=(batch, width_in, *size)).astype(np.float32)
    np.testing.assert_allclose(run(other, x), run(plain, x), rtol=1e-4, atol=1e-5)
    (referred,) = ReferenceEvaluator(other).run(None, {"x": x})
    np.testing.assert_allclose(run(plain, x), referred, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [1, 1]},
        {"strides": [2, 3]},
        {"pads": [1, 1, 1, 1]},
        {"output_padding": [1, 1]},
        {"dilations": [2, 2]},
        {"group": 2},
        {"auto_pad": "SAME_UPPER"},
    ],
)
def test_what_overlaps_or_is_cut_is_left_alone(attributes: dict[str, Any]) -> None:
    assert transposed_as_convolution(one_layer(4, 4, 2, **attributes)) is None


def test_weights_that_others_read_stay() -> None:
    model = one_layer(2, 3, 2)
    model.graph.node.append(helper.make_node("ReduceMax", ["up.weight"], ["z"], name="other", keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, []))
    other = transposed_as_convolution(model)
    assert other is not None
    names = [tensor.name for tensor in other.graph.initializer]
    assert names == ["up.weight", "up_dealt.weight", "up_dealt.bias"]


def pictures() -> Iterator[U8]:
    rng = np.random.default_rng(0)
    for _ in range(3):
        yield np.kron(rng.integers(0, 256, (4, 6), dtype=np.uint8), np.ones((8, 8), np.uint8))[..., None]


def test_nothing_of_it_is_in_float_and_answers_hold_at_all_sizes() -> None:
    graph = with_outputs(exported(random_unet(upsampling="transposed")), "mask")
    other = transposed_as_convolution(graph)
    assert other is not None
    x = np.stack(list(pictures()))
    np.testing.assert_array_equal(
        OnnxModel(other.SerializeToString()).masks(x), OnnxModel(graph.SerializeToString()).masks(x)
    )
    made = Quantizer(other, pictures(), target="auto").quantized("minmax")
    assert made.float_layers == ()
    ran = Counter(
        node.op_type for node in onnx.load_from_string(optimised_graph(made.graph.SerializeToString())).graph.node
    )
    assert ran["DepthToSpace"] == 2
    assert not {"ConvTranspose", "Conv", "DequantizeLinear", "QuantizeLinear"} & ran.keys()
    as_written, step = with_quantized_logits(made.graph)
    int8_parity(
        OnnxModel(made.graph.SerializeToString()),
        OnnxModel(as_written.SerializeToString(), optimised=False),
        batches([image[..., :1] for image in x], 4, [(32, 48), (20, 36), (44, 12)]),
        logit_step=step,
        images="blocks",
    ).require()


def test_what_deals_out_has_the_scale_of_what_it_reads_in_training_too() -> None:
    other = transposed_as_convolution(with_outputs(exported(random_unet(upsampling="transposed")), "mask"))
    assert other is not None
    made = Quantizer(other, pictures(), target="auto").quantized("minmax")
    network = QuantizedNetwork(made.graph, made.parent)
    dealt = next(node for node in made.graph.graph.node if node.op_type == "DepthToSpace")
    read = dealt.input[0].removesuffix("_DequantizeLinear_Output")
    assert network.scale_of(dealt.output[0]) is network.scale_of(read)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(("axes", "pooled"), [([2, 3], True), ([-1, -2], True), ([1, 2], False), ([3], False)])
@pytest.mark.parametrize("stored", ["initializer", "constant"])
def test_a_mean_over_the_map_is_a_pooling(keepdims: int, axes: list[int], pooled: bool, stored: str) -> None:
    tensor = numpy_helper.from_array(np.array(axes, np.int64), "axes")
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=keepdims)
    before = [helper.make_node("Relu", ["images"], ["x"])]
    if stored == "constant":
        before.append(helper.make_node("Constant", [], ["axes"], value=tensor))
    graph = helper.make_graph(
        [*before, node],
        "mean",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (4 if keepdims else 4 - len(axes)))],
        [tensor] if stored == "initializer" else [],
    )
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    other = means_as_pooling(plain)
    assert (other is not None) == pooled
    if other is not None:
        onnx.checker.check_model(other, full_check=True)
        assert "ReduceMean" not in {node.op_type for node in other.graph.node}
        images = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
        found, expected = (ReferenceEvaluator(model).run(None, {"images": images})[0] for model in (other, plain))
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_attention_by_channel_is_in_integers() -> None:
    graph = with_outputs(exported(random_unet(squeeze_excite=True)), "mask")
    other = means_as_pooling(graph)
    assert other is not None
    assert Quantizer(graph, pictures(), target="auto").quantized("minmax").float_layers
    made = Quantizer(other, pictures(), target="auto").quantized("minmax")
    assert made.float_layers == ()
    x = np.stack(list(pictures()))
    agreed = OnnxModel(made.graph.SerializeToString()).masks(x) == OnnxModel(graph.SerializeToString()).masks(x)
    assert agreed.mean() > 0.9
    logits = QuantizedNetwork(made.graph, made.parent)(torch.from_numpy((x - 128.0) / 128).float().permute(0, 3, 1, 2))
    assert (logits.argmax(1).numpy() == OnnxModel(made.graph.SerializeToString()).masks(x)).mean() > 0.95


@pytest.mark.parametrize("rewritten_ms", [4.0, 6.0])
def test_the_faster_form_leaves(
    rewritten_ms: float, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fake(models: dict[str, Any], *, rounds: int) -> dict[str, Samples]:
        if "rewritten" not in models:
            return interleaved(models, rounds=rounds)
        return {"plain": Samples((5.0,) * rounds), "rewritten": Samples((rewritten_ms,) * rounds)}

    judge = import_module("compress.quantize.judge")
    monkeypatch.setattr(judge, "interleaved", fake)

    def slow_dealing(_: object, graphs: dict[str, onnx.ModelProto]) -> dict[str, dict[str, float]]:
        return {
            name: {node.name: 3.0 if node.op_type == "DepthToSpace" else 0.1 for node in graph.graph.node}
            for name, graph in graphs.items()
        }

    monkeypatch.setattr(judge.Judge, "kernel_times", slow_dealing)
    # An untrained network amplifies differences in rounding between two float kernels; `test_quantize_gain.py` covers
    # the first layer in float.
    monkeypatch.setattr(Rewriter, "stem_in_float", lambda *_: None)
    network = random_unet(classes=2, upsampling="transposed")
    named = {"classes": 2, "class_names": ("background", "disc"), "upsampling": "transposed"}
    source = write_checkpoint(tmp_path / "ckpt", network, **named)  # type: ignore[arg-type]
    chosen = Recipe.load(
        None, [*TINY_SETTINGS, "quantize.calibration=minmax", "quantize.max_drop=1", "quantize.rewrites=true"]
    )
    made = quantize(source.path, discs, tmp_path / "out", chosen)
    kept = rewritten_ms < 5
    found = Counter(node.op_type for node in onnx.load(str(made.model_path)).graph.node)
    # When kept, neither of the two is left: DepthToSpace became moves of pixels.
    assert (found["DepthToSpace"], found["ConvTranspose"], found["Reshape"]) == ((0, 0, 4) if kept else (0, 2, 0))
    said = capfd.readouterr().err
    words = f"{rewritten_ms:.2f} ms instead of 5.00 ms in INT8, {'kept' if kept else 'not kept'}"
    assert f"1x1 convolutions and DepthToSpace: {words}" in said
    assert (f"DepthToSpace as one move of pixels: 2): {words}" in said) == kept
    verify(made.path)
