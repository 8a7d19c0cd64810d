"""How the server uses its workers and its memory: batches of waiting requests, deadlines, sizes, providers."""

import functools
import gzip
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bundles import expected_mask
from support.logs import logged
from support.oip import some_images
from support.servers import GatedPredictor, metric, process_log, serving, until

from export.bundle import Bundle
from export.errors import UsageError
from export.images import U8, decode_indices, encode_image
from export.runtime import OnnxModel, available_providers
from export.sessions import LargerThanUsual, Provider
from serve.app import create_app
from serve.metrics import Stages
from serve.pipeline import Sizes, WholeWork, run_together
from serve.predictor import BundlePredictor, SessionSettings
from serve.problems import ProblemError
from serve.settings import ServeSettings

SEGMENT = "/v1/models/tiny/segment"
PNG = {"Content-Type": "image/png"}

post_and_wait = functools.partial(httpx.post, timeout=None)
"""For requests that wait for the test. By default a client leaves after 5 s, which takes its request from the queue."""

NO_HURRY: dict[str, Any] = {"deadline_seconds": 600, "max_wait_seconds": 600}
"""Nothing is refused or dropped, however slow the machine is."""


@contextmanager
def held_up(predictor: GatedPredictor, settings: ServeSettings) -> Iterator[tuple[str, ThreadPoolExecutor]]:
    """A server whose workers are all busy until the gate opens."""
    with serving([predictor], settings) as url, ThreadPoolExecutor(20) as pool, predictor.closed():
        predictor.seen.clear()
        for busy in range(settings.concurrency):
            pool.submit(post_and_wait, url + SEGMENT, content=encode_image(some_images(1, 16, 16)[0]), headers=PNG)
            until(lambda busy=busy: metric(url, "segpress_workers_busy") == busy + 1)  # type: ignore[misc]
        yield url, pool


def test_what_waits_is_run_together_by_padded_size(bundle: Bundle) -> None:
    predictor = GatedPredictor(bundle)
    sizes = [(10, 10), (40, 10), (16, 12), (33, 16), (9, 9)]
    images = [some_images(1, *size, seed=index)[0] for index, size in enumerate(sizes)]
    with held_up(predictor, ServeSettings(concurrency=1, max_batch=8, **NO_HURRY)) as (url, pool):
        answers = []
        for waiting, image in enumerate(images):
            answers.append(pool.submit(post_and_wait, url + SEGMENT, content=encode_image(image), headers=PNG))
            until(lambda waiting=waiting: metric(url, "segpress_queue_depth") == waiting + 1)  # type: ignore[misc]
        # A file that is no image is refused alone; the requests beside it are not affected.
        damaged = pool.submit(post_and_wait, url + SEGMENT, content=encode_image(images[0])[:60], headers=PNG)
        until(lambda: metric(url, "segpress_queue_depth") == len(images) + 1)
        predictor.gate.set()
        for image, answer in zip(images, answers, strict=True):
            mask = decode_indices(answer.result().raise_for_status().content)
            np.testing.assert_array_equal(mask, expected_mask(image, 4))
        assert damaged.result().status_code == 400
        assert sorted(batch.shape for batch in predictor.seen[1:]) == [(2, 48, 16, 3), (3, 16, 16, 3)]
        assert metric(url, 'segpress_run_images_bucket{le="2.0",model="tiny"}') == 2
        assert metric(url, 'segpress_run_images_sum{model="tiny"}') == 6


def test_each_is_run_alone_unless_batches_are_asked_for(bundle: Bundle) -> None:
    predictor = GatedPredictor(bundle)
    with held_up(predictor, ServeSettings(concurrency=1, **NO_HURRY)) as (url, pool):
        file = encode_image(some_images(1, 16, 16)[0])
        answers = [pool.submit(post_and_wait, url + SEGMENT, content=file, headers=PNG) for _ in range(3)]
        until(lambda: metric(url, "segpress_queue_depth") == 3)
        predictor.gate.set()
        assert {answer.result().status_code for answer in answers} == {200}
        assert [len(batch) for batch in predictor.seen] == [1, 1, 1, 1]


