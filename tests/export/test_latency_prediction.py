"""The sum over the layers tells which network is faster, and roughly by how much, on real kernels."""

import random
from collections.abc import Mapping
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.networks import exported, random_unet

from export.latency.dense import dense_layers
from export.latency.grid import keys_needed
from export.latency.layers import Layer
from export.latency.measure import measure_table
from export.runtime import OnnxModel
from export.timing import interleaved
from export.to_onnx import with_outputs

SIZE = (64, 64)


def at_widths(graph: onnx.ModelProto, layers: tuple[Layer, ...], widths: Mapping[str, int]) -> bytes:
    """`graph` at these widths, with random weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    keys = {layer.name: layer.at(widths) for layer in layers}
    for node in graph.graph.node:
        if node.op_type == "Conv":
            key = keys[node.input[1].removeprefix("model.").removesuffix(".weight")]
            shapes[node.input[1]] = (key.channels_out, key.channels_in, *key.kind.kernel)
            shapes[node.input[2]] = (key.channels_out,)
    child = onnx.ModelProto()
    child.CopyFrom(graph)
    rng = np.random.default_rng(0)
    for tensor in child.graph.initializer:
        if tensor.name in shapes:
            values = rng.normal(0, 0.05, shapes[tensor.name]).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    content: bytes = child.SerializeToString()
    return content


@pytest.mark.slow
def test_networks_are_predicted_in_their_order_and_within_a_factor(tmp_path: Path) -> None:
    graph = with_outputs(exported(random_unet(base=32, depth=2)), "mask")
    layers, choices = dense_layers(graph, SIZE)
    keys = keys_needed(layers, choices)
    choices = {group: [width for width in options if width] for group, options in choices.items()}
    table = measure_table(keys, path=tmp_path / "t.json", precision="fp32", threads=1, size=SIZE)

    rng = random.Random(0)
    chosen = [
        {group: max(options) for group, options in choices.items()},
        {group: min(options) for group, options in choices.items()},
        *({group: rng.choice(options) for group, options in choices.items()} for _ in range(4)),
    ]
    image = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 1), dtype=np.uint8)
    models = [OnnxModel(at_widths(graph, layers, widths), threads=1) for widths in chosen]
    taken = interleaved({str(i): partial(model.masks, image) for i, model in enumerate(models)}, rounds=20)
    real = [min(taken[str(i)].milliseconds) for i in range(len(models))]
    predicted = [table.predict(layers, widths) for widths in chosen]

    assert predicted[0] == max(predicted)
    assert predicted[1] == min(predicted)
    for slow, fast in permutations(range(len(chosen)), 2):
        if predicted[slow] > 2 * predicted[fast]:
            assert real[slow] > real[fast]
        assert 1 / 3 < (predicted[slow] / predicted[fast]) / (real[slow] / real[fast]) < 3
