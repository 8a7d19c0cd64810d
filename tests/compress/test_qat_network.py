"""The INT8 graph as a torch network: its numbers are the runtime's, and what it learns is written to the graph."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support.handmade import blocks, with_a_norm, with_eca
from support.networks import Mixer, Mobile, exported, random_network, randomised, seeded
from torch import Tensor, nn

from compress.quantize.ptq import Quantizer
from compress.quantize.qat import QuantizedNetwork
from compress.quantize.qat.attributes import refused
from compress.quantize.qat.fake import Activation, rounded_weight
from compress.quantize.qat.operators import OPERATORS
from compress.settings.quantize import Target
from export.errors import WorkFailedError
from export.images import U8
from export.to_onnx import with_outputs

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {}),
    "add": ("unet", {"skip": "add"}),
    "bilinear": ("unet", {"upsampling": "bilinear"}),
    "transposed": ("unet", {"upsampling": "transposed"}),
    "residual-se": ("unet", {"block": "residual", "squeeze_excite": True}),
    "attention": ("unet", {"bottleneck_attention": True}),
    "unetpp": ("unetpp", {}),
    "resnet18": ("encoder-unet", {"encoder": "resnet18", "pretrained": False}),
    "lite0": ("encoder-unet", {"encoder": "efficientnet-lite0", "pretrained": False}),
}
LARGE = ("resnet18", "lite0")


def pictures(count: int, size: int = 32) -> Iterator[U8]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = rng.integers(0, 256, (size // 8, size // 8), dtype=np.uint8)
        yield np.kron(coarse, np.ones((8, 8), np.uint8))[..., None]


def made(network: nn.Module, *, target: Target = "vnni") -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The INT8 graph, and the float graph that it was made from."""
    graph = with_outputs(exported(network), "mask")
    quantized = Quantizer(graph, pictures(3, 64), target=target).quantized("minmax")
    return quantized.graph, quantized.parent


def images(count: int = 2) -> tuple[U8, Tensor]:
    """NHWC as the graph takes them, and normalised NCHW as the network does."""
    stacked = np.stack(list(pictures(count, 64)))
    return stacked, (torch.from_numpy(stacked).permute(0, 3, 1, 2).float() - 128) / 128


def values(graph: onnx.ModelProto, stacked: U8, tensors: list[str]) -> list[np.ndarray[Any, Any]]:
    """What the runtime computes at `tensors`, operator by operator as the graph is written."""
    asked = onnx.ModelProto()
    asked.CopyFrom(graph)
    del asked.graph.output[:]
    asked.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(tensors, {"image": stacked})  # type: ignore[no-any-return]


