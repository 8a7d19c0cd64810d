"""What both ways to cut a network share: what it is cut from, how it is timed, and how the child is kept."""

from dataclasses import dataclass
from typing import Any

import onnx
from torch import nn

from compress import checkpoint
from compress.checkpoint import Checkpoint, ModelCard
from compress.data.evaluation import usual_size
from compress.data.folder import Dataset
from compress.prune.probe import LatencyProbe
from compress.recipe import Recipe
from compress.steps import StepFolder, StepPlan
from export.images import padded_size
from export.to_onnx import export_onnx, with_outputs


@dataclass(frozen=True)
class PruneStep:
    """One run of `compress prune`."""

    folder: StepFolder
    plan: StepPlan
    parent: Checkpoint
    dataset: Dataset
    recipe: Recipe
    """Images are resized as the parent wants them."""

    def graph(self, network: nn.Module) -> onnx.ModelProto:
        """What is served of `network`, in FP32."""
        path = self.folder.path / "probe.onnx"
        card = self.parent.card
        proto = export_onnx(network, path, channels=card.channels, size_multiple=card.size_multiple)
        path.unlink()
        return with_outputs(proto, "mask")

    def probe(self, network: nn.Module) -> LatencyProbe:
        """Times children of `network` at the size that the recipe names, or else at that of most images."""
        card = self.parent.card
        size = self.recipe.prune.latency_size or card.size or usual_size(self.dataset)
        return LatencyProbe(self.graph(network), size=padded_size(*size, card.size_multiple), channels=card.channels)

    def card(self, **changes: Any) -> ModelCard:
        """That of the child: its parent's but for `changes`, and not scored yet."""
        recipe = {**self.parent.card.recipe, "prune": self.plan.settings["prune"]}
        update = {**changes, "parents": dict(self.plan.inputs), "recipe": recipe, "miou_val": None}
        return self.parent.card.model_copy(update=update)

    def keep(self, child: nn.Module, result: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Write the checkpoint of `child`, whose card differs from its parent's in `changes`, and the step's record."""
        card = self.card(**changes).model_copy(update={"miou_val": result["miou"]})
        checkpoint.save(self.folder.path, child, card)
        self.folder.record(self.plan, result)
        return result
