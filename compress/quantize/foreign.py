"""A float ONNX segmentation model from elsewhere, brought into the form of ours: uint8 image in, mask and logits out.

N batch, C channels, K classes, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

from compress.models.contract import LARGEST_MULTIPLE
from compress.recipe import OnnxSettings
from export.errors import BundleError, ModelError, ShapeError
from export.runtime import IMAGE, LOGITS, MASK, OnnxModel
from export.to_onnx import MEAN, OPSET, STD

Layout = Literal["nchw", "nhwc"]

_PREFIX = "model."
_PIXELS = 255.0
_RANK = 4


@dataclass(frozen=True)
class Adopted:
    """A graph in our form."""

    model: onnx.ModelProto
    size: tuple[int, int] | None
    """Height and width, of a graph that takes no other."""
    size_multiple: int


def adopt(path: Path, declared: OnnxSettings, *, classes: int, channels: int) -> Adopted:
    """The model of the file `path`, from images of `channels` to logits of `classes` (or one, of two classes).

    Raises ModelError with everything that does not fit.
    """
    model = _read(path)
    image = _input(path, model)
    layout = declared.layout or _layout(path, image, channels)
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in image.type.tensor_type.shape.dim]
    place = 1 if layout == "nchw" else 3
    height, width = (dims[2], dims[3]) if layout == "nchw" else (dims[1], dims[2])
    problems = list(_misfits(dims[place], (height, width), declared, channels))
    if problems:
        raise ModelError(path, problems)
    size = None if height is None or width is None else (height, width)
    logits = _logits(path, model, declared.output)
    adopted = _in_our_form(model, image.name, logits, layout, declared, classes=classes, channels=channels, size=size)
    multiple = _require_answers(path, adopted, classes=classes, channels=channels, size=size)
    try:
        onnx.checker.check_model(adopted, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(path, [f"the ONNX checker refuses it: {error}"]) from error
    return Adopted(adopted, size, multiple)


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path))
    except FileNotFoundError as error:
        raise ModelError(path, ["no such file"]) from error
    except Exception as error:  # protobuf's DecodeError, of a package that is not ours to import
        raise ModelError(path, [f"it is no ONNX file: {error}"]) from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset > OPSET:
        raise ModelError(path, [f"it has opset {opset}, and {OPSET} is the newest here; export it with an older one"])
    try:
        return model if opset == OPSET else version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter has exceptions of its binding's own
        raise ModelError(path, [f"opset {opset} cannot be raised to {OPSET}: {error}"]) from error


def _input(path: Path, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(path, [f"it takes {len(inputs)} inputs ({names}), and a segmentation model takes one image"])
    tensor = inputs[0].type.tensor_type
    problems = []
    if tensor.elem_type != TensorProto.FLOAT:
        problems.append(f"its input {inputs[0].name} is {_dtype(tensor.elem_type)}; a float model takes float32")
    if len(tensor.shape.dim) != _RANK:
        problems.append(f"its input {inputs[0].name} has {len(tensor.shape.dim)} dimensions, a batch of images has 4")
    if problems:
        raise ModelError(path, problems)
    return inputs[0]


def _layout(path: Path, image: onnx.ValueInfoProto, channels: int) -> Layout:
    dims = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    first, last = dims[1] == channels, dims[3] == channels
    if first == last:
        where = "at both places" if first else "at neither"
        raise ModelError(
            path, [f"its input {image.name} is {dims}, with {channels} channels {where}; give --layout nchw or nhwc"]
        )
    return "nchw" if first else "nhwc"


def _misfits(
    found: int | None, size: tuple[int | None, int | None], declared: OnnxSettings, channels: int
) -> Sequence[str]:
    problems = []
    if found != channels:
        problems.append(f"it takes {found or 'any number of'} channels, and the dataset's images have {channels}")
    if (size[0] is None) != (size[1] is None):
        problems.append(
            f"of height and width one is fixed ({size[0] or 'any'} x {size[1] or 'any'}); free both or none"
        )
    for name, values in (("--mean", declared.mean), ("--std", declared.std)):
        if len(values) not in (1, channels):
            problems.append(f"{name} has {len(values)} values; give one, or {channels}")
    return problems


def _logits(path: Path, model: onnx.ModelProto, wanted: str | None) -> str:
    """The name of the tensor with the logits."""
    tensors = {name: node for node in model.graph.node for name in node.output}
    names = ", ".join(output.name for output in model.graph.output)
    if wanted is not None:
        if wanted not in tensors:
            raise ModelError(path, [f"it has no tensor {wanted!r}; its outputs are {names}"])
        return wanted
    if len(model.graph.output) != 1:
        raise ModelError(path, [f"it has several outputs ({names}); name the one with the logits by --output"])
    name = str(model.graph.output[0].name)
    while name in tensors and tensors[name].op_type in ("Cast", "Squeeze", "Identity", "Reshape"):
        name = str(tensors[name].input[0])
    return str(tensors[name].input[0]) if name in tensors and tensors[name].op_type == "ArgMax" else name


def _in_our_form(
    model: onnx.ModelProto,
    image: str,
    logits: str,
    layout: Layout,
    declared: OnnxSettings,
    *,
    classes: int,
    channels: int,
    size: tuple[int, int] | None,
) -> onnx.ModelProto:
    """Normalisation by a depthwise convolution: (x / 255 - mean) / std of the normalised image that ours start from."""
    inner = compose.add_prefix(model, _PREFIX).graph
    mean, std = (np.broadcast_to(np.array(values, np.float32), channels) for values in (declared.mean, declared.std))
    constants = {
        "mean": np.array(MEAN, np.float32),
        "std": np.array(STD, np.float32),
        f"{_PREFIX}normalise.weight": (STD / _PIXELS / std).reshape(channels, 1, 1, 1).astype(np.float32),
        f"{_PREFIX}normalise.bias": ((MEAN / _PIXELS - mean) / std).astype(np.float32),
    }
    before = [
        helper.make_node("Transpose", [IMAGE], ["permute"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["permute"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["cast", "mean"], ["sub"]),
        helper.make_node("Div", ["sub", "std"], ["div"]),
        helper.make_node("Conv", ["div", *list(constants)[2:]], ["normalised"], group=channels, kernel_shape=[1, 1]),
    ]
    to_nhwc, to_nchw = [0, 2, 3, 1], [0, 3, 1, 2]
    entry, found = _PREFIX + image, _PREFIX + logits
    if layout == "nhwc":
        before.append(helper.make_node("Transpose", ["normalised"], [entry], perm=to_nhwc))
        after = [helper.make_node("Transpose", [found], ["logits_nchw"], perm=to_nchw)]
        found = "logits_nchw"
    else:
        before[-1].output[0] = entry
        after = []
    if _known_width(model, logits, layout) == 1 and classes == 2:
        constants["two.weight"] = np.array([0, 1], np.float32).reshape(2, 1, 1, 1)
        after.append(helper.make_node("Conv", [found, "two.weight"], ["two"], kernel_shape=[1, 1]))
        found = "two"
    after += [
        helper.make_node("ArgMax", [found], ["argmax"], axis=1, keepdims=0),
        helper.make_node("Cast", ["argmax"], [MASK], to=TensorProto.UINT8),
        helper.make_node("Identity", [found], [LOGITS]),
    ]
    nodes = [*before, *inner.node, *after]
    for index, node in enumerate(nodes):
        node.name = node.name or f"node_{node.op_type}_{index}"
    free = ["batch", *(("height", "width") if size is None else size)]
    graph = helper.make_graph(
        _leading_to(nodes, {MASK, LOGITS}),
        "adopted",
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [*free, channels])],
        [
            helper.make_tensor_value_info(MASK, TensorProto.UINT8, free),
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", classes, *free[1:]]),
        ],
        [*inner.initializer, *(numpy_helper.from_array(array, name) for name, array in constants.items())],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _leading_to(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _known_width(model: onnx.ModelProto, tensor: str, layout: Layout) -> int | None:
    """How many logits a pixel has, as shape inference finds it."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = {value.name: value for value in [*inferred.graph.value_info, *inferred.graph.output]}
    dims = values[tensor].type.tensor_type.shape.dim if tensor in values else ()
    place = 1 if layout == "nchw" else 3
    return int(dims[place].dim_value) if len(dims) == _RANK and dims[place].HasField("dim_value") else None


