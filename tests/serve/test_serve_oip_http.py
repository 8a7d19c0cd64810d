"""The Open Inference Protocol over HTTP: Triton's client works unchanged; malformed requests get a 4xx and why."""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.bundles import expected_mask, tiny_bundle, tiny_graph
from support.oip import file_of, files_tensor, image_input, some_images
from support.servers import metric, serving
from tritonclient.utils import InferenceServerException

from export.bundle import Bundle
from export.images import U8
from serve.app import create_app
from serve.oip.wire import JSON_BYTES, MAX_JSON_BYTES, WireRequest
from serve.problems import ProblemError
from serve.settings import ServeSettings

INFER = "/v2/models/tiny/infer"
IMAGES = some_images(3, 21, 37)
MASKS = np.stack([expected_mask(image, 4) for image in IMAGES])


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[Any]:
    with triton.InferenceServerClient(base_url.removeprefix("http://")) as client:
        yield client


def raw_request(images: U8, **parameters: Any) -> tuple[bytes, dict[str, str]]:
    """A request in the binary form, built by hand from the extension's specification."""
    inputs = {"name": "image", "shape": images.shape, "datatype": "UINT8"}
    header = json.dumps(
        {"inputs": [{**inputs, "parameters": {"binary_data_size": images.size}}], "parameters": parameters}
    ).encode()
    return header + images.tobytes(), {JSON_BYTES: str(len(header)), "Content-Type": "application/octet-stream"}


def test_the_server_and_its_models_describe_themselves(client: Any, bundle: Bundle) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    ready = [client.is_model_ready(*which) for which in (["tiny"], ["tiny", "1"], ["grey", "3"], ["grey", "4"], ["x"])]
    assert ready == [True, True, True, False, False]
    assert client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("tiny")
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert metadata["outputs"] == [{"name": "mask", "datatype": "UINT8", "shape": [-1, -1, -1]}]
    assert metadata["parameters"]["digest"] == bundle.manifest.digest
    config = client.get_model_config("tiny")
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, -1, 3]}]
    assert config["max_batch_size"] == 0, "the dimensions have the batch in them"
    assert {entry["name"] for entry in client.get_model_repository_index()} == {"tiny", "grey"}


@pytest.mark.parametrize("outputs", [["logits"], ["mask", "logits"]])
def test_the_output_that_is_told_is_the_one_that_is_given(tmp_path: Path, outputs: list[str]) -> None:
    graph = tiny_graph(classes=4, channels=3, size_multiple=16, logits=True)
    kept = [output for output in graph.graph.output if output.name in outputs]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    made = tiny_bundle(tmp_path / "tiny", classes=4, graph=graph)
    assert [output.name for output in made.manifest.outputs] == outputs
    settings = ServeSettings(concurrency=1, grpc_port=0)
    app = create_app([made.path], settings)
    with serving(app, settings) as url:
        for protocol, address in (
            (triton, url.removeprefix("http://")),
            (triton_grpc, f"127.0.0.1:{app.state.grpc_server.port}"),
        ):
            with protocol.InferenceServerClient(address) as client:
                how = {} if protocol is triton else {"as_json": True}
                told, config = client.get_model_metadata("tiny", **how), client.get_model_config("tiny", **how)
                found = config.get("config", config)["output"]
                assert [output["name"] for output in found] == ["mask"]
                [output] = told["outputs"]
                assert (output["datatype"], list(map(int, output["shape"]))) == ("UINT8", [-1, -1, -1])
                result = client.infer(
                    "tiny",
                    [image_input(protocol, IMAGES, "UINT8")],
                    outputs=[protocol.InferRequestedOutput(output["name"])],
                )
                assert np.array_equal(result.as_numpy(output["name"]), MASKS)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
def test_pixels_become_masks(client: Any, datatype: str, binary_in: bool, binary_out: bool) -> None:
    tensor = IMAGES if datatype == "UINT8" else IMAGES.astype(np.float32)
    output = triton.InferRequestedOutput("mask", binary_data=binary_out)
    result = client.infer(
        "tiny", [image_input(triton, tensor, datatype, binary_data=binary_in)], outputs=[output], request_id="an id"
    )
    assert np.array_equal(result.as_numpy("mask"), MASKS)
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("an id", "tiny", "1")
    assert ("data" in answer["outputs"][0]) is not binary_out


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_image_files_give_what_the_image_endpoint_gives(client: Any, base_url: str, form: str) -> None:
    files = [file_of(image, form) for image in IMAGES]
    masks = client.infer("tiny", [image_input(triton, files_tensor(files), "BYTES")]).as_numpy("mask")
    for file, mask in zip(files, masks, strict=True):
        headers = {"Content-Type": f"image/{form.lower()}", "Accept": "application/octet-stream"}
        alone = httpx.post(f"{base_url}/v1/models/tiny/segment", content=file, headers=headers)
        assert alone.content == mask.tobytes()


