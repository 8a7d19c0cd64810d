"""`quantize`: a bundle that keeps its budget and gains time, or a refusal that says why."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from support.checkpoints import write_checkpoint
from support.networks import random_unet
from support.recipes import TINY_SETTINGS
from torch import nn

from benchmarks.ops.bench import bench
from compress import checkpoint
from compress.checkpoint import Checkpoint
from compress.data.evaluation import drawn_by_name
from compress.data.folder import open_dataset
from compress.quantize import quantize
from compress.quantize import quantize as quantize_function
from compress.quantize.judge import Judge
from compress.quantize.kernels import look_at_kernels
from compress.quantize.rewrites.folded import Folded
from compress.recipe import Recipe
from compress.steps import read_record
from export.bundle import Bundle, verify
from export.errors import BudgetMissedError, DatasetError, ParityError, UsageError, WorkFailedError
from export.images import U8
from export.manifest import FloatLayer
from export.parity import Kernels, Parity, int8_parity
from export.runtime import OnnxModel, optimised_graph
from export.scoring import Score
from export.timing import Samples

MODULE = "compress.quantize.quantize"
judge_module = import_module("compress.quantize.judge")


def recipe(*settings: str) -> Recipe:
    return Recipe.load(None, [*TINY_SETTINGS, *settings])


def patch(monkeypatch: pytest.MonkeyPatch, name: str, value: object, module: str = MODULE) -> None:
    """In the module, whose name in its package is that of its function."""
    monkeypatch.setattr(import_module(module), name, value)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Lets a test choose the milliseconds of parent and child."""

    def wind(parent: float, child: float) -> None:
        def fake(models: dict[str, Any], *, rounds: int) -> dict[str, Samples]:
            for run in models.values():
                run()
            return {"parent": Samples((parent,) * rounds), "child": Samples((child,) * rounds)}

        patch(monkeypatch, "interleaved", fake, "compress.quantize.judge")

    return wind


def interrupt(*_: object) -> Any:
    raise KeyboardInterrupt


