"""Train the INT8 graph on the training images, with its float parent as teacher."""

from dataclasses import dataclass
from typing import Any

import onnx

from compress.checkpoint import Checkpoint
from compress.data.folder import Dataset
from compress.progress import say
from compress.quantize.qat.network import QuantizedNetwork
from compress.recipe import Recipe
from compress.steps import StepFolder
from compress.train.images import training_and_validation_images
from compress.train.loop import Fit
from compress.train.objective import Teacher
from compress.train.precision import kept_choice, pick_device
from compress.train.runtime import Runtime
from compress.train.validation import validate

_FOLDER = "qat"


@dataclass(frozen=True)
class Learned:
    """An INT8 graph with trained weights and scales."""

    graph: onnx.ModelProto
    figures: dict[str, Any]
    """For the step's record: epochs, mIoU of the fake-quantized network on the validation split, and where it began."""


def learn(
    step: StepFolder,
    source: Checkpoint,
    dataset: Dataset,
    recipe: Recipe,
    quantized: onnx.ModelProto,
    parent: onnx.ModelProto,
) -> Learned:
    """Train `quantized`, which was made from `parent`, on `dataset`; after a kill, the same call continues.

    The weights with the best mIoU on the validation split are kept. Raises WorkFailedError for a graph with an operator
    that cannot be trained through, and when training diverges.
    """
    network = QuantizedNetwork(quantized, parent)
    card, settings = source.card, recipe.quantize.finetune
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"size": card.size})})
    device = pick_device(recipe.train.device)
    precision = kept_choice(step.path, recipe.train.precision, device).precision
    images, validation = training_and_validation_images(dataset, recipe, card.size_multiple, device)
    before = validate(network.to(device), validation, device).miou
    say(f"mIoU on validation before training, fake-quantized: {before:.4f}")
    fitted = Fit(
        network,
        card,
        images,
        validation,
        settings,
        recipe.train.augment,
        Runtime(device, precision),
        step.scratch(_FOLDER).path,
        Teacher.of(source.network(), settings),
    ).run("learn INT8")
    network.cpu().load_state_dict(fitted.weights)
    figures = fitted.figures()
    return Learned(network.graph(), {**figures, "miou_before": before})
