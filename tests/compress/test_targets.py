"""What `--for` makes of a graph: types, zero points, and bits, as the runtimes are documented to take them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from support.handmade import Handmade, blocks, small_unet

from compress.quantize.correct import corrected
from compress.quantize.ptq import Quantized, Quantizer
from compress.settings.quantize import Target
from export.errors import UsageError
from export.runtime import OnnxModel
from export.to_onnx import with_outputs


def made_for(target: Target, graph: onnx.ModelProto | None = None) -> Quantized:
    source = with_outputs(graph or small_unet(), "mask")
    return Quantizer(source, iter(blocks(4)), target=target).quantized("minmax")


@pytest.fixture(scope="module")
def tensorrt() -> Quantized:
    return made_for("tensorrt")


@pytest.fixture(scope="module")
def openvino() -> Quantized:
    return made_for("openvino")


def constants(model: onnx.ModelProto) -> Mapping[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def pairs(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, NDArray[Any], NDArray[Any]]]:
    """Every node that quantizes or dequantizes, its scale and its zero point."""
    known = constants(model)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield node, known[node.input[1]], known[node.input[2]]


def weights(model: onnx.ModelProto) -> Mapping[str, NDArray[np.int8]]:
    return {name: array for name, array in constants(model).items() if array.dtype == np.int8 and array.ndim == 4}


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_a_bias_that_correction_gives_to_a_layer_is_as_the_others(target: Target) -> None:
    made = corrected(made_for(target, small_unet(bias=False)), blocks(4), integer_biases=False)
    known = constants(made.graph)
    biases = [known[node.input[2]] for node in made.graph.graph.node if node.op_type == "Conv"]
    assert {bias.dtype for bias in biases} == {np.dtype(np.float32)}
    assert len(biases) == 4
    assert not [node for node, _, zero_point in pairs(made.graph) if zero_point.dtype == np.int32]


def test_for_tensorrt_a_network_may_begin_with_its_channels_last() -> None:
    """The runtime then cancels its Transpose against ours, and the Cast is first already."""
    net = Handmade(channels=3)
    net.weights["by_pixel"] = net.rng.normal(0, 1, (3, 8)).astype(np.float32)
    last = net.add("Transpose", [net.image], "last", perm=[0, 2, 3, 1])
    first = net.add("Transpose", [net.add("MatMul", [last, "by_pixel"], "mixed", 8)], "first", perm=[0, 3, 1, 2])
    graph = with_outputs(net.graph(net.conv("head", first, 4)), "mask")
    made = Quantizer(graph, iter(blocks(4, channels=3)), target="tensorrt").quantized("minmax").graph
    assert [node.op_type for node in made.graph.node if "image" in node.input] == ["Cast"]
    images = np.stack(blocks(2, channels=3))
    both = [OnnxModel(model.SerializeToString(), threads=1).masks(images) for model in (graph, made)]
    assert np.mean(both[0] == both[1]) > 0.9


def test_for_tensorrt_bytes_go_into_a_cast_alone_where_the_size_of_the_image_is_read_too() -> None:
    net = Handmade()
    stem = net.relu(net.conv("stem", net.image, 1))
    graph = net.graph(net.conv("head", net.to_size_of(net.pool(stem), net.image), 4, kernel=1))
    shape = next(node for node in graph.graph.node if node.op_type == "Shape")
    for read in ("image", "turned"):
        shape.input[0] = read
        if read == "image":  # NHWC
            net.integers["order"] = np.array([0, 3, 1, 2], np.int64)
            graph.graph.initializer.append(numpy_helper.from_array(net.integers["order"], "order"))
            place = list(graph.graph.node).index(shape)
            graph.graph.node.insert(
                place + 1, onnx.helper.make_node("Gather", [shape.output[0], "order"], ["ordered"], "ordering")
            )
            resize = next(node for node in graph.graph.node if node.op_type == "Resize")
            resize.input[3] = "ordered"
        else:
            resize.input[3] = shape.output[0]
        made = made_for("tensorrt", graph).graph
        assert [node.op_type for node in made.graph.node if "image" in node.input] == ["Cast"]
        images = np.stack(blocks(2))
        both = [OnnxModel(model.SerializeToString(), threads=1).masks(images) for model in (graph, made)]
        assert np.mean(both[0] == both[1]) > 0.9


def test_tensorrt_is_signed_everywhere_and_every_zero_point_is_zero(tensorrt: Quantized) -> None:
    for node, scale, zero_point in pairs(tensorrt.graph):
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        assert (scale > 0).all()
        if node.input[0] in weights(tensorrt.graph):
            assert scale.shape == (len(weights(tensorrt.graph)[node.input[0]]),)
            assert {attribute.name: attribute.i for attribute in node.attribute}["axis"] == 0
        else:
            assert scale.shape == ()
    assert len(weights(tensorrt.graph)) == 4
    largest = {np.abs(array.astype(int)).max() for array in weights(tensorrt.graph).values()}
    assert largest == {127}
    assert not tensorrt.seven_bit_weights


def test_tensorrt_has_biases_in_float_and_uint8_at_its_ends_alone(tensorrt: Quantized) -> None:
    model = tensorrt.graph
    known = constants(model)
    assert {array.dtype for array in known.values()} == {np.dtype(np.int8), np.dtype(np.float32)}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert known[node.input[2]].dtype == np.float32
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    assert not [value.name for value in inferred.value_info if value.type.tensor_type.elem_type == TensorProto.UINT8]
    (door,) = (node for node in model.graph.node if "image" in node.input)
    (end,) = (node for node in model.graph.node if "mask" in node.output)
    assert (door.op_type, end.op_type) == ("Cast", "Cast")
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    assert kinds[door.output[0]] == kinds[end.input[0]] == TensorProto.FLOAT


def test_tensorrt_has_activations_and_the_argmax_right_behind_their_convolutions(tensorrt: Quantized) -> None:
    """TensorRT fuses an activation into its convolution, which a Q/DQ pair between the two would prevent."""
    makers = {node.output[0]: node.op_type for node in tensorrt.graph.graph.node}
    found = [makers[node.input[0]] for node in tensorrt.graph.graph.node if node.op_type in ("Relu", "ArgMax")]
    assert found == ["Conv"] * 4


def test_the_image_is_signed_for_tensorrt_without_rounding(tensorrt: Quantized) -> None:
    """(x - 128) / 128 of uint8 is int8 at scale 1/128."""
    (first,) = (
        node for node in tensorrt.graph.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "div"
    )
    assert constants(tensorrt.graph)[first.input[1]] == np.float32(1 / 128)


def test_openvino_is_unsigned_with_seven_bits_in_the_first_layer_alone(openvino: Quantized) -> None:
    assert not openvino.seven_bit_weights
    model = openvino.graph
    largest = {name: int(np.abs(array.astype(int)).max()) for name, array in weights(model).items()}
    assert largest.pop("model.stem.weight_quantized") <= 64
    assert set(largest.values()) == {127}
    for node, _, zero_point in pairs(model):
        assert zero_point.dtype == (np.int8 if node.input[0] in weights(model) else np.uint8)
        if node.input[0] in weights(model):
            assert not zero_point.any()
    assert np.dtype(np.int32) not in {array.dtype for array in constants(model).values()}
    (door,) = (node for node in model.graph.node if "image" in node.input)
    assert door.op_type == "Transpose"


def test_openvino_has_seven_bits_behind_a_normalisation_too() -> None:
    """A model from elsewhere begins with its own normalisation; the layers that read it see the image's wide range."""
    net = Handmade(channels=3)
    normal = net.conv("normalise", net.image, 3, kernel=1, group=3)
    first, beside = net.relu(net.conv("first", normal, 8)), net.conv("beside", normal, 8)
    second = net.conv("second", net.beside(first, beside), 8)
    source = with_outputs(net.graph(net.conv("head", second, 2)), "mask")
    made = Quantizer(source, iter(blocks(4, channels=3)), target="openvino").quantized("minmax")
    largest = {name.split(".")[1]: int(np.abs(array.astype(int)).max()) for name, array in weights(made.graph).items()}
    assert {name for name, most in largest.items() if most <= 64} == {"normalise", "first", "beside"}
    assert {largest["second"], largest["head"]} == {127}


