"""Read a float ONNX segmentation model from elsewhere up to its logits, with what its file says about itself.

N batch, C channels, K classes, H height, W width.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from onnx import TensorProto, helper, inliner, version_converter
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from compress.settings.quantize import OnnxSettings
from export.bands import MAX_CHANNELS
from export.bundle import MODEL, is_bundle
from export.errors import ModelError
from export.graph import attributes, inner_graphs, leading_to
from export.to_onnx import OPSET

Layout = Literal["nchw", "nhwc"]

RANK = 4
TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)

_COLOURS = 4
"""Of two fixed dimensions that could be the channels, it is the one up to this, if the other is above."""
_KEEPS_THE_BEST = ("ArgMax", "Softmax", "LogSoftmax", "Sigmoid", "Cast", "Identity")
"""These do not change which class is best; but behind them a single logit no longer separates its classes at 0."""
_LAYOUTS: Mapping[int | None, Layout] = {1: "nchw", 3: "nhwc"}
"""By the axis of the classes."""
_COMPARES = ("ArgMax", "Softmax", "LogSoftmax")
"""Only along the axis of the classes do these keep it."""
_SOFTMAX_OF_ONE_AXIS = 13
"""The opset since which Softmax has its present meaning; before, its axis was 1 unless it was given."""
_KEEPS_THE_VALUES = ("Squeeze", "Reshape", "Flatten")
_QUANTIZED = (
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
)
_STANDARD = ("", "ai.onnx")
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Foreign:
    """A float graph from images to logits."""

    path: Path
    model: onnx.ModelProto
    image: str
    """Its input."""
    logits: str
    """Its output."""
    layout: Layout
    """Of the input."""
    logits_layout: Layout
    """As far as it can be known without the number of classes."""
    channels: int
    size: tuple[int, int] | None
    """Height and width of a graph that takes no other, else None."""
    sha256: str
    """Of all that was loaded, including weights in files beside `path`."""
    class_axis: int | None = None
    """The axis of the logits along which the model itself compares them, if it does."""


def read(path: Path, declared: OnnxSettings) -> Foreign:
    """Read the model in the file `path`.

    Raises ModelError with what does not fit.
    """
    model = _loaded(path)
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    _require_float32(path, model)
    image = _input(path, model)
    dims = [dim.dim_value or None for dim in image.type.tensor_type.shape.dim]
    layout = declared.layout or _layout(path, image.name, dims)
    channels, height, width = (dims[i] for i in ((1, 2, 3) if layout == "nchw" else (3, 1, 2)))
    if channels is None or channels > MAX_CHANNELS:
        raise ModelError(path, [f"its input {image.name} is {_shown(dims)}, which is not an image in {layout}"])
    if (height is None) != (width is None):
        fixed = f"{height or 'any'} x {width or 'any'}"
        raise ModelError(path, [f"only one of height and width is fixed ({fixed}); fix both or neither"])
    logits, logits_layout, class_axis = _logits(path, model, declared.output, layout)
    logits_layout = _LAYOUTS.get(class_axis, logits_layout)
    _require_standard(path, model)
    size = None if height is None or width is None else (height, width)
    model = _at_our_opset(path, model)
    return Foreign(path, model, image.name, logits, layout, logits_layout, channels, size, digest, class_axis)


def _loaded(path: Path) -> onnx.ModelProto:
    if is_bundle(path) or (path.name == MODEL and is_bundle(path.parent)):
        whole = "a bundle" if is_bundle(path) else "the graph of a bundle"
        raise ModelError(path, [f"it is {whole}; give the checkpoint or the ONNX file that it was made from"])
    if path.is_dir():
        raise ModelError(path, ["it is a folder; give the ONNX file itself"])
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError as error:
        raise ModelError(path, ["no such file"]) from error
    except Exception as error:  # protobuf's DecodeError, whose package is not a dependency of ours
        raise ModelError(path, [f"it is not an ONNX file: {error}"]) from error
    _load_weights_beside(path, model)
    opset = _opset(model)
    if not opset:
        raise ModelError(path, ["it does not say which opset it is written in (opset_import); export it again"])
    if opset > OPSET:
        raise ModelError(path, [f"it has opset {opset}, but {OPSET} is the newest here; export it with an older one"])
    try:
        return inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:  # the inliner's binding has exceptions of its own
        raise ModelError(path, [f"its functions cannot be inlined: {error}"]) from error


def _load_weights_beside(path: Path, model: onnx.ModelProto) -> None:
    beside = [ExternalDataInfo(tensor).location for tensor in model.graph.initializer if uses_external_data(tensor)]
    missing = [name for name in dict.fromkeys(beside) if not (path.parent / name).is_file()]
    if missing:
        raise ModelError(path, [f"its weights are in {name}, which is missing beside it" for name in missing])
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # the checker's ValidationError among them
        raise ModelError(path, [f"its weights cannot be read from the files beside it: {error}"]) from error


def _opset(model: onnx.ModelProto) -> int:
    return next((int(entry.version) for entry in model.opset_import if entry.domain in _STANDARD), 0)


def _at_our_opset(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    opset = _opset(model)
    try:
        return model if opset == OPSET else version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter's binding has exceptions of its own
        raise ModelError(path, [f"opset {opset} cannot be raised to {OPSET}: {error}"]) from error


def _require_float32(path: Path, model: onnx.ModelProto) -> None:
    """Refuse a model that is quantized or in 16 bits already: it would be compared with itself as its float parent."""
    problems = []
    found = sorted({node.op_type for node in model.graph.node}.intersection(_QUANTIZED))
    if found:
        problems.append(f"it is quantized already ({', '.join(found)}); give the float model that it was made from")
    constants = [attributes(node).get("value") for node in model.graph.node if node.op_type == "Constant"]
    weights = [*model.graph.initializer, *(tensor for tensor in constants if tensor is not None)]
    half = next((tensor.data_type for tensor in weights if tensor.data_type in _HALVES), None)
    if half is not None:
        problems.append(f"it has weights in {_dtype(half)}; give the float32 model that it was converted from")
    if problems:
        raise ModelError(path, problems)


def _require_standard(path: Path, model: onnx.ModelProto) -> None:
    """Refuse operators of other domains, which only their own runtime knows, among those that the logits need."""
    strange = {(node.op_type, node.domain): None for node in _all_nodes(model.graph) if node.domain not in _STANDARD}
    problems = [f"{operator} of the domain {domain} is no standard ONNX operator" for operator, domain in strange]
    if problems:
        how = "export the model as standard ONNX, and do not let a runtime save it optimised"
        raise ModelError(path, [*problems[:-1], f"{problems[-1]}; {how}"])


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of `graph`, and of the graphs inside them: the branches of an If."""
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from _all_nodes(inner)


