"""gRPC calls whose message arrives slowly: how much memory they may reserve, for how long, and at whose expense."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from support.bundles import expected_mask
from support.oip import image_input, some_images
from support.servers import GatedPredictor, metric, serving, until
from tritonclient.grpc import service_pb2

from export.bundle import Bundle
from serve.app import create_app
from serve.keys import Role, add_key
from serve.oip import messages
from serve.oip.call import client_at
from serve.settings import ServeSettings

IMAGES = some_images(3, 21, 37)
MASKS = np.stack([expected_mask(image, 4) for image in IMAGES])


class Uploads:
    """Calls of one method whose message is held back until `end` is called or the block is left."""

    def __init__(self, port: int, key: str = "", method: str = "ModelInfer") -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        self._begin: Any = self._channel.stream_unary(f"/{messages.INFERENCE}/{method}")
        self._metadata = [("authorization", f"Bearer {key}")] if key else []
        self._end = threading.Event()
        self._content = b""

    def begin(self) -> Any:
        """Begin one more call; returns its future."""
        return self._begin.future(self._message(), metadata=self._metadata)

    def end(self, content: bytes) -> None:
        """Send `content` as the message of every call."""
        self._content = content
        self._end.set()

    def _message(self) -> Iterator[bytes]:
        self._end.wait(30)
        yield self._content

    def __enter__(self) -> "Uploads":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._end.set()


@contextlib.contextmanager
def relay(port: int, address: str) -> Iterator[int]:
    """A port whose connections reach `port` from another address of this machine."""
    with contextlib.ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listener:

        def pass_on(one: socket.socket, other: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := one.recv(65536):
                    other.sendall(data)
                other.shutdown(socket.SHUT_WR)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near = stack.enter_context(listener.accept()[0])
                    far = stack.enter_context(
                        socket.create_connection(("127.0.0.1", port), source_address=(address, 0))
                    )
                    for pair in ((near, far), (far, near)):
                        threading.Thread(target=pass_on, args=pair, daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(30)


def test_a_call_is_refused_before_its_message_comes(bundle: Bundle, tmp_path: Path) -> None:
    add_key(tmp_path / "keys", "use", Role.USE)
    predictor = GatedPredictor(bundle)
    for keys, end, code in ((tmp_path / "keys", False, "UNAUTHENTICATED"), (None, True, "UNAVAILABLE")):
        settings = ServeSettings(concurrency=1, grpc_port=0, api_keys=keys)
        app = create_app([predictor], settings)
        with serving(app, settings), Uploads(app.state.grpc_server.port) as uploads:
            if end:
                app.state.service.lifecycle.drain()
            assert uploads.begin().code().name == code


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive"])
def test_a_message_that_does_not_come_is_not_waited_for(bundle: Bundle, method: str) -> None:
    settings = ServeSettings(concurrency=1, grpc_port=0, upload_seconds=0.3)
    app = create_app([bundle.path], settings)
    with serving(app, settings) as url, Uploads(app.state.grpc_server.port, method=method) as uploads:
        late = uploads.begin()
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "not complete after 0.3 s" in late.details()
        assert metric(url, "segpress_body_bytes") == 0


def test_messages_on_their_way_have_half_of_the_memory(bundle: Bundle) -> None:
    settings = ServeSettings(concurrency=1, grpc_port=0, max_body_bytes=2**20, max_buffered_bytes=5 * 2**20)
    app = create_app([bundle.path], settings)
    with serving(app, settings) as url:
        port = app.state.grpc_server.port
        with Uploads(port) as uploads, triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            _kept = [uploads.begin() for _ in range(2)]  # gRPC cancels a call whose future is not kept
            until(lambda: metric(url, "segpress_body_bytes") == 2 * 2**20)
            refused = uploads.begin()
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "set aside" in refused.details()
            result = client.infer("tiny", [image_input(triton, IMAGES, "UINT8")])
            assert np.array_equal(result.as_numpy("mask"), MASKS), "what comes at once needs no room of its own"
        until(lambda: metric(url, "segpress_body_bytes") == 0)
        assert metric(url, 'segpress_errors_total{model="",reason="memory"}') == 1


def asked() -> bytes:
    request = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[IMAGES.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=IMAGES.shape)
    content: bytes = request.SerializeToString()
    return content


def test_calls_whose_message_does_not_come_leave_room_for_others(bundle: Bundle) -> None:
    settings = ServeSettings(concurrency=1, grpc_port=0, max_connections=8, max_body_bytes=8192)
    app = create_app([bundle.path], settings)
    with serving(app, settings) as url:
        port = app.state.grpc_server.port
        with Uploads(port) as uploads, triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            kept = [uploads.begin() for _ in range(8)]
            until(lambda: metric(url, "segpress_body_bytes") == 4 * 8192)
            until(lambda: sum(call.done() for call in kept) == 4)
            assert {call.code() for call in kept if call.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            for _ in range(4):
                assert client.is_server_ready()
                result = client.infer("tiny", [image_input(triton, IMAGES, "UINT8")])
                assert np.array_equal(result.as_numpy("mask"), MASKS)
            assert sum(call.done() for call in kept) == 4


@pytest.mark.parametrize("told_by", ["key", "address"])
def test_no_client_takes_the_room_for_slow_messages_from_another(bundle: Bundle, tmp_path: Path, told_by: str) -> None:
    with_keys = told_by == "key"
    keys = [add_key(tmp_path / "keys", name, Role.USE) if with_keys else "" for name in ("many", "few")]
    settings = ServeSettings(
        concurrency=1,
        grpc_port=0,
        max_body_bytes=2**20,
        max_buffered_bytes=9 * 2**20,
        api_keys=tmp_path / "keys" if with_keys else None,
    )
    app = create_app([bundle.path], settings)
    bodies = app.state.service.bodies
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(app, settings))
        port = app.state.grpc_server.port
        other = port if with_keys else stack.enter_context(relay(port, "127.0.0.2"))
        many, few = (stack.enter_context(Uploads(*of)) for of in ((port, keys[0]), (other, keys[1])))
        of_many = []
        for count in range(1, 5):
            of_many.append(many.begin())
            until(lambda: bodies.buffered_bytes == count * 2**20)  # noqa: B023
        assert many.begin().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        of_few = []
        for count in range(1, 3):
            of_few.append(few.begin())
            until(lambda: sum(call.done() for call in of_many) == count)  # noqa: B023
        assert [call.done() for call in of_many] == [False, False, True, True], "the last to come are the first to go"
        assert of_many[3].code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for uploads in (many, few):
            assert uploads.begin().code() is grpc.StatusCode.RESOURCE_EXHAUSTED, "one has as many as the other"
        assert bodies.buffered_bytes == 4 * 2**20
        few.end(asked())
        for call in of_few:
            answer = service_pb2.ModelInferResponse.FromString(call.result())
            assert answer.raw_output_contents[0] == MASKS.tobytes()
        assert not any(call.done() for call in of_many[:2])


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:192.0.2.1:5000", "192.0.2.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:ffff::9]:5000", "2001:db8:1:2::/64"),
        ("ipv6:%5B::1%5D:5000", "::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:5000", "192.0.2.1"),
        ("unix:", "unix:"),
    ],
)
def test_a_client_is_told_by_the_network_that_it_has(peer: str, client: str) -> None:
    assert client_at(peer) == client