def lose_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every INT8 graph is scored as if a third of its hits were misses."""
    real = Judge.score

    def score(judge: Judge, model: OnnxModel) -> Score:
        found = real(judge, model)
        hits = found.counts // 3 * np.eye(len(found.classes), dtype=np.int64)
        return Score(found.classes, found.images, found.counts - hits + np.roll(hits, 1, axis=2))

    monkeypatch.setattr(Judge, "score", score)


def test_a_bundle_is_whole_and_says_what_it_is(int8_bundle: Bundle, trained: Checkpoint, discs: Path) -> None:
    verify(int8_bundle.path)
    manifest = int8_bundle.manifest
    record = read_record(int8_bundle.path)
    assert record is not None
    result = record["result"]
    assert (manifest.precision, manifest.target, manifest.float_layers) == ("int8", "auto", ())
    assert manifest.accuracy is not None
    assert manifest.latency is not None
    assert (manifest.accuracy.split, manifest.accuracy.images) == ("val", 5)
    assert manifest.accuracy.miou == result["miou"]
    assert manifest.accuracy.miou_parent == result["miou_parent"]
    assert manifest.accuracy.miou_interval[0] <= result["miou"] <= manifest.accuracy.miou_interval[1]
    assert manifest.latency.milliseconds_parent is not None
    assert result["speedup"] == manifest.latency.milliseconds_parent / manifest.latency.milliseconds
    assert (manifest.latency.height, manifest.latency.width) == (48, 64)
    assert result["drop"] == pytest.approx(result["miou_parent"] - result["miou"])
    assert result["miou"] > 0.9
    assert manifest.parents["checkpoint"] == trained.weights_sha256
    assert manifest.parents["data"] == open_dataset(discs).fingerprint
    assert {"parity.json", "calibration.json", "latency.json", "step.json"} < manifest.files.keys()
    assert "path" not in manifest.recipe["data"]
    # Four bytes a weight become one; what is left is scales and shapes.
    assert int8_bundle.size_bytes < 0.6 * (trained.path / "weights.safetensors").stat().st_size


def test_int8_parity_was_proven_on_real_images(int8_bundle: Bundle) -> None:
    parity = json.loads((int8_bundle.path / "parity.json").read_text())
    assert parity["kind"] == "optimised-unoptimised"
    assert parity["images"] == "validation split"
    assert {case["batch"] for case in parity["cases"]} == {1, 2, 3, 8}
    assert len({(case["height"], case["width"]) for case in parity["cases"]}) == 3


def test_calibration_images_are_named_and_come_from_train(int8_bundle: Bundle, discs: Path) -> None:
    listed = json.loads((int8_bundle.path / "calibration.json").read_text())
    dataset = open_dataset(discs)
    assert listed["split"] == "train"
    assert listed["images"] == [sample.name for sample in drawn_by_name(dataset.train, 4)]
    assert set(listed["images"]) <= {sample.name for sample in dataset.train}
    assert not set(listed["images"]) & {sample.name for sample in (*dataset.val, *dataset.test)}
    golden = int8_bundle.manifest.golden.names
    assert [name.split("-", 1)[1] for name in golden] == listed["images"]


def test_what_is_drawn_by_name_does_not_depend_on_order_and_grows(discs: Path) -> None:
    train = open_dataset(discs).train
    assert drawn_by_name(train[::-1], 5) == drawn_by_name(train, 5)
    assert drawn_by_name(train, 6)[:5] == drawn_by_name(train, 5)
    assert len(drawn_by_name(train, 99)) == len(train)


def test_what_is_up_to_date_is_returned(
    int8_bundle: Bundle, trained: Checkpoint, discs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = quantize(trained.path, discs, int8_bundle.path, recipe())
    assert again == int8_bundle
    assert "is up to date" in capfd.readouterr().err


def test_a_missed_budget_keeps_the_bundle_and_is_told_every_time(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "int8"
    with monkeypatch.context() as patched:
        lose_accuracy(patched)
        with pytest.raises(BudgetMissedError) as first:
            quantize(trained.path, discs, out, recipe("quantize.max_drop=0.05"))
    assert first.value.exit_status == 1
    assert f"The best found is kept in {out}" in str(first.value)
    assert "mIoU is lost, 0.05 may be" in str(first.value)
    made = verify(out).bundle
    patch(monkeypatch, "_quantize", lambda *_: pytest.fail("it was quantized again"))
    with pytest.raises(BudgetMissedError) as second:
        quantize(trained.path, discs, out, recipe("quantize.max_drop=0.05"))
    assert str(second.value) == str(first.value)
    assert verify(out).bundle == made


def test_a_class_under_its_floor_misses_the_budget(trained: Checkpoint, discs: Path, int8_bundle: Bundle) -> None:
    with pytest.raises(BudgetMissedError, match=r"the IoU of disc is 0\.\d+, 1 is its floor"):
        quantize(trained.path, discs, int8_bundle.path.parent / "floor", recipe("quantize.min_iou={disc = 1.0}"))
    with pytest.raises(UsageError, match=r"min_iou names disk; the classes are background, disc"):
        quantize(trained.path, discs, int8_bundle.path.parent / "typo", recipe("quantize.min_iou={disk = 0.5}"))


def test_int8_that_is_not_faster_is_refused_unless_forced(
    trained: Checkpoint, discs: Path, tmp_path: Path, clock: Callable[[float, float], None]
) -> None:
    clock(4.0, 5.0)
    with pytest.raises(WorkFailedError, match=r"INT8 takes 5\.00 ms, its float parent 4\.00 ms.*--force"):
        quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=false"))
    assert not (tmp_path / "out").exists()
    made = quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=true"))
    assert made.manifest.latency is not None
    assert (made.manifest.latency.milliseconds, made.manifest.latency.milliseconds_parent) == (5.0, 4.0)


def test_a_busy_moment_does_not_decide_for_ever(
    trained: Checkpoint, discs: Path, tmp_path: Path, clock: Callable[[float, float], None]
) -> None:
    clock(4.0, 5.0)
    with pytest.raises(WorkFailedError, match="quantization gains nothing here"):
        quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=false"))
    clock(5.0, 4.0)
    made = quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=false"))
    assert made.manifest.latency is not None
    assert made.manifest.latency.milliseconds == 4.0


def test_int8_that_is_faster_needs_no_force(
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    clock: Callable[[float, float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock(9.0, 3.0)
    patch(monkeypatch, "instruction_set", lambda: "avx2", "compress.quantize.targets")
    made = quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=false", "quantize.target=avx2"))
    record = read_record(made.path)
    assert record is not None
    assert (record["result"]["speedup"], record["result"]["timed_for_target"]) == (3.0, True)
    assert record["result"]["seven_bit_weights"]
    assert made.manifest.target == "avx2"


def test_a_graph_that_is_optimised_wrongly_never_becomes_a_bundle(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import numpy_helper

    from compress.quantize.ptq import with_quantized_logits

    def other(graph: Any) -> Any:
        both, step = with_quantized_logits(graph)
        for tensor in both.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.int8 and array.ndim == 4:
                tensor.CopyFrom(numpy_helper.from_array(array // 2, tensor.name))
        return both, step

    patch(monkeypatch, "with_quantized_logits", other)
    with pytest.raises(ParityError, match="optimised-unoptimised parity does not hold") as raised:
        quantize(trained.path, discs, tmp_path / "out", recipe("quantize.calibration=minmax"))
    assert raised.value.exit_status == 1
    assert not (tmp_path / "out").exists()
    # What was found is told and kept, where nobody takes it for a bundle.
    assert re.search(r"mIoU 0\.\d{4} in float, 0\.\d{4} in INT8\. INT8 takes \d+\.\d\d ms", str(raised.value))
    kept = Path(str(raised.value).split("it is kept in ")[1].split(",")[0])
    assert OnnxModel(kept, threads=1).masks(np.zeros((1, 8, 8, 1), np.uint8)).shape == (1, 8, 8)
    assert json.loads((kept.parent / "parity.json").read_text())["cases"]
    assert not (kept.parent / "manifest.json").exists()


def test_masks_that_differ_though_no_kernel_errs_are_rounding_that_grew(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def grown(*given: Any, **named: Any) -> Parity:
        parity = int8_parity(*given, **named)
        return parity.model_copy(
            update={"cases": tuple(case.model_copy(update={"differing_pixels": 0.005}) for case in parity.cases)}
        )

    patch(monkeypatch, "int8_parity", grown)
    made = quantize(trained.path, discs, tmp_path / "out", recipe("quantize.calibration=minmax"))
    kernels = json.loads((made.path / "parity.json").read_text())["kernels"]
    assert kernels["count"] > 10
    assert kernels["steps"] <= 1
    assert "gives other masks than the graph as written; of " in capfd.readouterr().err

    def errs(model: onnx.ModelProto, images_NHWC: U8) -> Kernels:
        found = look_at_kernels(model, images_NHWC)
        assert found is not None
        return found.model_copy(update={"steps": 3})

    patch(monkeypatch, "look_at_kernels", errs)
    with pytest.raises(ParityError, match="errs: off by 3 of 255 steps"):
        quantize(trained.path, discs, tmp_path / "other", recipe("quantize.calibration=minmax"))


@pytest.mark.parametrize("outputs", ["logits", "both"])
def test_a_bundle_may_give_logits(trained: Checkpoint, discs: Path, tmp_path: Path, outputs: str) -> None:
    made = quantize(
        trained.path, discs, tmp_path / "out", recipe(f"export.outputs={outputs}", "export.golden=synthetic")
    )
    assert "logits" in {output.name for output in made.manifest.outputs}
    assert verify(made.path).golden_differing.keys() == {f"0{i}-synthetic{i}" for i in range(4)}


def test_a_dataset_of_other_classes_is_refused(discs: Path, tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "ckpt", random_unet(classes=2), classes=2, class_names=("disc", "background"))
    with pytest.raises(DatasetError, match=r"its classes are \['background', 'disc'\].*order counts"):
        quantize(made.path, discs, tmp_path / "out", recipe())


def test_a_checkpoint_is_not_replaced_by_its_bundle(trained: Checkpoint, discs: Path) -> None:
    with pytest.raises(UsageError, match=r"holds the result of another step \(train\)"):
        quantize_function(trained.path, discs, trained.path, recipe())
    assert (trained.path / "weights.safetensors").exists()


def spoil_one_tensor(network: nn.Module) -> set[str]:
    """One channel fires a thousand times too strong, and the layer that reads it makes up for it: the same answers, and
    a range in which 8 bits lose all the other channels. The names of both layers, as an analysis has them."""
    layers = list(network.get_submodule("up.1.block"))  # type: ignore[call-overload]
    norm, reader = layers[1], layers[3]
    with torch.no_grad():
        norm.weight[0] *= 1000
        norm.bias[0] *= 1000
        reader.weight[:, 0] /= 1000
    return {"up.1.block.0", "up.1.block.3"}


@pytest.fixture(scope="module")
def spoilt(trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A checkpoint with such a tensor, and the layers around it."""
    network = trained.network()
    names = spoil_one_tensor(network)
    folder = tmp_path_factory.mktemp("spoilt")
    checkpoint.save(folder, network, trained.card)
    return folder, names


