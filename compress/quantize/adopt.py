"""Bring a float model from elsewhere into our form, uint8 image in, mask and logits out, and prove it by running it.

N batch, C channels, K classes, H height, W width.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from compress.models.contract import LARGEST_MULTIPLE
from compress.quantize.foreign import RANK, TO_NCHW, TO_NHWC, Foreign, Layout, known_values
from compress.settings.quantize import OnnxSettings
from export.errors import BundleError, ModelError, ShapeError
from export.graph import CONVOLUTIONS, attributes, leading_to
from export.runtime import IMAGE, LOGITS, MASK, OnnxModel
from export.to_onnx import MEAN, OPSET, STD, with_outputs

_PROBABILITIES = ("Sigmoid", "HardSigmoid", "Softmax")
_KEEPS_THE_MIDDLE = (
    "Cast",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Resize",
    "Round",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Behind these a probability is still one, and its middle is at 0.5."""
_MAKES_LOGITS = (*CONVOLUTIONS, "Gemm", "MatMul")
"""What these give has a scale of its own, whatever they read."""

_PREFIX = "model."
_PIXELS = 255.0
_PLACE = re.compile(r"\S*onnxruntime_src/\S+ .*?\) (?=\w)")
"""A file and the signature of a function of the runtime's, before what it says."""


@dataclass(frozen=True)
class Adopted:
    """A graph in our form."""

    model: onnx.ModelProto
    size_multiple: int


