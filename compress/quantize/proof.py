"""What an INT8 graph must show before it is a bundle: the answers of the graph as written, and that it is faster."""

import numpy as np
import onnx

from compress.bundling import PARITY, parity_images
from compress.progress import say
from compress.quantize.judge import Judge
from compress.quantize.kernels import look_at_kernels
from compress.quantize.ptq import with_quantized_logits
from compress.quantize.targets import scheme_of
from compress.quantize.workbench import ROUNDS, Workbench
from compress.steps import StepFolder
from export import bundle
from export.errors import ParityError, WorkFailedError
from export.files import write_json
from export.machine import Machine, instruction_set
from export.manifest import Latency
from export.parity import Parity, batches, int8_parity, sizes_to_prove
from export.runtime import OnnxModel
from export.scoring import Score

LATENCY = "latency.json"


def proven(bench: Workbench, graph: onnx.ModelProto, child: OnnxModel, score: Score, latency: Latency) -> Parity:
    """How the answers of `child`, which is `graph` as optimised here, compare with those of `graph` as written.

    `score` and `latency` are its own. Raises ParityError.
    """
    source, before = bench.source, bench.judge.parent_score
    images, whence = parity_images(bench.dataset, source.card)
    as_written, logit_step = with_quantized_logits(graph)
    multiple = source.card.size_multiple
    sizes = sizes_to_prove((latency.height, latency.width), multiple) if child.only_size is None else (child.only_size,)
    parity = int8_parity(
        child,
        OnnxModel(as_written.SerializeToString(), optimised=False),
        batches(images, multiple, sizes),
        logit_step=logit_step,
        images=whence,
    )
    if parity.masks_differ:
        parity = parity.model_copy(update={"kernels": look_at_kernels(graph, next(batches(images, multiple, sizes)))})
        looked = parity.kernels or "it quantizes nowhere, so no kernel can be compared by itself"
        say(f"the optimised graph gives other masks than the graph as written; {looked}")
    figures = f"mIoU {before.miou:.4f} in float, {score.miou:.4f} in INT8. {figures_of(latency)}"
    target = bench.recipe.quantize.target
    if scheme_of(target).saturates_here:
        figures += (
            f".\nThis machine ({instruction_set()}) saturates products of 8 bits, which {target} does not: "
            "quantize there, or on a machine with VNNI"
        )
    _require(parity, bench.step, figures)
    return parity.model_copy(update={"miou": {"float": before.miou, "int8": score.miou}})


def as_shipped(shipped: Score, chosen: Score) -> Score:
    """The score of the graph in the forms that ship, which compute the integers of the graph that was chosen; where
    this runtime's kernels round them otherwise, a line says so."""
    if not np.array_equal(shipped.counts, chosen.counts):
        say(
            f"warning: in the forms that are fastest here the graph gives other answers than as it was quantized: mIoU "
            f"{shipped.miou:.4f} instead of {chosen.miou:.4f}; quantize.rewrites=false leaves its operators as they are"
        )
    return shipped


def timed(step: StepFolder, judge: Judge, child: OnnxModel) -> Latency:
    """Time both sides in one run; done once and kept, so that a resumed step ends with the same manifest."""
    saved = step.decided(LATENCY)
    if saved is not None:
        return Latency.model_validate(saved)
    taken = judge.times(ROUNDS, parent=judge.parent, child=child)
    height, width = judge.padded
    latency = Latency(
        milliseconds=taken["child"].median,
        milliseconds_parent=taken["parent"].median,
        height=height,
        width=width,
        threads=child.threads,
        machine=Machine.here(),
    )
    write_json(step.path / LATENCY, latency.model_dump(mode="json"))
    say(figures_of(latency))
    return latency


def require_gain(step: StepFolder, judge: Judge, child: OnnxModel) -> Latency:
    """`timed`; raises WorkFailedError where INT8 is not faster."""
    latency = timed(step, judge, child)
    assert latency.milliseconds_parent is not None
    if latency.milliseconds >= latency.milliseconds_parent:
        # The next try measures again: a busy moment must not decide for good.
        (step.path / LATENCY).unlink()
        raise WorkFailedError(
            f"{figures_of(latency)} on this machine ({latency.machine.instruction_set}): quantization gains nothing "
            "here; serve the float bundle (compress export), or keep the INT8 one all the same with --force"
        )
    return latency


def figures_of(latency: Latency) -> str:
    return (
        f"INT8 takes {latency.milliseconds:.2f} ms, its float parent {latency.milliseconds_parent:.2f} ms "
        f"({latency.height}x{latency.width}, {latency.threads} threads)"
    )


def _require(parity: Parity, step: StepFolder, figures: str) -> None:
    """Raises ParityError with `figures`: a graph that optimisation changes is no bundle, however good it seems."""
    try:
        parity.require()
    except ParityError as error:
        write_json(step.path / PARITY, parity.model_dump(mode="json"))
        raise ParityError(
            f"{error}\n{figures}. No bundle is made of a graph whose answers the runtime changes; for inspection it is "
            f"kept in {step.path / bundle.MODEL}, with all cases in {PARITY}"
        ) from error