def _require_answers(
    path: Path, model: onnx.ModelProto, *, classes: int, channels: int, size: tuple[int, int] | None
) -> int:
    """What height and width must be multiples of, found by running it; batches of two included."""
    try:
        runs = OnnxModel(model.SerializeToString(), threads=1)
    except BundleError as error:
        raise ModelError(path, error.problems) from error
    multiple, last = 1, "it gives no mask"
    while multiple <= LARGEST_MULTIPLE:
        sizes = [size] if size is not None else [(3 * multiple, 5 * multiple), (5 * multiple, 3 * multiple)]
        wrong = [problem for one in sizes if (problem := _wrong(runs, one, classes, channels))]
        if not wrong:
            return multiple
        last = wrong[0]
        if size is not None:
            break
        multiple *= 2
    raise ModelError(path, [last])


def _wrong(model: OnnxModel, size: tuple[int, int], classes: int, channels: int) -> str | None:
    images: NDArray[np.uint8] = np.zeros((2, *size, channels), np.uint8)
    try:
        mask, logits = model.masks(images), model.logits(images)
    except ShapeError as error:
        return f"it does not run on two images of {size[0]}x{size[1]}: {error}"
    if logits.ndim != _RANK or logits.shape[1] != classes:
        return f"it gives logits of shape {list(logits.shape)}, and the dataset has {classes} classes"
    if mask.shape != (2, *size):
        return (
            f"for images of {size[0]}x{size[1]} it gives masks of {mask.shape[1]}x{mask.shape[2]}; they must be equal"
        )
    return None


def _dtype(elem_type: int) -> str:
    return str(TensorProto.DataType.Name(elem_type)).lower()
