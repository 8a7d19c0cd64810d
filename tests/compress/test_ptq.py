"""The INT8 graph: integers from the image to the mask, weights of as many bits as the target takes."""

from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.handmade import Handmade, blocks, small_unet, with_a_norm, with_a_smaller_inside
from support.networks import ByPixel, Mixer, Sized, exported, random_unet, seeded
from torch import nn

from compress.quantize import targets
from compress.quantize.door import normalised_tensor, remove_door
from compress.quantize.kernels import look_at_kernels
from compress.quantize.ptq import Quantized, Quantizer, with_quantized_logits
from compress.quantize.qat import QuantizedNetwork
from compress.quantize.targets import scheme_of
from compress.settings.quantize import Target
from export.errors import WorkFailedError
from export.graph import SizedGraph
from export.images import U8
from export.machine import InstructionSet
from export.manifest import FloatLayer
from export.parity import batches, int8_parity
from export.profiling import optimised_graph
from export.runtime import OnnxModel
from export.to_onnx import Outputs, with_outputs

SLOW = pytest.mark.slow


def pictures(count: int, seed: int = 0) -> Iterator[U8]:
    """Blocks of 8x8 equal pixels, so that neighbours agree as they do in photographs."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        coarse = rng.integers(0, 256, (5, 7), dtype=np.uint8)
        yield np.kron(coarse, np.ones((8, 8), np.uint8))[..., None]


def quantized(target: Target = "vnni", outputs: Outputs = "mask", **architecture: Any) -> Quantized:
    graph = with_outputs(exported(random_unet(**architecture)), outputs)
    return Quantizer(graph, pictures(4), target=target).quantized("minmax")


@pytest.fixture(scope="module")
def int8() -> Quantized:
    return quantized()


def weights(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    return {name: array for name, array in tensors.items() if array.dtype == np.int8 and array.ndim == 4}


def operators(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


def test_nothing_is_in_float_between_image_and_mask(int8: Quantized) -> None:
    """In the optimised graph, which the runtime runs, no Q/DQ node is left, so nothing is computed in float."""
    found = operators(optimised_graph(int8.graph.SerializeToString()))
    assert found.keys() <= {
        "QLinearConv",
        "QLinearConcat",
        "NhwcMaxPool",
        "MaxPool",
        "Resize",
        "Transpose",
        "ArgMax",
        "Cast",
    }
    assert found["QLinearConv"] == 11
    assert int8.float_layers == ()


@pytest.mark.parametrize(
    ("architecture", "operator", "count"),
    [
        pytest.param({"skip": "add"}, None, 0, marks=SLOW),
        pytest.param({"skip": "none"}, None, 0, marks=SLOW),
        pytest.param({"upsampling": "bilinear"}, "Resize", 2, marks=SLOW),
        pytest.param({"upsampling": "transposed"}, "ConvTranspose", 2, marks=SLOW),
    ],
)
def test_what_stays_in_float_is_named(architecture: dict[str, Any], operator: str | None, count: int) -> None:
    made = quantized(**architecture)
    assert [layer.reason for layer in made.float_layers] == [f"no integer kernel for {operator} here"] * count
    names = {node.name for node in made.graph.graph.node if node.op_type == operator}
    assert {layer.layer for layer in made.float_layers} == names


def test_a_map_that_is_brought_to_the_size_of_another_stays_in_integers() -> None:
    """The exporter takes that size before the BatchNorm, which then could not be folded; the runtime would dequantize
    a map to measure it."""
    graph = with_outputs(exported(seeded(Sized)), "mask")
    assert operators(optimised_graph(graph.SerializeToString()))["BatchNormalization"] == 0
    made = Quantizer(graph, pictures(4), target="auto").quantized("minmax")
    found = operators(optimised_graph(made.graph.SerializeToString()))
    assert not {"BatchNormalization", "DequantizeLinear", "QuantizeLinear"} & found.keys()
    assert found["QLinearConv"] == 4
    assert made.float_layers == ()
    images = np.stack(list(pictures(2)))
    model, float_model = (OnnxModel(one.SerializeToString(), threads=1) for one in (made.graph, graph))
    assert np.mean(model.masks(images) == float_model.masks(images)) > 0.9
    assert model.masks(images[:1, :10, :6]).shape == (1, 10, 6)
    normalised = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 128) / 128
    with torch.inference_mode():
        trained = QuantizedNetwork(made.graph, made.parent)(normalised).argmax(1).numpy()
    assert np.mean(trained == model.masks(images)) > 0.99


def test_a_size_that_is_computed_in_floats_stays_in_float() -> None:
    """In 8 bits it would be clipped to those of the calibration: other images would become smaller inside."""
    graph = with_a_smaller_inside()
    made = Quantizer(graph, iter(blocks(4)), target="auto").quantized("minmax")
    assert made.float_layers == ()
    small = "stem_relu_smaller"
    images = np.repeat(np.stack(blocks(2)), 3, axis=1)[:, :-2]
    for model in (graph, made.graph):
        assert SizedGraph(model, images.shape[1:3]).size(small) == (47, 24)
    both = [OnnxModel(model.SerializeToString(), threads=1).masks(images) for model in (graph, made.graph)]
    assert np.mean(both[0] == both[1]) > 0.9


def test_what_has_the_size_of_the_image_and_other_values_is_in_integers() -> None:
    """Such as a position embedding that is resized to the map."""
    net = Handmade()
    stem = net.relu(net.conv("stem", net.image, 8))
    net.weights["embedding"] = net.rng.normal(0, 1, (1, 8, 4, 4)).astype(np.float32)
    net.channels["embedding"] = 8
    graph = net.graph(net.conv("head", net.add("Add", [stem, net.to_size_of("embedding", stem)], "sum"), 4, kernel=1))
    made = Quantizer(graph, iter(blocks(4)), target="auto").quantized("minmax")
    (added,) = [node for node in made.graph.graph.node if node.op_type == "Add"]
    makers = {node.output[0]: node.op_type for node in made.graph.graph.node}
    assert {makers[name] for name in added.input} == {"DequantizeLinear"}
    assert "node_sum" not in {layer.layer for layer in made.float_layers}


def test_what_computes_with_the_size_of_the_image_is_named() -> None:
    net = Handmade()
    stem = net.relu(net.conv("stem", net.image, 8))
    net.integers["three"] = np.array(3, np.int64)
    wide = net.add("Gather", [net.add("Shape", [stem], "shape"), "three"], "wide")
    scaled = net.add("Mul", [stem, net.add("Cast", [wide], "floats", to=onnx.TensorProto.FLOAT)], "scaled", 8)
    graph = net.graph(net.conv("head", scaled, 4, kernel=1))
    made = Quantizer(graph, iter(blocks(4)), target="auto").quantized("minmax")
    assert FloatLayer(layer="node_scaled", reason="computes with the size of the image") in made.float_layers
    images = np.repeat(np.stack(blocks(2)), 3, axis=2)
    both = [OnnxModel(model.SerializeToString(), threads=1).masks(images) for model in (graph, made.graph)]
    assert np.mean(both[0] == both[1]) > 0.9


@pytest.mark.parametrize("groups", [2, 16])
def test_a_transposed_convolution_in_groups_stays_in_float(groups: int) -> None:
    graph = with_outputs(exported(seeded(lambda: Sized(groups=groups))), "mask")
    made = Quantizer(graph, pictures(4), target="vnni").quantized("minmax")
    assert [layer.reason for layer in made.float_layers] == ["no integer kernel for ConvTranspose here"]
    images = np.stack(list(pictures(2)))
    model, float_model = (OnnxModel(one.SerializeToString(), threads=1) for one in (made.graph, graph))
    assert np.mean(model.masks(images) == float_model.masks(images)) > 0.9
    network = QuantizedNetwork(made.graph, made.parent)
    onnx.checker.check_model(network.graph())


def test_matrix_products_are_in_integers() -> None:
    """Products over channels and over pixels; Mul and Concat of tensor sizes are not layers."""
    graph = with_outputs(exported(seeded(Mixer)), "mask")
    quantizer = Quantizer(graph, pictures(4), target="avx2")
    made = quantizer.quantized("minmax")
    found = operators(optimised_graph(made.graph.SerializeToString()))
    assert (found["QLinearMatMul"], found["QGemm"], found["QLinearLeakyRelu"]) == (7, 2, 1)
    assert not {"MatMul", "Gemm", "FusedGemm", "LeakyRelu"} & found.keys()
    assert {layer.reason.split()[-2] for layer in made.float_layers} == {"ReduceMean", "Div", "Softmax"}
    kinds = Counter(layer.operator for layer in quantizer.layers)
    assert kinds == {"Conv": 2, "Gemm": 2, "MatMul": 7, "Add": 7, "Mul": 1, "LeakyRelu": 1, "Sigmoid": 1}
    assert {"stem.0", "gate.0", "gate.2", "head"} < {layer.name for layer in quantizer.layers}
    model = OnnxModel(made.graph.SerializeToString(), threads=1)
    images = np.stack(list(pictures(4)))
    agreed = model.masks(images) == OnnxModel(graph.SerializeToString(), threads=1).masks(images)
    assert agreed.mean() > 0.9
    for batch, height, width in ((1, 4, 4), (3, 20, 12)):
        assert model.masks(images[:1, :height, :width].repeat(batch, 0)).shape == (batch, height, width)


@pytest.mark.parametrize("outputs", ["mask", "logits", "both"])
def test_logits_of_a_network_with_its_channels_last_have_the_classes_first(outputs: Outputs) -> None:
    """Parity and training both expect that order."""
    made = Quantizer(with_outputs(exported(seeded(ByPixel)), outputs), pictures(4), target="avx2").quantized("minmax")
    images = np.stack(list(pictures(2)))
    as_written, _ = with_quantized_logits(made.graph)
    logits = OnnxModel(as_written.SerializeToString(), threads=1, optimised=False).logits(images)
    assert logits.shape == (2, 3, *images.shape[1:3])
    masks = OnnxModel(made.graph.SerializeToString(), threads=1).masks(images)
    assert np.mean(masks == logits.argmax(1)) > 0.99
    normalised = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 128) / 128
    with torch.inference_mode():
        trained = QuantizedNetwork(made.graph, made.parent)(normalised).numpy()
    assert np.abs(trained - logits).mean() < 0.02 * np.abs(logits).max()


@pytest.mark.parametrize(
    ("layer", "operator", "left"),
    [
        ("gate.0", "QGemm", 1),
        ("node_matmul", "QLinearMatMul", 6),
        ("head", "QLinearConv", 1),
    ],
)
def test_each_kind_of_layer_may_stay_in_float(layer: str, operator: str, left: int) -> None:
    quantizer = Quantizer(with_outputs(exported(seeded(Mixer)), "mask"), pictures(4), target="vnni")
    made = quantizer.quantized("minmax", {layer: "to see"})
    assert made.float_layers[0] == FloatLayer(layer=layer, reason="to see")
    assert operators(optimised_graph(made.graph.SerializeToString()))[operator] == left


def test_the_image_goes_into_the_first_convolution_as_it_is(int8: Quantized) -> None:
    found = operators(int8.graph.SerializeToString())
    assert not {"Sub", "Div"} & found.keys()
    graph = int8.graph.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensor = "image"
    while (node := next(node for node in graph.node if tensor in node.input)).op_type == "Transpose":
        tensor = node.output[0]
    assert node.op_type == "DequantizeLinear"
    assert constants[node.input[1]] == np.float32(1 / 128)
    assert constants[node.input[2]] == 128
    assert constants[node.input[2]].dtype == np.uint8


def test_activations_are_unsigned_and_weights_are_per_channel(int8: Quantized) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.graph.initializer}
    for node in int8.graph.graph.node:
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].dtype == np.uint8
        elif node.op_type == "DequantizeLinear" and node.input[0] in weights(int8.graph):
            channels = constants[node.input[0]].shape[0]
            assert constants[node.input[1]].shape == (channels,)
            assert not constants[node.input[2]].any()
    assert len(weights(int8.graph)) == 11


@pytest.mark.parametrize(("target", "bits"), [("avx2", 7), ("vnni", 8), ("arm", 8)])
def test_weights_take_as_many_bits_as_the_target(target: Target, bits: int) -> None:
    made = quantized(target)
    largest = max(int(np.abs(array.astype(int)).max()) for array in weights(made.graph).values())
    assert largest <= 2 ** (bits - 1)
    assert largest > 2 ** (bits - 1) - 2
    assert made.seven_bit_weights == (bits == 7)


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        *((name, True) for name in ("avx2", "avx512", "generic")),
        *((name, False) for name in ("avx512_vnni", "avx_vnni", "amx", "arm_dotprod", "arm_i8mm")),
    ],
)
def test_auto_is_this_machine(monkeypatch: pytest.MonkeyPatch, instructions: str, expected: bool) -> None:
    monkeypatch.setattr(targets, "instruction_set", lambda: instructions)
    assert (scheme_of("auto").seven_bits == "all layers") == expected
    assert scheme_of("vnni").seven_bits == "no layer"
    assert scheme_of("avx2").seven_bits == "all layers"


@pytest.mark.parametrize(
    ("target", "here"),
    [
        ("auto", {"amx", "avx512_vnni", "avx_vnni", "avx512", "avx2", "arm_i8mm", "arm_dotprod", "generic"}),
        ("vnni", {"avx512_vnni", "avx_vnni"}),
        ("avx2", {"avx2"}),
        ("arm", {"arm_i8mm", "arm_dotprod"}),
        ("tensorrt", set()),
        ("openvino", set()),
    ],
)
def test_only_the_clock_of_such_a_machine_counts(
    monkeypatch: pytest.MonkeyPatch, target: Target, here: set[str]
) -> None:
    """A machine with AMX also runs what is made for VNNI or AVX2, but with other kernels."""
    for instructions in get_args(InstructionSet):
        monkeypatch.setattr(targets, "instruction_set", lambda found=instructions: found)
        assert scheme_of(target).is_here == (instructions in here), instructions


def test_a_bias_beside_weights_of_next_to_nothing_fits_into_32_bits() -> None:
    """BatchNorm has switched a channel off; clipped or wrapped around, its bias would have another value."""
    network = random_unet()
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 1e-12, 3.0
    graph = exported(network)
    both, _ = with_quantized_logits(Quantizer(graph, pictures(4), target="avx2").quantized("minmax").graph)
    biases = [array for tensor in both.graph.initializer if (array := numpy_helper.to_array(tensor)).dtype == np.int32]
    largest = max(int(np.abs(array.astype(np.int64)).max()) for array in biases if array.ndim)
    assert 2**29 < largest <= 2**30 + 2**10, "half of the range is left for the products"
    images = np.stack(list(pictures(2, seed=1)))
    in_float, in_integers = (OnnxModel(model.SerializeToString()).masks(images) for model in (graph, both))
    assert (in_float == in_integers).mean() > 0.9


def test_int8_says_nearly_what_float_says(int8: Quantized) -> None:
    float_model = OnnxModel(with_outputs(exported(random_unet()), "mask").SerializeToString(), threads=1)
    model = OnnxModel(int8.graph.SerializeToString(), threads=1)
    images = np.stack(list(pictures(4)))
    # Random weights leave many pixels undecided; a graph that was changed wrongly agrees in a third of them.
    assert np.mean(model.masks(images) == float_model.masks(images)) > 0.9


def test_batch_and_size_are_still_free_and_a_batch_is_its_singles(int8: Quantized) -> None:
    model = OnnxModel(int8.graph.SerializeToString(), threads=1)
    rng = np.random.default_rng(1)
    for batch, height, width in ((1, 4, 4), (3, 20, 12), (8, 36, 28)):
        images = rng.integers(0, 256, (batch, height, width, 1), dtype=np.uint8)
        singles = np.concatenate([model.masks(image[None]) for image in images])
        np.testing.assert_array_equal(model.masks(images), singles)


def test_the_optimised_graph_rounds_like_the_graph_as_written() -> None:
    int8 = quantized("auto")  # with 8-bit weights its sums would saturate on a processor without VNNI
    as_written, step = with_quantized_logits(int8.graph)
    assert step > 0
    model = OnnxModel(int8.graph.SerializeToString(), threads=1)
    written = OnnxModel(as_written.SerializeToString(), threads=1, optimised=False)
    logits = written.logits(np.zeros((1, 8, 8, 1), np.uint8))
    steps = (logits - logits.min()) / step
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    parity = int8_parity(model, written, batches(list(pictures(3)), 4, [(40, 56)]), logit_step=step, images="smooth")
    # An untrained network amplifies differences in rounding; `quantize` allows a trained one fewer.
    assert max(case.differing_pixels for case in parity.cases) < 0.02
    assert {case.batch_differs_from_singles for case in parity.cases} == {0.0}


def test_every_kernel_by_itself_is_within_a_step_of_the_operators_as_written() -> None:
    int8 = quantized("auto")
    images = np.stack(list(pictures(2)))
    found = look_at_kernels(int8.graph, images)
    assert found is not None
    assert found.hold
    assert found.count == operators(int8.graph.SerializeToString())["QuantizeLinear"] > 10


def test_a_kernel_that_errs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 7-bit weights no processor's sums saturate, so only the kernel that the test spoils errs."""
    module = import_module("compress.quantize.kernels")
    given = module.outputs
    named = "relu_3_QuantizeLinear_Output"

    def erring(model: bytes, feeds: dict[str, np.ndarray], *, optimised: bool) -> list[np.ndarray]:
        found: list[np.ndarray] = given(model, feeds, optimised=optimised)
        if optimised and [output.name for output in onnx.load_from_string(model).graph.output] == [named]:
            found[0].flat[0] ^= 2
        return found

    monkeypatch.setattr(module, "outputs", erring)
    found = look_at_kernels(quantized("avx2").graph, next(pictures(1))[None])
    assert found is not None
    assert (found.worst, found.steps, found.hold) == (named, 2, False)


