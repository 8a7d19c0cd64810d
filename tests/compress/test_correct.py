"""Bias correction: biases cancel what rounding adds to the mean of a channel."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from support.handmade import blocks, small_unet, with_eca

from compress.quantize.correct import corrected
from compress.quantize.ptq import Quantizer
from compress.settings.quantize import Target
from export.runtime import OnnxModel
from export.to_onnx import with_outputs

LAYERS = ("stem", "down", "fuse", "head")


def means(model: onnx.ModelProto) -> Mapping[str, NDArray[np.float64]]:
    """The mean of every channel of every convolution over all pixels of all images, by ONNX's own evaluator."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]
    names = {node.name.removeprefix("node_"): node.output[0] for node in model.graph.node if node.op_type == "Conv"}
    for name in names.values():
        tapped.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    run = ReferenceEvaluator(tapped)
    found = [run.run(list(names.values()), {"image": image[None]}) for image in blocks(4)]
    # Images are of one size here, so the mean of their means is that of all pixels.
    return {
        layer: np.mean([maps[i].mean(axis=(0, 2, 3), dtype=np.float64) for maps in found], axis=0)
        for i, layer in enumerate(names)
    }


def biases(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The biases stored for the convolutions, as integers or floats."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    origin = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    nodes = [node for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 3]
    return {node.name: constants[origin.get(node.input[2], node.input[2])] for node in nodes}


@pytest.mark.parametrize(
    ("target", "bias", "dtype"), [("vnni", True, np.int32), ("avx2", False, np.int32), ("tensorrt", True, np.float32)]
)
def test_every_mean_is_that_of_the_float_parent(target: Target, bias: bool, dtype: type) -> None:
    """Convolutions without a bias get one. Seven bits and weak channels make large errors before the correction."""
    graph = with_outputs(small_unet(spread=10, bias=bias), "mask")
    plain = Quantizer(graph, iter(blocks(4)), target=target).quantized("minmax")
    other = corrected(plain, blocks(4))
    exact, before, after = means(plain.parent), means(plain.graph), means(other.graph)
    assert set(exact) == set(LAYERS)
    was = max(np.abs(before[layer] - exact[layer]).max() for layer in LAYERS)
    # Biases are rounded in steps of the product of two small scales; evaluator and runtime round ties differently.
    left = max(np.abs(after[layer] - exact[layer]).max() for layer in LAYERS)
    assert was > 0.01
    assert left < was / 20
    found = biases(other.graph)
    assert len(found) == 4
    assert {array.dtype for array in found.values()} == {np.dtype(dtype)}
    assert len(biases(plain.graph)) == (4 if bias else 1)
    onnx.checker.check_model(other.graph, full_check=True)
    # The runtime that serves the corrected graph still agrees with the float graph.
    images = np.stack(blocks(3, seed=2))
    masks = OnnxModel(other.graph.SerializeToString(), threads=1).masks(images)
    assert np.mean(masks == OnnxModel(graph.SerializeToString(), threads=1).masks(images)) > 0.9


def test_layers_that_stay_in_float_keep_their_biases() -> None:
    graph = with_outputs(small_unet(), "mask")
    mixed = Quantizer(graph, iter(blocks(4)), target="vnni").quantized("minmax", {"down": "to see"})
    before, after = biases(mixed.graph), biases(corrected(mixed, blocks(4)).graph)
    np.testing.assert_array_equal(before["node_down"], after["node_down"])
    assert any((before[name] != after[name]).any() for name in ("node_stem", "node_fuse", "node_head"))


def test_where_all_layers_stay_in_float_nothing_is_corrected() -> None:
    quantizer = Quantizer(with_outputs(small_unet(), "mask"), iter(blocks(4)), target="vnni")
    floats = quantizer.quantized("minmax", {layer.name: "to see" for layer in quantizer.layers})
    assert corrected(floats, blocks(4)) is floats


def test_a_convolution_over_channels_is_corrected_like_one_over_pixels() -> None:
    """Its output has one axis of positions instead of two."""
    graph = with_outputs(with_eca(), "mask")
    plain = Quantizer(graph, iter(blocks(4)), target="vnni").quantized("minmax")
    other = corrected(plain, blocks(4))
    assert set(biases(other.graph)) - set(biases(plain.graph)) == {"node_eca"}
    assert biases(other.graph)["node_eca"].shape == (1,)
    images = np.stack(blocks(3, seed=2))
    masks = OnnxModel(other.graph.SerializeToString(), threads=1).masks(images)
    assert np.mean(masks == OnnxModel(graph.SerializeToString(), threads=1).masks(images)) > 0.9
