"""Class probabilities, and images segmented window by window: what they give, and what limits them."""

import io
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from pycocotools import mask as coco
from support.bundles import tiny_bundle
from support.oip import some_images
from support.servers import GatedPredictor, metric, serving, until

from compress.predict import predict
from export.bundle import Bundle
from export.images import U8, decode_indices, encode_image
from export.refine import Refinement, places
from serve.predictor import BundlePredictor, SessionSettings
from serve.settings import ServeSettings

SEGMENT = "/v1/models/{name}/segment"
PNG = {"Content-Type": "image/png"}
README = Path(__file__).resolve().parents[2] / "serve" / "README.md"
CLASSES = 4
REACH = 3
"""How many pixels the network sees on each side."""


def looking_around() -> onnx.ModelProto:
    """A graph whose logits depend on a neighbourhood, with some confidence and without ties."""
    side = 2 * REACH + 1
    weight = np.random.default_rng(1).normal(0, 0.02, (CLASSES, 3, side, side)).ravel()
    return onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["" : 18]>
        looking_around (uint8[batch,height,width,3] image)
            => (uint8[batch,height,width] mask, float[batch,{CLASSES},height,width] logits)
        <float[{CLASSES},3,{side},{side}] weight = {{{",".join(map(repr, weight.tolist()))}}}, float half = {{128.0}}>
        {{
            x = Cast<to = 1>(image)
            y = Sub(x, half)
            z = Transpose<perm = [0, 3, 1, 2]>(y)
            logits = Conv<pads = [{REACH}, {REACH}, {REACH}, {REACH}]>(z, weight)
            index = ArgMax<axis = 1, keepdims = 0>(logits)
            mask = Cast<to = 2>(index)
        }}
        """
    )


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Gives masks and logits; multiples of 16, no resizing."""
    path = tmp_path_factory.mktemp("bundles") / "around"
    return tiny_bundle(path, name="around", classes=CLASSES, graph=looking_around())


@pytest.fixture(scope="module")
def resized(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same graph; every image is resized to 48x64."""
    path = tmp_path_factory.mktemp("bundles") / "resized"
    return tiny_bundle(path, name="resized", classes=CLASSES, graph=looking_around(), size=(48, 64))


LIMITS = ServeSettings(
    concurrency=2, max_pixels=128 * 128, max_windowed_pixels=400 * 400, max_probabilities=CLASSES * 200 * 200
)


@pytest.fixture(scope="module")
def client(around: Bundle, resized: Bundle, bundle: Bundle) -> Iterator[httpx.Client]:
    """A client of a server of both and of a model that gives masks alone; at most 128x128 pixels are run at once."""
    paths = [around.path, resized.path, bundle.path]
    with serving(paths, LIMITS) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def ask(client: httpx.Client, image: U8, model: str = "around", accept: str = "*/*", **asked: str) -> httpx.Response:
    headers = {**PNG, "Accept": accept}
    return client.post(SEGMENT.format(name=model), params=asked, content=encode_image(image), headers=headers)


def arrays(answer: httpx.Response) -> tuple[U8, NDArray[np.float16]]:
    """Mask and probabilities, as plain NumPy reads them."""
    assert answer.raise_for_status().headers["content-type"] == "application/zip"
    found = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert sorted(found) == ["mask", "probabilities"]
    return found["mask"], found["probabilities"]


def reference(bundle: Bundle, image: U8) -> NDArray[np.float32]:
    """Probabilities KHW of the graph by ONNX's reference evaluator, the image padded with 128 to multiples of 16."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % 16), (0, -width % 16), (0, 0)), constant_values=128)
    model = onnx.load(bundle.model_path)
    model.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    model.graph.output.append(onnx.helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, None))
    [probabilities] = ReferenceEvaluator(model).run(["probabilities"], {"image": padded[None]})
    found: NDArray[np.float32] = probabilities[0, :, :height, :width]
    return found


@settings(max_examples=8)
@given(height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 9))
def test_probabilities_are_the_softmax_of_the_logits_to_half_precision(
    client: httpx.Client, around: Bundle, height: int, width: int, seed: int
) -> None:
    image = some_images(1, height, width, seed=seed)[0]
    mask, probabilities = arrays(ask(client, image, probabilities="true"))
    assert [str(array.dtype) for array in (mask, probabilities)] == ["uint8", "float16"]
    assert probabilities.shape == (CLASSES, height, width)
    np.testing.assert_allclose(probabilities, reference(around, image), atol=1e-3)
    np.testing.assert_array_equal(mask, decode_indices(ask(client, image).content))


def test_probabilities_of_a_resized_model_have_the_size_of_the_image(client: httpx.Client, resized: Bundle) -> None:
    image = some_images(1, 101, 77)[0]
    mask, probabilities = arrays(ask(client, image, "resized", probabilities="true"))
    np.testing.assert_array_equal(mask, decode_indices(ask(client, image, "resized").content))
    expected = resized.segmenter(threads=1).probabilities(image)
    np.testing.assert_allclose(probabilities, expected, atol=1e-3)


