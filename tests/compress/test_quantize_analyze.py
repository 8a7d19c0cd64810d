"""`compress quantize --analyze`: each layer is tried in float by itself; results are saved at once, and reported."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from support.networks import exported, random_unet
from support.recipes import TINY_SETTINGS

from benchmarks.report.quantization.write import write
from compress.checkpoint import Checkpoint
from compress.cli.main import main
from compress.quantize import analyze
from compress.quantize.effects import sqnr_db
from compress.quantize.judge import Judge
from compress.quantize.ptq import Quantizer
from compress.recipe import Recipe
from compress.sensitivity import QuantizationAnalysis
from compress.steps import read_record
from export.errors import MissingExtraError
from export.images import U8
from export.runtime import OnnxModel
from export.scoring import Score
from export.to_onnx import with_outputs

LAYERS = [
    *("stem.0", "stem.3", "down.0.0", "down.0.3", "down.1.0", "down.1.3", "node_cat", "up.0.block.0", "up.0.block.3"),
    *("node_cat_1", "up.1.block.0", "up.1.block.3", "head"),
]
WRITE = partial(write, command="compress quantize it again")
MINMAX = Recipe.load(None, [*TINY_SETTINGS, "quantize.calibration=minmax"])


@pytest.fixture(scope="module")
def analyzed(
    trained: Checkpoint, discs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, QuantizationAnalysis]:
    out = tmp_path_factory.mktemp("runs") / "analysis"
    return out, analyze(trained.path, discs, out, MINMAX, write=WRITE)


def test_each_layer_is_in_float_alone_and_with_its_readers(analyzed: tuple[Path, QuantizationAnalysis]) -> None:
    out, analysis = analyzed
    assert [effect.layer for effect in analysis.layers] == LAYERS
    assert {effect.operator for effect in analysis.layers} == {"Conv", "Concat"}
    for effect in analysis.layers:
        assert effect.alone.layers == (effect.layer,)
        assert effect.sqnr_db is None or 5 < effect.sqnr_db < 80
        assert all(way.milliseconds > 0 and way.milliseconds_int8 > 0 for way in effect.ways)
    by_name = {effect.layer: effect for effect in analysis.layers}
    pooled, last = by_name["stem.3"].with_readers, by_name["head"].with_readers
    assert pooled is not None
    assert pooled.layers == ("stem.3", "down.0.0", "node_cat_1")
    assert last is None
    assert analysis.images == 5
    assert analysis.calibration == "minmax"
    assert json.loads((out / "layers.json").read_text()) == analysis.model_dump(mode="json")


def test_noise_is_that_of_the_reference_evaluator() -> None:
    """The signal-to-noise ratio by its formula, from what ONNX's own evaluator computes at the end of a layer."""
    graph = with_outputs(exported(random_unet()), "mask")
    image: U8 = np.kron(np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8), np.ones((8, 8), np.uint8))
    quantizer = Quantizer(graph, iter([image[..., None]]), target="vnni")
    int8 = quantizer.quantized("minmax")
    layer = quantizer.layers[3]

    def seen(model: onnx.ModelProto, tensor: str) -> np.ndarray[Any, Any]:
        tapped = onnx.ModelProto()
        tapped.CopyFrom(model)
        del tapped.graph.output[:]
        tapped.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
        return ReferenceEvaluator(tapped).run(None, {"image": image[None, ..., None]})[0]  # type: ignore[no-any-return]

    exact = seen(quantizer.parent, layer.result)
    rounded = seen(int8.graph, f"{layer.result}_DequantizeLinear_Output")
    expected = 10 * np.log10(np.square(exact).sum() / np.square(exact - rounded).sum())
    found = sqnr_db(int8, [layer], [image[..., None]])
    assert found == {layer.name: pytest.approx(expected, abs=0.3)}


def test_it_is_to_be_read(analyzed: tuple[Path, QuantizationAnalysis]) -> None:
    out, analysis = analyzed
    text = (out / "layers.md").read_text()
    rows = [line.split("|")[1].strip().replace("\\", "") for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == [effect.layer for effect in analysis.most_won_first()]
    won = [analysis.most_won(effect) for effect in analysis.most_won_first()]
    assert won == sorted(won, reverse=True)
    assert (out / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert "![mIoU gained when a layer stays in float, 13 layers. Most is gained by" in text
    assert "compress quantize it again" in text


def test_without_matplotlib_the_picture_is_left_out_with_a_note(
    analyzed: tuple[Path, QuantizationAnalysis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> Any:
        raise MissingExtraError("it needs matplotlib, which is not installed")

    monkeypatch.setattr("benchmarks.report.plots._matplotlib", missing)
    WRITE(analyzed[1], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["layers.md"]
    assert "No layers.png: it needs matplotlib" in (tmp_path / "layers.md").read_text().replace("\\", "")


def test_interrupted_it_goes_on_and_finished_it_is_up_to_date(
    analyzed: tuple[Path, QuantizationAnalysis],
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out, scored = tmp_path / "out", 0
    real = Judge.score

    def score(judge: Judge, model: OnnxModel) -> Score:
        nonlocal scored
        scored += 1
        if scored == 6:
            raise KeyboardInterrupt
        return real(judge, model)

    monkeypatch.setattr(Judge, "score", score)
    with pytest.raises(KeyboardInterrupt):
        analyze(trained.path, discs, out, MINMAX, write=WRITE)
    assert not out.exists()
    again = analyze(trained.path, discs, out, MINMAX, write=WRITE)
    ways = sum(len(effect.ways) for effect in again.layers)
    # The graph all in INT8 is scored again; two layers, each in both ways, were done already.
    assert scored - 6 == 1 + ways - 4
    assert [(way.layers, way.miou) for effect in again.layers for way in effect.ways] == [
        (way.layers, way.miou) for effect in analyzed[1].layers for way in effect.ways
    ]
    capfd.readouterr()
    assert analyze(trained.path, discs, out, MINMAX) == again
    assert "is up to date" in capfd.readouterr().err
    assert (read_record(out) or {})["step"] == "quantization-analysis"


@pytest.mark.slow
def test_the_command(
    trained: Checkpoint, discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["compress", "quantize", trained.path, "--data", discs, "--out", tmp_path / "out", "--analyze"]
    # A narrower terminal would truncate the table's headers.
    monkeypatch.setenv("COLUMNS", "140")

    def call(*more: str) -> tuple[int, str, str]:
        settings = ["--set", "quantize.calibration=minmax", "--set", "quantize.rewrites=false"]
        monkeypatch.setattr("sys.argv", [*map(str, words), *settings, *more])
        with pytest.raises(SystemExit) as leaving:
            main()
        return int(leaving.value.code or 0), *capfd.readouterr()

    status, out, _ = call()
    assert status == 0
    assert "SQNR dB" in out
    assert f"analysis: {tmp_path / 'out' / 'layers.md'}" in out
    status, out, err = call("--json")
    assert status == 0
    assert "is up to date" in err
    assert [effect["layer"] for effect in json.loads(out)["layers"]] == LAYERS
    status, _, err = call("--mode", "qat")
    assert status == 2
    assert "--analyze writes no bundle; leave out --mode, --max-drop, --min-iou, --name, --version, --force" in err
