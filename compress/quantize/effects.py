"""What INT8 does to each layer: the noise that it adds, and what leaving it in float would win and cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.progress import task
from compress.quantize.graph import tapped
from compress.quantize.judge import Judge, model_of
from compress.quantize.layers import Layer
from compress.quantize.ptq import Quantized, Quantizer
from compress.sensitivity import InFloat, LayerEffect, QuantizationAnalysis
from compress.settings.quantize import Calibration
from compress.steps import StepFolder
from export.files import write_json
from export.images import U8
from export.runtime import OnnxModel
from export.scoring import Score

LAYERS = "layers.json"
ROUNDS = 15
_DEQUANTIZED = "_DequantizeLinear_Output"
"""What the quantizer appends to the name of a tensor that it has rounded."""
_TRIED = "left in float to see what it wins"


@dataclass(frozen=True)
class Effects:
    """Measures the layers of `quantizer` one by one, and saves each result at once."""

    step: StepFolder
    judge: Judge
    quantizer: Quantizer
    calibration: Calibration
    parent: str
    """Folder of the checkpoint, or file of the ONNX model."""

    def measure(self, int8: Quantized, score_int8: Score, images_HWC: Sequence[U8]) -> QuantizationAnalysis:
        """`int8` has no layer in float and scored `score_int8`; noise is measured on `images_HWC`, which fit it."""
        analysis = self._begun(score_int8)
        done = {effect.layer for effect in analysis.layers}
        left = [layer for layer in self.quantizer.layers if layer.name not in done]
        noise = sqnr_db(int8, left, images_HWC)
        whole = model_of(int8.graph)
        with task("layers", len(self.quantizer.layers), done=len(done)) as bar:
            for layer in left:
                effect = LayerEffect(
                    layer=layer.name,
                    operator=layer.operator,
                    sqnr_db=noise[layer.name],
                    alone=self._in_float(whole, layer.name),
                    with_readers=self._in_float(whole, layer.name, *layer.readers) if layer.readers else None,
                )
                analysis = analysis.model_copy(update={"layers": (*analysis.layers, effect)})
                write_json(self.step.path / LAYERS, analysis.model_dump(mode="json"))
                bar.advance(1, mIoU=effect.alone.miou)
        return analysis

    def _in_float(self, whole: OnnxModel, *layers: str) -> InFloat:
        made = model_of(self.quantizer.quantized(self.calibration, dict.fromkeys(layers, _TRIED)).graph)
        score = self.judge.score(made)
        taken = self.judge.times(ROUNDS, whole=whole, made=made)
        return InFloat(
            layers=layers,
            miou=score.miou,
            iou_per_class=score.iou_per_class,
            milliseconds=taken["made"].median,
            milliseconds_int8=taken["whole"].median,
        )

    def _begun(self, score_int8: Score) -> QuantizationAnalysis:
        """What an earlier run left, or nothing yet."""
        saved = self.step.decided(LAYERS)
        if saved is not None:
            return QuantizationAnalysis.model_validate(saved)
        return QuantizationAnalysis(
            parent=self.parent,
            data=str(self.judge.dataset.path),
            images=len(self.judge.dataset.split("val")),
            calibration=self.calibration,
            miou_float=self.judge.parent_score.miou,
            miou_int8=score_int8.miou,
            iou_per_class_int8=score_int8.iou_per_class,
            size=self.judge.padded,
            threads=self.judge.parent.threads,
            layers=(),
        )


def sqnr_db(int8: Quantized, layers: Sequence[Layer], images_HWC: Sequence[U8]) -> dict[str, float | None]:
    """Signal to quantization noise of each layer's result, in decibels, over `images_HWC`; None where nothing is lost.

    The whole graph runs as written, so the noise of a layer includes that of the layers before it.
    """
    exact = [layer.result for layer in layers]
    written = {name for node in int8.graph.graph.node for name in node.output}
    rounded = [f"{name}{_DEQUANTIZED}" if f"{name}{_DEQUANTIZED}" in written else name for name in exact]
    signal, noise = np.zeros(len(layers)), np.zeros(len(layers))
    run, run8 = tapped(int8.parent, exact), tapped(int8.graph, rounded)
    for image in images_HWC:
        for i, (x, x8) in enumerate(zip(run(image), run8(image), strict=True)):
            signal[i] += _energy(x)
            noise[i] += _energy(x - x8)
    with np.errstate(divide="ignore"):
        found = 10 * np.log10(signal / noise)
    return {
        layer.name: float(value) if np.isfinite(value) else None for layer, value in zip(layers, found, strict=True)
    }


def _energy(values: NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())
