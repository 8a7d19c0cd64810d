"""`compress quantize`"""

from functools import partial
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import (
    DataOption,
    JsonOption,
    MaxDropOption,
    MinIouOption,
    Missed,
    NameOption,
    OutOption,
    RecipeOption,
    SetOption,
    VersionOption,
    emit,
    floors,
    recipe_of,
    typed,
)
from compress.recipe import Recipe
from export.bundle import MODEL
from export.errors import UsageError, require


def command(
    model: Annotated[
        Path, typer.Argument(metavar="CKPT|MODEL.onnx", help="Checkpoint folder, or a float ONNX model from elsewhere.")
    ],
    data: DataOption,
    out: OutOption,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode", help="ptq (default): calibrate only; qat: then train, with the float parent as teacher."
        ),
    ] = None,
    max_drop: MaxDropOption = None,
    min_iou: MinIouOption = None,
    name: NameOption = None,
    version: VersionOption = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="What will serve: a CPU (auto: this one; vnni, avx2, arm), tensorrt, or openvino. The last two may "
            "compute in 16 bits what stays in float (quantize.half_floats). For another target than this machine's CPU "
            "nothing is timed, and whether INT8 is faster is not checked.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep INT8 even if not faster than its float parent.")] = False,
    analyze: Annotated[
        bool,
        typer.Option("--analyze", help="Report noise, mIoU and milliseconds per layer; no bundle is written."),
    ] = False,
    layout: Annotated[
        str | None, typer.Option("--layout", help="For MODEL.onnx: nchw or nhwc; default: found from its channels.")
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean", metavar="M[,M...]", help="For MODEL.onnx: subtracted from pixels scaled to 0 to 1; default: 0."
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option("--std", metavar="S[,S...]", help="For MODEL.onnx: divides the difference; default: 1."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="NAME", help="For MODEL.onnx: the tensor with its logits; default: detected."),
    ] = None,
    class_map: Annotated[
        str | None,
        typer.Option(
            "--class-map",
            metavar="CLASS[,CLASS...]",
            help="For MODEL.onnx: the class of classes.json that each logit stands for; default: in their order.",
        ),
    ] = None,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize a checkpoint, or an ONNX model from elsewhere, to INT8, and write a proven bundle.

    If --max-drop or --min-iou is missed, as few layers as necessary stay in float. The exit status is 1 if that does
    not help, or if the model is then no faster than in float.
    """
    require("torch", extra="train", purpose="compress quantize")
    if analyze and (mode is not None or max_drop is not None or min_iou or force or name or version):
        raise UsageError(
            "--analyze writes no bundle; leave out --mode, --max-drop, --min-iou, --name, --version, --force"
        )
    given = {"--layout": layout, "--mean": mean, "--std": std, "--output": output, "--class-map": class_map}
    unused = [option for option, value in given.items() if value is not None]
    if unused and model.suffix != ".onnx":
        raise UsageError(f"{model} is no file MODEL.onnx, which alone needs {' and '.join(unused)}; leave that out")
    chosen = recipe_of(
        recipe,
        settings,
        quantize__mode=mode,
        quantize__max_drop=max_drop,
        quantize__min_iou=floors(min_iou),
        export__name=name,
        export__version=version,
        quantize__target=target,
        quantize__force=force or None,
        quantize__onnx__layout=layout,
        quantize__onnx__mean=_numbers(mean, "--mean"),
        quantize__onnx__std=_numbers(std, "--std", positive=True),
        quantize__onnx__output=output,
        quantize__onnx__classes=_classes(class_map),
    )
    if analyze:
        _analyze(model, data, out, chosen, as_json=as_json)
    else:
        _quantize(model, data, out, chosen, as_json=as_json)


def _numbers(text: str | None, option: str, *, positive: bool = False) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or not all(isfinite(number) and (number > 0 or not positive) for number in numbers):
        kind = "numbers above 0" if positive else "numbers"
        raise typer.BadParameter(f"{text!r} is not a list of {kind}, such as 0.5,0.5,0.5", param_hint=option)
    return numbers


def _classes(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(map(str.strip, text.split(",")))
    if not all(names):
        raise typer.BadParameter(
            f"{text!r} is not a list of classes, such as background,road", param_hint="--class-map"
        )
    return names


def _quantize(model: Path, data: Path, out: Path, recipe: Recipe, *, as_json: bool) -> None:
    from compress.quantize import quantize
    from compress.steps import result_of

    with Missed() as missed:
        quantize(model, data, out, recipe)
    result = result_of(out)
    size_bytes = (out / MODEL).stat().st_size
    speedup = result["speedup"]
    faster = f"{speedup:.2f}x faster" if speedup >= 1 else f"{1 / speedup:.2f}x slower"
    speed = f"{faster} than its float parent"
    if not result["timed_for_target"]:
        speed = f"made for {result['target']}, which is not here: not timed there, {speedup:.2f}x on this CPU"
    emit(
        {**result, "size_bytes": size_bytes},
        f"{out}: {speed}, mIoU {result['miou_parent']:.4f} -> "
        f"{result['miou']:.4f} on the validation split, {size_bytes / 1e6:.2f} MB",
        as_json=as_json,
    )
    missed.reraise()


def _analyze(model: Path, data: Path, out: Path, recipe: Recipe, *, as_json: bool) -> None:
    from benchmarks.report.quantization.table import effects
    from benchmarks.report.quantization.write import MARKDOWN, write
    from benchmarks.report.table import for_terminal
    from compress.progress import show_table
    from compress.quantize import analyze

    analysis = analyze(model, data, out, recipe, write=partial(write, command=typed()))
    if not as_json:
        show_table(for_terminal(effects(analysis)))
    emit(analysis.model_dump(mode="json"), f"analysis: {out / MARKDOWN}", as_json=as_json)