def work_on(predictor: BundlePredictor, image: U8, sizes: Sizes) -> WholeWork[U8]:
    return WholeWork(predictor, Stages(), sizes, lambda: [image], lambda masks_NHW: masks_NHW[0])


@settings(max_examples=40)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=8),
    bucket=st.sampled_from([1, 16, 24, 64]),
    data=st.data(),
)
def test_a_batch_gives_what_its_members_give_alone(
    bundle: Bundle, shapes: list[tuple[int, int]], bucket: int, data: st.DataObject
) -> None:
    predictor = BundlePredictor(bundle, SessionSettings())
    sizes = Sizes(max_pixels=2**20, bucket=bucket)
    images = [some_images(1, *shape, seed=index)[0] for index, shape in enumerate(shapes)]
    works = [work_on(predictor, image, sizes) for image in images]
    broken = data.draw(st.sets(st.integers(0, len(works) - 1)))
    for index in broken:
        works[index] = WholeWork(predictor, Stages(), sizes, lambda: 1 // 0, lambda masks_NHW: masks_NHW[0])  # type: ignore[arg-type, return-value]
    for index, (image, outcome) in enumerate(zip(images, run_together(works), strict=True)):
        if index in broken:
            assert isinstance(outcome, ZeroDivisionError)
        else:
            np.testing.assert_array_equal(outcome, expected_mask(image, 4))


def test_one_run_has_no_more_pixels_than_one_request_may(bundle: Bundle) -> None:
    predictor = GatedPredictor(bundle)
    image = some_images(1, 32, 32)[0]
    run_together([work_on(predictor, image, Sizes(max_pixels=2 * 32 * 32)) for _ in range(5)])  # type: ignore[arg-type]
    assert [len(batch) for batch in predictor.seen] == [2, 2, 1]


def test_a_model_that_fails_on_one_answers_the_others(bundle: Bundle) -> None:
    class Picky(GatedPredictor):
        def predict(self, images_NHWC: U8) -> U8:
            if (images_NHWC == 99).all(axis=(1, 2, 3)).any():
                raise RuntimeError("not this one")
            return super().predict(images_NHWC)

    predictor = Picky(bundle)
    images = [np.full((16, 16, 3), value, np.uint8) for value in (10, 99, 200)]
    outcomes = run_together([work_on(predictor, image, Sizes(max_pixels=2**20)) for image in images])  # type: ignore[arg-type]
    assert isinstance(outcomes[1], RuntimeError)
    for index in (0, 2):
        np.testing.assert_array_equal(outcomes[index], expected_mask(images[index], 4))


def test_sizes_are_padded_into_buckets(bundle: Bundle) -> None:
    predictor = GatedPredictor(bundle)
    with serving([predictor], ServeSettings(concurrency=1, size_bucket=24)) as url:
        predictor.seen.clear()
        for size in ((5, 7), (40, 48), (49, 20)):
            image = some_images(1, *size)[0]
            answer = httpx.post(url + SEGMENT, content=encode_image(image), headers=PNG).raise_for_status()
            np.testing.assert_array_equal(decode_indices(answer.content), expected_mask(image, 4))
    # Multiples of 16, the model's own, and of 24.
    assert [batch.shape[1:3] for batch in predictor.seen] == [(48, 48), (48, 48), (96, 48)]


def test_padding_counts_against_the_limit_of_pixels() -> None:
    class Manifest:
        size, size_multiple, channels = None, 16, 3

    with pytest.raises(ProblemError, match="padded for the model"):
        Sizes(max_pixels=100 * 100, bucket=256).geometry(1, 50, 50, Manifest())  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [SEGMENT, "/v2/models/tiny/infer"])
