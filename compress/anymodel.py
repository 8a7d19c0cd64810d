"""Load a folder, be it a checkpoint or a bundle, as a model that segments images into named classes.

A bundle needs no torch; a checkpoint does, and is scored in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compress.data.evaluation import EvaluationImages, nothing_counts
from compress.data.folder import Split, open_dataset
from compress.data.match import require_classes
from compress.progress import task
from export import bundle
from export.errors import UsageError, require
from export.images import U8
from export.manifest import Channels
from export.ranking import RankingScore
from export.refine import Figures, Probabilities, Refinement, best_of
from export.runtime import gives_logits
from export.scoring import Score, score

ONE_LOOK = Refinement()


@dataclass(frozen=True)
class AnyModel:
    """A function from image HWC to mask HW at the image's size, and what describes it."""

    path: Path
    kind: Literal["checkpoint", "bundle"]
    channels: Channels
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    segment: Callable[[U8], U8]
    probabilities: Probabilities | None = None
    """None where the model gives masks alone."""
    masks_are_argmax: bool = True
    """Whether a mask is the argmax of the probabilities. Where images are resized, masks come back without
    interpolation, and probabilities with it."""


def load_model(path: Path, *, threads: int | None = None, refine: Refinement = ONE_LOOK) -> AnyModel:
    """Load the model at `path`, to run with `threads` threads (for a checkpoint torch's, of the whole process) and to
    look at each image as `refine` says.

    Raises UsageError when it is neither or cannot be refined, BundleError or CheckpointError when it is damaged,
    MissingExtraError for a checkpoint where torch is not installed.
    """
    if bundle.is_bundle(path):
        loaded = bundle.load(path)
        manifest = loaded.manifest
        segmenter = loaded.segmenter(threads=threads)
        segment: Callable[[U8], U8] = segmenter.segment
        probabilities = refine.refined(segmenter.probabilities) if gives_logits(manifest) else None
        if refine:
            _require_refinable(path, refine, manifest.size)
            segment = best_of(_required(path, probabilities))
        masks_are_argmax = bool(refine) or manifest.size is None
        facts = (manifest.channels, manifest.classes, manifest.colours)
        return AnyModel(path, "bundle", *facts, segment, probabilities, masks_are_argmax)
    if (path / "model.json").is_file():
        torch = require("torch", extra="train", purpose=f"{path} is a checkpoint; running it")
        from compress import checkpoint

        source = checkpoint.load(path)
        card = source.card
        if refine:
            _require_refinable(path, refine, card.size)
        network = source.network()
        probabilities = refine.refined(checkpoint.torch_probabilities(network, card.size))
        segment = best_of(probabilities) if refine else checkpoint.torch_segmenter(network, card.size)
        if threads is not None:
            torch.set_num_threads(threads)
        masks_are_argmax = bool(refine) or card.size is None
        facts = (card.channels, card.classes, card.colours)
        return AnyModel(path, "checkpoint", *facts, segment, probabilities, masks_are_argmax)
    raise UsageError(f"{path} is neither a bundle (manifest.json) nor a checkpoint (model.json)")


def _required(path: Path, probabilities: Probabilities | None) -> Probabilities:
    if probabilities is None:
        raise UsageError(f"{path} gives masks alone, and this needs probabilities; export it with --outputs both")
    return probabilities


def _require_refinable(path: Path, refine: Refinement, size: tuple[int, int] | None) -> None:
    if refine.window is not None and size is not None:
        raise UsageError(
            f"{path} resizes every image to {size[0]}x{size[1]}, so it would see windows magnified; leave the window "
            "out, or train without data.size"
        )


def evaluate(
    path: Path,
    data: Path,
    *,
    split: Split = "test",
    threads: int | None = None,
    refine: Refinement = ONE_LOOK,
    on_answer: Callable[[U8, U8], None] = lambda _, __: None,
    ranking: RankingScore | None = None,
) -> Score:
    """Score a checkpoint (torch, float32) or a bundle (ONNX Runtime) on a split of `data`.

    `on_answer` gets the truth and the answer for each image, masks HW, from which other figures can be computed.
    `ranking` gets the truth and the probabilities, which the model must then give.

    Raises what `load_model` raises, and DatasetError.
    """
    model = load_model(path, threads=threads, refine=refine)
    dataset = open_dataset(data, channels=model.channels)
    require_classes(dataset, model.classes, path)
    images = EvaluationImages(dataset, split)
    if not len(images):
        raise UsageError(f"{data} has no images in its {split} split")
    segment = model.segment
    if ranking is not None:
        probabilities = _required(path, model.probabilities)
        segment, on_answer = _ranked(ranking, model, probabilities, on_answer)
    with task(f"score {split}", len(images)) as bar:
        result = score(segment, images, model.classes, on_image=bar.advance, on_answer=on_answer)
    if not result.counts.any():
        raise nothing_counts(dataset, split)
    return result


def _ranked(
    ranking: RankingScore, model: AnyModel, probabilities: Probabilities, on_answer: Callable[[U8, U8], None]
) -> tuple[Callable[[U8], U8], Callable[[U8, U8], None]]:
    """A `segment` that gives the model's masks, and an `on_answer` that ranks the probabilities of the same image; one
    run of the model serves both where the mask is their argmax."""
    latest: list[Figures] = []

    def remembered(image_HWC: U8) -> Figures:
        latest[:] = [probabilities(image_HWC)]
        return latest[0]

    def ranked(truth_HW: U8, answer_HW: U8) -> None:
        ranking.update(truth_HW, latest[0])
        on_answer(truth_HW, answer_HW)

    def segment(image_HWC: U8) -> U8:
        remembered(image_HWC)
        return model.segment(image_HWC)

    return best_of(remembered) if model.masks_are_argmax else segment, ranked
