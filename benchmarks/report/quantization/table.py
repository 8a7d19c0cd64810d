"""What INT8 does to each layer, as a table for terminal and Markdown."""

from benchmarks.report.table import Table
from benchmarks.report.words import DASH, MINUS, miou, threads
from compress.sensitivity import InFloat, LayerEffect, QuantizationAnalysis


def effects(analysis: QuantizationAnalysis) -> Table:
    """Noise, and what the layer would gain and cost in float; the largest gain first."""

    def row(effect: LayerEffect) -> tuple[str, ...]:
        noise = DASH if effect.sqnr_db is None else f"{effect.sqnr_db:.1f}"
        readers = (DASH, DASH) if effect.with_readers is None else cells(effect.with_readers)
        return (effect.layer, effect.operator, noise, *cells(effect.alone), *readers)

    def cells(way: InFloat) -> tuple[str, str]:
        return signed(analysis.won(way), 4), signed(way.lost_ms, 2)

    height, width = analysis.size
    headers = ("layer", "operator", "SQNR dB", "alone: mIoU", "ms", "with readers: mIoU", "ms")
    caption = (
        f"What a layer in float changes, alone and with the layers that read it: mIoU against "
        f"{miou(analysis.miou_int8)} (all in float {miou(analysis.miou_float)}) on {analysis.images} validation "
        f"images, milliseconds against all in INT8 in the same run ({height}x{width}, {threads(analysis.threads)})"
    )
    return Table(caption, headers, tuple(map(row, analysis.most_won_first())))


def signed(value: float, digits: int) -> str:
    """`value` with its sign, and a real minus."""
    return f"{value:+.{digits}f}".replace("-", MINUS)
