"""The layers of a float graph are those that the runtime really runs, and their widths follow the groups."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.handmade import with_a_smaller_inside
from support.networks import Mobile, exported, random_network, random_unet, seeded
from torch import nn

from export.errors import ShapeError, UsageError
from export.graph import SizedGraph
from export.latency.dense import dense_layers
from export.latency.grid import keys_needed
from export.latency.layers import Layer, layers_of, unmodelled
from export.latency.linear import Linear
from export.machine import instruction_set
from export.profiling import optimised_graph
from export.to_onnx import with_outputs

SLOW = pytest.mark.slow


def small_unet() -> nn.Module:
    return random_unet(depth=1)


def mobile() -> nn.Module:
    """A network whose channels fill whole blocks of 8 and of 16."""
    return seeded(lambda: Mobile(16))


def graph_of(nodes: Sequence[onnx.NodeProto], weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A graph from `image` to `mask`: `nodes` turn `x`, the image as float NCHW, into `y`."""
    ends = [
        helper.make_node("Transpose", ["image"], ["transposed"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["transposed"], ["x"], to=TensorProto.FLOAT),
        *nodes,
        helper.make_node("ArgMax", ["y"], ["index"], axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["mask"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        ends,
        "handmade",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [helper.make_tensor_value_info("mask", TensorProto.UINT8, ["batch", "height", "width"])],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def named(layers: Sequence[Layer]) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers}


# The runtime's operator for ours, where the names differ.
RUNTIME_NAMES = {"Resize": "Upsample", "ToPlain": "ReorderOutput", "ToBlocked": "ReorderInput", "Door": "Transpose"}
UNCOUNTED = {"Cast", "Sub", "Div", "Reshape"}
"""Parts of the `Door`, of the ArgMax, and of an addition on blocks."""


@pytest.mark.parametrize(
    "made",
    [
        small_unet,
        mobile,
        pytest.param(lambda: random_network("unetpp"), marks=SLOW),
        pytest.param(lambda: random_unet(upsampling="transposed", block="residual", squeeze_excite=True), marks=SLOW),
        pytest.param(lambda: random_network("encoder-unet", pretrained=False), marks=SLOW),
    ],
    ids=["unet", "depthwise", "unetpp", "residual-se-transposed", "efficientnet"],
)
def test_the_layers_are_what_the_runtime_runs(made: Callable[[], nn.Module], request: pytest.FixtureRequest) -> None:
    narrow = {"efficientnet": "24 and 40", "residual-se-transposed": "8"}.get(request.node.callspec.id)
    if narrow and instruction_set() in ("amx", "avx512_vnni", "avx512"):
        pytest.skip(f"blocks have 16 channels here, and some layers {narrow}: they are laid out differently")
    graph = with_outputs(exported(made()), "mask")
    layers = layers_of(graph, size=(64, 96))
    assert unmodelled(layers) == ()
    found = Counter(RUNTIME_NAMES.get(layer.kind.op, layer.kind.op) for layer in layers)
    real = Counter(
        node.op_type for node in onnx.load_from_string(optimised_graph(graph.SerializeToString())).graph.node
    )
    assert found == Counter({op: count for op, count in real.items() if op not in UNCOUNTED})


def test_a_layer_knows_its_sizes_and_what_is_computed_with_it() -> None:
    layers = named(layers_of(exported(small_unet()), size=(32, 48)))
    assert str(layers["stem.0"].at({})) == "Conv 3x3 Relu at 32x48, 1 -> 16 channels"
    assert str(layers["down.0.0"].at({})) == "Conv 3x3 Relu at 16x24, 16 -> 32 channels"
    assert str(layers["head"].at({})) == "Conv 1x1 at 32x48, 16 -> 3 channels"
    assert [
        (kind.size, kind.size_out) for kind in (layer.kind for layer in layers.values()) if kind.op == "Resize"
    ] == [((16, 24), (32, 48))]


def test_a_size_that_cannot_be_inferred_is_that_of_a_run() -> None:
    sized = SizedGraph(with_a_smaller_inside(), (47, 50))
    layers = named(layers_of(with_a_smaller_inside(), size=(47, 50)))
    assert {name: layers[name].kind.size for name in ("stem", "inner", "head")} == {
        "stem": (47, 50),
        "inner": (23, 25),
        "head": (47, 50),
    }
    assert sum(map(sized.macs, sized.nodes)) == 8 * 9 * 47 * 50 + 8 * 8 * 9 * 23 * 25 + 8 * 4 * 47 * 50


@SLOW
def test_the_sizes_behind_self_attention_are_known() -> None:
    graph = with_outputs(exported(random_network("unet", bottleneck_attention=True)), "mask")
    for layer in layers_of(graph, size=(64, 96)):
        assert min(*layer.kind.size, *layer.kind.size_out) > 0, layer


def test_widths_follow_the_groups_through_pools_and_concatenations() -> None:
    groups = {"stem.0": "a", "stem.3": "b", "down.0.0": "c", "down.0.3": "d", "up.0.block.0": "e", "up.0.block.3": "b"}
    widths = {f"model.{layer}.weight": Linear.of(group) for layer, group in groups.items()}
    layers = layers_of(exported(small_unet()), size=(32, 48), widths=widths)
    chosen = {"a": 5, "b": 7, "c": 11, "d": 13, "e": 17}
    found = {layer.name: layer.at(chosen) for layer in layers}
    pairs = {name: (key.channels_in, key.channels_out) for name, key in found.items() if key.kind.op == "Conv"}
    assert pairs == {
        "stem.0": (1, 5),
        "stem.3": (5, 7),
        "down.0.0": (7, 11),
        "down.0.3": (11, 13),
        "up.0.block.0": (13 + 7, 17),
        "up.0.block.3": (17, 7),
        "head": (7, 3),
    }
    assert [key.channels_out for key in found.values() if key.kind.op in ("MaxPool", "Resize", "Concat")] == [7, 13, 20]
    with pytest.raises(UsageError, match="no width is given for the group a"):
        named(layers)["stem.3"].at({"b": 7})


def test_a_depthwise_convolution_goes_with_what_it_reads_and_a_sum_is_part_of_one() -> None:
    widths = {"model.expand.0.weight": Linear.of("wide"), "model.depthwise.0.weight": Linear.of("not asked")}
    layers = named(layers_of(exported(mobile()), size=(32, 32), widths=widths))
    depthwise = layers["depthwise.0"].at({"wide": 48})
    assert (depthwise.channels_in, depthwise.channels_out) == (48, 48)
    assert (depthwise.kind.groups, depthwise.kind.activation, depthwise.kind.mixes) == (0, "Clip", False)
    assert layers["project.0"].kind.sum
    assert layers["project.0"].at({"wide": 48}).channels_in == 48


def test_an_operator_that_is_not_modelled_is_named_and_keeps_the_channels() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[1, 1]),
        helper.make_node("HardSwish", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["y"], kernel_shape=[1, 1]),
    ]
    graph = graph_of(nodes, {"w": (16, 3, 1, 1), "v": (2, 16, 1, 1)})
    layers = layers_of(graph, size=(8, 8), widths={"w": Linear.of("g")})
    assert unmodelled(layers) == ("HardSwish",)
    assert named(layers)["v"].at({"g": 32}).channels_in == 32
    assert all(key.kind.op != "Other" for key in keys_needed(layers, {"g": [16, 32]}))


def test_a_size_that_is_computed_is_no_layer_and_a_constant_map_has_channels() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[1, 1], strides=[2, 2]),
        helper.make_node("Shape", ["x"], ["hw"], start=2),
        helper.make_node("Shape", ["a"], ["nc"], end=2),
        helper.make_node("Concat", ["nc", "hw"], ["shape"], axis=0),
        helper.make_node("Resize", ["a", "", "", "shape"], ["b"], mode="nearest"),
        helper.make_node("Concat", ["b", "places"], ["c"], axis=1),
        helper.make_node("Conv", ["c", "v"], ["y"], kernel_shape=[1, 1]),
    ]
    graph = graph_of(nodes, {"w": (16, 3, 1, 1), "v": (2, 18, 1, 1), "places": (1, 2, 8, 8)})
    layers = layers_of(graph, size=(8, 8), widths={"w": Linear.of("g")})
    assert unmodelled(layers) == ()
    assert [layer.kind.op for layer in layers if layer.channels_out.terms] == [
        "Conv",
        "Resize",
        "ToPlain",
        "Concat",
        "ToBlocked",
    ]
    assert named(layers)["v"].at({"g": 32}).channels_in == 34