def test_a_graph_that_quantizes_nowhere_has_no_kernel_to_look_at() -> None:
    assert look_at_kernels(with_outputs(small_unet(), "mask"), np.stack(blocks(1))) is None


@pytest.mark.parametrize(("outputs", "names"), [("logits", ["logits"]), ("both", ["mask", "logits"])])
def test_logits_come_out_of_int8_too(int8: Quantized, outputs: Outputs, names: list[str]) -> None:
    made = quantized(outputs=outputs)
    model = OnnxModel(made.graph.SerializeToString(), threads=1)
    assert [output.name for output in model.outputs] == names
    assert made.float_layers == ()
    images = np.stack(list(pictures(2)))
    logits = model.logits(images)
    np.testing.assert_array_equal(model.masks(images), logits.argmax(1))
    assert np.mean(model.masks(images) == OnnxModel(int8.graph.SerializeToString(), threads=1).masks(images)) > 0.95
    both, step = with_quantized_logits(made.graph)
    assert step > 0
    assert [output.name for output in both.graph.output] == names


def test_a_graph_with_another_door_is_refused() -> None:
    graph = exported(random_unet())
    assert normalised_tensor(graph.graph)
    with pytest.raises(WorkFailedError, match="not quantized at scale 1/128"):
        remove_door(with_a_quantizer(graph, scale=0.5))
    next(node for node in graph.graph.node if node.op_type == "Div").op_type = "Mul"
    with pytest.raises(WorkFailedError, match="does not begin with Cast, Sub, Div"):
        remove_door(graph)


