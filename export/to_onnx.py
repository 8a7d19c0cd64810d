"""Export an `nn.Module` from normalised image to logits as `model.onnx` from uint8 image to uint8 mask.

N batch, H height, W width, C channels, K classes. Torch is imported when a function is called: a server
that only reads bundles never needs it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from export.blame import told
from export.errors import WorkFailedError
from export.runtime import IMAGE, LOGITS, MASK

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

Outputs = Literal["mask", "logits", "both"]

OPSET = 21
MEAN = 128.0
STD = 128.0
"""(x - 128) / 128: the raw bytes are then the quantized input, scale 1/128 and zero point 128, exactly."""


_FUSED = ("BatchNormalization", "Relu", "Clip", "LeakyRelu")
"""What a runtime computes together with the convolution before it; the size stays."""


def export_onnx(model: nn.Module, path: Path, *, channels: int, size_multiple: int) -> onnx.ModelProto:
    """Write `model` (normalised NCHW to logits NKHW) as a graph to mask and logits, normalisation and ArgMax inside.

    Batch is dynamic; height and width are dynamic in multiples of `size_multiple`. BatchNorm is folded
    into the convolutions by the exporter. The model is put in eval mode.

    Raises WorkFailedError when the exporter or the ONNX checker refuses the model.
    """
    import onnx
    import torch

    # The multiple stands in the signature: with a plain Dim, a bad size would fail inside Concat instead.
    # Two images are traced, because a batch of one would become a constant.
    image = torch.zeros(2, size_multiple * 4, size_multiple * 6, channels, dtype=torch.uint8)
    height = size_multiple * torch.export.Dim("h", min=1, max=4096)
    width = size_multiple * torch.export.Dim("w", min=1, max=4096)
    dynamic = {0: torch.export.Dim("batch", min=1, max=4096), 1: height, 2: width, 3: torch.export.Dim.STATIC}
    deployable = _deployable(model).eval()
    try:
        with _quiet(), _out_of_place(deployable, image.shape):
            program = torch.onnx.export(
                deployable,
                (image,),
                input_names=[IMAGE],
                output_names=[MASK, LOGITS],
                dynamic_shapes={IMAGE: dynamic},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(str(path), external_data=False)
    except Exception as error:  # the exporter's failures have no common base but Exception
        raise WorkFailedError(f"torch.onnx.export cannot export {type(model).__name__}: {_why(error)}") from error
    proto = onnx.load(str(path))
    _measure_what_is_fused(proto)
    _name_dimensions(proto)
    _forget_where_it_was_made(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as error:
        raise WorkFailedError(f"{path}: the ONNX checker refuses the exported graph: {error}") from error
    onnx.save(proto, str(path))
    return proto


def with_outputs(proto: onnx.ModelProto, outputs: Outputs) -> onnx.ModelProto:
    """The same graph with only the outputs asked for; the runtime drops what then leads nowhere."""
    import onnx

    kept = {"mask": (MASK,), "logits": (LOGITS,), "both": (MASK, LOGITS)}[outputs]
    graph = onnx.ModelProto()
    graph.CopyFrom(proto)
    del graph.graph.output[:]
    graph.graph.output.extend(output for output in proto.graph.output if output.name in kept)
    return graph


def _deployable(model: nn.Module) -> nn.Module:
    import torch
    from torch import nn

    class Deployable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            # Contiguous: in channels_last, torch's own adaptive pooling would leave strides in the graph as constants.
            images = image.permute(0, 3, 1, 2).contiguous().float()
            logits = self.model((images - MEAN) / STD)
            return logits.argmax(1).to(torch.uint8), logits

    return Deployable()


def _measure_what_is_fused(proto: onnx.ModelProto) -> None:
    """Take the size of a map behind the BatchNorm and the activation that follow a convolution, where the exporter
    takes it before them (`F.interpolate(x, size=...)`): with a second reader the runtime could not fuse the three."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input if node.op_type != "Shape" else ():
            readers.setdefault(name, []).append(node)
    moved = False
    for node in proto.graph.node:
        while (
            node.op_type == "Shape" and len(found := readers.get(node.input[0], [])) == 1 and found[0].op_type in _FUSED
        ):
            node.input[0] = found[0].output[0]
            moved = True
    if moved:
        _sort(proto.graph)


def _sort(graph: onnx.GraphProto) -> None:
    """Put every node behind those that make what it reads."""
    nodes = list(graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    reads = {index: [makers[name] for name in node.input if name in makers] for index, node in enumerate(nodes)}
    order = [nodes[index] for index in TopologicalSorter(reads).static_order()]
    del graph.node[:]
    graph.node.extend(order)


def _name_dimensions(proto: onnx.ModelProto) -> None:
    """The exporter names a dimension by its expression (`16*h`); people and servers read `height`."""
    for value in [*proto.graph.input, *proto.graph.output]:
        dims = value.type.tensor_type.shape.dim
        names = {IMAGE: ["batch", "height", "width"], MASK: ["batch", "height", "width"]}.get(
            value.name, ["batch", "", "height", "width"]
        )
        for dim, name in zip(dims, names, strict=False):
            if name and dim.HasField("dim_param"):
                dim.dim_param = name


def _forget_where_it_was_made(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes: stack traces with paths of this machine, and what differs from export to export.

    Two exports of the same weights are then the same file, to the byte.
    """
    graph = proto.graph
    del graph.value_info[:]
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _why(error: BaseException) -> str:
    """What the exporter's pages of text come down to: the cause, its line, and what can be done about it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = told(error)
    if "data-dependent" in text:
        return f"its forward branches on the values in a tensor; use torch.where, or decide in __init__ ({text})"
    if fixed := re.search(r"Constraints violated \((.*?)\)", text):
        return (
            f"its forward fixes {fixed[1]}, which has to stay dynamic; look for a loop over that dimension, or for a "
            "size that is a literal or converted to int, where the tensor's own shape would do"
        )
    return text


@contextlib.contextmanager
def _out_of_place(deployable: nn.Module, shape: tuple[int, ...]) -> Iterator[None]:
    """Let no activation overwrite its input: torch.export then traces a ReLU6 in half the time, to the same graph.

    Not where another layer reads what was overwritten, as in some residual blocks: logits of noise tell.
    """
    import torch

    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    overwriting = [module for module in deployable.modules() if getattr(module, "inplace", None) is True]

    def overwrite(does: bool) -> None:
        for module in overwriting:
            module.inplace = does  # type: ignore[assignment]

    @torch.no_grad()
    def logits() -> Tensor:
        found: Tensor = deployable(noise)[1]
        return found

    if not overwriting:
        yield
        return
    expected = logits()
    try:
        overwrite(False)
        if not torch.equal(logits(), expected):
            overwrite(True)
        yield
    finally:
        overwrite(True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns about its own internals; neither is for our users."""
    names = ("torch.onnx", "torch.export", "torch._guards", "torch.fx.experimental", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
