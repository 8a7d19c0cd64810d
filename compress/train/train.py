"""`compress train`: a dataset folder becomes a checkpoint."""

import math
from dataclasses import asdict
from pathlib import Path

from torch import nn

from compress import checkpoint, models
from compress.checkpoint import Checkpoint, ModelCard
from compress.data.check import require_sound
from compress.data.folder import Dataset
from compress.data.loader import TrainingImages
from compress.data.match import require_classes
from compress.diagnosis import Finding, Trained, diagnosed
from compress.progress import say
from compress.recipe import Recipe, leaves
from compress.settings.fit import FitSettings
from compress.steps import StepFolder, StepPlan, finished, require_apart, running
from compress.train import own
from compress.train.freeze import pretrained_encoder
from compress.train.images import training_images, validation_images
from compress.train.initial import initial_network, initial_sha256
from compress.train.lookback import look_back
from compress.train.loop import Fit, Fitted
from compress.train.objective import Teacher
from compress.train.precision import kept_choice, pick_device
from compress.train.rehearsal import rehearse
from compress.train.runtime import Runtime
from compress.train.sparsity import penalty_of
from export.errors import CheckpointError, RecipeError
from export.files import write_json


def train(
    data: Path, out: Path, recipe: Recipe | None = None, *, init: Path | None = None, teacher: Path | None = None
) -> Checkpoint:
    """Train the recipe's network on `data` and write a checkpoint to `out`.

    `init` is a checkpoint folder or a file with a state dict (.safetensors, or .pt read with weights_only)
    to start from; layers of another shape, such as a head for other classes, start fresh and are named.
    `teacher` is a checkpoint of the same channels and classes whose logits are learned beside the masks.
    A finished `out` with the same inputs and settings is returned as it is; an interrupted one is resumed.

    Raises DatasetError, RecipeError, CheckpointError, BusyError, UsageError; WorkFailedError when training
    diverges.
    """
    recipe = recipe or Recipe()
    for source in (init, teacher):
        if source is not None:
            require_apart(out, source)
    if recipe.train.attention_weight and teacher is None:
        raise RecipeError(
            "train.attention_weight", ["there is no teacher whose attention could be followed; give --teacher"]
        )
    dataset = require_sound(data, recipe.data.channels)
    master = None if teacher is None else _master(teacher, dataset)
    factory = models.source_sha256(recipe.model.factory)
    plan = StepPlan(
        "train",
        {
            "data": dataset.fingerprint,
            **({"init": initial_sha256(init)} if init else {}),
            **({"teacher": master.weights_sha256, "teacher_card": master.card_sha256} if master else {}),
            **({"factory": factory} if factory else {}),
            **own.sources(recipe.train, recipe.train.augment),
        },
        {
            # Where the data lies, and how much of it is kept in memory, changes no result.
            "data": recipe.data.model_dump(mode="json", exclude={"path", "cache_gb"}),
            "model": recipe.model.model_dump(mode="json"),
            "train": recipe.train.model_dump(mode="json"),
        },
    )
    if finished(out, plan):
        say(f"{out} is up to date")
        return checkpoint.load(out)
    with running(out, plan) as step:
        _train(step, plan, dataset, recipe, init, master)
    return checkpoint.load(out)


def _train(
    step: StepFolder, plan: StepPlan, dataset: Dataset, recipe: Recipe, init: Path | None, master: Checkpoint | None
) -> None:
    network, arguments, multiple = initial_network(recipe, dataset, init)
    _say_what_does_nothing(recipe.train, teacher=master is not None, encoder=pretrained_encoder(network) is not None)
    if plan.inputs.get("factory"):
        rehearse(recipe.model.factory, network, dataset.channels)
    device = pick_device(recipe.train.device)
    choice = kept_choice(step.path, recipe.train.precision, device)
    say(f"training on {device} in {choice.precision} ({choice.reason})")
    card = ModelCard(
        factory=recipe.model.factory,
        factory_sha256=plan.inputs.get("factory"),
        arguments=arguments,
        channels=dataset.channels,
        classes=dataset.classes,
        colours=dataset.colours,
        size=recipe.data.size,
        size_multiple=multiple,
        parents=dict(plan.inputs),
        recipe=dict(plan.settings),
    )
    # Training images have to suit the teacher too; validation images are padded as they will be when served.
    fitting = multiple if master is None else math.lcm(multiple, master.card.size_multiple)
    images = training_images(dataset, recipe, fitting, device)
    validation = validation_images(dataset, recipe, multiple)
    runtime = Runtime(device, choice.precision)
    fitted = Fit(
        network,
        card,
        images,
        validation,
        recipe.train,
        recipe.train.augment,
        runtime,
        step.path,
        None if master is None else Teacher.of(master.network(), recipe.train),
        penalty=penalty_of(recipe.train.sparsity, network, dataset.channels),
    ).run("train")
    network.load_state_dict(fitted.weights)
    miou_train, findings = _looked_at(network, images, dataset, recipe, fitted)
    network.cpu()
    checkpoint.save(step.path, network, card.model_copy(update={"miou_val": fitted.miou}))
    write_json(step.path / "history.json", fitted.history)
    step.record(
        plan, {**fitted.figures(), "miou_train": miou_train, "diagnosis": [asdict(finding) for finding in findings]}
    )


def _say_what_does_nothing(settings: FitSettings, *, teacher: bool, encoder: bool) -> None:
    """A line on each setting that was changed and needs what this training does not have."""
    needs = {"teacher_weight": teacher, "temperature": teacher, "encoder_rate": encoder}
    for name, has in needs.items():
        if not has and getattr(settings, name) != type(settings).model_fields[name].default:
            what = "a pretrained encoder" if name == "encoder_rate" else "a teacher (--teacher)"
            say(f"{settings.SECTION}.{name} has no effect without {what}")


def _looked_at(
    network: nn.Module, images: TrainingImages, dataset: Dataset, recipe: Recipe, fitted: Fitted
) -> tuple[float | None, list[Finding]]:
    """mIoU on training images, and what is wrong with the training; None and nothing if the diagnosis fails."""
    try:
        miou_train, dead = look_back(network, images, len(dataset.classes), recipe.train.batch_size)
        trained = Trained(
            recipe.train,
            fitted.history,
            fitted.best_epoch,
            fitted.miou,
            miou_train,
            dead,
            averaged=fitted.averaged,
            recipe=dict(leaves(recipe.model_dump(mode="json"))),
        )
        findings = diagnosed(trained)
    except Exception as error:  # a network of the user's own may raise anything; hours of training are worth more
        say(f"no diagnosis of this training: {type(error).__name__}: {error}")
        return None, []
    for finding in findings:
        say(str(finding))
    return miou_train, findings


def _master(path: Path, dataset: Dataset) -> Checkpoint:
    """The teacher's checkpoint, which must have the dataset's channels and classes."""
    found = checkpoint.load(path)
    require_classes(dataset, found.card.classes, path)
    if found.card.channels != dataset.channels:
        raise CheckpointError(
            path,
            [
                f"it needs images of {found.card.channels} channels, and those of the data have {dataset.channels}; "
                "choose another teacher, or set data.channels"
            ],
        )
    return found