def _input(path: Path, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(path, [f"it takes {len(inputs)} inputs ({names}), but a segmentation model takes one image"])
    tensor = inputs[0].type.tensor_type
    problems = []
    if tensor.elem_type != TensorProto.FLOAT:
        problems.append(f"its input {inputs[0].name} is {_dtype(tensor.elem_type)}; a float model takes float32")
    if len(tensor.shape.dim) != RANK:
        problems.append(f"its input {inputs[0].name} has {len(tensor.shape.dim)} dimensions, a batch of images has 4")
    if problems:
        raise ModelError(path, problems)
    return inputs[0]


def _layout(path: Path, name: str, dims: Sequence[int | None]) -> Layout:
    first, last = (dim is not None and dim <= _COLOURS for dim in (dims[1], dims[3]))
    if first == last:
        first, last = dims[1] is not None, dims[3] is not None
    if first == last:
        raise ModelError(
            path, [f"its input {name} is {_shown(dims)}: the channels are unclear; give --layout nchw or nhwc"]
        )
    return "nchw" if first else "nhwc"


def _logits(path: Path, model: onnx.ModelProto, wanted: str | None, layout: Layout) -> tuple[str, Layout, int | None]:
    """Cut off what comes after the logits; return their name, their layout (the input's, changed by each Transpose),
    and the axis along which what was cut off compares them, if that is known.

    Behind a Sigmoid, a single logit would not separate its two classes at 0, and float operators there cost time.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    names = ", ".join(output.name for output in model.graph.output)
    if wanted is not None and wanted not in makers:
        raise ModelError(path, [f"it has no tensor {wanted!r}; its outputs are {names}"])
    if wanted is None and len(model.graph.output) != 1:
        raise ModelError(path, [f"it has several outputs ({names}); name the one with the logits with --output"])
    name = wanted or str(model.graph.output[0].name)
    values = known_values(model)
    class_axis: int | None = None
    while (node := makers.get(name)) is not None and _can_be_cut(node, values):
        if node.op_type == "Transpose":
            layout = "nhwc" if layout == "nchw" else "nchw"
            class_axis = None if class_axis is None else attributes(node)["perm"][class_axis]
        axis = _compares_along(node, values, _opset(model))
        if axis is not None and class_axis not in (None, axis):
            break
        class_axis = class_axis if axis is None else axis
        name = str(node.input[0])
    value = values.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    elem_type = value.type.tensor_type.elem_type
    if elem_type not in (TensorProto.FLOAT, TensorProto.UNDEFINED):
        by = f", made by {makers[name].op_type}" if name in makers else ""
        raise ModelError(path, [f"{name} is {_dtype(elem_type)}{by}, {_instead(model, name, elem_type, values)}"])
    nodes = leading_to(model.graph.node, {name})
    del model.graph.output[:], model.graph.node[:]
    model.graph.output.append(value)
    model.graph.node.extend(nodes)
    return name, layout, class_axis


def _instead(model: onnx.ModelProto, name: str, elem_type: int, values: Mapping[str, onnx.ValueInfoProto]) -> str:
    """What to do where the tensor `name`, of this type, is found in place of logits."""
    if elem_type in (*_HALVES, TensorProto.DOUBLE):
        return "not float32 logits; export the model in float32"
    before = [node for node in leading_to(model.graph.node, {name}) if node.op_type != "Constant"]
    tensors = [values[output] for node in reversed(before) for output in node.output if output in values]
    maps = [
        value.name
        for value in tensors
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and len(value.type.tensor_type.shape.dim) == RANK
    ]
    nearest = f", such as {maps[0]}" if maps else ""
    return f"not float logits; name the tensor that holds these with --output{nearest}"


def _can_be_cut(node: onnx.NodeProto, values: Mapping[str, onnx.ValueInfoProto]) -> bool:
    """Whether the input of `node` gives every pixel the same class as its output, so that `node` can be cut off."""
    if node.op_type == "Transpose":
        return tuple(attributes(node).get("perm", ())) in (TO_NHWC, TO_NCHW)
    if node.op_type in _KEEPS_THE_VALUES:
        value = values.get(node.output[0])
        return value is None or len(value.type.tensor_type.shape.dim) != RANK
    return node.op_type in _KEEPS_THE_BEST


def _compares_along(node: onnx.NodeProto, values: Mapping[str, onnx.ValueInfoProto], opset: int) -> int | None:
    """The axis of a batch of maps along which `node` compares values; None if it does not, or what it reads is none."""
    value = values.get(node.input[0])
    if node.op_type not in _COMPARES or value is None or len(value.type.tensor_type.shape.dim) != RANK:
        return None
    usual = 0 if node.op_type == "ArgMax" else (-1 if opset >= _SOFTMAX_OF_ONE_AXIS else 1)
    return int(attributes(node).get("axis", usual)) % RANK


def known_values(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Type and shape of tensors by name, as far as they can be inferred."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: value for value in [*graph.value_info, *graph.output]}


def _shown(dims: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if dim is None else str(dim) for dim in dims)}]"


def _dtype(elem_type: int) -> str:
    return str(TensorProto.DataType.Name(elem_type)).lower()