def edges(length: int, window: int) -> NDArray[np.bool_]:
    """Along one axis, the pixels within `REACH` of the edge of any window."""
    near = np.zeros(length, dtype=bool)
    for place in places(length, window):
        near[place.start : place.start + REACH] = near[max(0, place.stop - REACH) : place.stop] = True
    return near


@settings(max_examples=8)
@given(
    size=st.tuples(st.integers(65, 128), st.integers(65, 128)),
    window=st.tuples(st.integers(64, 100), st.integers(64, 100)),
)
def test_windows_give_what_the_whole_gives_away_from_their_edges(
    client: httpx.Client, size: tuple[int, int], window: tuple[int, int]
) -> None:
    image = some_images(1, *size)[0]
    whole_mask, whole = arrays(ask(client, image, probabilities="true"))
    mask, probabilities = arrays(ask(client, image, probabilities="true", window=f"{window[0]}x{window[1]}"))
    inside = ~(edges(size[0], window[0])[:, None] | edges(size[1], window[1])[None, :])
    assert inside.any()
    np.testing.assert_array_equal(mask[inside], whole_mask[inside])
    np.testing.assert_allclose(probabilities[:, inside], whole[:, inside], atol=2e-3)


@pytest.mark.parametrize(("size", "window"), [((200, 170), (64, 96)), ((90, 260), (128, 112)), ((70, 40), (64, 64))])
def test_windows_give_the_masks_of_compress_predict(
    client: httpx.Client, around: Bundle, tmp_path: Path, size: tuple[int, int], window: tuple[int, int]
) -> None:
    image = some_images(1, *size, seed=4)[0]
    (tmp_path / "image.png").write_bytes(encode_image(image))
    refine = Refinement(window=window)
    [written] = predict(around.path, tmp_path / "image.png", tmp_path / "out", threads=1, refine=refine)
    expected = decode_indices(written.mask)
    how = f"{window[0]}x{window[1]}"
    np.testing.assert_array_equal(decode_indices(ask(client, image, window=how).content), expected)
    raw = ask(client, image, accept="application/octet-stream", window=how)
    np.testing.assert_array_equal(np.frombuffer(raw.content, np.uint8).reshape(size), expected)
    areas = ask(client, image, accept="application/json", window=how).json()["classes"]
    assert [int(coco.area(area["rle"])) for area in areas] == np.bincount(expected.ravel(), minlength=CLASSES).tolist()
    assert ask(client, image, window=how, overlay="true").headers["content-type"] == "image/png"
    stages = ask(client, image, window=how).headers["server-timing"]
    names = [entry.split(";")[0] for entry in stages.split(", ")]
    assert names == ["queue", "decode", "preprocess", "inference", "postprocess", "encode"]


@pytest.mark.parametrize(
    ("size", "model", "asked", "accept", "status", "reason"),
    [
        ((20, 20), "tiny", {"probabilities": "true"}, "*/*", 400, "no_logits"),
        ((20, 20), "tiny", {"window": "64x64"}, "*/*", 400, "no_logits"),
        ((20, 20), "resized", {"window": "64x64"}, "*/*", 400, "window"),
        ((20, 20), "around", {"window": "63x64"}, "*/*", 400, "window"),
        ((20, 20), "around", {"window": "64"}, "*/*", 400, "window"),
        ((20, 20), "around", {"window": "-64x64"}, "*/*", 400, "window"),
        ((20, 20), "around", {"window": ""}, "*/*", 400, "window"),
        ((20, 20), "around", {"overlays": "true"}, "*/*", 400, "invalid"),
        ((20, 20), "around", {"probabilities": "true", "overlay": "true"}, "*/*", 400, "invalid"),
        ((20, 20), "around", {"probabilities": "true"}, "image/png", 406, "not_acceptable"),
        ((129, 128), "around", {}, "*/*", 413, "too_large"),
        ((129, 128), "around", {"probabilities": "true"}, "*/*", 413, "too_large"),
        ((400, 401), "around", {"window": "64x64"}, "*/*", 413, "too_large"),
        ((360, 360), "around", {"window": "64x64"}, "*/*", 413, "too_large"),  # overlaps included
        ((200, 200), "around", {"window": "144x144"}, "*/*", 413, "too_large"),
        ((201, 200), "around", {"probabilities": "true", "window": "64x64"}, "*/*", 413, "too_large"),
        ((130, 390), "around", {"window": "128x128"}, "*/*", 413, "too_large"),  # of a row of windows
    ],
)
def test_what_cannot_be_had_is_refused_with_what_to_do(
    client: httpx.Client,
    size: tuple[int, int],
    model: str,
    asked: dict[str, str],
    accept: str,
    status: int,
    reason: str,
) -> None:
    answer = ask(client, some_images(1, *size)[0], model, accept, **asked)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert ask(client, some_images(1, 100, 100)[0], window="64x64").status_code == 200


