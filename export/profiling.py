"""What ONNX Runtime really runs: its optimised graph, and the time of every operator of it."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from export.errors import WorkFailedError
from export.runtime import cpu_session, session_options

NUMBERED: Final = re.compile(r"_token_\d+$")
"""What the runtime may append to the name of a node that replaces another. Source: `Graph::GenerateUniqueNodeName`."""
BLOCKED: Final = "_nchwc"
"""What it appends to the output of a convolution as written, to name the one on blocked channels. Source:
`nchwc_transformer.cc`."""

_WARM_UP = 2
"""Profiled runs that are not counted: they allocate memory and fill caches."""


def optimised_graph(model: bytes) -> bytes:
    """The ONNX file of what the runtime really runs: `model` after the optimisations that serve."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "optimised.onnx"
        options = session_options(1)
        options.optimized_model_filepath = str(path)
        cpu_session(model, options)
        return path.read_bytes()


@dataclass(frozen=True)
class Kernel:
    """One operator of one run, as the runtime executed it."""

    name: str
    op: str
    shape: tuple[int, ...]
    """Of its first output."""
    microseconds: float
    dtype: str = ""
    """Of its first output, as the runtime calls it: uint8, float."""


def profiled(
    model: bytes, feeds: Mapping[str, NDArray[Any]], *, threads: int, runs: int, optimised: bool = True
) -> tuple[tuple[Kernel, ...], ...]:
    """Time the operators of `model` in each of `runs` runs, in their order, after two more that are not counted.

    `optimised` False runs the graph as written: one that `optimised_graph` gave then runs as it serves.
    Raises WorkFailedError when the runtime refuses the model or what it is fed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        options = session_options(threads, optimised=optimised)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        try:
            session = cpu_session(model, options)
            for _ in range(_WARM_UP + runs):
                session.run(None, dict(feeds))
        except Exception as error:
            raise WorkFailedError(f"onnxruntime cannot run the graph that was to be timed: {error}") from error
        events = json.loads(Path(session.end_profiling()).read_text())
    return tuple(_runs(events))[_WARM_UP:]


def _runs(events: list[dict[str, Any]]) -> Iterator[tuple[Kernel, ...]]:
    """The runtime's profile, run by run: the event of a run follows those of its operators."""
    kernels: list[Kernel] = []
    for event in events:
        name = str(event["name"])
        if event["cat"] == "Node" and name.endswith("_kernel_time"):
            kernels.append(_kernel(name.removesuffix("_kernel_time"), event))
        elif name == "model_run":
            yield tuple(kernels)
            kernels = []


def _kernel(name: str, event: dict[str, Any]) -> Kernel:
    # [{"float": [1, 16, 64, 64]}]: the type and the shape of each output
    outputs = [found for output in event["args"]["output_type_shape"] for found in output.items()]
    dtype, shape = outputs[0] if outputs else ("", ())
    return Kernel(name, event["args"]["op_name"], tuple(shape), float(event["dur"]), dtype)
