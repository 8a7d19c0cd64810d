"""`create_app` refuses what cannot be served before anything starts, and says what to do."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError
from support.bundles import tiny_bundle
from support.servers import serving

from export.bundle import Bundle
from export.errors import BundleError, UsageError
from export.images import U8, decode_indices, encode_image
from export.machine import usable_cores
from export.runtime import OnnxModel
from export.sessions import Provider
from serve.app import create_app
from serve.predictor import BundlePredictor, SessionSettings
from serve.settings import ServeSettings


def damaged(bundle: Bundle, path: Path) -> Path:
    """A copy of `bundle` in which one byte of the model differs."""
    shutil.copytree(bundle.path, path)
    model = bytearray((path / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (path / "model.onnx").write_bytes(model)
    return path


def test_a_damaged_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx does not match its hash"):
        create_app([damaged(bundle, tmp_path / "damaged")])


def test_golden_answers_are_those_of_what_will_serve(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider may run the graph and still give other masks."""

    class OnAProviderThatIsWrong(OnnxModel):
        def masks(self, images_NHWC: U8) -> U8:
            return (super().masks(images_NHWC) + 1) % 4

    create_app([bundle.path])
    monkeypatch.setattr("export.bundle.OnnxModel", OnAProviderThatIsWrong)
    with pytest.raises(BundleError, match=r"golden example ramp-0: 100\.00% .* \(CPUExecutionProvider\)"):
        create_app([bundle.path])


def test_everything_wrong_in_several_bundles_is_said_at_once(
    bundle: Bundle, grey_bundle: Bundle, tmp_path: Path
) -> None:
    paths = [damaged(bundle, tmp_path / "one"), grey_bundle.path, tmp_path / "two"]
    with pytest.raises(BundleError) as caught:
        create_app(paths)
    assert any("one" in problem and "hash" in problem for problem in caught.value.problems)
    assert any("two" in problem and "no such folder" in problem for problem in caught.value.problems)


def test_two_bundles_of_one_name_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    twin = tiny_bundle(tmp_path / "twin", classes=2)
    with pytest.raises(UsageError, match="two bundles are named tiny"):
        create_app([bundle.path, twin.path])


def test_nothing_to_serve_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to serve"):
        create_app([])


def test_a_pixel_limit_below_the_models_own_size_is_refused(grey_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"grey takes images of 64x48.*set it to 3072 or more"):
        create_app([grey_bundle.path], ServeSettings(max_pixels=1000))


def test_buckets_that_no_padded_image_fits_are_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"tiny takes images of 112x112.*set it to 12544 or more, or size_bucket"):
        create_app([bundle.path], ServeSettings(max_pixels=10_000, size_bucket=56))
    create_app([bundle.path], ServeSettings(max_pixels=12_544, size_bucket=56))


def test_predictors_may_be_made_elsewhere(bundle: Bundle) -> None:
    class EverythingIsTwo(BundlePredictor):
        def predict(self, images_NHWC: U8) -> U8:
            return np.full_like(super().predict(images_NHWC), 2)

    with serving(create_app([EverythingIsTwo(bundle, SessionSettings())])) as url:
        image = encode_image(np.zeros((9, 7, 3), np.uint8))
        answer = httpx.post(f"{url}/v1/models/tiny/segment", content=image, headers={"Content-Type": "image/png"})
    np.testing.assert_array_equal(decode_indices(answer.raise_for_status().content), np.full((9, 7), 2))


@pytest.mark.parametrize(
    ("told", "bucket", "run"),
    [
        ({}, 1, (512, 512)),
        ({"usual_size": (40, 90)}, 1, (48, 96)),
        ({"size": (32, 48)}, 64, (64, 64)),
        ({"usual_size": (2000, 2000)}, 1, (512, 512)),  # which would be refused
    ],
)
def test_before_requests_come_the_model_has_run_at_the_size_that_it_is_meant_for(
    told: dict[str, Any], bucket: int, run: tuple[int, int], tmp_path: Path
) -> None:
    seen = set()

    class Seen(BundlePredictor):
        def predict(self, images_NHWC: U8) -> U8:
            seen.add(images_NHWC.shape[1:3])
            return super().predict(images_NHWC)

    bundle = tiny_bundle(tmp_path / "tiny", **told)
    with serving(create_app([Seen(bundle, SessionSettings())], ServeSettings(size_bucket=bucket, max_pixels=10**6))):
        assert seen == {run}


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"concurrency": 0}, {"queue_limit": -1}, {"deadline_seconds": 0}, {"unknown": 1}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ServeSettings.model_validate(wrong)


def test_every_setting_can_be_given_by_name() -> None:
    given = ServeSettings(port=1).with_given(["max_pixels=99", "otel=true", "api_keys=a=b", "objective_seconds=0.05"])
    assert (given.port, given.max_pixels, given.otel, given.objective_seconds) == (1, 99, True, 0.05)
    assert given.api_keys == Path("a=b")
    assert ServeSettings().with_given(["providers=cuda, cpu"]).providers == (Provider.CUDA, Provider.CPU)
    with pytest.raises(UsageError) as caught:
        ServeSettings().with_given(["max_pixels=0", "queue=1", "header_seconds=soon"])
    for named in ("max_pixels=0", "queue: no such setting; did you mean queue_limit?", "header_seconds=soon"):
        assert named in str(caught.value)


def test_settings_that_undo_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match=r"batch_delay_seconds=0\.01: with max_batch=1 no request waits"):
        ServeSettings().with_given([], batch_delay_seconds=0.01)
    assert ServeSettings(max_batch=2, batch_delay_seconds=0.01).batch_delay_seconds == 0.01
    with pytest.raises(UsageError, match="max_buffered_bytes=536870912: a body of max_body_bytes=536870913 would"):
        ServeSettings().with_given(["max_body_bytes=536870913"])
    with pytest.raises(ValidationError, match="a body of max_body_bytes=536870913 would never fit"):
        ServeSettings(max_body_bytes=536870913)


@pytest.mark.parametrize("name", ["deadline_seconds", "grace_seconds", "drain_seconds", "batch_delay_seconds"])
def test_nothing_is_waited_for_for_ever(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}=inf: Input should be less than or equal to 86400"):
        ServeSettings().with_given([f"{name}=inf", "max_batch=2"])


def test_two_doors_have_two_ports() -> None:
    assert ServeSettings(port=0, grpc_port=0).grpc_port == 0
    for given in (ServeSettings(), ServeSettings(port=9000)):
        with pytest.raises(UsageError, match=r"grpc_port=\d+: that is the port of HTTP; give gRPC another one"):
            given.with_given([f"grpc_port={given.port}"])
        with pytest.raises(UsageError, match="that is the port of HTTP"):
            given.with_given([], grpc_port=given.port)


def test_as_many_requests_are_computed_at_once_as_there_are_usable_cores() -> None:
    assert ServeSettings().concurrency == usable_cores()
