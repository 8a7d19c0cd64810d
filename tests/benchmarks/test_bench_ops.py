"""`compress bench ops`: every node that runs, its time, its layer, and the reason where it runs in float."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from support.bundles import tiny_bundle
from support.networks import Mobile, exported, random_unet, seeded
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ops import peak
from benchmarks.report.ops.results import BundleOps, NodeTime, OpsReport
from compress.cli.main import main
from compress.quantize.ptq import Quantizer
from export.bundle import Bundle
from export.images import U8
from export.machine import Machine
from export.manifest import FloatLayer, Latency
from export.to_onnx import with_outputs

Cli = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).resolve().parents[2]
SLOW = pytest.mark.slow
SIZE = (48, 32)
FLAGS = ("--size", "48x32", "--runs", 3, "--threads", 1, "--no-peak", "--json")

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": random_unet,
    "mobile": lambda: seeded(Mobile),
    "transposed": lambda: random_unet(upsampling="transposed"),
    "bilinear": lambda: random_unet(upsampling="bilinear"),
}
SOME = ["unet", *(pytest.param(name, marks=SLOW) for name in NETWORKS if name != "unet")]
PRECISIONS = ["fp32", "int8"]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Calls the program in this process; returns status, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", ["compress", "bench", "ops", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            main()
        out, err = capfd.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, out, err

    return run


def report_of(cli: Cli, *words: object) -> OpsReport:
    status, out, err = cli(*words)
    assert status == 0, err
    return OpsReport.model_validate_json(out)


def taken_apart(cli: Cli, *words: object) -> BundleOps:
    return report_of(cli, *words, *FLAGS).bundles[0]


def pictures() -> Iterator[U8]:
    rng = np.random.default_rng(0)
    for _ in range(4):
        yield np.kron(rng.integers(0, 256, (6, 4), dtype=np.uint8), np.ones((8, 8), np.uint8))[..., None]


def quantized(network: str) -> tuple[onnx.ModelProto, tuple[FloatLayer, ...]]:
    graph = with_outputs(exported(NETWORKS[network]()), "mask")
    made = Quantizer(graph, pictures(), target="vnni").quantized("minmax")
    return made.graph, made.float_layers


def bundle_of(path: Path, graph: onnx.ModelProto, **manifest: Any) -> Bundle:
    return tiny_bundle(path, graph=graph, channels=1, size_multiple=16, **manifest)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Bundle]:
    """Makes the bundle of a network in a precision, once for all tests."""
    folder = tmp_path_factory.mktemp("bundles")
    known: dict[tuple[str, str], Bundle] = {}

    def make(network: str, precision: str) -> Bundle:
        key = network, precision
        if key not in known:
            path = folder / f"{network}-{precision}"
            if precision == "fp32":
                known[key] = bundle_of(path, with_outputs(exported(NETWORKS[network]()), "mask"), name=path.name)
            else:
                graph, layers = quantized(network)
                known[key] = bundle_of(path, graph, precision="int8", float_layers=layers, name=path.name)
        return known[key]

    return make


def written_by_the_runtime(bundle: Bundle, folder: Path) -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(str(bundle.model_path), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Every tensor that the nodes of a graph give for an image: the graph runs with all of them as outputs."""
    every = onnx.ModelProto()
    every.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output if name]
    del every.graph.output[:]
    every.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(every.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = np.zeros((1, *SIZE, 1), np.uint8)
    return {"image": image, **dict(zip(names, session.run(None, {"image": image}), strict=True))}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", SOME)
def test_the_nodes_are_those_of_the_graph_that_the_runtime_wrote(
    cli: Cli, made: Callable[[str, str], Bundle], tmp_path: Path, network: str, precision: str
) -> None:
    bundle = made(network, precision)
    graph = written_by_the_runtime(bundle, tmp_path)
    found = taken_apart(cli, bundle.path)
    arrays = tensors(graph)
    constants = {tensor.name for tensor in graph.graph.initializer}

    def kind(node: onnx.NodeProto) -> str:
        touched = [arrays[name] for name in (*node.input, *node.output) if name and name not in constants]
        in_float = any(array.dtype.kind == "f" and array.ndim > 1 for array in touched)
        return "float" if in_float or node.op_type in ("QuantizeLinear", "DequantizeLinear") else "integer"

    # Nodes that the runtime adds are numbered differently each time.
    added = {node.name for node in graph.graph.node if re.match("Reorder|Reshape|Transpose", node.name)}
    expected = Counter(
        ("" if node.name in added else node.name, node.op_type, arrays[node.output[0]].shape, kind(node))
        for node in graph.graph.node
    )
    assert (
        Counter((node.name if node.layer else "", node.op, node.output, node.kind) for node in found.nodes) == expected
    )


def test_nodes_without_a_name_are_told_apart(cli: Cli, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    graph = written_by_the_runtime(bundle, tmp_path)
    found = taken_apart(cli, bundle.path)
    assert len({node.name for node in found.nodes}) == len(found.nodes)
    assert Counter(node.op for node in found.nodes) == Counter(node.op_type for node in graph.graph.node)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", SOME)
def test_multiplications_are_those_that_torch_counts(
    cli: Cli, made: Callable[[str, str], Bundle], network: str, precision: str
) -> None:
    """Layer by layer, whatever the runtime called them and however many channels it added to fill its blocks."""
    net = NETWORKS[network]()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(2, 1, *SIZE))
    by_module = {name.partition(".")[2]: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    modules = {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)}
    found = taken_apart(cli, made(network, precision).path, "--batch", 2)
    rows = {node.layer: node.macs for node in found.nodes if node.macs is not None}
    assert rows == {name: by_module[name] for name in modules}
    assert found.macs == counter.get_total_flops() // 2
    assert found.nodes[-1].output == (2, *SIZE)


def test_times_are_medians_and_add_up(cli: Cli, made: Callable[[str, str], Bundle]) -> None:
    found = taken_apart(cli, made("unet", "int8").path)
    for node in found.nodes:
        assert len(node.samples_ms) == 3
        assert node.milliseconds == median(node.samples_ms)
        assert node.share == pytest.approx(node.milliseconds / found.nodes_ms)
        assert (node.gmacs_per_s is None) == (node.macs is None)
    assert found.nodes_ms == pytest.approx(sum(node.milliseconds for node in found.nodes))
    assert found.profiled_ms == pytest.approx(
        median(sum(node.samples_ms[run] for node in found.nodes) for run in range(3))
    )
    assert len(found.whole_ms.samples) == 3

    for row in found.operators:
        members = [node for node in found.nodes if (node.op, node.kind) == (row.op, row.kind)]
        assert row.nodes == len(members)
        assert row.milliseconds == pytest.approx(sum(node.milliseconds for node in members))
    assert sum(row.nodes for row in found.operators) == len(found.nodes)
    assert sum(row.share for row in found.operators) == pytest.approx(1)
    times = [row.milliseconds for row in found.operators]
    assert times == sorted(times, reverse=True)

    convolutions = [node for node in found.nodes if node.macs is not None]
    assert found.convolutions_ms == pytest.approx(sum(node.milliseconds for node in convolutions))
    assert found.convolutions_gmacs_per_s == pytest.approx(found.macs / found.convolutions_ms / 1e6)
    assert found.graph_gmacs_per_s == pytest.approx(found.macs / found.whole_ms.p50 / 1e6)


def test_of_the_default_network_nothing_is_float_between_image_and_mask(
    cli: Cli, made: Callable[[str, str], Bundle], tmp_path: Path
) -> None:
    bundle = made("unet", "int8")
    found = taken_apart(cli, bundle.path)
    assert [node.layer for node in found.floats] == [layer.layer for layer in bundle.manifest.float_layers] == []
    assert {array.dtype.kind for array in tensors(written_by_the_runtime(bundle, tmp_path)).values()} <= {"u", "i"}


@SLOW
@pytest.mark.parametrize(("network", "operator"), [("bilinear", "linear Resize"), ("transposed", "ConvTranspose")])
def test_what_the_manifest_names_is_what_runs_in_float(
    cli: Cli, made: Callable[[str, str], Bundle], tmp_path: Path, network: str, operator: str
) -> None:
    bundle = made(network, "int8")
    found = taken_apart(cli, bundle.path)
    told = {node.node: node.reason for node in found.floats if node.told_by == "manifest"}
    assert told == {layer.layer: layer.reason for layer in bundle.manifest.float_layers}
    assert len(told) == 2
    # The rest converts to float and back.
    assert {node.op for node in found.floats if node.told_by == "graph"} == {"QuantizeLinear", "DequantizeLinear"}

    silent = bundle_of(tmp_path / "silent", onnx.load(str(bundle.model_path)), precision="int8")
    untold = {node.node: node.reason for node in taken_apart(cli, silent.path).floats}
    assert untold.keys() == {node.node for node in found.floats}
    assert {untold[name] for name in told} == {f"no integer kernel for {operator}"}
    layers = [node.layer for node in found.floats if node.told_by == "manifest"]
    assert [reason for reason in untold.values() if reason.startswith("dequantizes for")] == [
        f"dequantizes for {layer}" for layer in layers
    ]


def without_pair_behind(graph: onnx.ModelProto, weight: str) -> onnx.ModelProto:
    """Remove the Q/DQ pair behind a convolution, so that whatever reads its result reads floats."""
    edited = onnx.ModelProto()
    edited.CopyFrom(graph)
    readers = {name: node for node in edited.graph.node for name in node.input}
    quantize = readers[weight]
    while quantize.op_type != "QuantizeLinear":
        quantize = readers[quantize.output[0]]
    dequantize = readers[quantize.output[0]]
    for node in edited.graph.node:
        node.input[:] = [quantize.input[0] if name == dequantize.output[0] else name for name in node.input]
    for node in (quantize, dequantize):
        edited.graph.node.remove(node)
    return edited


def test_a_stem_in_float_is_told_by_the_manifest_and_what_it_drags_along_by_the_graph(cli: Cli, tmp_path: Path) -> None:
    graph = without_pair_behind(quantized("unet")[0], "model.stem.0.weight_quantized")
    layers = (
        FloatLayer(layer="stem.0", reason="0.2 ms faster in float"),
        FloatLayer(layer="head", reason="it was once"),
    )
    bundle = bundle_of(tmp_path / "stem", graph, precision="int8", float_layers=layers)
    found = taken_apart(cli, bundle.path)
    why = {node.layer: (node.reason, node.told_by) for node in found.floats}
    assert why["stem.0"] == ("0.2 ms faster in float", "manifest")
    assert why["stem.3"][1] == "graph"
    assert re.match("not quantized: .* before the first integer layer", why["stem.3"][0])
    assert "head" not in why
    assert found.not_in_float == ("head",)
    status, out, _ = cli(bundle.path, *FLAGS[:-1])
    assert status == 0
    assert "0.2 ms faster in float (from the manifest)" in out
    assert "head: the manifest says that it was left in float, but nothing of that name runs in float here" in out


def test_an_end_in_float_is_told(cli: Cli, tmp_path: Path) -> None:
    graph = without_pair_behind(quantized("unet")[0], "model.head.weight_quantized")
    found = taken_apart(cli, bundle_of(tmp_path / "end", graph, precision="int8").path)
    why = {node.layer: node.reason for node in found.floats}
    assert {node.op for node in found.floats} >= {"ArgMax"}
    assert re.match("not quantized: .* after the last integer layer", why["head"])
    assert "stem.0" not in why


def test_a_float_bundle_is_no_finding(cli: Cli, made: Callable[[str, str], Bundle]) -> None:
    bundle = made("unet", "fp32")
    found = taken_apart(cli, bundle.path)
    assert found.floats == ()
    assert {node.kind for node in found.nodes if node.macs} == {"float"}
    _, out, _ = cli(bundle.path, *FLAGS[:-1])
    assert "unet-fp32 is a float bundle" in out


def test_bundles_stand_side_by_side_beside_the_peak_of_each_precision(
    cli: Cli, made: Callable[[str, str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak, "SIDES", (32, 64))
    paths = [made("unet", precision).path for precision in PRECISIONS]
    words = (*paths, "--size", "48x32", "--runs", 7, "--threads", 1)
    report = report_of(cli, *words, "--json")
    assert [bundle.name for bundle in report.bundles] == ["unet-fp32", "unet-int8"]
    assert {peak.precision: peak.op for peak in report.peaks} == {"fp32": "MatMul", "int8": "MatMulInteger"}
    for bundle in report.bundles:
        best = next(peak for peak in report.peaks if peak.precision == bundle.precision)
        assert [point.side for point in best.points] == [32, 64]
        speeds = [point.side**3 / min(point.samples_ms) / 1e6 for point in best.points]
        assert best.gmacs_per_s == pytest.approx(max(speeds))
        assert bundle.convolutions_gmacs_per_s is not None
        assert bundle.graph_gmacs_per_s is not None
        assert bundle.convolutions_of_peak == pytest.approx(bundle.convolutions_gmacs_per_s / best.gmacs_per_s)
        assert bundle.graph_of_peak == pytest.approx(bundle.graph_gmacs_per_s / best.gmacs_per_s)
        assert {len(node.samples_ms) for node in bundle.nodes} == {len(bundle.whole_ms.samples)} == {7}

    status, out, _ = cli(*words, "--out", tmp_path / "report")
    assert status == 0
    assert "of what this machine can" in out
    assert str(tmp_path / "report" / "report.html") in out


def test_the_size_is_what_the_bundle_was_measured_at(cli: Cli, tmp_path: Path) -> None:
    measured = Latency(milliseconds=1.0, height=33, width=80, threads=1, machine=Machine.here())
    path = tiny_bundle(tmp_path / "a", latency=measured).path
    without_size = [word for word in FLAGS if word not in ("--size", "48x32")]
    report = report_of(cli, path, *without_size)
    assert (report.height, report.width, report.threads, report.batch) == (48, 80, 1, 1)
    assert report.bundles[0].nodes[-1].output == (1, 48, 80)
    assert report.peaks == ()
    assert report.bundles[0].convolutions_of_peak is None


def test_the_report_holds_what_was_printed(
    cli: Cli, made: Callable[[str, str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    report = report_of(cli, made("unet", "int8").path, *FLAGS, "--out", out)
    assert OpsReport.model_validate_json((out / "report.json").read_text()) == report
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "report.html", "operators.png"}
    text, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    for node in report.bundles[0].nodes:
        cells = [str(node.layer), node.op, node.kind, "x".join(map(str, node.output))]
        assert f"| {' | '.join(cells)} |" in text.replace("\\", "")
        assert f">{node.layer}</th>" in page
    assert "Nothing in unet-int8 runs in float." in text
    assert "Nothing in unet-int8 runs in float." in page
    assert "<svg" in page
    assert report.command in text

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = report_of(cli, made("unet", "int8").path, *FLAGS, "--out", out)
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md"}
    assert any("pip install 'segpress[bench]'" in note for note in report.notes)


def test_no_torch_is_needed(made: Callable[[str, str], Bundle], tmp_path: Path) -> None:
    blocked = tmp_path / "blocked" / "torch"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ModuleNotFoundError(name='torch')")
    words = ["bench", "ops", made("unet", "int8").path, *FLAGS, "--out", tmp_path / "report"]
    done = subprocess.run(
        [sys.executable, "-m", "compress.cli.main", *map(str, words)],
        env={**os.environ, "PYTHONPATH": f"{blocked.parent}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "report" / "report.json").read_text())


def a_file(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(b"no bundle")
    return path


@pytest.mark.parametrize(
    ("make", "flags", "message"),
    [
        (lambda folder: folder / "missing", (), r"bundle .*missing: 1 problem\n  - no such folder"),
        (a_file, (), r"bundle .*model.onnx: 1 problem\n  - a file; a bundle is the folder"),
        (lambda folder: folder, (), "manifest.json is missing"),
        (lambda folder: tiny_bundle(folder / "a").path, ("--size", "48"), "'48' is not HEIGHTxWIDTH"),
        (
            lambda folder: tiny_bundle(folder / "a").path,
            ("--size", "9999999999x9999999999"),
            "give a smaller --size or --batch",
        ),
        (lambda folder: tiny_bundle(folder / "a").path, ("--batch", "0"), "--batch"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    cli: Cli, tmp_path: Path, make: Callable[[Path], Path], flags: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "report"
    status, printed, err = cli(make(tmp_path), *flags, "--no-peak", "--runs", 1, "--out", out)
    assert (status, printed) == (2, "")
    assert re.search(message, " ".join(err.split()) if "\\n" not in message else err)
    assert "Traceback" not in err
    assert not out.exists()


def test_a_size_that_the_graph_does_not_take_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Its manifest promises a smaller size multiple than the graph takes."""
    graph = onnx.load(str(tiny_bundle(tmp_path / "a", size_multiple=16).model_path))
    bundle = tiny_bundle(tmp_path / "b", size_multiple=16, graph=graph)
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    from export.manifest import digest_of

    manifest["size_multiple"] = 1
    manifest["digest"] = digest_of(manifest)
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    status, out, err = cli(bundle.path, "--size", "17x16", "--no-peak", "--runs", 1)
    assert (status, out) == (2, "")
    assert err.count("compress: ") == 1
    assert "[1, 17, 16, 3]" in err


def test_the_report_of_a_run_is_left_alone(cli: Cli, made: Callable[[str, str], Bundle], tmp_path: Path) -> None:
    (tmp_path / "step.json").write_text("{}")
    status, _, err = cli(made("unet", "int8").path, *FLAGS, "--out", tmp_path)
    assert status == 2
    assert "belongs to a run" in err


def test_without_onnx_the_extra_is_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_bundle(tmp_path / "a").path
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, out, err = cli(path)
    assert (status, out) == (2, "")
    assert "compress bench ops needs onnx, which is not installed; run: pip install 'segpress[bench]'" in err


def test_layers_are_named_by_their_weights(cli: Cli, made: Callable[[str, str], Bundle]) -> None:
    def named(precision: str) -> list[str | None]:
        nodes: tuple[NodeTime, ...] = taken_apart(cli, made("unet", precision).path).nodes
        return [node.layer for node in nodes if node.macs is not None]

    modules = [name for name, module in random_unet().named_modules() if isinstance(module, nn.Conv2d)]
    assert sorted(filter(None, named("fp32"))) == sorted(modules)
    assert named("fp32") == named("int8")
