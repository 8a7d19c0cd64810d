"""Equalisation evens out the ranges of channels and keeps the answers, by ONNX's own evaluator and in INT8."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from support.handmade import Handmade, blocks, small_unet

from compress.quantize.equalise import equalised
from compress.quantize.ptq import Quantizer
from export.runtime import OnnxModel
from export.to_onnx import with_outputs


def logits(model: onnx.ModelProto, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits by ONNX's own evaluator."""
    return ReferenceEvaluator(model).run(["logits"], {"image": image[None]})[0]  # type: ignore[no-any-return]


def stored(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def ranges(model: onnx.ModelProto, tensor: str) -> NDArray[np.float32]:
    """The largest value of each channel over some images."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    tapped.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    run = ReferenceEvaluator(tapped)
    return np.max([run.run([tensor], {"image": x[None]})[0].max(axis=(0, 2, 3)) for x in blocks(2)], axis=0)  # type: ignore[no-any-return]


KINDS = st.sampled_from(["plain", "grouped", "depthwise"])


@settings(max_examples=25)
@given(KINDS, KINDS, st.sampled_from(["Relu", "LeakyRelu", None]), st.booleans(), st.booleans(), st.integers(0, 9))
def test_answers_stay_and_what_is_made_is_as_large_as_what_is_read(
    first: str, second: str, activation: str | None, pooled: bool, bias: bool, seed: int
) -> None:
    """A chain with groups and a skip around it: two layers read 8 channels, one of them joined with others."""
    groups = {"plain": 1, "grouped": 2, "depthwise": 8}
    net = Handmade(seed=seed)
    wide = net.conv("wide", net.image, 8, bias=bias)
    made = net.conv("made", wide, 8, group=groups[first], bias=bias)
    if activation:
        made = net.add(activation, [made], "bent")
    inner = net.conv("inner", net.pool(made) if pooled else made, 8, group=groups[second])
    back = net.up(inner) if pooled else inner
    read = net.conv("read", net.beside(back, made), 8, kernel=1, group=2 if second == "grouped" else 1)
    for name, array in net.weights.items():
        if array.ndim == 4:
            net.weights[name] = (array * np.exp(net.rng.normal(0, 2, (len(array), 1, 1, 1)))).astype(np.float32)
    graph = net.graph(net.conv("head", net.relu(read), 3, kernel=1))
    other = equalised(graph)
    assert other is not None
    image = blocks(1, seed)[0]
    expected = logits(graph, image)
    np.testing.assert_allclose(logits(other, image), expected, atol=2e-5 * np.abs(expected).max())
    by_row = {name: np.abs(array) for name, array in stored(other).items()}
    made_by = by_row["model.made.weight"].max(axis=(1, 2, 3))
    # In "read", the eight input channels after those of "inner"; in "inner", only the group that reads the channel.
    split = groups[second]
    taken = by_row["model.inner.weight"].reshape(split, 8 // split, 8 // split, -1).max(axis=(1, 3)).reshape(8)
    parts = 2 if second == "grouped" else 1
    beside = by_row["model.read.weight"].reshape(parts, 8 // parts, 16 // parts, -1).max(axis=(1, 3)).reshape(16)[8:]
    np.testing.assert_allclose(made_by, np.maximum(taken, beside), rtol=0.02)
    head = by_row["model.head.weight"].max(axis=(0, 2, 3))
    np.testing.assert_allclose(by_row["model.read.weight"].max(axis=(1, 2, 3)), head, rtol=0.02)


def test_a_channel_that_nothing_makes_or_reads_stays() -> None:
    net = Handmade()
    made = net.conv("made", net.image, 4)
    head = net.conv("head", net.relu(made), 2, kernel=1)
    net.weights["model.made.weight"][1] = 0
    net.weights["model.head.weight"][:, 2] = 0
    graph = net.graph(head)
    other = equalised(graph)
    assert other is not None
    assert all(np.isfinite(array).all() for array in stored(other).values())
    np.testing.assert_array_equal(stored(other)["model.made.bias"][[1, 2]], net.weights["model.made.bias"][[1, 2]])
    image = blocks(1)[0]
    np.testing.assert_allclose(logits(other, image), logits(graph, image), atol=1e-5)


def clipped(net: Handmade, made: str) -> str:
    net.weights["six"] = np.array(6, np.float32)
    return net.add("Clip", [made, "", "six"], "clipped")


def shared(net: Handmade, made: str) -> str:
    again = net.add("Conv", [net.image, "model.made.weight"], "again", 4, pads=[1] * 4)
    return net.beside(made, again)


LEFT_ALONE: dict[str, Callable[[Handmade, str], str]] = {
    "ends at a value": clipped,
    "bends otherwise": lambda net, made: net.add("Sigmoid", [made], "sigmoid"),
    "is added to": lambda net, made: net.add("Add", [made, net.conv("other", net.image, 4)], "sum"),
    "shares its weights": shared,
    "is joined by rows": lambda net, made: net.add("Concat", [made, made], "rows", axis=2),
}


@pytest.mark.parametrize("why", LEFT_ALONE)
def test_what_lets_no_factor_through_is_left_alone(why: str) -> None:
    net = Handmade()
    after = net.conv("after", LEFT_ALONE[why](net, net.conv("made", net.image, 4)), 4, kernel=1)
    graph = net.graph(net.conv("head", net.relu(after), 2, kernel=1))
    other = equalised(graph)
    assert other is not None
    weights = stored(other)
    for name in ("model.made.weight", "model.made.bias"):
        np.testing.assert_array_equal(weights[name], net.weights[name])
    assert not np.array_equal(weights["model.after.weight"], net.weights["model.after.weight"])
    image = blocks(1)[0]
    np.testing.assert_allclose(logits(other, image), logits(graph, image), atol=1e-5)


def test_one_reader_that_cannot_follow_keeps_the_layer_as_it_is() -> None:
    """A convolution and a sum read its result; the sum cannot take a factor back."""
    net = Handmade()
    made = net.relu(net.conv("made", net.image, 4))
    inner = net.conv("inner", made, 4)
    graph = net.graph(net.conv("head", net.add("Add", [inner, made], "sum"), 2, kernel=1))
    assert equalised(graph) is None


def test_what_a_graph_gives_is_not_scaled() -> None:
    net = Handmade()
    made = net.conv("made", net.image, 4)
    net.conv("reader", made, 2)
    assert equalised(net.graph(made)) is None


def agreement(graph: onnx.ModelProto, **options: Any) -> float:
    """Share of the pixels on which INT8 agrees with float."""
    served = with_outputs(graph, "mask")
    made = Quantizer(served, iter(blocks(4)), target="auto", **options).quantized("minmax")
    images = np.stack(blocks(6, seed=1))
    masks = [OnnxModel(model.SerializeToString(), threads=1).masks(images) for model in (made.graph, served)]
    return float(np.mean(masks[0] == masks[1]))


def test_channels_a_thousand_times_apart_are_lost_in_int8_and_equalised_they_are_not() -> None:
    alike, apart = small_unet(), small_unet(spread=1000)
    image = blocks(1)[0]
    np.testing.assert_allclose(logits(apart, image), logits(alike, image), atol=1e-4)
    seen = ranges(apart, "fuse_relu")
    assert seen.max() / seen.min() > 300
    other = equalised(apart)
    assert other is not None
    seen = ranges(other, "fuse_relu")
    assert seen.max() / seen.min() < 30
    assert agreement(alike) > 0.95
    assert agreement(apart) < 0.8
    assert agreement(apart, equalise=True) > 0.95