def adopt(foreign: Foreign, declared: OnnxSettings, classes: Sequence[str]) -> Adopted:
    """`foreign` from images to masks of `classes`; its logits are in the order of these, or as `declared` says.

    A single logit is that of the second of two classes. Raises ModelError with everything that does not fit.
    """
    problems = list(_misfits(foreign, declared, classes))
    if problems:
        raise ModelError(foreign.path, problems)
    meant = declared.classes or classes
    model = _in_our_form(foreign, declared, meant, [classes.index(name) for name in meant])
    counted = "--class-map names" if declared.classes else "without --class-map, classes.json names"
    multiple = _require_answers(foreign, model, len(meant), f"{counted} {len(meant)}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(foreign.path, [f"the ONNX checker refuses it: {error}"]) from error
    return Adopted(model, multiple)


def _misfits(foreign: Foreign, declared: OnnxSettings, classes: Sequence[str]) -> Iterator[str]:
    given = {"--mean": declared.mean, "--std": declared.std}
    miscounted = {name: len(values) for name, values in given.items() if len(values) not in (1, foreign.channels)}
    for name, count in miscounted.items():
        yield f"{name} has {count} values; give one, or {foreign.channels}"
    constants = () if miscounted else _normalisation(declared, foreign.channels)
    if not all(np.isfinite(constant).all() for constant in constants):
        yield "--mean and --std make no finite normalisation in float32; give those of pixels from 0 to 1"
    if declared.classes is not None and len(declared.classes) < 2:
        yield "--class-map names a single class; name two or more: for a single logit, the class below 0 and that above"
    strange = [name for name in declared.classes or () if name not in classes]
    if strange:
        yield f"--class-map names {', '.join(strange)}; the classes are {', '.join(classes)}"


def _in_our_form(
    foreign: Foreign, declared: OnnxSettings, meant: Sequence[str], numbers: Sequence[int]
) -> onnx.ModelProto:
    """The graph in our form: a depthwise convolution makes (x / 255 - mean) / std of our own normalised image.

    `meant` is the class of each logit, and `numbers` are their values in masks.
    """
    inner = compose.add_prefix(foreign.model, _PREFIX).graph
    channels = foreign.channels
    weight, bias = _normalisation(declared, channels)
    constants = {
        "mean": np.array(MEAN, np.float32),
        "std": np.array(STD, np.float32),
        f"{_PREFIX}normalise.weight": weight.reshape(channels, 1, 1, 1),
        f"{_PREFIX}normalise.bias": bias,
    }
    before = [
        helper.make_node("Transpose", [IMAGE], ["permute"], perm=TO_NCHW),
        helper.make_node("Cast", ["permute"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["cast", "mean"], ["sub"]),
        helper.make_node("Div", ["sub", "std"], ["div"]),
        helper.make_node("Conv", ["div", *list(constants)[2:]], ["normalised"], group=channels, kernel_shape=[1, 1]),
    ]
    entry, found, after = _PREFIX + foreign.image, _PREFIX + foreign.logits, []
    if foreign.layout == "nhwc":
        before.append(helper.make_node("Transpose", ["normalised"], [entry], perm=TO_NHWC))
    else:
        before[-1].output[0] = entry
    layout, single = _logits_of(foreign, len(meant))
    axis = 1 if layout == "nchw" else 3
    if foreign.class_axis not in (None, axis):
        raise ModelError(
            foreign.path,
            [
                f"it compares values of {foreign.logits} along axis {foreign.class_axis}, and their classes lie along "
                f"axis {axis}; name the tensor that holds the logits with --output"
            ],
        )
    if layout == "nhwc":
        after.append(helper.make_node("Transpose", [found], ["logits_nchw"], perm=TO_NCHW))
        found = "logits_nchw"
    if single:
        constants["two.weight"] = np.array([0, 1], np.float32).reshape(2, 1, 1, 1)
        after.append(helper.make_node("Conv", [found, "two.weight"], ["two"], kernel_shape=[1, 1]))
        if boundary := _boundary(foreign):
            constants["two.bias"] = np.array([0, -boundary], np.float32)
            after[-1].input.append("two.bias")
        found = "two"
    after.append(helper.make_node("ArgMax", [found], ["argmax"], axis=1, keepdims=0))
    if list(numbers) == list(range(len(numbers))):
        after.append(helper.make_node("Cast", ["argmax"], [MASK], to=TensorProto.UINT8))
    else:
        constants["classes"] = np.array(numbers, np.uint8)
        after.append(helper.make_node("Gather", ["classes", "argmax"], [MASK], axis=0))
    after.append(helper.make_node("Identity", [found], [LOGITS]))
    nodes = [*before, *inner.node, *after]
    for index, node in enumerate(nodes):
        node.name = node.name or f"node_{node.op_type}_{index}"
    free = ["batch", *(foreign.size or ("height", "width"))]
    graph = helper.make_graph(
        leading_to(nodes, {MASK, LOGITS}),
        "adopted",
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [*free, channels])],
        [
            helper.make_tensor_value_info(MASK, TensorProto.UINT8, free),
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", len(meant), *free[1:]]),
        ],
        [*inner.initializer, *(numpy_helper.from_array(array, name) for name, array in constants.items())],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _normalisation(declared: OnnxSettings, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The factor and the summand for each channel."""
    with np.errstate(all="ignore"):
        mean, std = (
            np.broadcast_to(np.array(values, np.float32), channels) for values in (declared.mean, declared.std)
        )
        return (STD / _PIXELS / std).astype(np.float32), ((MEAN / _PIXELS - mean) / std).astype(np.float32)


def _logits_of(foreign: Foreign, count: int) -> tuple[Layout, bool]:
    """The layout of the logits, and whether there is one logit for two classes.

    Their shape decides, where it can be inferred: some converters transpose the input alone.
    """
    value = known_values(foreign.model).get(foreign.logits)
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim] if value is not None else []
    if len(dims) != RANK:
        return foreign.logits_layout, False
    for wanted in (count, 1) if count == 2 else (count,):
        if wanted in (dims[1], dims[3]) and dims[1] != dims[3]:
            return "nchw" if dims[1] == wanted else "nhwc", wanted != count
    at = dims[1 if foreign.logits_layout == "nchw" else 3]
    return foreign.logits_layout, count == 2 and at == 1


def _boundary(foreign: Foreign) -> float:
    """The value of a single logit at which its two classes meet: 0, or 0.5 where the graph gives a probability.

    Resized or rounded, a probability still is one, and p - 0.5 has the right sign for every float32 p: close to 0.5 the
    difference is exact. Raises ModelError where other operators behind the Sigmoid move that boundary.
    """
    graph = foreign.model.graph
    makers = {output: node for node in graph.node for output in node.output}
    fixed = {tensor.name for tensor in graph.initializer} | {""}
    fixed |= {output for node in graph.node if node.op_type == "Constant" for output in node.output}
    name, behind = foreign.logits, list[onnx.NodeProto]()
    while (node := makers.get(name)) is not None and node.op_type not in _PROBABILITIES:
        read = node.input[:1] if node.op_type in _KEEPS_THE_MIDDLE else [one for one in node.input if one not in fixed]
        if node.op_type in _MAKES_LOGITS or len(read) != 1:
            return 0.0
        name = read[0]
        behind.append(node)
    if node is None:
        return 0.0
    changed = [one for one in reversed(behind) if not _keeps_the_middle(one)]
    if node.op_type != "Softmax" and not changed:
        return 0.5
    by = f", changed by {changed[0].op_type}" if changed else ""
    raise ModelError(
        foreign.path,
        [
            f"its only logit {foreign.logits} is a probability, made by {node.op_type}{by}, and it is unclear where it "
            f"separates two classes; name what {node.op_type} reads with --output {node.input[0]}, or export the model "
            f"without {node.op_type} and what follows it"
        ],
    )


def _keeps_the_middle(node: onnx.NodeProto) -> bool:
    """Whether `node` gives a probability for a probability, with the same boundary of 0.5."""
    return node.op_type in _KEEPS_THE_MIDDLE and attributes(node).get("mode") != "cubic"


def _require_answers(foreign: Foreign, model: onnx.ModelProto, classes: int, counted: str) -> int:
    """What height and width must be multiples of, found by running the model on batches of two."""
    try:
        # One at a time: with fewer classes named than there are logits, making the mask fails before these are seen.
        scores, masks = (
            OnnxModel(with_outputs(model, output).SerializeToString(), threads=1) for output in ("logits", "mask")
        )
    except BundleError as error:
        raise ModelError(foreign.path, error.problems) from error
    multiple, last = 1, "it gives no mask"
    while multiple <= LARGEST_MULTIPLE:
        sizes = [foreign.size] if foreign.size else [(3 * multiple, 5 * multiple), (5 * multiple, 3 * multiple)]
        wrong = [
            problem for one in sizes if (problem := _wrong(scores, masks, one, foreign.channels, classes, counted))
        ]
        if not wrong:
            return multiple
        last = wrong[0]
        if foreign.size:
            break
        multiple *= 2
    raise ModelError(foreign.path, [last])


def _wrong(
    scores: OnnxModel, masks: OnnxModel, size: tuple[int, int], channels: int, classes: int, counted: str
) -> str | None:
    images: NDArray[np.uint8] = np.zeros((2, *size, channels), np.uint8)
    try:
        logits = scores.logits(images)
        if logits.ndim != RANK or logits.shape[1] != classes:
            return f"it gives logits of shape {list(logits.shape)}, but one for each class is needed: {counted}"
        mask = masks.masks(images)
    except ShapeError as error:
        return f"{_limit(scores, images)}: {_said(error)}"
    if mask.shape != (2, *size):
        return (
            f"for images of {size[0]}x{size[1]} it gives masks of {mask.shape[1]}x{mask.shape[2]}; they must be equal"
        )
    return None


def _limit(scores: OnnxModel, images_NHWC: NDArray[np.uint8]) -> str:
    """Why the model does not run on these two images, as far as trying one of them tells."""
    height, width = images_NHWC.shape[1:3]
    try:
        scores.logits(images_NHWC[:1])
    except ShapeError:
        return f"it does not run on two images of {height}x{width}"
    return (
        f"it runs on one image of {height}x{width} and not on two: its batch is fixed inside; export it with a "
        "dynamic batch"
    )


def _said(error: ShapeError) -> str:
    """The first line of what the runtime said, without the places in its source."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return _PLACE.sub("", lines[0]) if lines else ""
