"""Traces, as a collector gets them over OTLP/HTTP: a span per request and per stage, in the client's trace."""

import contextlib
import gzip
import signal
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from support.logs import logged
from support.oip import image_input
from support.servers import GatedPredictor, ServerProcess, serving
from tritonclient.utils import InferenceServerException

from export.bundle import Bundle
from export.errors import UsageError
from export.images import U8, encode_image
from serve.app import create_app
from serve.settings import ServeSettings

SEGMENT = "/v1/models/tiny/segment"
PNG = {"Content-Type": "image/png"}
IMAGE = encode_image(np.zeros((16, 16, 3), np.uint8))
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["queue", "decode", "preprocess", "inference", "postprocess", "encode"]


class Collector:
    """Stands in for OpenTelemetry's collector: receives spans at /v1/traces."""

    def __init__(self) -> None:
        self.received: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                collector.received.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator["Collector"]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    @property
    def services(self) -> set[str]:
        return {
            attribute.value.string_value
            for request in self.received
            for resource in request.resource_spans
            for attribute in resource.resource.attributes
            if attribute.key == "service.name"
        }

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector().running() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector


def attributes(span: Span) -> dict[str, object]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value") or "") for a in span.attributes}


def test_a_request_is_a_span_of_its_clients_trace_with_its_stages_in_it(bundle: Bundle, collector: Collector) -> None:
    given = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    settings = ServeSettings(concurrency=1, otel=True)
    with logged() as records, serving([bundle.path], settings) as url:
        answer = httpx.post(url + SEGMENT, content=IMAGE, headers={**PNG, **given})
        assert answer.status_code == 200
        refused = httpx.post(url + SEGMENT, content=b"text", headers=PNG)
        httpx.get(url + "/v2/health/live")
        httpx.get(url + "/metrics")
    whole = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert [span.name for span in whole] == ["POST /v1/models/{name}/segment"] * 2
    assert whole[0].trace_id.hex() == TRACE
    assert whole[0].parent_span_id.hex() == PARENT
    assert attributes(whole[0])["http.response.status_code"] == 200
    stages = [span for span in collector.spans if span.parent_span_id == whole[0].span_id]
    assert [span.name for span in stages] == STAGES
    for span in stages:
        assert span.trace_id.hex() == TRACE
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= whole[0].end_time_unix_nano
    # The answer, the log and the span carry the same ids.
    assert answer.headers["traceparent"] == f"00-{TRACE}-{whole[0].span_id.hex()}-01"
    assert refused.json()["trace_id"] == whole[1].trace_id.hex()
    assert any(TRACE in record.getMessage() for record in records if record.name == "serve.record")
    assert collector.services == {"segpress"}


def client_of(app: FastAPI) -> Any:
    """Triton's gRPC client of an application that is being served."""
    return triton.InferenceServerClient(f"127.0.0.1:{app.state.grpc_server.port}")


def test_a_call_over_grpc_is_a_span_of_its_clients_trace_with_its_stages_in_it(
    bundle: Bundle, collector: Collector
) -> None:
    settings = ServeSettings(concurrency=1, otel=True, grpc_port=0)
    app = create_app([bundle.path], settings)
    given = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    tensor = image_input(triton, np.zeros((1, 16, 16, 3), np.uint8), "UINT8")
    with logged() as records, serving(app, settings), client_of(app) as client:
        client.infer("tiny", [tensor], headers=given)
        with pytest.raises(InferenceServerException):
            client.infer("unknown", [tensor], headers=given)
        assert client.is_server_live(headers=given)
    whole = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert {span.name for span in whole} == {"inference.GRPCInferenceService/ModelInfer"}
    good, unknown = whole[:2]
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(good) == {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
    }
    # A caller's mistake is not an error of the server.
    assert attributes(unknown)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert unknown.status.code == Status.STATUS_CODE_UNSET
    stages = [span for span in collector.spans if span.parent_span_id == good.span_id]
    assert [span.name for span in stages] == STAGES
    assert {span.trace_id.hex() for span in stages} == {TRACE}
    logged_ids = [record.getMessage() for record in records if record.name == "serve.record"]
    assert any(TRACE in line and "ModelInfer 200" in line for line in logged_ids)


def test_a_call_over_grpc_that_the_server_fails_is_an_error(bundle: Bundle, collector: Collector) -> None:
    class Faulty(GatedPredictor):
        def predict(self, images_NHWC: U8) -> U8:
            if images_NHWC.shape[1] == 32:
                raise RuntimeError("a bug")
            return super().predict(images_NHWC)

    settings = ServeSettings(concurrency=1, otel=True, grpc_port=0)
    app = create_app([Faulty(bundle)], settings)
    tensor = image_input(triton, np.zeros((1, 32, 16, 3), np.uint8), "UINT8")
    with serving(app, settings), client_of(app) as client, pytest.raises(InferenceServerException):
        client.infer("tiny", [tensor])
    [span] = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert (attributes(span)["error.type"], attributes(span)["rpc.grpc.status_code"]) == ("INTERNAL", 13)


def test_the_environment_names_the_service_and_the_share(
    bundle: Bundle, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "masks")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with serving([bundle.path], ServeSettings(concurrency=1, otel=True)) as url:
        httpx.get(url + "/v2/repository/index")
        httpx.get(url + "/v2/repository/index", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert [span.trace_id.hex() for span in collector.spans] == [TRACE]
    assert collector.services == {"masks"}


def test_without_the_option_nothing_is_sent(bundle: Bundle, collector: Collector) -> None:
    with serving([bundle.path], ServeSettings(concurrency=1)) as url:
        assert httpx.post(url + SEGMENT, content=IMAGE, headers=PNG).status_code == 200
    assert collector.received == []


@pytest.mark.slow
def test_a_collector_that_is_away_holds_up_neither_answers_nor_the_end(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    settings = ServeSettings(port=0, concurrency=1, otel=True, drain_seconds=5)
    with ServerProcess([bundle.path], settings) as server:
        assert httpx.post(server.base_url + SEGMENT, content=IMAGE, headers=PNG).status_code == 200
        server.signal(signal.SIGTERM)
        assert server.wait(seconds=20) == 0
    assert "Traceback" not in server.log


def test_the_missing_package_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(UsageError, match=r"--otel needs .*pip install 'segpress\[otel\]'"):
        create_app([bundle.path], ServeSettings(otel=True))