BUDGET = ("quantize.calibration=minmax", "quantize.max_drop=0.01")


def test_the_layers_that_break_int8_stay_in_float(spoilt: tuple[Path, set[str]], discs: Path, tmp_path: Path) -> None:
    """Those two and no other; what they won and cost stands in the manifest."""
    path, names = spoilt
    made = quantize(path, discs, tmp_path / "out", recipe(*BUDGET))
    assert {left.layer for left in made.manifest.float_layers} == names
    first = made.manifest.float_layers[0].reason
    words = r"left in float for the accuracy budget: with up\.1\.block\.3 \+0\.\d{4} mIoU for [+-]\d+\.\d\d ms"
    assert re.fullmatch(words, first)
    analysis = json.loads((made.path / "layers.json").read_text())
    assert analysis["miou_float"] - analysis["miou_int8"] > 0.01
    record = (read_record(made.path) or {})["result"]
    assert record["drop"] <= 0.01
    assert record["float_layers"] == [left.model_dump() for left in made.manifest.float_layers]
    verify(made.path)


def test_a_killed_search_goes_on_where_it_was(
    spoilt: tuple[Path, set[str]], discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = 0
    real = Judge.score

    def score(judge: Judge, model: OnnxModel) -> Score:
        nonlocal scored
        scored += 1
        if scored == 6:
            raise KeyboardInterrupt
        return real(judge, model)

    monkeypatch.setattr(Judge, "score", score)
    with pytest.raises(KeyboardInterrupt):
        quantize(spoilt[0], discs, tmp_path / "out", recipe(*BUDGET))
    made = quantize(spoilt[0], discs, tmp_path / "out", recipe(*BUDGET))
    assert {layer.layer for layer in made.manifest.float_layers} == spoilt[1]
    layers = json.loads((made.path / "layers.json").read_text())["layers"]
    ways = sum(1 + (layer["with_readers"] is not None) for layer in layers)
    tried = len(json.loads((made.path / "float_layers.json").read_text()))
    # All in INT8, and two layers in both ways, were done. Again all in INT8, the other ways, sets, and what leaves.
    assert scored - 6 == 1 + (ways - 4) + tried + 1


def test_a_floor_that_nothing_reaches_keeps_what_came_nearest(
    spoilt: tuple[Path, set[str]], discs: Path, tmp_path: Path
) -> None:
    with pytest.raises(BudgetMissedError, match=r"the IoU of disc is 0\.\d+, 1 is its floor"):
        quantize(spoilt[0], discs, tmp_path / "out", recipe(*BUDGET, "quantize.min_iou.disc=1"))
    record = (read_record(tmp_path / "out") or {})["result"]
    analysis = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert record["miou"] > analysis["miou_int8"]


def test_layers_in_float_never_cost_all_that_was_gained(
    spoilt: tuple[Path, set[str]],
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Here all in float takes 3.5 ms, all in INT8 1 ms, and each convolution in float 1 ms more. The floor is out of
    reach, so the search goes on after the two that break INT8; a third is passed over each time."""
    in_float: dict[int, int] = {}
    real: Callable[[onnx.ModelProto], OnnxModel] = judge_module.model_of

    def model_of(graph: onnx.ModelProto) -> OnnxModel:
        stored = {tensor.name for tensor in graph.graph.initializer}
        model = real(graph)
        in_float[id(model)] = sum(node.op_type == "Conv" and node.input[1] in stored for node in graph.graph.node)
        return model

    def times(_: Judge, rounds: int, **models: OnnxModel) -> dict[str, Samples]:
        taken = {name: 3.5 if name == "parent" else 1 + in_float.get(id(model), 0) for name, model in models.items()}
        return {name: Samples((milliseconds,) * rounds) for name, milliseconds in taken.items()}

    patch(monkeypatch, "model_of", model_of, "compress.quantize.fallback")
    monkeypatch.setattr(Judge, "times", times)
    unreachable = recipe(*BUDGET, "quantize.force=false", "quantize.min_iou.disc=1")
    with pytest.raises(BudgetMissedError, match=r"the IoU of disc is 0\.\d+, 1 is its floor"):
        quantize(spoilt[0], discs, tmp_path / "out", unreachable)
    left = {left.layer for left in verify(tmp_path / "out").bundle.manifest.float_layers}
    assert left >= spoilt[1]
    assert all("node_cat" in name for name in left - spoilt[1])
    tried = json.loads((tmp_path / "out" / "float_layers.json").read_text())
    assert any(one["milliseconds"] > one["milliseconds_parent"] for one in tried)
    assert "4.00 ms: no faster than all in float, passed over" in capfd.readouterr().err


def test_equalised_they_need_not(
    spoilt: tuple[Path, set[str]],
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What breaks INT8 is spread over both layers, and nothing stays in float. Killed after the choice, the step
    goes on with it."""
    wanted = recipe(*BUDGET, "quantize.equalise=auto")
    with monkeypatch.context() as killed:
        patch(killed, "parity_images", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quantize(spoilt[0], discs, tmp_path / "out", wanted)
    found = json.loads(next(tmp_path.rglob("equalisation_choice.json")).read_text())
    assert found["with"] > found["without"] + 0.01
    words = f"channels equalised: mIoU {found['with']:.4f} instead of {found['without']:.4f}, kept"
    assert words in capfd.readouterr().err
    made = quantize(spoilt[0], discs, tmp_path / "out", wanted)
    assert words in capfd.readouterr().err
    assert made.manifest.float_layers == ()
    assert "equalisation_choice.json" in made.manifest.files
    record = (read_record(made.path) or {})["result"]
    assert (record["equalised"], record["equalisation"], record["miou"]) == (True, found, found["with"])
    assert record["drop"] <= 0.01


def test_biases_are_corrected_where_that_keeps_more(
    trained: Checkpoint, discs: Path, tmp_path: Path, int8_bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    """By force, and by what was measured: the record says which, and the line that is printed."""

    def biases(bundle: Bundle) -> list[bytes]:
        stored = onnx.load(str(bundle.model_path)).graph.initializer
        return [tensor.raw_data for tensor in stored if tensor.data_type == onnx.TensorProto.INT32 and tensor.dims]

    calibration = f"quantize.calibration={(read_record(int8_bundle.path) or {})['result']['calibration']}"
    plain, forced = biases(int8_bundle), recipe(calibration, "quantize.bias_correction=true")
    made = quantize(trained.path, discs, tmp_path / "forced", forced)
    record = (read_record(made.path) or {})["result"]
    assert record["bias_corrected"] is True
    assert biases(made) != plain
    found = record["bias_correction"]
    assert found["with"] == record["miou"]
    assert found["without"] == (read_record(int8_bundle.path) or {})["result"]["miou"]
    capfd.readouterr()
    made = quantize(trained.path, discs, tmp_path / "auto", recipe(calibration, "quantize.bias_correction=auto"))
    record = (read_record(made.path) or {})["result"]
    kept = found["with"] > found["without"]
    assert (record["bias_corrected"], record["bias_correction"]) == (kept, found)
    assert record["miou"] == max(found.values())
    assert (biases(made) != plain) == kept
    words = f"{found['with']:.4f} instead of {found['without']:.4f}, {'kept' if kept else 'not kept'}"
    assert f"biases corrected: mIoU {words}" in capfd.readouterr().err


@pytest.mark.parametrize("target", ["arm", "avx2"])
def test_a_bundle_for_another_processor_is_not_judged_by_the_clock_of_this_one(
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    clock: Callable[[float, float], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    target: str,
) -> None:
    """No operator is timed in other forms, and a gain is not asked for."""
    clock(4.0, 5.0)
    patch(monkeypatch, "instruction_set", lambda: "amx", "compress.quantize.targets")
    patch(monkeypatch, "Rewriter", lambda *_: pytest.fail("its clock was asked"), "compress.quantize.workbench")
    settings = f"quantize.target={target}", "quantize.force=false", "quantize.rewrites=true"
    made = quantize(trained.path, discs, tmp_path / "out", recipe(*settings, "quantize.calibration=minmax"))
    record = (read_record(made.path) or {})["result"]
    assert (record["timed_for_target"], record["speedup"]) == (False, 0.8)
    assert (made.manifest.target, made.manifest.float_layers) == (target, ())
    assert f"made for {target}, and this machine" in capfd.readouterr().err


def test_a_bundle_of_another_kind_of_machine_is_not_up_to_date(
    int8_bundle: Bundle, trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forms, and the bits of its weights, are those of the machine that `auto` was."""
    moved = tmp_path / int8_bundle.path.name
    shutil.copytree(int8_bundle.path, moved)
    patch(monkeypatch, "_quantize", interrupt)
    assert quantize(trained.path, discs, moved, recipe()).manifest == int8_bundle.manifest
    patch(monkeypatch, "instruction_set", lambda: "abacus", "compress.quantize.workbench")
    with pytest.raises(KeyboardInterrupt):
        quantize(trained.path, discs, moved, recipe())


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_the_floor_of_a_class_that_no_image_shows_is_refused_at_once(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    real = Judge.parent_score

    def without_discs(judge: Judge) -> Score:
        found = real.fget(judge)  # type: ignore[attr-defined]
        return Score(found.classes, found.images, found.counts * np.array([[1, 0], [0, 0]]))

    monkeypatch.setattr(Judge, "parent_score", property(without_discs))
    patch(monkeypatch, "Quantizer", lambda *_, **__: pytest.fail("it was calibrated"), "compress.quantize.workbench")
    with pytest.raises(UsageError, match=r"no validation image shows disc, so its floor of 0\.5 cannot be judged"):
        quantize(trained.path, discs, tmp_path / "out", recipe("quantize.min_iou.disc=0.5", f"quantize.mode={mode}"))


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_a_bundle_for_another_runtime_is_proven_and_verified_here(
    trained: Checkpoint, discs: Path, tmp_path: Path, clock: Callable[[float, float], None], target: str
) -> None:
    """However long it takes here, which says nothing of there: it is not refused, and the record says so."""
    clock(4.0, 5.0)
    made = quantize(
        trained.path,
        discs,
        tmp_path / "out",
        recipe(f"quantize.target={target}", "quantize.force=false", "quantize.calibration=minmax"),
    )
    assert max(verify(made.path).golden_differing.values()) == 0
    assert (made.manifest.target, made.manifest.precision, made.manifest.float_layers) == (target, "int8", ())
    record = (read_record(made.path) or {})["result"]
    assert (record["target"], record["timed_for_target"], record["speedup"]) == (target, False, 0.8)
    assert record["miou"] > 0.9
    kinds = {
        onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        for tensor in onnx.load(made.model_path).graph.initializer
    }
    assert (np.dtype(np.uint8) in kinds) == (target == "openvino")


def test_a_first_layer_that_is_faster_in_float_stays_so_and_all_say_why(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest, the record, and `compress bench ops`."""

    def fake(models: dict[str, Any], *, rounds: int) -> dict[str, Samples]:
        times = {"plain": 5.0, "rewritten": 4.0, "parent": 9.0, "child": 4.0}
        return {name: Samples((times[name],) * rounds) for name in models}

    patch(monkeypatch, "interleaved", fake, "compress.quantize.judge")
    monkeypatch.setattr(Judge, "kernel_times", lambda _, graphs: {name: {} for name in graphs})
    # One form for all: putting in and timing the others takes longer than all else here.
    patch(monkeypatch, "integer_forms", lambda n: (Folded(2, True, n),), "compress.quantize.rewrites.rewriter")
    made = quantize(
        trained.path, discs, tmp_path / "out", recipe("quantize.rewrites=true", "quantize.calibration=minmax")
    )
    verify(made.path)
    why = "faster in float: the graph takes 4.00 ms, with it in INT8 5.00 ms"
    assert made.manifest.float_layers[0] == FloatLayer(layer="stem.0", reason=why)
    stem = (read_record(made.path) or {})["result"]["stem"]
    assert (stem["layer"], stem["form"]) == ("stem.0", "float")
    assert stem["graph_ms"] == {"int8": 5.0, "float": 4.0}
    assert set(stem["layer_ms"]) == {"plain", "2 columns read and made at once"}
    report = bench([made.path], threads=1, runs=1, peak=False, command="compress bench ops it")
    assert (why, "manifest") in {(node.reason, node.told_by) for node in report.bundles[0].floats}
    assert "stem.0" not in report.bundles[0].not_in_float


def test_signed_activations_are_not_trained(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    wrong = recipe("quantize.mode=qat", "quantize.target=tensorrt")
    with pytest.raises(UsageError, match="--for tensorrt takes signed ones; use --mode ptq"):
        quantize(trained.path, discs, tmp_path / "out", wrong)
    assert not list(tmp_path.iterdir())


def test_calibration_is_chosen_by_what_it_keeps(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = quantize(trained.path, discs, tmp_path / "out", recipe())
    found = json.loads((made.path / "calibration_choice.json").read_text())
    assert list(found) == ["minmax", "mse", "percentile", "entropy"]
    record = (read_record(made.path) or {})["result"]
    assert record["calibration"] == max(found, key=lambda method: found[method])
    assert record["miou"] == max(found.values())
    assert record["calibrations"] == found
    assert f"calibration by {record['calibration']}: mIoU minmax " in capfd.readouterr().err


def test_calibration_is_chosen_once(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that is killed after the choice goes on with it, whatever a second look would say."""
    with monkeypatch.context() as killed:
        patch(killed, "parity_images", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quantize(trained.path, discs, tmp_path / "out", recipe())
    choice = next(tmp_path.rglob("calibration_choice.json"))
    figures = json.loads(choice.read_text())
    choice.write_text(json.dumps({**figures, "entropy": max(figures.values()) + 0.001}))
    made = quantize(trained.path, discs, tmp_path / "out", recipe())
    assert (read_record(made.path) or {})["result"]["calibration"] == "entropy"


def test_a_picture_that_is_scored_cannot_calibrate(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    """By what it shows: it has another name, and its file other bytes."""
    shutil.copytree(discs, tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    shown, scored = dataset.train[0], dataset.val[0]
    Image.open(scored.image).save(shown.image, compress_level=0)
    shutil.copy(scored.mask, shown.mask)
    assert shown.image.read_bytes() != scored.image.read_bytes()
    with pytest.raises(DatasetError, match="the same picture in several splits"):
        quantize(trained.path, tmp_path / "data", tmp_path / "out", recipe())


def test_training_beats_calibration_where_that_loses(
    spoilt: tuple[Path, set[str]], discs: Path, tmp_path: Path
) -> None:
    learned = ("quantize.mode=qat", "quantize.finetune.epochs=12", "quantize.finetune.learning_rate=0.003")
    short = ("quantize.finetune.batch_size=4", "quantize.finetune.ema_decay=0.8", "quantize.max_drop=0.05")
    made = quantize(spoilt[0], discs, tmp_path / "out", recipe("quantize.calibration=minmax", *learned, *short))
    record = (read_record(made.path) or {})["result"]
    assert record["mode"] == "qat"
    assert record["miou"] == record["miou_qat"] > record["miou_ptq"] + 0.01
    # Fake-quantized in torch and for real in the runtime: the same network.
    assert abs(record["qat"]["miou"] - record["miou_qat"]) < 0.003
    assert not (made.path / ".scratch").exists()
    verify(made.path)
    # The same operators as calibrated.
    calibrated = quantize(
        spoilt[0], discs, tmp_path / "ptq", recipe("quantize.calibration=minmax", "quantize.max_drop=1")
    )
    ran = [
        Counter(node.op_type for node in onnx.load_from_string(optimised_graph(one.model_path.read_bytes())).graph.node)
        for one in (made, calibrated)
    ]
    assert ran[0] == ran[1]


def test_training_that_does_not_help_leaves_what_was_calibrated(
    trained: Checkpoint, discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ruined = ("quantize.mode=qat", "quantize.finetune.epochs=1", "quantize.finetune.learning_rate=5")
    made = quantize(trained.path, discs, tmp_path / "out", recipe(*ruined, "quantize.finetune.ema_decay=0"))
    record = (read_record(made.path) or {})["result"]
    assert record["mode"] == "ptq"
    assert record["miou"] == record["miou_ptq"] > record["miou_qat"]
    assert "training did not help: the graph leaves as it was calibrated" in capfd.readouterr().err
