"""A small, real bundle for tests, made without torch.

`tiny_bundle` writes a folder that passes `export.bundle.verify`: a graph of a few nodes with the signature of
every bundle (uint8 NHWC in, uint8 NHW out, batch, height and width dynamic), golden examples, parity and step
records, a sealed manifest. The graph sorts each pixel by its brightness into `classes` equal bins, so a test
knows the answer to any image: `expected_mask`. With `size_multiple` above 1 the graph fails on other sizes, so
whoever forgets to pad an image finds out.

    bundle = tiny_bundle(tmp_path / "tiny", classes=4)
    assert (bundle.segmenter().segment(image) == expected_mask(image, 4)).all()
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import bundle as bundles
from export.bundle import Bundle
from export.files import sha256_file, write_json
from export.images import U8
from export.machine import instruction_set, library_versions
from export.runtime import OnnxModel, Segmenter

OPSET = 18

_COLOURS = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0))


def tiny_bundle(
    path: Path,
    *,
    classes: int = 3,
    channels: int = 3,
    size_multiple: int = 16,
    name: str = "tiny",
    size: tuple[int, int] | None = None,
    graph: onnx.ModelProto | None = None,
    **manifest: Any,
) -> Bundle:
    """Write a bundle into the new folder `path`; `manifest` replaces fields of its manifest (version, precision ...).

    `size` is what images are resized to before the model, None leaves them as they are. `graph` is another one with
    these classes, channels and size multiple.
    """
    path.mkdir(parents=True)
    graph = graph or tiny_graph(classes=classes, channels=channels, size_multiple=size_multiple)
    onnx.save(graph, path / bundles.MODEL)
    model = OnnxModel(path / bundles.MODEL, threads=1)
    segmenter = Segmenter(model, size=size, multiple=size_multiple)
    golden = bundles.write_golden(path, segmenter, [(f"ramp-{i}", _ramp(24 + 7 * i, 40, channels)) for i in range(2)])
    write_json(path / "parity.json", {"batches": [1, 2], "differing_pixels": 0.0})
    write_json(path / "step.json", {"step": "export", "inputs": {}, "seed": 0})
    fields: dict[str, Any] = {
        "name": name,
        "inputs": model.inputs,
        "outputs": model.outputs,
        "channels": channels,
        "size": size,
        "size_multiple": size_multiple,
        "classes": tuple(f"class-{k}" for k in range(classes)),
        "colours": tuple(_COLOURS[k % len(_COLOURS)] for k in range(classes)),
        "precision": "fp32",
        "instruction_set": instruction_set(),
        "opset": OPSET,
        "params": classes * (channels + 1),
        "macs": classes * channels * 256 * 256,
        "parents": {"model": sha256_file(path / bundles.MODEL)},
        "recipe": {},
        "libraries": library_versions(),
        "golden": golden,
    }
    return bundles.seal(path, **{**fields, **manifest})


def expected_mask(image_HWC: U8, classes: int) -> U8:
    """The mask HW that a tiny bundle without resizing gives: the brightness bin of every pixel."""
    brightness = image_HWC.astype(np.float64).mean(axis=2)
    mask: U8 = np.argmin(np.abs(brightness[..., None] - _centres(classes)), axis=-1).astype(np.uint8)
    return mask


def tiny_graph(*, classes: int, channels: int, size_multiple: int, logits: bool = False) -> onnx.ModelProto:
    """Scores 2·c·x - c² are largest for the centre c that is nearest to the brightness x: a 1×1 convolution.

    With `logits` it gives these scores, too.
    """
    centres = _centres(classes)
    weight = np.repeat(2 * centres[:, None] / channels, channels, axis=1)[:, :, None, None]
    constants = {"weight": weight.astype(np.float32), "bias": (-(centres**2)).astype(np.float32)}
    nodes = [
        helper.make_node("Cast", ["image"], ["image_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["image_float"], ["image_NCHW"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["image_NCHW", "weight", "bias"], ["scores"]),
    ]
    scores = "scores"
    if size_multiple > 1:
        # A coarse branch that adds nothing, but whose shape only fits when the size is a multiple.
        scores = "summed"
        window = [size_multiple, size_multiple]
        constants["scales"] = np.array([1, 1, *window], dtype=np.float32)
        constants["nothing"] = np.zeros(1, dtype=np.float32)
        nodes += [
            helper.make_node("MaxPool", ["scores"], ["coarse"], kernel_shape=window, strides=window),
            helper.make_node("Resize", ["coarse", "", "scales"], ["raised"], mode="nearest"),
            helper.make_node("Mul", ["raised", "nothing"], ["zeros"]),
            helper.make_node("Add", ["scores", "zeros"], [scores]),
        ]
    nodes += [
        helper.make_node("ArgMax", [scores], ["index"], axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["mask"], to=TensorProto.UINT8),
    ]
    outputs = [helper.make_tensor_value_info("mask", TensorProto.UINT8, ["batch", "height", "width"])]
    if logits:
        nodes.append(helper.make_node("Identity", [scores], ["logits"]))
        outputs.append(
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes, "height", "width"])
        )
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", channels])],
        outputs,
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


def _centres(classes: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    # The small offset keeps every mean of three bytes off the border between two bins, where rounding would decide.
    return (np.arange(classes) + 0.5) * 256 / classes + 0.1


def _ramp(height: int, width: int, channels: int) -> U8:
    """Every brightness once across the width, shifted a little in each row and channel."""
    columns = np.linspace(0, 255, width)[None, :, None]
    rows, shades = np.arange(height)[:, None, None], np.arange(channels)[None, None, :]
    return ((columns + 3 * rows + 20 * shades) % 256).astype(np.uint8)