def tensors_of(graph: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def logits_of(graph: onnx.ModelProto) -> str:
    return next(str(node.input[0]) for node in graph.graph.node if node.op_type == "ArgMax")


def some(*names: str) -> list[Any]:
    """Test parameters; the large networks are marked slow, because exporting them takes a while."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in names]


def network_of(name: str) -> nn.Module:
    if name == "mixer":
        return seeded(Mixer)
    factory, arguments = NETWORKS[name]
    return random_network(factory, **arguments)


@pytest.mark.parametrize("name", some(*NETWORKS, "mixer"))
def test_logits_are_those_of_the_runtime(name: str) -> None:
    """Except for values that round the other way: each is one step off, and later layers add these steps up."""
    graph, parent = made(network_of(name))
    network = QuantizedNetwork(graph, parent).eval()
    stacked, normalised = images()
    (expected,) = values(graph, stacked, [logits_of(graph)])
    with torch.inference_mode():
        found = network(normalised).numpy()
    step = float(tensors_of(graph)[next(n.input[1] for n in graph.graph.node if n.output[0] == logits_of(graph))])
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 2 * step
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    assert len(np.unique(np.round(found / step))) > 20


@pytest.mark.parametrize("network", [with_a_norm, with_eca])
def test_norms_and_attention_by_channel_are_trained_through(network: Callable[[], onnx.ModelProto]) -> None:
    made = Quantizer(with_outputs(network(), "mask"), iter(blocks(4)), target="vnni").quantized("minmax")
    trained = QuantizedNetwork(made.graph, made.parent)
    stacked = np.stack(blocks(2, seed=1))
    (expected,) = values(made.graph, stacked, [logits_of(made.graph)])
    logits = trained((torch.from_numpy(stacked).permute(0, 3, 1, 2).float() - 128) / 128)
    assert np.abs(logits.detach().numpy() - expected).mean() < 0.02 * np.abs(expected).max()
    logits.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in trained.weights)


def test_the_first_activation_is_that_of_the_runtime_but_for_rounding() -> None:
    """There, no differences in rounding have added up yet: at most one value in a thousand is off, by one step."""
    graph, parent = made(random_network("unet"))
    network = QuantizedNetwork(graph, parent)
    stacked, normalised = images()
    first = next(node.input[0] for node in graph.graph.node if node.op_type == "QuantizeLinear")
    (expected,) = values(graph, stacked, [f"{first}_DequantizeLinear_Output"])
    seen: list[Tensor] = []
    handle = network.scale_of(first).register_forward_hook(lambda _, __, output: seen.append(output))
    network(normalised)
    handle.remove()
    steps = np.round((seen[0].detach().numpy() - expected) / network.scale_of(first).scale.item())
    assert np.abs(steps).max() <= 1
    assert (steps == 0).mean() > 0.999


@pytest.mark.parametrize("target", ["vnni", "avx2"])
@pytest.mark.parametrize("name", some("unet", "transposed", "lite0", "mixer"))
def test_an_untrained_network_gives_the_graph_back(name: str, target: Target) -> None:
    graph, parent = made(network_of(name), target=target)
    back = QuantizedNetwork(graph, parent).graph()
    assert [node.SerializeToString() for node in back.graph.node] == [
        node.SerializeToString() for node in graph.graph.node
    ]
    before, after = tensors_of(graph), tensors_of(back)
    assert before.keys() == after.keys()
    for tensor, array in before.items():
        assert after[tensor].shape == array.shape, tensor
        assert after[tensor].dtype == array.dtype, tensor
        if array.dtype == np.int32:  # a bias has 32 bits, and its scale is the product of two
            np.testing.assert_allclose(after[tensor], array, rtol=1e-4, atol=2, err_msg=tensor)
        elif array.dtype == np.float32:
            np.testing.assert_allclose(after[tensor], array, rtol=1e-5, err_msg=tensor)
        else:
            assert np.abs(after[tensor].astype(int) - array.astype(int)).max(initial=0) <= 1, tensor


def test_a_learned_scale_stands_in_the_graph() -> None:
    """In the QuantizeLinear, in the DequantizeLinear, and in the biases of the layers that read the activation."""
    graph, parent = made(random_network("unet"))
    network = QuantizedNetwork(graph, parent)
    tensor = [node.input[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"][1]
    before = tensors_of(graph)[f"{tensor}_scale"]
    with torch.no_grad():
        network.scale_of(tensor).log_scale.add_(float(np.log(2)))
    after = network.graph()
    node = next(n for n in after.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == tensor)
    np.testing.assert_allclose(tensors_of(after)[node.input[1]], 2 * before, rtol=1e-6)
    dequantized = {n.output[0]: n for n in after.graph.node if n.op_type == "DequantizeLinear"}
    biases = 0
    for conv in (n for n in after.graph.node if n.op_type == "Conv" and len(n.input) == 3):
        read, weight, bias = (dequantized[name] for name in conv.input)
        product = tensors_of(after)[read.input[1]] * tensors_of(after)[weight.input[1]]
        np.testing.assert_allclose(tensors_of(after)[bias.input[1]], product, rtol=1e-6)
        biases += 1
    assert biases > 5
    onnx.checker.check_model(after)


def test_what_pools_shares_the_scale_of_what_it_reads() -> None:
    graph, parent = made(random_network("unet"))
    network = QuantizedNetwork(graph, parent)
    pooled = next(node for node in graph.graph.node if node.op_type == "MaxPool")
    assert network.scale_of(pooled.output[0]) is network.scale_of(
        pooled.input[0].removesuffix("_DequantizeLinear_Output")
    )


def test_trained_weights_run_as_they_were_trained() -> None:
    """After a few steps with any loss, the runtime gives what torch gives."""
    torch.manual_seed(0)
    graph, parent = made(random_network("unet"))
    network = QuantizedNetwork(graph, parent)
    stacked, normalised = images()
    truth = torch.randint(0, 3, (2, 64, 64))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(network(normalised), truth)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())
    after = network.graph()
    (expected,) = values(after, stacked, [logits_of(graph)])
    with torch.inference_mode():
        found = network.eval()(normalised).numpy()
    (before,) = values(graph, stacked, [logits_of(graph)])
    assert np.abs(found - expected).mean() < 0.3 * np.abs(found - before).mean()


class Shared(nn.Module):
    """A convolution with a bias that is used twice, and a sum that is halved."""

    def __init__(self) -> None:
        super().__init__()
        self.size_multiple = 2
        self.stem, self.shared = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        fine = F.relu(self.shared(F.relu(self.stem(image_NCHW))))
        coarse = F.relu(self.shared(F.max_pool2d(fine, 2)))
        out: Tensor = self.head((fine + F.interpolate(coarse, scale_factor=2.0)) * 0.5)
        return out


def test_a_layer_that_is_used_twice_has_one_bias() -> None:
    graph, parent = made(randomised(Shared()))
    network = QuantizedNetwork(graph, parent).eval()
    assert len(network.weights) == 6
    stacked, normalised = images()
    (expected,) = values(graph, stacked, [logits_of(graph)])
    with torch.inference_mode():
        found = network(normalised).numpy()
    assert np.abs(found - expected).mean() < 0.01 * np.abs(expected).max()
    (back,) = values(network.graph(), stacked, [logits_of(graph)])
    assert np.abs(back - expected).mean() < 0.01 * np.abs(expected).max()


def test_a_users_own_network_can_be_trained_through() -> None:
    graph, parent = made(seeded(Mobile))
    network = QuantizedNetwork(graph, parent)
    _, normalised = images()
    network(normalised).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_an_operator_that_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, parent = made(random_network("unet"))
    monkeypatch.delitem(OPERATORS, "MaxPool")
    with pytest.raises(WorkFailedError, match=r"MaxPool \(.*\) cannot be trained through .* use --mode ptq"):
        QuantizedNetwork(graph, parent)


@pytest.mark.parametrize("zero_point", [0, 100])
def test_gradients_of_a_scale_are_those_of_lsq(zero_point: int) -> None:
    """Against the straight-through estimator, written with operators that torch differentiates by itself."""
    torch.manual_seed(0)
    values = (3 * torch.randn(1000)).requires_grad_()
    activation = Activation(0.02, zero_point)
    given = torch.randn(1000)
    (activation(values) * given).sum().backward()
    own, mine = values.grad, activation.log_scale.grad
    assert own is not None
    assert mine is not None

    values.grad = None
    log_scale = activation.log_scale.detach().clone().requires_grad_()
    scale = log_scale.exp()
    steps = values / scale + zero_point
    clipped = steps.clamp(-0.5, 255.5)
    rounded = clipped + (clipped.round().clamp(0, 255) - clipped).detach()
    (((rounded - zero_point) * scale) * given).sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert log_scale.grad is not None
    torch.testing.assert_close(own, values.grad)
    torch.testing.assert_close(mine, log_scale.grad / (1000 * 255) ** 0.5, rtol=1e-3, atol=1e-4)


def test_a_weight_without_values_stays_nothing() -> None:
    weight = torch.randn(4, 3, 3, 3)
    weight[1] = 0
    found = rounded_weight(weight, 0, 127)
    assert found.isfinite().all()
    assert not found[1].any()
    assert (found - weight).abs().max() <= weight.abs().amax() / 127 / 2 + 1e-6


def reference(node: onnx.NodeProto, inputs: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return ReferenceEvaluator(model).run(None, inputs)[0]  # type: ignore[no-any-return]


X = np.random.default_rng(0).normal(size=(2, 8, 6, 10)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(8, 4, 3, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("operator", "attributes", "others"),
    [
        ("Conv", {"pads": [0, 0, 1, 1], "strides": [2, 2], "group": 2, "kernel_shape": [3, 3]}, [W]),
        ("ConvTranspose", {"pads": [1, 0, 0, 1], "strides": [2, 2], "kernel_shape": [3, 3]}, [W]),
        ("MaxPool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]}, []),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}, []),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, []),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 1, 1, 0]}, []),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 1, 1, 0], "count_include_pad": 1}, []),
        ("ReduceMean", {"keepdims": 0}, [np.array([2, 3])]),
        ("GlobalAveragePool", {}, []),
        ("DepthToSpace", {"blocksize": 2, "mode": "DCR"}, []),
        ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, []),
        ("SpaceToDepth", {"blocksize": 2}, []),
        ("Clip", {}, [np.float32(-0.5), np.float32(0.7)]),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, []),
        ("HardSwish", {}, []),
        ("LeakyRelu", {"alpha": 0.2}, []),
        ("Softmax", {"axis": 1}, []),
        ("Pad", {}, [np.array([0, 0, 1, 2, 0, 0, 3, 0]), np.float32(2)]),
        ("Pad", {"mode": "reflect"}, [np.array([0, 0, 1, 2, 0, 0, 3, 0])]),
        ("Pad", {"mode": "edge"}, [np.array([0, 0, 1, 2, 0, 0, 3, 0])]),
        ("Pad", {"mode": "wrap"}, [np.array([0, 0, 1, 2, 0, 0, 3, 0])]),
        ("Slice", {}, [np.array([1, 0]), np.array([2**40, -1]), np.array([2, 3]), np.array([2, 1])]),
        ("Reshape", {}, [np.array([0, -1, 20])]),
        ("Reshape", {"allowzero": 1}, [np.array([2, -1, 20])]),
        ("Flatten", {"axis": 2}, []),
        ("Transpose", {"perm": [0, 2, 3, 1]}, []),
        ("Unsqueeze", {}, [np.array([0, 3])]),
        ("Gather", {"axis": 1}, [np.array([[3, 1], [0, 0]])]),
        ("Gather", {"axis": -1}, [np.array([[3, 1], [-1, 0]])]),
        (
            "Resize",
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            [None, np.array([1, 1, 2, 3], np.float32)],
        ),
        ("Resize", {"mode": "linear"}, [None, np.array([1, 1, 2, 2], np.float32)]),
        ("Resize", {"mode": "cubic"}, [None, np.array([1, 1, 2, 2], np.float32)]),
        (
            "Resize",
            {"mode": "cubic", "coordinate_transformation_mode": "align_corners"},
            [None, None, np.array([2, 8, 9, 15])],
        ),
    ],
)
def test_operators_are_those_of_the_specification(operator: str, attributes: dict[str, Any], others: list[Any]) -> None:
    """Against ONNX's own reference evaluator."""
    inputs = {"x": X, **{f"i{i}": np.asarray(array) for i, array in enumerate(others) if array is not None}}
    names = ["x", *("" if array is None else f"i{i}" for i, array in enumerate(others))]
    node = helper.make_node(operator, names, ["y"], **attributes)
    expected = reference(node, inputs)
    given = [torch.from_numpy(inputs[name]) if name else None for name in names]
    assert refused(node) == []
    found = OPERATORS[operator](*given, **attributes)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_may_have_any_number_of_axes() -> None:
    row = X.reshape(2, 8, 60)
    for pads in ([1, 1], [0, 2]):
        node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3], pads=pads, dilations=[1])
        found = OPERATORS["Conv"](torch.from_numpy(row), torch.from_numpy(W[:, :, 0].repeat(2, 1)), pads=pads)
        expected = reference(node, {"x": row, "w": W[:, :, 0].repeat(2, 1)})
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
        assert refused(node) == []