def test_openvino_is_refused_for_a_graph_without_a_convolution() -> None:
    net = Handmade()
    net.weights["two"] = np.array([-1, 1], np.float32).reshape(1, 2, 1, 1)
    source = with_outputs(net.graph(net.add("Mul", [net.image, "two"], "both", 2)), "mask")
    with pytest.raises(UsageError, match=r"has no convolution, and --for openvino .* use --for auto"):
        Quantizer(source, iter(blocks(2)), target="openvino").quantized("minmax")


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_the_same_network_runs_here(target: Target, tensorrt: Quantized, openvino: Quantized) -> None:
    """In the CPU provider, at other sizes and batches too, and with no layer left in float."""
    made = {"tensorrt": tensorrt, "openvino": openvino}[target]
    model = OnnxModel(made.graph.SerializeToString(), threads=1)
    images = np.stack(blocks(4, seed=1))
    expected = OnnxModel(with_outputs(small_unet(), "mask").SerializeToString(), threads=1).masks(images)
    masks = model.masks(images)
    assert masks.dtype == np.uint8
    assert np.mean(masks == expected) > 0.95
    np.testing.assert_array_equal(model.masks(images[:1, :10, :14]), model.masks(images[:2, :10, :14])[:1])
    assert made.float_layers == ()


@pytest.mark.parametrize("target", ["vnni", "tensorrt", "openvino"])
def test_logits_that_are_given_are_no_layer_in_float(target: Target) -> None:
    source = with_outputs(small_unet(), "both")
    assert Quantizer(source, iter(blocks(4)), target=target).quantized("minmax").float_layers == ()


def test_what_has_no_integer_form_is_named_whoever_serves() -> None:
    net = Handmade()
    soft = net.add("Softmax", [net.conv("stem", net.image, 4)], "soft", axis=1)
    made = made_for("tensorrt", net.graph(net.conv("head", soft, 2)))
    assert [(layer.layer, layer.reason) for layer in made.float_layers] == [("node_soft", "Softmax is not quantized")]


def test_masks_that_are_looked_up_keep_their_classes_for_tensorrt() -> None:
    """A model from elsewhere may number its classes differently; its table of uint8 becomes one of floats."""
    graph = with_outputs(small_unet(), "mask")
    last = next(node for node in graph.graph.node if "mask" in node.output)
    last.op_type, last.input[:] = "Gather", ["classes", "argmax"]
    del last.attribute[:]
    graph.graph.initializer.append(numpy_helper.from_array(np.array([7, 2, 255, 0], np.uint8), "classes"))
    made = Quantizer(graph, iter(blocks(4)), target="tensorrt").quantized("minmax")
    images = np.stack(blocks(2, seed=1))
    found = OnnxModel(made.graph.SerializeToString(), threads=1).masks(images)
    expected = OnnxModel(graph.SerializeToString(), threads=1).masks(images)
    assert np.mean(found == expected) > 0.95
    assert np.dtype(np.uint8) not in {array.dtype for array in constants(made.graph).values()}
    assert Counter(node.op_type for node in made.graph.graph.node)["Gather"] == 1
