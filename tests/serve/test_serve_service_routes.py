"""What surrounds the image endpoint: health, metadata, metrics, pages, the OpenAPI document."""

import asyncio
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from support.servers import metric, serving

from export.bundle import Bundle
from export.images import encode_image
from serve.app import create_app
from serve.metrics import Stages
from serve.settings import ServeSettings

SEGMENT = "/v1/models/tiny/segment"
PNG = {"Content-Type": "image/png"}
IMAGE = encode_image(np.zeros((20, 20, 3), np.uint8))


def samples(text: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(text):
        yield from family.samples


def test_health(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/health/startup").json() == {"started": True}


def test_before_the_start_it_is_alive_but_not_ready(bundle: Bundle) -> None:
    app = create_app([bundle.path], ServeSettings())

    async def ask() -> tuple[int, list[httpx.Response], list[dict[str, str]]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            live = await client.get("/v2/health/live")
            ready = await client.get("/v2/health/ready")
            started = await client.get("/v2/health/startup")
            image = await client.post(SEGMENT, content=IMAGE, headers=PNG)
            return live.status_code, [ready, started, image], (await client.get("/v2/repository/index")).json()

    live, refused, index = asyncio.run(ask())
    assert live == 200
    for response in refused:
        assert (response.status_code, response.json()["reason"]) == (503, "not_ready")
        assert response.headers["retry-after"] == "1"
    assert [entry["state"] for entry in index] == ["UNAVAILABLE"]


def test_head_is_answered_as_get_is_without_the_body(client: httpx.Client) -> None:
    paths = [path for path, methods in client.get("/openapi.json").json()["paths"].items() if "get" in methods]
    paths = [path.format(name="tiny", version="1") for path in paths if "metrics" not in path]
    assert {"/v2/health/live", "/v2/health/ready", "/v2/models/tiny"} < set(paths)
    for path in (*paths, "/", "/docs", "/openapi.json", "/page/app.js", "/nothing"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        for name in ("content-type", "content-length", "content-security-policy"):
            assert head.headers.get(name) == get.headers.get(name), path
    assert client.head("/metrics").status_code == 200
    refused = client.head(SEGMENT)
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_metadata_follows_the_open_inference_protocol(client: httpx.Client, bundle: Bundle) -> None:
    answer = client.get("/v2/models/tiny").json()
    assert {key: answer[key] for key in ("name", "versions", "inputs", "outputs")} == {
        "name": "tiny",
        "versions": ["1"],
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
        "outputs": [{"name": "mask", "datatype": "UINT8", "shape": [-1, -1, -1]}],
    }
    assert answer["parameters"]["digest"] == bundle.manifest.digest
    assert answer["parameters"]["classes"] == list(bundle.manifest.classes)
    assert client.get("/v2/models/grey").json()["parameters"]["size"] == [48, 64]


def test_the_index_lists_every_model(client: httpx.Client) -> None:
    index = client.get("/v2/repository/index").json()
    assert [(entry["name"], entry["version"], entry["state"]) for entry in index] == [
        ("grey", "3", "READY"),
        ("tiny", "1", "READY"),
    ]


def test_counters_and_histograms_move_with_requests(bundle: Bundle) -> None:
    with serving([bundle.path]) as url:
        before = metric(url, 'segpress_requests_total{code="200",model="tiny"}')
        for _ in range(3):
            assert httpx.post(url + SEGMENT, content=IMAGE, headers=PNG).status_code == 200
        httpx.post(url + SEGMENT, content=b"text", headers=PNG)
        httpx.post(url + SEGMENT, content=b"text", headers={"Content-Type": "text/plain"})
        httpx.post(f"{url}/v1/models/{'x' * 50}/segment", content=IMAGE, headers=PNG)
        httpx.post(url + SEGMENT + "?overlay=maybe", content=IMAGE, headers=PNG)
        httpx.get(url + SEGMENT)
        httpx.get(url + "/nothing")
        text = httpx.get(url + "/metrics").text
        assert before == 0  # the warm-up is not counted as a request
        assert metric(url, 'segpress_requests_total{code="200",model="tiny"}') == 3
        assert metric(url, 'segpress_requests_total{code="415",model="tiny"}') == 2
        assert metric(url, 'segpress_requests_total{code="404",model=""}') == 1
        assert metric(url, 'segpress_errors_total{model="tiny",reason="unsupported"}') == 1
        assert metric(url, 'segpress_errors_total{model="tiny",reason="media_type"}') == 1
        for reason in ("unknown_model", "invalid", "method", "unknown_route"):
            assert metric(url, f'segpress_errors_total{{model="",reason="{reason}"}}') == 1, reason
        assert metric(url, 'segpress_request_duration_seconds_count{model="tiny"}') == 5
        # The text was decoded (and timed, though decoding raised), not inferred; the wrong type was not even queued.
        for stage, count in (("queue", 4), ("decode", 4), ("preprocess", 3), ("inference", 3), ("encode", 3)):
            sample = f'segpress_stage_duration_seconds_count{{model="tiny",stage="{stage}"}}'
            assert metric(url, sample) == count
        assert metric(url, "segpress_requests_in_flight") == 0
        assert metric(url, "segpress_ready") == 1
    assert "xxxx" not in text
    (info,) = [sample for sample in samples(text) if sample.name == "segpress_model_info"]
    manifest = bundle.manifest
    assert info.labels == {"name": "tiny", "version": "1", "precision": "fp32", "digest": manifest.digest}


def test_metrics_parse_and_keep_prometheus_naming_rules(client: httpx.Client) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    ours = {name: family for name, family in families.items() if name.startswith("segpress_")}
    assert len(ours) >= 10
    for name, family in ours.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", name)
        assert family.documentation.endswith(".")
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent)\b", name)
        if family.type == "histogram":
            assert name.endswith(("_seconds", "_images")), "a unit, or what is counted"
        if family.type == "counter":
            assert {sample.name for sample in family.samples} <= {f"{name}_total", f"{name}_created"}
        else:
            assert not name.endswith("_total")
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    assert "process_cpu_seconds" in families
    buckets = {float(s.labels["le"]) for s in ours["segpress_request_duration_seconds"].samples if "le" in s.labels}
    assert min(buckets) <= 0.002
    assert {0.01, 0.1, 1.0, 10.0} < buckets


def test_two_applications_do_not_share_counters(bundle: Bundle, client: httpx.Client) -> None:
    with serving([bundle.path]) as url:
        assert metric(url, 'segpress_requests_total{code="200",model="tiny"}') == 0


def test_stage_timers_survive_exceptions() -> None:
    observed: list[str] = []
    stages = Stages(lambda stage, seconds: observed.append(stage))
    with pytest.raises(ValueError, match="broken"), stages.time("decode"):
        raise ValueError("broken")
    assert observed == ["decode"]
    assert re.fullmatch(r"decode;dur=\d+\.\d{3}", stages.header())


class Page(HTMLParser):
    """Text, links, ids, and whether every element that was opened is closed."""

    _EMPTY = frozenset({"meta", "link", "br", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.links: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self._EMPTY:
            self.open.append(tag)
        values = {name: value or "" for name, value in attrs}
        if tag == "a":
            self.links.append(values["href"])
        elif "src" in values or "href" in values:
            self.sources.append(values.get("src") or values["href"])
        if "id" in values:
            self.ids.append(values["id"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_are_whole_and_need_nothing_from_elsewhere(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(response.text)
    assert page.open == []
    for source in page.sources:
        assert source.startswith("page/")
        assert client.get(f"/{source}").status_code == 200
    # The content security policy would block inline styles and scripts.
    assert "<style" not in response.text
    assert " style=" not in response.text
    assert not re.search(r"\son\w+=|<script(?! type=\"module\" src=)", response.text)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert client.get(f"/{link.removeprefix('.')}").status_code == 200


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("app.js", "text/javascript; charset=utf-8"),
        ("metrics.js", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
def test_parts_of_the_pages_come_with_their_type(client: httpx.Client, name: str, media_type: str) -> None:
    response = client.get(f"/page/{name}")
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    assert "://" not in response.text.replace("http://www.w3.org/2000/svg", "")
    assert "@import" not in response.text


@pytest.mark.parametrize("name", ["home.html", "absent.js", "../pages.py", "..%2fpages.py"])
def test_nothing_else_is_a_part_of_the_pages(client: httpx.Client, name: str) -> None:
    response = client.get(f"/page/{name}")
    assert (response.status_code, response.json()["reason"]) == (404, "unknown_route")


@pytest.mark.parametrize("path", ["/", "/docs", "/metrics", "/v2/health/live", "/nothing", SEGMENT])
def test_every_answer_says_how_far_a_browser_may_trust_it(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_start_page_shows_a_command_that_works_here(client: httpx.Client, base_url: str) -> None:
    text = Page(client.get("/").text).text
    for model in ("tiny", "grey"):
        assert f"{base_url}/v1/models/{model}/segment" in text
    assert "class-3" in text


def test_a_host_header_cannot_put_markup_on_the_start_page(client: httpx.Client) -> None:
    assert "<b>" not in client.get("/", headers={"Host": "<b>x"}).text


def test_the_docs_show_every_route_status_and_schema(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    page = Page(client.get("/docs").text)
    at = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            shown = [f"{method.upper()} {path}", operation["summary"]]
            for parameter in operation.get("parameters", []):
                assert parameter.get("description") or parameter["in"] == "path"
                shown += [parameter["name"] + parameter["in"], parameter.get("description", "")]
            shown += [status + response["description"] for status, response in operation["responses"].items()]
            # Each after what stands before it in the document, so within its own route.
            for text in shown:
                at = page.text.find(text.replace("`", ""), at)
                assert at >= 0, f"{method} {path}: {text}"
    assert "`" not in page.text
    assert set(document["components"]["schemas"]) == set(page.ids)


def test_the_openapi_document_says_what_the_server_does(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    segment = document["paths"]["/v1/models/{name}/segment"]["post"]
    assert set(segment["requestBody"]["content"]) == {
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/tiff",
        "multipart/form-data",
    }
    assert set(segment["responses"]["200"]["content"]) == {
        "image/png",
        "application/json",
        "application/octet-stream",
        "application/zip",
        "multipart/mixed",
    }
    assert {"400", "404", "406", "413", "415", "429", "503", "504"} <= set(segment["responses"])
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status != "200":
                    assert list(response["content"]) == ["application/problem+json"]
    referenced = set(re.findall(r'"#/components/schemas/(\w+)"', client.get("/openapi.json").text))
    assert referenced <= set(document["components"]["schemas"])
    answer = client.post(SEGMENT, content=IMAGE, headers={**PNG, "Accept": "application/json"}).json()
    assert set(answer) == set(document["components"]["schemas"]["Segmentation"]["properties"])


def test_an_answer_on_an_open_connection_is_not_held_back(client: httpx.Client) -> None:
    """With Nagle's algorithm on, every answer on a kept connection takes 40 ms."""
    fastest = min(client.get("/v2/health/live").elapsed.total_seconds() for _ in range(20))
    assert fastest < 0.03