@pytest.mark.parametrize(
    ("operator", "attributes", "named"),
    [
        ("AveragePool", {"kernel_shape": [2, 2], "dilations": [2, 2]}, ["dilations=[2, 2]"]),
        ("Conv", {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}, ["auto_pad=SAME_UPPER"]),
        ("ConvTranspose", {"output_shape": [9, 9]}, ["output_shape=[9, 9]"]),
        ("ConvTranspose", {"kernel_shape": [2], "strides": [2]}, ["kernel_shape=[2]"]),
        ("MaxPool", {"kernel_shape": [3]}, ["kernel_shape=[3]"]),
        ("Cast", {"to": TensorProto.BOOL}, ["to=9"]),
        ("Resize", {"mode": "linear", "antialias": 1, "nearest_mode": "floor"}, ["antialias=1"]),
        (
            "Resize",
            {"mode": "cubic", "coordinate_transformation_mode": "asymmetric", "cubic_coeff_a": -0.5},
            ["coordinate_transformation_mode=asymmetric", "cubic_coeff_a=-0.5"],
        ),
        ("Resize", {}, ["coordinate_transformation_mode=half_pixel", "nearest_mode=round_prefer_floor"]),
    ],
)
def test_what_an_operator_does_not_heed_is_refused(operator: str, attributes: dict[str, Any], named: list[str]) -> None:
    """Otherwise training would optimise another function than the one that is served."""
    assert refused(helper.make_node(operator, ["x"], ["y"], **attributes)) == named


def test_what_is_not_heeded_is_named_before_training() -> None:
    graph, parent = made(random_network("unet"))
    node = next(node for node in graph.graph.node if node.op_type == "Resize")
    node.attribute.append(helper.make_attribute("exclude_outside", 1))
    with pytest.raises(WorkFailedError, match=r"Resize \(.*\) with exclude_outside=1 cannot be .* use --mode ptq"):
        QuantizedNetwork(graph, parent)