def test_a_convolution_that_pads_by_itself_is_not_modelled() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], auto_pad="SAME_UPPER")]
    assert unmodelled(layers_of(graph_of(nodes, {"w": (2, 3, 3, 3)}), size=(8, 8))) == ("Conv",)


@pytest.mark.parametrize(("width", "after"), [(Linear.of("g", 4), 6), (Linear.of("g"), 16 // 4)])
def test_what_is_dealt_out_in_blocks_is_divided_where_that_can_be(width: Linear, after: int) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[1, 1]),
        helper.make_node("DepthToSpace", ["a"], ["b"], blocksize=2),
        helper.make_node("Conv", ["b", "v"], ["y"], kernel_shape=[1, 1]),
    ]
    graph = graph_of(nodes, {"w": (16, 3, 1, 1), "v": (2, 4, 1, 1)})
    layers = named(layers_of(graph, size=(8, 8), widths={"w": width}))
    assert layers["v"].at({"g": 6}).channels_in == after
    assert layers["v"].kind.size == (16, 16)


def test_a_size_that_the_graph_does_not_take_is_refused() -> None:
    with pytest.raises(ShapeError, match="33x48"):
        layers_of(exported(small_unet()), size=(33, 48))


def test_weights_that_are_not_there_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no weights nowhere"):
        layers_of(exported(small_unet()), size=(32, 48), widths={"nowhere": Linear.of("g")})


def test_where_nobody_knows_the_groups_every_convolution_is_one_but_those_that_give_the_classes() -> None:
    layers, choices = dense_layers(exported(small_unet()), (32, 48))
    assert {group.removeprefix("model.").removesuffix(".weight") for group in choices} == {
        *("stem.0", "stem.3", "down.0.0", "down.0.3", "up.0.block.0", "up.0.block.3")
    }
    assert choices["model.down.0.0.weight"] == (0, 16, 32)  # 0 for a part that is removed as a whole
    full = {group: max(widths) for group, widths in choices.items()}
    constant: dict[str, Any] = {}
    assert [layer.at(full) for layer in layers] == [
        layer.at(constant) for layer in layers_of(exported(small_unet()), size=(32, 48))
    ]

    _, of_mobile = dense_layers(exported(mobile()), (32, 32))
    assert set(of_mobile) == {"model.stem.0.weight", "model.expand.0.weight", "model.project.0.weight"}