def test_a_request_may_bring_its_own_deadline(bundle: Bundle, path: str) -> None:
    predictor = GatedPredictor(bundle)
    tensor = {"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [0, 0, 0]}
    content = json.dumps({"inputs": [tensor]}).encode() if "infer" in path else encode_image(some_images(1, 8, 8)[0])
    with held_up(predictor, ServeSettings(concurrency=1)) as (url, _):
        # No shorter: after a slow warm-up on a busy machine, a deadline below the estimated wait is refused at once.
        late = httpx.post(url + path, content=content, headers={**PNG, "X-Deadline-Ms": "1000"})
        assert (late.status_code, late.json()["reason"]) == (504, "deadline")
        for wrong in ("0", "-1", "soon", "nan", "inf", ""):
            answer = httpx.post(url + path, content=content, headers={**PNG, "X-Deadline-Ms": wrong})
            assert (answer.status_code, answer.json()["reason"]) == (400, "deadline_header"), wrong
    assert len(predictor.seen) == 1, "what nobody waited for was computed"


@pytest.mark.parametrize("form", ["short", "long", "compressed"])
def test_a_request_of_the_protocol_may_name_a_timeout(bundle: Bundle, form: str) -> None:
    """The parameter of Triton's clients, in microseconds."""
    predictor = GatedPredictor(bundle)
    side = 100 if form == "long" else 1

    def asking(timeout: object) -> bytes:
        tensor = {"name": "image", "shape": [1, side, side, 3], "datatype": "UINT8", "data": [0] * (3 * side * side)}
        content = json.dumps({"inputs": [tensor], "parameters": {"timeout": timeout}}, indent=2).encode()
        return gzip.compress(content) if form == "compressed" else content

    headers = {"Content-Encoding": "gzip"} if form == "compressed" else {}
    with held_up(predictor, ServeSettings(concurrency=1)) as (url, pool):
        late = pool.submit(httpx.post, url + "/v2/models/tiny/infer", content=asking(1_000_000), headers=headers)
        if form == "short":
            assert late.result().status_code == 504, "it is answered when its time has come"
        else:
            until(lambda: metric(url, "segpress_queue_depth") == 1)
            time.sleep(1.1)
        predictor.gate.set()
        assert (late.result().status_code, late.result().json()["reason"]) == (504, "deadline")
        assert "nothing was computed" in late.result().json()["detail"]
        assert len(predictor.seen) == 1, "what nobody waited for was computed"
        for wrong in (-1, 0.5, "soon", True):
            answer = httpx.post(url + "/v2/models/tiny/infer", content=asking(wrong), headers=headers)
            assert (answer.status_code, answer.json()["reason"]) == (400, "parameter"), wrong
        for enough in (0, 30_000_000):
            answer = httpx.post(url + "/v2/models/tiny/infer", content=asking(enough), headers=headers)
            assert answer.status_code == 200


def test_who_would_wait_too_long_is_told_so_before_it_waits(bundle: Bundle) -> None:
    predictor = GatedPredictor(bundle)
    limit = ServeSettings(concurrency=1, max_wait_seconds=1e-9)
    with held_up(predictor, limit) as (url, _):
        refused = httpx.post(url + SEGMENT, content=encode_image(some_images(1, 8, 8)[0]), headers=PNG)
        assert (refused.status_code, refused.json()["reason"]) == (429, "wait_too_long")
        assert int(refused.headers["retry-after"]) >= 1
        assert metric(url, 'segpress_errors_total{model="tiny",reason="wait_too_long"}') == 1


def test_files_that_are_no_images_do_not_shorten_the_estimated_wait(bundle: Bundle) -> None:
    class Slow(GatedPredictor):
        def predict(self, images_NHWC: U8) -> U8:
            time.sleep(0.1)
            return super().predict(images_NHWC)

    predictor = Slow(bundle)
    with serving([predictor], ServeSettings(concurrency=1)) as url, httpx.Client(base_url=url) as client:
        for _ in range(40):
            assert client.post(SEGMENT, content=b"garbage", headers=PNG).status_code == 415
        with predictor.closed(), ThreadPoolExecutor(1) as pool:
            pool.submit(httpx.post, url + SEGMENT, content=encode_image(some_images(1, 16, 16)[0]), headers=PNG)
            until(lambda: metric(url, "segpress_workers_busy") == 1)
            estimate = metric(url, "segpress_queue_wait_estimate_seconds")
            predictor.gate.set()
    assert estimate >= 0.1


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from export.runtime import OnnxModel

path, pool, *sides = sys.argv[1:]
model = OnnxModel(Path(path), threads=1, memory_pool=pool, usual_pixels=256 * 256)
for side in map(int, sides):
    model.masks(np.zeros((1, side, side, 3), np.uint8))
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20)
"""


def megabytes_after(sides: list[int], pool: str, path: Path) -> int:
    """Resident memory of a process that ran the wide graph on images of these sides."""
    if not path.exists():
        onnx.save(wide_graph(32), path)
    command = [sys.executable, "-c", MEMORY, str(path), pool, *map(str, sides)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_pool_that_shrinks_gives_back_what_a_large_run_took(tmp_path: Path) -> None:
    sides = [256] * 3 + [1536] + [256] * 3
    kept, shrunk = (megabytes_after(sides, pool, tmp_path / "wide.onnx") for pool in ("keep", "shrink"))
    # 32 channels of 1536x1536 in float are 302 MB.
    assert kept > shrunk + 250


def test_a_pool_that_shrinks_keeps_what_every_run_takes(tmp_path: Path) -> None:
    """Larger images than the bundle was measured at become usual: no run gives back what the next one needs."""
    sides = [256] * 3 + [768] * 14
    kept, shrunk = (megabytes_after(sides, pool, tmp_path / "wide.onnx") for pool in ("keep", "shrink"))
    # 32 channels of 768x768 in float are 75 MB.
    assert abs(kept - shrunk) < 30


@given(st.integers(1, 10**6), st.lists(st.floats(0.01, 10), max_size=20), st.floats(3, 100))
def test_runs_become_usual_by_being_repeated_and_not_by_being_rare(
    usual: int, before: list[float], times: float
) -> None:
    is_large = LargerThanUsual(usual)
    for share in before:
        is_large(round(usual * share))
    assert is_large(2 * round(usual * max([1, *before])) + 1)
    for _ in range(100):
        assert not is_large(usual)
    repeated = [is_large(round(times * usual)) for _ in range(60)]
    assert repeated[0]
    assert repeated == sorted(repeated, reverse=True)
    assert not repeated[-1]


def wide_graph(channels: int) -> onnx.ModelProto:
    """A graph with a feature map of `channels` channels at the size of the image."""
    return onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["" : 18]>
        wide (uint8[n,h,w,3] image) => (uint8[n,h,w] mask)
        <float[{channels},3,1,1] weight = {{{",".join(["0.5"] * (3 * channels))}}}>
        {{
            x = Cast<to = 1>(image)
            y = Transpose<perm = [0, 3, 1, 2]>(x)
            z = Conv(y, weight)
            index = ArgMax<axis = 1, keepdims = 0>(z)
            mask = Cast<to = 2>(index)
        }}
        """
    )