def test_what_a_request_would_need_is_known_before_its_pixels_are_read(client: httpx.Client) -> None:
    cut_short = encode_image(np.zeros((300, 300, 3), np.uint8))[:60]
    asked = {"window": "100x100", "probabilities": "true"}
    answer = client.post(SEGMENT.format(name="around"), params=asked, content=cut_short, headers=PNG)
    assert answer.json()["reason"] == "too_large"


def test_probabilities_are_made_for_those_alone_who_ask(around: Bundle) -> None:
    class Counting(BundlePredictor):
        asked = 0

        def logits(self, images_NHWC: U8) -> NDArray[np.float32]:
            self.asked += 1
            return super().logits(images_NHWC)

    predictor = Counting(around, SessionSettings())
    with serving([predictor], ServeSettings(concurrency=1)) as url, httpx.Client(base_url=url) as client:
        image = some_images(1, 100, 100)[0]
        ask(client, image).raise_for_status()
        ask(client, image, overlay="true").raise_for_status()
        assert predictor.asked == 0
        ask(client, image, probabilities="true").raise_for_status()
        assert predictor.asked == 1
        ask(client, image, window="64x64").raise_for_status()
        assert predictor.asked == 1 + 2 * 2


@pytest.fixture
def held(around: Bundle) -> Iterator[tuple[GatedPredictor, str, ThreadPoolExecutor]]:
    predictor = GatedPredictor(around)
    with serving([predictor], ServeSettings(concurrency=1)) as url, ThreadPoolExecutor(4) as pool:
        predictor.seen.clear()
        with predictor.closed():
            yield predictor, url, pool


def test_no_window_is_begun_after_the_deadline(held: tuple[GatedPredictor, str, ThreadPoolExecutor]) -> None:
    predictor, url, pool = held
    file = encode_image(some_images(1, 200, 200)[0])
    late = pool.submit(
        httpx.post,
        url + SEGMENT.format(name="around") + "?window=64x64",
        content=file,
        headers={**PNG, "X-Deadline-Ms": "1000"},
    )
    until(lambda: len(predictor.seen) == 1)
    time.sleep(1.05)
    predictor.gate.set()
    assert (late.result().status_code, late.result().json()["reason"]) == (504, "deadline")
    assert "not all windows" in late.result().json()["detail"]
    assert len(predictor.seen) == 1
    # The worker is free again, and is counted as free.
    whole = httpx.post(url + SEGMENT.format(name="around"), content=file, headers=PNG)
    assert whole.status_code == 200
    assert metric(url, "segpress_workers_busy") == 0


def test_no_window_is_begun_for_a_client_that_has_left(held: tuple[GatedPredictor, str, ThreadPoolExecutor]) -> None:
    predictor, url, _ = held
    file = encode_image(some_images(1, 200, 200)[0])
    connection = HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", SEGMENT.format(name="around") + "?window=64x64", file, PNG)
    until(lambda: len(predictor.seen) == 1)
    connection.close()
    until(lambda: metric(url, 'segpress_requests_total{code="499",model="around"}') == 1)
    predictor.gate.set()
    until(lambda: metric(url, "segpress_workers_busy") == 0)
    assert len(predictor.seen) == 1


def test_a_window_is_one_run_and_its_time_is_counted(client: httpx.Client) -> None:
    url = str(client.base_url)
    stage = 'segpress_stage_duration_seconds_count{model="around",stage="inference"}'
    before = metric(url, stage), metric(url, 'segpress_run_images_count{model="around"}')
    ask(client, some_images(1, 100, 200)[0], window="64x64").raise_for_status()
    windows = 2 * 4
    assert metric(url, stage) == before[0] + windows
    assert metric(url, 'segpress_run_images_count{model="around"}') == before[1] + windows


def test_the_document_describes_all_of_it(client: httpx.Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/models/{name}/segment"]["post"]
    assert {"overlay", "probabilities", "window"} <= {parameter["name"] for parameter in operation["parameters"]}
    assert "application/zip" in operation["responses"]["200"]["content"]
    assert "float16" in json.dumps(operation)


def test_the_programs_in_the_readme_run(client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = [some_images(1, 30, 40, seed=seed)[0] for seed in range(2)]
    for name, image in zip(("a.png", "b.png"), images, strict=True):
        (tmp_path / name).write_bytes(encode_image(image))
    programs = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    said = "http://127.0.0.1:8000/v1/models/coastlines/segment"
    assert said in programs[0]
    found: dict[str, Any] = {}
    exec("\n".join(programs).replace(said, str(client.base_url) + SEGMENT.format(name="around")), found)
    expected = [decode_indices(ask(client, image).content) for image in images]
    np.testing.assert_array_equal(found["mask"], expected[0])
    assert found["probabilities"].shape == (CLASSES, 30, 40)
    assert [kind for kind, _ in found["parts"]] == ["image/png"] * 2
    for (_, mask), wanted in zip(found["parts"], expected, strict=True):
        np.testing.assert_array_equal(decode_indices(mask), wanted)