def test_a_resized_model_answers_at_the_size_of_the_images(client: Any, grey_bundle: Bundle) -> None:
    images = some_images(2, 30, 50)[..., :1]
    masks = client.infer("grey", [image_input(triton, images, "UINT8")], model_version="3").as_numpy("mask")
    expected = [grey_bundle.segmenter().segment(image) for image in images]
    assert np.array_equal(masks, np.stack(expected))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_may_be_compressed(client: Any, algorithm: str) -> None:
    result = client.infer("tiny", [image_input(triton, IMAGES, "UINT8")], request_compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("mask"), MASKS)


def test_gzip_has_another_name(base_url: str) -> None:
    answer = httpx.post(base_url + INFER, content=gzip.compress(body()), headers={"Content-Encoding": "x-gzip"})
    assert answer.status_code == 200, answer.text


@settings(max_examples=30)
@given(images=arrays(np.uint8, st.tuples(*[st.integers(1, 40)] * 3, st.just(3)).map(lambda s: (1 + s[0] % 4, *s[1:]))))
def test_a_batch_gives_what_its_images_give_alone(base_url: str, images: U8) -> None:
    def masks(some: U8) -> bytes:
        content, headers = raw_request(some, binary_data_output=True)
        answer = httpx.post(base_url + INFER, content=content, headers=headers).raise_for_status()
        return answer.content[int(answer.headers[JSON_BYTES]) :]

    assert masks(images) == b"".join(masks(image[None]) for image in images)


def test_statistics_count_images_runs_and_failures(client: Any, base_url: str) -> None:
    def figures() -> tuple[int, int, int, int]:
        [of] = client.get_inference_statistics("tiny")["model_stats"]
        assert of == next(m for m in client.get_inference_statistics()["model_stats"] if m["name"] == "tiny")
        stats = of["inference_stats"]
        assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] >= 0
        return of["inference_count"], of["execution_count"], stats["success"]["count"], stats["fail"]["count"]

    before = figures()
    client.infer("tiny", [image_input(triton, IMAGES, "UINT8")])
    with pytest.raises(InferenceServerException):
        client.infer("tiny", [image_input(triton, IMAGES[..., :2], "UINT8")])
    assert [after - was for after, was in zip(figures(), before, strict=True)] == [3, 1, 1, 1]
    assert metric(base_url, 'segpress_run_images_sum{model="tiny"}') == figures()[0]


