"""Bundles on OpenVINO's CPU device. `test_serve_openvino.py` runs this where onnxruntime-openvino is installed."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import pytest
from support.bundles import expected_mask, tiny_bundle
from support.handmade import blocks, small_unet
from support.logs import logged
from support.servers import ServerProcess, metric, serving

from benchmarks.report.results import Report
from compress.cli.main import main
from compress.quantize.ptq import Quantizer
from export.bundle import Bundle
from export.images import decode_indices, encode_image
from export.runtime import CPU, OPENVINO, OnnxModel
from export.sessions import Provider
from export.to_onnx import with_outputs
from serve.settings import ServeSettings

PNG = {"Content-Type": "image/png"}


def on_openvino(**settings: object) -> ServeSettings:
    return ServeSettings.model_validate({"providers": (Provider.OPENVINO,), "concurrency": 2, **settings})


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A one-level UNet as `compress quantize --for openvino` makes it; its golden answers come from the CPU."""
    quantizer = Quantizer(with_outputs(small_unet(), "mask"), iter(blocks(4)), target="openvino")
    graph = quantizer.quantized("minmax").graph
    return tiny_bundle(
        tmp_path_factory.mktemp("bundles") / "int8",
        classes=4,
        channels=1,
        size_multiple=2,
        graph=graph,
        name="int8",
        precision="int8",
    )


def test_this_is_another_runtime() -> None:
    assert OPENVINO in ort.get_available_providers()


def test_float_masks_are_the_same(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny", classes=4)
    model = OnnxModel(bundle.model_path, threads=1, providers=[OPENVINO, CPU])
    assert model.providers[0] == OPENVINO
    for side in (16, 64, 16):
        image = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
        np.testing.assert_array_equal(model.masks(image[None])[0], expected_mask(image, 4))


def test_int8_masks_are_those_of_the_cpu_within_rounding(int8: Bundle) -> None:
    ours = int8.model(threads=1)
    theirs = OnnxModel(int8.model_path, threads=1, providers=[OPENVINO, CPU], runs_at_once=2)
    for batch in (1, 3):
        images = np.stack(blocks(batch, seed=7))
        assert np.mean(ours.masks(images) != theirs.masks(images)) < int8.manifest.golden.tolerance_other_instructions


def test_a_server_on_openvino_answers_and_says_what_its_bundle_was_proven_on(int8: Bundle) -> None:
    [image] = blocks(1, seed=3)
    with logged() as records, serving([int8.path], on_openvino()) as url:
        answer = httpx.post(f"{url}/v1/models/int8/segment", content=encode_image(image), headers=PNG)
    said = [record.getMessage() for record in records if record.levelname == "WARNING"]
    assert any("proven on CPUExecutionProvider, OpenVINOExecutionProvider serves" in words for words in said)
    mask = decode_indices(answer.raise_for_status().content)
    assert np.mean(mask != int8.segmenter(threads=1).segment(image)) < 0.01


def test_the_process_ends_clean(int8: Bundle) -> None:
    with ServerProcess([int8.path], on_openvino(grace_seconds=0.0)) as server:
        assert httpx.get(f"{server.base_url}/v2/health/ready").json() == {"ready": True}


def test_every_worker_has_a_stream_of_its_own(int8: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a single stream the runs of two workers take turns, however many cores there are."""
    asked: list[dict[str, dict[str, str]]] = []

    class Asked(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, *arguments: Any, providers: list[tuple[str, dict[str, str]]], **named: Any) -> None:
            asked.append(dict(providers))
            super().__init__(*arguments, providers=providers, **named)

    monkeypatch.setattr(ort, "InferenceSession", Asked)
    with serving([int8.path], on_openvino(concurrency=2, threads_per_run=3)):
        pass
    [options] = asked
    given = json.loads(options[OPENVINO]["load_config"])["CPU"]
    assert (given["NUM_STREAMS"], given["INFERENCE_NUM_THREADS"]) == ("2", "6")


def test_bundles_are_timed_side_by_side_on_both(int8: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    words = ["compress", "bench", "latency", str(int8.path), "--provider", "cpu", "--provider", "openvino"]
    words += ["--size", "32x48", "--rounds", "3", "--threads", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as leaving:
        main()
    assert not leaving.value.code
    report = Report.model_validate_json((out / "report.json").read_text())
    assert [model.name for model in report.models] == ["int8 on cpu", "int8 on openvino"]
    assert all(model.latency_ms.p50 > 0 for model in report.models)


def test_memory_does_not_grow_with_every_size_that_is_met(int8: Bundle) -> None:
    sizes = np.random.default_rng(0).integers(16, 400, (900, 2))
    with (
        ServerProcess([int8.path], on_openvino(grace_seconds=0.0)) as server,
        httpx.Client(base_url=server.base_url, timeout=30) as client,
    ):
        resident = []
        for count, (height, width) in enumerate(sizes, start=1):
            image = encode_image(np.zeros((height, width, 1), dtype=np.uint8))
            client.post("/v1/models/int8/segment", content=image, headers=PNG).raise_for_status()
            if count in (100, 900):
                resident.append(metric(server.base_url, "process_resident_memory_bytes"))
    assert resident[1] < 1.3 * resident[0]
