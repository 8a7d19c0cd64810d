"""What all ways to cut a network share: what it is cut from, how it is timed, and how the child is saved."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from compress import checkpoint
from compress.checkpoint import Checkpoint, ModelCard
from compress.data.check import require_sound
from compress.data.evaluation import EvaluationImages, drawn_by_name, usual_size
from compress.data.folder import Dataset
from compress.data.match import require_classes
from compress.prune.probe import LatencyProbe
from compress.quantize.ptq import Quantizer
from compress.recipe import Recipe
from compress.steps import StepFolder, StepPlan, require_apart
from export.errors import BundleError, ShapeError
from export.images import U8, Geometry, padded_size
from export.latency.table import LatencyTable
from export.to_onnx import export_onnx, with_outputs

CALIBRATION_IMAGES = 2


def opened(parent: Path, data: Path, out: Path) -> tuple[Checkpoint, Dataset]:
    """The checkpoint to cut and the dataset, whose classes must be the checkpoint's; `out` must not be the checkpoint.

    Raises CheckpointError, DatasetError, UsageError.
    """
    source = checkpoint.load(parent)
    require_apart(out, parent)
    dataset = require_sound(data, source.card.channels)
    require_classes(dataset, source.card.classes, parent)
    return source, dataset


def inputs(source: Checkpoint, dataset: Dataset) -> dict[str, str]:
    """Hashes of what a step is made from, by role."""
    return {"data": dataset.fingerprint, **source.inputs("parent")}


@dataclass(frozen=True)
class PruneStep:
    """One run of `compress prune`."""

    folder: StepFolder
    plan: StepPlan
    parent: Checkpoint
    dataset: Dataset
    recipe: Recipe
    """With the parent's `data.size`."""

    def graph(self, network: nn.Module) -> onnx.ModelProto:
        """The graph that would serve `network`, in `prune.precision`."""
        graph = self.float_graph(network)
        if self.recipe.prune.precision == "fp32":
            return graph
        return Quantizer(graph, self._images(), target=self.recipe.quantize.target).quantized("minmax").graph

    def float_graph(self, network: nn.Module) -> onnx.ModelProto:
        """The graph that would serve `network` in FP32."""
        path = self.folder.path / "probe.onnx"
        card = self.parent.card
        proto = export_onnx(network, path, channels=card.channels, size_multiple=card.size_multiple)
        path.unlink()
        return with_outputs(proto, "mask")

    def probe(self, network: nn.Module) -> LatencyProbe:
        """Times children of `network` at the size that the recipe names, or else at that of most images."""
        card = self.parent.card
        size = self.recipe.prune.latency_size or card.size or usual_size(self.dataset)
        table = self.recipe.prune.latency_table
        return LatencyProbe(
            self.graph(network),
            size=padded_size(*size, card.size_multiple),
            channels=card.channels,
            threads=None if table is None else LatencyTable.load(table).threads,
        )

    def guess(self, probe: LatencyProbe, pruned: nn.Module) -> float:
        """The speed-up of `pruned`, without an export where that is possible."""
        if self.recipe.prune.precision == "fp32":
            # Where a width is also written elsewhere in the graph, only the exporter can change it.
            with suppress(BundleError, ShapeError):
                return probe.speedup(pruned)
        return probe.measure(self.graph(pruned)).speedup

    def _images(self) -> Iterator[U8]:
        """A few images for the quantized ranges, on which time does not depend."""
        card, samples = self.parent.card, drawn_by_name(self.dataset.train, CALIBRATION_IMAGES)
        for _, image in EvaluationImages(self.dataset, "train", samples).images():
            yield Geometry.plan(*image.shape[:2], size=card.size, multiple=card.size_multiple).fit(image)

    def card(self, **changes: Any) -> ModelCard:
        """The child's card: its parent's except for `changes`, and not scored yet. Of a parent that was cut itself, the
        network that the first cut began with is named, too."""
        recipe = {**self.parent.card.recipe, "prune": self.plan.settings["prune"]}
        earlier = self.parent.card.parents
        first = earlier.get("ancestor", earlier.get("parent"))
        parents = {**self.plan.inputs, **({"ancestor": first} if first else {})}
        update = {**changes, "parents": parents, "recipe": recipe, "miou_val": None}
        return self.parent.card.model_copy(update=update)

    def keep(self, child: nn.Module, result: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Write the checkpoint of `child`, whose card differs from its parent's in `changes`, and the step's record."""
        card = self.card(**changes).model_copy(update={"miou_val": result["miou"]})
        checkpoint.save(self.folder.path, child, card)
        self.folder.record(self.plan, result)
        return result