@pytest.mark.parametrize(
    ("tensor", "datatype", "says"),
    [
        (IMAGES[..., :2], "UINT8", r"\[N, height, width, 3\].*\[3, 21, 37, 2\]"),
        (IMAGES[0], "UINT8", r"but \[21, 37, 3\] was sent"),
        (np.zeros((1, 0, 4, 3), np.uint8), "UINT8", "none of them 0"),
        (IMAGES.astype(np.float32) + 0.5, "FP32", "whole numbers from 0 to 255"),
        (IMAGES.astype(np.float32) * 2, "FP32", "whole numbers from 0 to 255"),
        (np.full((1, 2, 2, 3), np.nan, np.float32), "FP32", "whole numbers from 0 to 255"),
        (IMAGES.astype(np.int32), "INT32", "datatype 'INT32'"),
        (np.zeros((1, 520, 520, 3), np.uint8), "UINT8", "270400 pixels, the limit is 262144"),
        (np.zeros((5, 256, 256, 3), np.uint8), "UINT8", "327680 pixels"),
        (files_tensor([b"no image"]), "BYTES", "image"),
        (files_tensor([file_of(IMAGES[0]), file_of(IMAGES[0, :9])]), "BYTES", "several sizes"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_in_words(client: Any, tensor: Any, datatype: str, says: str) -> None:
    with pytest.raises(InferenceServerException, match=says) as caught:
        client.infer("tiny", [image_input(triton, tensor, datatype)])
    assert caught.value.status() in ("[400]", "400", "413", "[413]", "415", "[415]")


def body(**changes: Any) -> bytes:
    """JSON of a small request whose input has these members changed, or removed where None is given."""
    tensor = {"name": "image", "shape": [1, 1, 2, 3], "datatype": "UINT8", "data": [0, 0, 0, 255, 255, 255]} | changes
    return json.dumps({"inputs": [{name: value for name, value in tensor.items() if value is not None}]}).encode()


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"{}", {}, 400),
        (b'{"inputs": []}', {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", {}, 400),
        (b" " * MAX_JSON_BYTES + body(), {}, 413),
        (body(data=[0, 0, 0]), {}, 400),
        (body(data=[[0, 0, 0], [1]]), {}, 400),
        (body(data=[0, 0, 0, 0, 0, 256]), {}, 400),
        (body(data=[0, 0, 0, 0, 0, -1]), {}, 400),
        (body(data=[0, 0, 0, 0, 0, 1.5]), {}, 400),
        (body(data=[0, 0, 0, 0, 0, 10**30]), {}, 400),
        (body(data=[0, 0, 0, 0, 0, None]), {}, 400),
        (body(data=[0, 0, 0, 0, 0, "1"]), {}, 400),
        (body(data=[True] * 6), {}, 400),
        (body(data=[True] * 5 + [0]), {}, 400),
        (body(data=[[0, 0, 0], [0, 0, False]]), {}, 400),
        (body(data=[0, [0, 0, 0, 0, 0]]), {}, 400),
        (body(data=None), {}, 400),
        (body(shape=[1, 1, -2, 3]), {}, 400),
        (body(shape=[2**40, 2**40, 2**40, 3]), {}, 413),
        (body(shape=[10**4000, 10**4000, 1, 3]), {}, 400),
        (body()[:-1] + b', "parameters": {"timeout": 1' + b"0" * 400 + b"}}", {}, 400),
        (body(shape=[1] * 9), {}, 400),
        (body(name="picture"), {}, 400),
        (body(datatype="BYTES", shape=[1], data=["x"]), {}, 400),
        (body(parameters={"binary_data_size": 6}), {}, 400),
        (body(data=None, parameters={"binary_data_size": 6}), {}, 400),
        (body(data=None, parameters={"binary_data_size": -1}), {}, 400),
        (body(data=None, parameters={"binary_data_size": True}), {}, 400),
        (body() + b"more", {JSON_BYTES: str(len(body()))}, 400),
        (body(), {JSON_BYTES: "99999"}, 400),
        (body(), {JSON_BYTES: "-1"}, 400),
        (body(), {JSON_BYTES: "many"}, 400),
        (body(), {"Content-Encoding": "br"}, 415),
        (body(), {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(body(), mtime=0)[:-9], {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(body(), mtime=0) * 2, {"Content-Encoding": "gzip"}, 400),
        (zlib.compress(b" " * 2**24), {"Content-Encoding": "deflate"}, 413),
    ],
)
def test_what_is_malformed_is_refused(base_url: str, content: bytes, headers: dict[str, str], status: int) -> None:
    answer = httpx.post(base_url + INFER, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["error"] == answer.json()["detail"]


def test_one_string_among_numbers_takes_no_memory_for_each_of_them(base_url: str) -> None:
    for row in (["a" * 700_000] + [0] * 100_000, [[0]] * 50_000 + [["a" * 700_000]]):
        answer = httpx.post(base_url + INFER, content=body(data=row))
        assert (answer.status_code, answer.json()["reason"]) == (400, "values"), answer.text


@pytest.mark.parametrize("name", ["shared_memory_region", "classification"])
@pytest.mark.parametrize("of", ["request", "input", "output"])
def test_what_would_be_ignored_is_refused(base_url: str, of: str, name: str) -> None:
    parameters = {part: {name: "1"} if part == of else {} for part in ("request", "input", "output")}
    request = json.loads(body(parameters=parameters["input"])) | {
        "parameters": parameters["request"],
        "outputs": [{"name": "mask", "parameters": parameters["output"]}],
    }
    answer = httpx.post(base_url + INFER, json=request)
    assert (answer.status_code, answer.json()["reason"]) == (400, "parameter"), answer.text


@pytest.mark.parametrize("wanted", ["false", 0, 1])
def test_the_form_of_the_answer_is_true_or_false(base_url: str, wanted: object) -> None:
    for asked in (
        {"outputs": [{"name": "mask", "parameters": {"binary_data": wanted}}]},
        {"parameters": {"binary_data_output": wanted}},
    ):
        answer = httpx.post(base_url + INFER, json=json.loads(body()) | asked)
        assert (answer.status_code, answer.json()["reason"]) == (400, "parameter"), answer.text


def test_lengths_of_elements_are_not_believed(base_url: str) -> None:
    file = file_of(IMAGES[0])
    for content, shape in (
        (struct.pack("<I", len(file) + 1) + file, [1]),
        (struct.pack("<I", len(file)) + file, [2]),
        (2 * (struct.pack("<I", len(file)) + file), [1]),
        (struct.pack("<I", len(file)) + file + b"\x00\x00", [1]),
        (struct.pack("<I", 2**32 - 1), [1]),
    ):
        tensor = {
            "name": "image",
            "shape": shape,
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(content)},
        }
        header = json.dumps({"inputs": [tensor]}).encode()
        answer = httpx.post(base_url + INFER, content=header + content, headers={JSON_BYTES: str(len(header))})
        assert (answer.status_code, answer.json()["reason"]) == (400, "shape"), answer.text


@settings(max_examples=60)
@given(data=st.data())
def test_bytes_that_were_changed_never_break_the_server(base_url: str, data: st.DataObject) -> None:
    content, headers = raw_request(IMAGES[:1, :4, :4], binary_data_output=True)
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(changed)))
    answer = httpx.post(base_url + INFER, content=bytes(changed[:cut]), headers=headers)
    assert answer.status_code in (200, 400, 413), answer.text


def test_a_large_mask_is_not_told_in_numbers(bundle: Bundle) -> None:
    wire = WireRequest(body(), None)
    with pytest.raises(ProblemError, match="binary_data") as caught:
        wire.answer(np.zeros((1, 2048, 2048), np.uint8), bundle.manifest)
    assert caught.value.status == 413
