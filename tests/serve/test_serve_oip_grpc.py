"""The Open Inference Protocol over gRPC: Triton's client works unchanged, with the limits and keys of HTTP."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bundles import expected_mask
from support.logs import logged
from support.oip import file_of, files_tensor, image_input, some_images
from support.servers import GatedPredictor, ServerProcess, metric, metric_lines, serving, until
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

import serve.oip
from export.bundle import Bundle
from export.errors import UsageError
from serve.app import create_app
from serve.keys import Role, add_key
from serve.oip import messages
from serve.runner import run
from serve.settings import ServeSettings

IMAGES = some_images(3, 21, 37)
MASKS = np.stack([expected_mask(image, 4) for image in IMAGES])
PROTO = Path(serve.oip.__file__).parent / "proto"


@pytest.fixture(scope="module")
def ports(bundle: Bundle, grey_bundle: Bundle) -> Iterator[tuple[str, str]]:
    """The base URL and the gRPC address of one server."""
    settings = ServeSettings(concurrency=2, grpc_port=0, max_pixels=512 * 512, max_body_bytes=2**20)
    app = create_app([bundle.path, grey_bundle.path], settings)
    with serving(app, settings) as url:
        yield url, f"127.0.0.1:{app.state.grpc_server.port}"


@pytest.fixture(scope="module")
def client(ports: tuple[str, str]) -> Iterator[Any]:
    with triton.InferenceServerClient(ports[1]) as client:
        yield client


def code_of(error: Any) -> str:
    return str(error.status()).removeprefix("StatusCode.")


def test_the_server_and_its_models_describe_themselves(client: Any, bundle: Bundle) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    ready = [client.is_model_ready(*which) for which in (["tiny"], ["tiny", "1"], ["grey", "3"], ["grey", "4"], ["x"])]
    assert ready == [True, True, True, False, False]
    assert "binary_tensor_data" in client.get_server_metadata().extensions
    [image] = client.get_model_metadata("tiny").inputs
    assert (image.name, image.datatype, list(image.shape)) == ("image", "UINT8", [-1, -1, -1, 3])
    config = client.get_model_config("tiny").config
    assert (config.name, list(config.output[0].dims), config.instance_group[0].count) == ("tiny", [-1, -1, -1], 2)
    assert config.parameters["digest"].string_value == bundle.manifest.digest
    assert {model.name for model in client.get_model_repository_index().models} == {"tiny", "grey"}


@pytest.mark.parametrize("datatype", ["UINT8", "FP32", "BYTES"])
def test_images_become_masks(client: Any, datatype: str) -> None:
    tensor: Any = {
        "UINT8": IMAGES,
        "FP32": IMAGES.astype(np.float32),
        "BYTES": files_tensor([file_of(image) for image in IMAGES]),
    }[datatype]
    outputs = [triton.InferRequestedOutput("mask")]
    result = client.infer("tiny", [image_input(triton, tensor, datatype)], outputs=outputs, request_id="an id")
    assert np.array_equal(result.as_numpy("mask"), MASKS)
    answer = result.get_response()
    assert (answer.id, answer.model_name, answer.model_version) == ("an id", "tiny", "1")


@pytest.mark.parametrize(("datatype", "field"), [("UINT8", "uint_contents"), ("FP32", "fp32_contents")])
def test_values_may_stand_in_the_message(ports: tuple[str, str], datatype: str, field: str) -> None:
    request = service_pb2.ModelInferRequest(model_name="tiny")
    tensor = request.inputs.add(name="image", datatype=datatype, shape=IMAGES.shape)
    getattr(tensor.contents, field).extend(IMAGES.ravel().tolist())
    with grpc.insecure_channel(ports[1]) as channel:
        answer = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert answer.raw_output_contents[0] == MASKS.tobytes()


def test_more_values_than_json_would_hold_are_refused(bundle: Bundle) -> None:
    settings = ServeSettings(concurrency=1, grpc_port=0)
    app = create_app([bundle.path], settings)
    pixels = service_pb2.ModelInferRequest(model_name="tiny")
    tensor = pixels.inputs.add(name="image", datatype="UINT8", shape=[1, 1024, 1024, 3])
    tensor.contents.uint_contents.extend(bytes(1024 * 1024 * 3))
    raw = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(1024 * 1024 * 3)])
    raw.inputs.add(name="image", datatype="UINT8", shape=[1, 1024, 1024, 3])
    empty = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[b""] * 5000)
    with serving(app, settings), grpc.insecure_channel(f"127.0.0.1:{app.state.grpc_server.port}") as channel:
        infer = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        for request in (pixels, empty):
            with pytest.raises(grpc.RpcError, match="send tensors in raw_input_contents") as caught:
                infer(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len(infer(raw).raw_output_contents[0]) == 1024 * 1024


def test_files_may_stand_in_the_message(ports: tuple[str, str]) -> None:
    request = service_pb2.ModelInferRequest(model_name="tiny")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[len(IMAGES)])
    tensor.contents.bytes_contents.extend(file_of(image) for image in IMAGES)
    with grpc.insecure_channel(ports[1]) as channel:
        answer = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert answer.raw_output_contents[0] == MASKS.tobytes()


@settings(max_examples=60)
@given(data=st.data())
def test_bytes_that_were_changed_never_break_the_server(ports: tuple[str, str], data: st.DataObject) -> None:
    request = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[IMAGES[:1, :4, :4].tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 4, 4, 3])
    changed = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(changed)))
    with grpc.insecure_channel(ports[1]) as channel:
        infer: Any = channel.unary_unary(f"/{messages.INFERENCE}/ModelInfer")
        call = infer.future(bytes(changed[:cut]))
        assert call.code().name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND"), call.details()


def test_many_clients_at_once_get_their_own_masks(ports: tuple[str, str]) -> None:
    def ask(seed: int) -> bool:
        images = some_images(1, 10 + seed, 20, seed=seed)
        with triton.InferenceServerClient(ports[1]) as client:
            mask = client.infer("tiny", [image_input(triton, images, "UINT8")]).as_numpy("mask")[0]
        return np.array_equal(mask, expected_mask(images[0], 4))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(24)))


@pytest.mark.parametrize(
    ("model", "tensor", "datatype", "status"),
    [
        ("x", IMAGES, "UINT8", "NOT_FOUND"),
        ("tiny", IMAGES[..., :2], "UINT8", "INVALID_ARGUMENT"),
        ("tiny", IMAGES.astype(np.float32) / 2, "FP32", "INVALID_ARGUMENT"),
        ("tiny", files_tensor([b"no image"]), "BYTES", "INVALID_ARGUMENT"),
        ("tiny", np.zeros((1, 520, 520, 3), np.uint8), "UINT8", "INVALID_ARGUMENT"),
        ("tiny", np.zeros((1, 900, 900, 3), np.uint8), "UINT8", "RESOURCE_EXHAUSTED"),
    ],
)
def test_what_does_not_fit_is_refused(client: Any, model: str, tensor: Any, datatype: str, status: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [image_input(triton, tensor, datatype)])
    assert code_of(caught.value) == status


def test_values_and_raw_contents_must_agree(ports: tuple[str, str]) -> None:
    both = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[b"\0\0\0"])
    tensor = both.inputs.add(name="image", datatype="UINT8", shape=[1, 1, 1, 3])
    tensor.contents.uint_contents.extend([0, 0, 0])
    more = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[b"\0\0\0"] * 2)
    more.inputs.add(name="image", datatype="UINT8", shape=[1, 1, 1, 3])
    with grpc.insecure_channel(ports[1]) as channel:
        for request in (both, more, service_pb2.ModelInferRequest(model_name="tiny")):
            with pytest.raises(grpc.RpcError) as caught:
                triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_would_be_ignored_is_refused(client: Any) -> None:
    shared = triton.InferRequestedOutput("mask")
    shared.set_shared_memory("region", 100)
    for output in (shared, triton.InferRequestedOutput("mask", class_count=3)):
        with pytest.raises(InferenceServerException, match="is not supported; leave it out") as caught:
            client.infer("tiny", [image_input(triton, IMAGES, "UINT8")], outputs=[output])
        assert code_of(caught.value) == "INVALID_ARGUMENT"


def test_calls_are_counted_and_logged_like_requests(ports: tuple[str, str], client: Any) -> None:
    before = metric(ports[0], 'segpress_requests_total{code="200",model="tiny"}')
    with logged() as records:
        headers = {"x-request-id": "mine", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        client.infer("tiny", [image_input(triton, IMAGES, "UINT8")], headers=headers)
        until(lambda: any("mine" in record.getMessage() for record in records))
    [line] = [record for record in records if "mine" in record.getMessage()]
    fields = line.fields  # type: ignore[attr-defined]
    assert (fields["route"], fields["status"]) == ("/inference.GRPCInferenceService/ModelInfer", 200)
    assert fields["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert set(fields["stages_ms"]) == {"queue", "decode", "preprocess", "inference", "postprocess", "encode"}
    assert metric(ports[0], 'segpress_requests_total{code="200",model="tiny"}') == before + 1
    [of] = client.get_inference_statistics("tiny").model_stats
    assert of.inference_count >= of.execution_count > 0
    assert of.inference_stats.success.ns > 0


def test_probes_of_grpc_are_answered(ports: tuple[str, str]) -> None:
    request, response = messages.methods(messages.HEALTH)["Check"]
    with grpc.insecure_channel(ports[1]) as channel:
        check = channel.unary_unary(
            f"/{messages.HEALTH}/Check",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        for service in ("", messages.INFERENCE, "tiny"):
            assert check(request(service=service)).status == 1
        with pytest.raises(grpc.RpcError) as caught:
            check(request(service="x"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "tiny" not in str(caught.value.details())  # it needs no key, so it tells no names


def test_a_deadline_that_passes_in_the_queue_costs_no_compute(bundle: Bundle) -> None:
    predictor = GatedPredictor(bundle)
    settings = ServeSettings(concurrency=1, grpc_port=0, queue_limit=2)
    app = create_app([predictor], settings)
    with (
        serving(app, settings) as url,
        triton.InferenceServerClient(f"127.0.0.1:{app.state.grpc_server.port}") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        seen = len(predictor.seen)
        with predictor.closed():
            first = pool.submit(client.infer, "tiny", [image_input(triton, IMAGES, "UINT8")])
            until(lambda: len(predictor.seen) == seen + 1)
            with pytest.raises(InferenceServerException) as caught:
                client.infer("tiny", [image_input(triton, IMAGES, "UINT8")], client_timeout=0.2)
            assert code_of(caught.value) == "DEADLINE_EXCEEDED"
            until(lambda: metric(url, "segpress_queue_depth") == 0)
        assert np.array_equal(first.result().as_numpy("mask"), MASKS)
        assert len(predictor.seen) == seen + 1, "what nobody waited for was computed"


def test_a_request_may_bring_its_own_deadline(bundle: Bundle) -> None:
    predictor = GatedPredictor(bundle)
    settings = ServeSettings(concurrency=1, grpc_port=0)
    app = create_app([predictor], settings)
    with (
        serving(app, settings),
        triton.InferenceServerClient(f"127.0.0.1:{app.state.grpc_server.port}") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        image = [image_input(triton, IMAGES, "UINT8")]
        seen = len(predictor.seen)
        for wrong in ("0", "-1", "soon", "nan", "inf", ""):
            with pytest.raises(InferenceServerException, match="not a positive number of milliseconds") as caught:
                client.infer("tiny", image, headers={"x-deadline-ms": wrong})
            assert code_of(caught.value) == "INVALID_ARGUMENT"
        with pytest.raises(InferenceServerException, match="not a positive number of microseconds"):
            client.infer("tiny", image, timeout=-1)
        with predictor.closed():
            first = pool.submit(client.infer, "tiny", image)
            until(lambda: len(predictor.seen) == seen + 1)
            for how in ({"headers": {"x-deadline-ms": "1000"}}, {"timeout": 1_000_000}):
                with pytest.raises(InferenceServerException, match="nothing was computed") as caught:
                    client.infer("tiny", image, **how)
                assert code_of(caught.value) == "DEADLINE_EXCEEDED"
        first.result()
        client.infer("tiny", image, timeout=30_000_000)
    assert len(predictor.seen) == seen + 2


def test_answers_carry_the_ids_of_request_and_trace(ports: tuple[str, str]) -> None:
    request = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[b"\0\0\0"])
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 1, 1, 3])
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    sent = (("x-request-id", "mine"), ("traceparent", f"00-{trace}-00f067aa0ba902b7-01"))
    with grpc.insecure_channel(ports[1]) as channel:
        infer: Any = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        _, answered = infer.with_call(request, metadata=sent)
        request.model_name = "x"
        with pytest.raises(grpc.RpcError) as refused:
            infer(request, metadata=sent)
        for call in (answered, refused.value):
            metadata: Any = call.trailing_metadata()
            told = dict(metadata)
            assert told["x-request-id"] == "mine"
            assert told["traceparent"].split("-")[1] == trace


def test_what_no_more_may_wait_is_turned_away_with_a_time(bundle: Bundle) -> None:
    predictor = GatedPredictor(bundle)
    settings = ServeSettings(concurrency=1, grpc_port=0, queue_limit=0)
    app = create_app([predictor], settings)
    request = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[b"\0\0\0"])
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 1, 1, 3])
    with serving(app, settings), grpc.insecure_channel(f"127.0.0.1:{app.state.grpc_server.port}") as channel:
        infer = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        seen = len(predictor.seen)
        with predictor.closed():
            first = infer.future(request)
            until(lambda: len(predictor.seen) == seen + 1)
            with pytest.raises(grpc.RpcError) as caught:
                infer(request)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            metadata: Any = caught.value.trailing_metadata()
            assert int(dict(metadata)["retry-after"]) >= 1
        assert len(first.result().raw_output_contents[0]) == 1


def test_keys_open_this_door_too(bundle: Bundle, tmp_path: Path) -> None:
    use, admin = (add_key(tmp_path / "keys", role, role) for role in (Role.USE, Role.ADMIN))
    settings = ServeSettings(concurrency=1, grpc_port=0, api_keys=tmp_path / "keys")
    app = create_app([bundle.path], settings)
    with (
        serving(app, settings) as url,
        triton.InferenceServerClient(f"127.0.0.1:{app.state.grpc_server.port}") as client,
    ):
        assert client.is_server_live()
        assert client.is_server_ready()
        for ask in (client.get_server_metadata, client.get_model_repository_index):
            with pytest.raises(InferenceServerException) as caught:
                ask()
            assert code_of(caught.value) == "UNAUTHENTICATED"
        headers = {"authorization": f"Bearer {use}"}
        result = client.infer("tiny", [image_input(triton, IMAGES, "UINT8")], headers=headers)
        assert np.array_equal(result.as_numpy("mask"), MASKS)
        with pytest.raises(InferenceServerException) as caught:
            client.unload_model("tiny", headers=headers)
        assert code_of(caught.value) == "PERMISSION_DENIED"
        client.load_model("tiny", headers={"authorization": f"Bearer {admin}"})
        counted = metric_lines(url, {"Authorization": f"Bearer {use}"})
        for reason, count in (("no_key", 2), ("not_admin", 1)):
            assert counted[f'segpress_errors_total{{model="",reason="{reason}"}}'] == count


def test_an_end_without_a_message_and_a_name_that_is_none_are_refused(ports: tuple[str, str], client: Any) -> None:
    with grpc.insecure_channel(ports[1]) as channel:
        assert channel.stream_unary(f"/{messages.INFERENCE}/ModelInfer").future(iter([])).code().name == (
            "INVALID_ARGUMENT"
        )
    with pytest.raises(InferenceServerException, match="at most 65536 bytes") as caught:
        client.get_model_metadata("x" * 70_000)
    assert code_of(caught.value) == "INVALID_ARGUMENT"


def test_tls_serves_this_door_too(bundle: Bundle) -> None:
    certificates = Path(__file__).parent / "certificates"
    certificate, key = certificates / "localhost.pem", certificates / "localhost.key.pem"
    settings = ServeSettings(concurrency=1, grpc_port=0, tls_cert=certificate, tls_key=key)
    app = create_app([bundle.path], settings)
    with serving(app, settings):
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"localhost:{app.state.grpc_server.port}", credentials) as channel:
            stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
        with grpc.insecure_channel(f"127.0.0.1:{app.state.grpc_server.port}") as channel:
            stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=5)


def test_a_drain_answers_what_was_accepted_on_both_doors(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = ServeSettings(port=0, grpc_port=port, concurrency=1, grace_seconds=0.5)
    with ServerProcess([bundle.path], settings) as server:
        url = server.base_url
        answers: list[bool] = []
        ends: list[str] = []

        def ask() -> None:
            with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
                while True:
                    try:
                        result = client.infer("tiny", [image_input(triton, IMAGES, "UINT8")])
                    except InferenceServerException as error:
                        ends.append(code_of(error))
                        return
                    answers.append(np.array_equal(result.as_numpy("mask"), MASKS))

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: len(answers) > 5)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.log
        asking.join(30)
        assert all(answers)
        assert ends == ["UNAVAILABLE"]
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


def test_a_draining_server_says_when_to_come_back_in_sound_http2(bundle: Bundle) -> None:
    settings = ServeSettings(concurrency=1, grpc_port=0)
    app = create_app([bundle.path], settings)
    with serving(app, settings), grpc.insecure_channel(f"127.0.0.1:{app.state.grpc_server.port}") as channel:
        app.state.service.lifecycle.drain()
        with pytest.raises(grpc.RpcError) as caught:
            triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(service_pb2.ModelInferRequest())
        metadata: Any = caught.value.trailing_metadata()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert set(dict(metadata)) == {"retry-after", "x-request-id", "traceparent"}, (
            "headers of a connection are malformed in HTTP/2"
        )


def test_a_port_that_is_taken_is_said_before_bundles_are_loaded(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}"):
            run([bundle.path], ServeSettings(port=0, grpc_port=port))


def test_the_compiled_messages_are_those_of_the_proto_files(tmp_path: Path) -> None:
    compiled = tmp_path / "protocols.binpb"
    names = sorted((path.name for path in PROTO.glob("*.proto")), reverse=True)
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"--descriptor_set_out={compiled}", *names],
        check=True,
        cwd=PROTO,
    )
    made, kept = (FileDescriptorSet.FromString(path.read_bytes()) for path in (compiled, PROTO / "protocols.binpb"))
    by_name = [{file.name: file for file in files.file} for files in (made, kept)]
    assert by_name[0] == by_name[1]


def test_every_message_is_a_part_of_tritons() -> None:
    """With the same numbers and types, or the bytes would mean something else to the other side."""

    def fields(descriptor: Any) -> set[tuple[Any, ...]]:
        found = set()
        for field in descriptor.fields:
            of = field.message_type or field.enum_type
            found.add((field.number, field.name, field.type, field.is_repeated, of.full_name if of else ""))
        for nested in descriptor.nested_types:
            found |= {(nested.name, *of) for of in fields(nested)}
        return found

    asked = [pair for methods in [messages.methods(messages.INFERENCE)] for pair in methods.values()]
    todo, done = [message.DESCRIPTOR for pair in asked for message in pair], set()
    while todo:
        ours = todo.pop()
        if ours.full_name in done:
            continue
        done.add(ours.full_name)
        theirs = service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(ours.full_name)
        assert fields(ours) <= fields(theirs), ours.full_name
        todo += [field.message_type for field in ours.fields if field.message_type]
    assert len(done) > 30
    triton_methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for name, (request, response) in messages.methods(messages.INFERENCE).items():
        theirs = triton_methods[name]
        assert (request.DESCRIPTOR.full_name, response.DESCRIPTOR.full_name) == (
            theirs.input_type.full_name,
            theirs.output_type.full_name,
        )
