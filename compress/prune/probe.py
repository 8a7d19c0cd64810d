"""How fast a plan would be, without exporting it: the parent's graph with weights of the pruned shapes.

Latency depends on shapes, not on values, and an export takes seconds. What is decided here is measured again
on the real graph afterwards.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from compress.progress import say
from export.graph import CONVOLUTIONS, copied
from export.runtime import OnnxModel
from export.timing import Samples, interleaved

ROUNDS = 15
RUNS = 5
"""Runs of `ROUNDS` rounds at most, while other work disturbs them."""
QUIET = 0.1
"""How far a median may be above the fastest, as a share. Of 15 rounds in the reports it was 0.01 to 0.06 where nothing
else ran (at most 0.12, for a few milliseconds), and 0.15 to 0.8 beside other work. That slows a small network down more
than its parent, so their ratio then says little."""
CREDIBLE = 1 / 3
"""How far a disturbed measurement may be from the latency table, as a share, and still count. The reports' tables were
off by 0.29 at most, and by 0.67 beside tests that ran at the same time."""


@dataclass(frozen=True)
class Measured:
    """A child beside its parent, in one run."""

    speedup: float
    """Median latency of the parent over that of the child."""
    milliseconds: float
    """Median of the child."""
    disturbed: float
    """By what share a median exceeds the fastest, the larger of the two; beyond `QUIET` other work never paused."""

    @property
    def uncertain(self) -> bool:
        return self.disturbed > QUIET

    def misleads(self, predicted: float) -> bool:
        """Whether the latency table's `predicted` speed-up is nearer to what a quiet machine would measure."""
        return self.uncertain and abs(predicted / self.speedup - 1) > CREDIBLE

    def doubt(self) -> None:
        """Warn of a figure that other work has made uncertain."""
        if self.uncertain:
            say(
                f"warning: other work kept this machine busy: the median run took {self.disturbed:.0%} longer than the "
                f"fastest, so {self.speedup:.2f}x is uncertain; repeat with compress bench latency once it is quiet"
            )


class LatencyProbe:
    """Times graphs against the float parent, interleaved, at one image size."""

    def __init__(
        self, parent: onnx.ModelProto, *, size: tuple[int, int], channels: int, threads: int | None = None
    ) -> None:
        """`threads` is for each run: by default all cores that may be used."""
        self.size = size
        self._parent = parent
        self._image = np.random.default_rng(0).integers(0, 256, (1, *size, channels), dtype=np.uint8)
        self._threads = threads
        self._parent_model = OnnxModel(parent.SerializeToString(), threads=threads)

    def parent_milliseconds(self) -> float:
        """The parent's median latency, measured now."""
        taken, _ = self._quietest(parent=self._parent_model)
        return taken["parent"].median

    def speedup(self, pruned: nn.Module) -> float:
        """The speed-up that `measure` would give for `pruned`, from a graph with the shapes of its weights.

        Raises BundleError or ShapeError when that graph does not run, because a width is also written elsewhere in it.
        """
        return self.measure(with_shapes_of(self._parent, pruned)).speedup

    def measure(self, child: onnx.ModelProto) -> Measured:
        """Time `child` and the parent, taking turns."""
        model = OnnxModel(child.SerializeToString(), threads=self._threads)
        taken, disturbed = self._quietest(parent=self._parent_model, child=model)
        return Measured(taken["parent"].median / taken["child"].median, taken["child"].median, disturbed)

    def _quietest(self, **models: OnnxModel) -> tuple[Mapping[str, Samples], float]:
        """The first run that nothing disturbs, else the least disturbed of `RUNS`; and by what share it was."""
        calls = {name: partial(model.masks, self._image) for name, model in models.items()}
        runs: list[Mapping[str, Samples]] = []

        def disturbed(run: Mapping[str, Samples]) -> float:
            fastest = {name: min(each[name].fastest for each in runs) for name in run}
            return max(samples.median / fastest[name] for name, samples in run.items()) - 1

        while len(runs) < RUNS and not (runs and disturbed(runs[-1]) <= QUIET):
            runs.append(interleaved(calls, rounds=ROUNDS))
        best = min(runs, key=disturbed)
        return best, disturbed(best)


def with_shapes_of(parent: onnx.ModelProto, pruned: nn.Module) -> onnx.ModelProto:
    """A copy of `parent` whose weights have the shapes (not the values) of `pruned`'s."""
    shapes = {f"model.{name}": tuple(tensor.shape) for name, tensor in pruned.state_dict().items()}
    widths = {f"model.{name}.weight": (m.out_channels, m.groups) for name, m in _convolutions(pruned)}
    child = copied(parent)
    new = {tensor.name: shapes[tensor.name] for tensor in child.graph.initializer if tensor.name in shapes}
    for node in child.graph.node:
        if node.op_type not in CONVOLUTIONS or node.input[1] not in widths:
            continue
        out_channels, groups = widths[node.input[1]]
        for attribute in node.attribute:
            if attribute.name == "group":
                attribute.i = groups  # as many as channels, where the convolution is depthwise
        if len(node.input) == 3:
            new[node.input[2]] = (out_channels,)  # a bias from BatchNorm folding, whose name is the exporter's
    rng = np.random.default_rng(0)
    for tensor in child.graph.initializer:
        if tensor.name in new and tuple(tensor.dims) != new[tensor.name]:
            values = rng.normal(0, 0.05, new[tensor.name]).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    del child.graph.value_info[:]
    return child


def _convolutions(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.ConvTranspose2d]]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            yield name, module
