"""What is quantized: a checkpoint of ours, or a float ONNX model from elsewhere, in the form that the steps work on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto

from compress.bundling import macs, parameters
from compress.checkpoint import Checkpoint, Subject
from compress.data.folder import Dataset
from compress.progress import say
from compress.quantize.adopt import adopt
from compress.quantize.foreign import Foreign
from compress.settings.quantize import OnnxSettings
from compress.steps import StepFolder
from export.graph import SizedGraph
from export.scoring import Score
from export.to_onnx import export_onnx


@dataclass(frozen=True)
class Source:
    """A float model with everything that a bundle says about it."""

    path: Path
    card: Subject
    inputs: Mapping[str, str]
    """The hashes that identify it, for the record of a step."""
    graph: Callable[[StepFolder], onnx.ModelProto]
    """Makes the float graph from uint8 image to mask and logits; the folder is for what is written meanwhile."""
    params: Callable[[], int]
    macs: Callable[[tuple[int, int]], int]
    """Of one image of (height, width)."""
    checkpoint: Checkpoint | None
    """None for a model from elsewhere, which has no network to train."""

    def look_at_score(self, score: Score) -> None:
        """Warn where a model from elsewhere is no better than no model on the validation split.

        Nothing in its file says which class a logit stands for, or how pixels are normalised. A split that shows one
        class alone says nothing about that.
        """
        name, miou = score.commonest
        if score.miou <= miou < 1:
            say(
                f"warning: mIoU of {self.path} is {score.miou:.4f} on the validation split, and answering {name} for "
                f"every pixel gives {miou:.4f}: its classes or its pixels are probably not what was declared; look at "
                "--class-map, --mean, --std, --layout and --output"
            )


def of_checkpoint(checkpoint: Checkpoint) -> Source:
    """A checkpoint, whose graph is exported when it is asked for."""
    card = checkpoint.card

    def graph(step: StepFolder) -> onnx.ModelProto:
        path = step.path / "float.onnx"
        made = export_onnx(checkpoint.network(), path, channels=card.channels, size_multiple=card.size_multiple)
        path.unlink()
        return made

    return Source(
        checkpoint.path,
        card,
        checkpoint.inputs("checkpoint"),
        graph,
        lambda: parameters(checkpoint.network()),
        lambda size: macs(checkpoint.network(), card.channels, size),
        checkpoint,
    )


def of_onnx(foreign: Foreign, declared: OnnxSettings, dataset: Dataset) -> Source:
    """A float model from elsewhere, with masks of the classes of `dataset`.

    Raises ModelError with what does not fit.
    """
    adopted = adopt(foreign, declared, dataset.classes)
    card = Subject(
        channels=dataset.channels,
        classes=dataset.classes,
        colours=dataset.colours,
        size=foreign.size,
        size_multiple=adopted.size_multiple,
        parents={"onnx": foreign.sha256},
    )
    weights = [tensor for tensor in adopted.model.graph.initializer if tensor.data_type == TensorProto.FLOAT]

    def count(size: tuple[int, int]) -> int:
        sized = SizedGraph(adopted.model, size)
        return sum(map(sized.macs, sized.nodes))

    return Source(
        foreign.path,
        card,
        {"onnx": foreign.sha256},
        lambda _: adopted.model,
        lambda: sum(prod(tensor.dims) for tensor in weights),
        count,
        None,
    )