@pytest.mark.parametrize("pool", ["keep", "shrink", "off"])
def test_memory_does_not_change_masks(bundle: Bundle, pool: str) -> None:
    model = OnnxModel(bundle.model_path, threads=1, memory_pool=pool, usual_pixels=100)  # type: ignore[arg-type]
    for side in (16, 64, 16):
        image = some_images(1, side, side)
        np.testing.assert_array_equal(model.masks(image)[0], expected_mask(image[0], 4))


def test_a_provider_that_is_missing_is_said_and_what_serves_instead(bundle: Bundle) -> None:
    assert "CUDAExecutionProvider" not in available_providers(), "this test is for machines without"
    with pytest.raises(UsageError, match=r"cuda is not in this onnxruntime .*onnxruntime-gpu.*name cpu as well"):
        create_app([bundle.path], ServeSettings(providers=(Provider.CUDA,)))
    with logged() as records:
        create_app([bundle.path], ServeSettings(providers=(Provider.TENSORRT, Provider.CUDA, Provider.CPU)))
    said = [record.getMessage() for record in records if record.levelname == "WARNING"]
    assert [words.split(" is not")[0] for words in said] == ["provider tensorrt", "provider cuda"]
    assert all(words.endswith("falling back on CPUExecutionProvider") for words in said)


@pytest.mark.slow
def test_the_command_takes_all_of_it(bundle: Bundle) -> None:
    words: Sequence[str] = (
        f"serve {bundle.path} --port 0 --grpc-port 0 --max-wait 3 --max-batch 4 --batch-delay-ms 2 --size-bucket 32 "
        "--memory-pool off --provider cuda --provider cpu --allow-load --log-format text"
    ).split()
    log = process_log(words, until="ready on")
    assert "provider cuda is not in this onnxruntime" in log
    assert "gRPC on 127.0.0.1:" in log