def test_a_norm_that_the_runtime_takes_apart_stays_in_float() -> None:
    """The norm's first Cast is not the door's; in 8 bits its variances would come out negative."""
    graph = with_outputs(with_a_norm(), "mask")
    quantizer = Quantizer(graph, iter(blocks(4)), target="avx2")
    made = quantizer.quantized("minmax")
    assert [layer.name for layer in quantizer.layers] == ["stem", "head"]
    images = np.stack(blocks(4, seed=1))
    expected, found = (OnnxModel(model.SerializeToString(), threads=1).masks(images) for model in (graph, made.graph))
    assert np.mean(expected == found) > 0.95
    assert len(weights(made.graph)) == 2


def with_a_quantizer(graph: onnx.ModelProto, *, scale: float) -> onnx.ModelProto:
    """A copy of `graph` whose door is followed by a QuantizeLinear."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    name = normalised_tensor(made.graph)
    for node in made.graph.node:
        node.input[:] = ["quantized" if entry == name else entry for entry in node.input]
    made.graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "scale"))
    made.graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), "zero"))
    made.graph.node.append(onnx.helper.make_node("QuantizeLinear", [name, "scale", "zero"], ["quantized"]))
    return made


@pytest.mark.parametrize("layer", ["stem", "fuse"])
def test_a_layer_that_was_left_in_float_runs_in_float(layer: str) -> None:
    """Between Q/DQ pairs the runtime would quantize its weights again, were it not prevented from that."""
    made = Quantizer(with_outputs(small_unet(), "mask"), iter(blocks(2)), target="auto").quantized(
        "minmax", {layer: "to see"}
    )
    found = operators(optimised_graph(made.graph.SerializeToString()))
    assert (found["QLinearConv"], found["Conv"] + found["FusedConv"]) == (3, 1)
