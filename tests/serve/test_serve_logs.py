"""One line per event: what a request was, how long each of its stages took, and the ids by which to find it."""

import json
import logging
import re
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.logs import logged
from support.servers import GatedPredictor, process_log, serving

from export.bundle import Bundle
from export.images import U8, encode_image
from serve.logs import JsonLines, LogFormat
from serve.settings import ServeSettings

SEGMENT = "/v1/models/tiny/segment"
PNG = {"Content-Type": "image/png"}
IMAGE = encode_image(np.zeros((16, 16, 3), np.uint8))
STAGES = ["queue", "decode", "preprocess", "inference", "postprocess", "encode"]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def requests(records: list[logging.LogRecord]) -> list[dict[str, object]]:
    """The lines about requests, as a log collector reads them."""
    lines = [JsonLines().format(record) for record in records if record.name == "serve.record"]
    assert not [line for line in lines if "\n" in line]
    return [line for line in map(json.loads, lines) if line.get("event") == "request"]


def test_a_line_tells_what_a_request_was_and_where_its_time_went(bundle: Bundle) -> None:
    given = {"X-Request-ID": "r-1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    with logged() as records, serving([bundle.path], ServeSettings(concurrency=1)) as url:
        answer = httpx.post(url + SEGMENT, content=IMAGE, headers={**PNG, **given})
        httpx.post(url + SEGMENT, content=b"text", headers=PNG)
    good, bad = requests(records)
    assert {key: good[key] for key in ("request_id", "trace_id", "method", "route", "status", "model")} == {
        "request_id": "r-1",
        "trace_id": TRACE,
        "method": "POST",
        "route": "/v1/models/{name}/segment",
        "status": 200,
        "model": "tiny",
    }
    assert (good["received_bytes"], good["sent_bytes"]) == (len(IMAGE), len(answer.content))
    stages = good["stages_ms"]
    assert isinstance(stages, dict)
    assert list(stages) == STAGES
    assert isinstance(good["ms"], float)
    assert 0 < sum(stages.values()) <= good["ms"] + 0.01
    assert (bad["status"], bad["model"]) == (415, "tiny")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", str(good["time"]))
    assert good["level"] == "info"


def test_what_clients_make_up_does_not_get_into_the_log(bundle: Bundle) -> None:
    with logged() as records, serving([bundle.path], ServeSettings(concurrency=1)) as url:
        httpx.get(url + "/made%0Aup")
        httpx.post(url + "/v1/models/made-up/segment", content=IMAGE, headers=PNG)
        httpx.get(url + "/v2/repository/index?made=up", headers={"X-Request-ID": "made up", "traceparent": "made-up"})
    lines = requests(records)
    assert [line["route"] for line in lines] == ["(no route)", "/v1/models/{name}/segment", "/v2/repository/index"]
    assert not re.search("made.{0,3}up", json.dumps(lines))


def test_the_line_of_head_tells_its_route_and_that_nothing_was_sent(bundle: Bundle) -> None:
    with logged() as records, serving([bundle.path], ServeSettings(concurrency=1)) as url:
        httpx.head(url + "/v2/models/tiny")
    [line] = requests(records)
    assert {key: line[key] for key in ("method", "route", "status", "sent_bytes")} == {
        "method": "HEAD",
        "route": "/v2/models/{name}",
        "status": 200,
        "sent_bytes": 0,
    }


def test_probes_and_scrapers_are_quiet(bundle: Bundle) -> None:
    with logged() as records, serving([bundle.path], ServeSettings(concurrency=1)) as url:
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics"):
            httpx.get(url + path)
    assert [line["level"] for line in requests(records)] == ["debug"] * 3


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"00-{TRACE}-00f067aa0ba902b7",
        f"00-{TRACE}x-00f067aa0ba902b7-01",
    ],
)
def test_a_trace_that_is_none_is_replaced(client: httpx.Client, given: str | None) -> None:
    response = client.get("/nothing", headers={} if given is None else {"traceparent": given})
    version, trace_id, span_id, flags = response.headers["traceparent"].split("-")
    assert (version, flags) == ("00", "00")
    assert re.fullmatch("[0-9a-f]{32}", trace_id)
    assert re.fullmatch("[0-9a-f]{16}", span_id)
    assert trace_id not in {"0" * 32, TRACE}
    assert response.json()["trace_id"] == trace_id


def test_a_trace_goes_on_under_a_new_parent(client: httpx.Client) -> None:
    for flags in ("00", "01"):
        response = client.get("/nothing", headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-{flags}"})
        version, trace_id, span_id, sampled = response.headers["traceparent"].split("-")
        assert (version, trace_id, sampled) == ("00", TRACE, flags)
        assert span_id != "00f067aa0ba902b7"
        assert response.json()["trace_id"] == TRACE


def test_a_failure_is_one_line_with_its_traceback(bundle: Bundle) -> None:
    class Faulty(GatedPredictor):
        def predict(self, images_NHWC: U8) -> U8:
            if images_NHWC.flat[0] == 13:
                raise RuntimeError("two\nlines")
            return super().predict(images_NHWC)

    with logged() as records, serving([Faulty(bundle)], ServeSettings(concurrency=1)) as url:
        image = encode_image(np.full((16, 16, 3), 13, np.uint8))
        assert httpx.post(url + SEGMENT, content=image, headers=PNG).status_code == 500
    (failed,) = [record for record in records if record.levelno >= logging.ERROR]
    line = JsonLines().format(failed)
    assert "\n" not in line
    assert "RuntimeError: two\nlines" in json.loads(line)["exception"]


@pytest.mark.parametrize(("form", "is_json"), [("json", True), ("text", False), (None, True)])
def test_the_command_writes_the_form_that_is_asked_for(bundle: Bundle, form: str | None, is_json: bool) -> None:
    option = ["--log-format", form] if form else []
    log = process_log(["serve", str(bundle.path), "--port", "0", "--concurrency", "1", *option], until="ready on")
    lines = [line for line in log.splitlines() if line]
    assert lines
    if is_json:
        assert any("ready on http://" in json.loads(line)["message"] for line in lines)
    else:
        assert not [line for line in lines if line.startswith("{")]


def test_the_reason_of_a_failed_start_is_a_line_like_the_others(tmp_path: Path) -> None:
    log = process_log(["serve", str(tmp_path / "nowhere"), "--port", "0"], status=2)
    (line,) = log.splitlines()
    assert json.loads(line)["level"] == "critical"
    assert "nowhere" in json.loads(line)["message"]


def test_a_terminal_gets_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert LogFormat.here() is LogFormat.TEXT
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert LogFormat.here() is LogFormat.JSON
