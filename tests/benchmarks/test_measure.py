"""Timing and memory of real bundles; no test expects a certain speed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bundles import tiny_bundle
from support.reports import Watched, make_bundles

from benchmarks.measure import TIMED_IMAGES, WARMUP, measure
from benchmarks.memory import footprint
from export.bundle import Bundle
from export.errors import ShapeError, UsageError, WorkFailedError
from export.images import PAD_VALUE, U8
from export.machine import usable_cores
from export.runtime import OnnxModel


class Recorder(OnnxModel):
    """A real model that keeps what it is given."""

    def __init__(self, source: Path, given: list[U8], **settings: Any) -> None:
        super().__init__(source, **settings)
        self._given = given

    def masks(self, images_NHWC: U8) -> U8:
        self._given.append(images_NHWC)
        return super().masks(images_NHWC)


@dataclass(frozen=True)
class RecordedBundle(Bundle):
    given: dict[int, list[U8]] = field(default_factory=dict)
    """Images that its models were given, by number of threads."""

    def model(self, *, threads: int | None = None, **others: Any) -> OnnxModel:
        return Recorder(self.model_path, self.given.setdefault(threads or 0, []), threads=threads, **others)


def test_every_model_has_its_samples_and_a_footprint_of_its_own(tmp_path: Path) -> None:
    bundles = make_bundles(tmp_path, {"first": {}, "second": {"precision": "int8"}})
    watched = Watched()
    results = measure(bundles, sizes=dict.fromkeys(bundles, (40, 33)), threads=2, rounds=4, progress=watched)
    assert list(results) == ["first", "second"]
    for result in results.values():
        assert (result.height, result.width, result.threads) == (48, 48, 2)
        assert len(result.samples.milliseconds) == len(result.one_thread.milliseconds) == 4
        assert min(*result.samples.milliseconds, *result.one_thread.milliseconds, result.throughput) > 0
        assert result.concurrency == usable_cores()
        assert result.failure is None
        assert result.footprint is not None
        assert result.footprint.load_ms > 0
    assert watched.steps.keys() == {"latency, 1 thread", "latency, 2 threads", "throughput", "memory"}
    assert all(done == total for done, total in watched.steps.values())


def test_one_thread_is_measured_once(tmp_path: Path) -> None:
    watched = Watched()
    results = measure(
        {"only": tiny_bundle(tmp_path / "a")}, sizes={"only": (16, 16)}, threads=1, rounds=3, progress=watched
    )
    assert results["only"].samples == results["only"].one_thread
    assert "latency, 1 thread" in watched.steps
    assert not any("threads" in title for title in watched.steps)


def test_all_models_see_the_same_padded_images_in_the_same_order(tmp_path: Path) -> None:
    bundles = {
        name: RecordedBundle(tiny.path, tiny.manifest)
        for name, multiple in (("a", 16), ("b", 24))
        for tiny in [tiny_bundle(tmp_path / name, size_multiple=multiple)]
    }
    images = [np.full((20, 30, 3), shade, dtype=np.uint8) for shade in (10, 200, 90)]
    measure(bundles, sizes=dict.fromkeys(bundles, (20, 30)), threads=2, rounds=3, images=images)
    timed = WARMUP + 3
    for threads in (1, 2):
        first, second = bundles["a"].given[threads][:timed], bundles["b"].given[threads][:timed]
        assert [image[0, 0, 0, 0] for image in first] == [10, 200, 90, 10, 200, 90]
        for one, other in zip(first, second, strict=True):
            # 48 is the smallest multiple of 16 and of 24 that holds the image.
            assert one.shape == (1, 48, 48, 3)
            np.testing.assert_array_equal(one, other)
            assert (one[0, 20:] == PAD_VALUE).all()
            assert (one[0, :, 30:] == PAD_VALUE).all()


def test_images_are_brought_to_the_size_that_is_asked_for(tmp_path: Path) -> None:
    tiny = tiny_bundle(tmp_path / "a", channels=1)
    bundle = RecordedBundle(tiny.path, tiny.manifest)
    measure({"a": bundle}, sizes={"a": (32, 64)}, threads=1, rounds=1, images=[np.full((70, 51, 1), 7, dtype=np.uint8)])
    assert {image.shape for image in bundle.given[1]} == {(1, 32, 64, 1)}
    assert all((image == 7).all() for image in bundle.given[1])


def test_noise_is_the_same_in_every_run(tmp_path: Path) -> None:
    seen = []
    for name in ("a", "b"):
        tiny = tiny_bundle(tmp_path / name)
        bundle = RecordedBundle(tiny.path, tiny.manifest)
        measure({name: bundle}, sizes={name: (16, 32)}, threads=1, rounds=TIMED_IMAGES)
        seen.append(np.stack(bundle.given[1][:TIMED_IMAGES]))
    np.testing.assert_array_equal(seen[0], seen[1])
    assert len({image.tobytes() for image in seen[0]}) == TIMED_IMAGES


def test_models_of_different_channels_can_be_timed_on_noise(tmp_path: Path) -> None:
    bundles = {
        "grey": tiny_bundle(tmp_path / "grey", channels=1),
        "colour": tiny_bundle(tmp_path / "colour", channels=3),
    }
    sizes = dict.fromkeys(bundles, (16, 16))
    assert measure(bundles, sizes=sizes, threads=1, rounds=1).keys() == {"grey", "colour"}
    with pytest.raises(ShapeError, match=r"colour takes images of 3 channels.*\(16, 16, 1\)"):
        measure(
            bundles,
            sizes=dict.fromkeys(bundles, (16, 16)),
            threads=1,
            rounds=1,
            images=[np.zeros((16, 16, 1), dtype=np.uint8)],
        )


@pytest.mark.parametrize(
    ("settings", "says"), [({"rounds": 0}, "at least 1"), ({"threads": 0}, "at least 1"), ({"threads": -2}, "-2")]
)
def test_nonsense_is_refused(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        measure({"only": tiny_bundle(tmp_path / "a")}, sizes={"only": (16, 16)}, **settings)


def test_no_bundle_is_refused() -> None:
    with pytest.raises(UsageError, match="name at least one"):
        measure({}, sizes={})


def test_memory_is_that_of_the_child_alone(tmp_path: Path) -> None:
    ballast = np.ones(40_000_000)  # 305 MiB, touched
    found = footprint(tiny_bundle(tmp_path / "a"), height=32, width=32, threads=1)
    assert 20 < found.peak_memory_mib < ballast.nbytes / 2**20


def test_memory_grows_with_the_image(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "a")
    small, large = (footprint(bundle, height=s, width=s, threads=1) for s in (32, 1024))
    # Float copies of the image and the scores alone are 4 bytes each for 3 + 3 channels.
    assert large.peak_memory_mib - small.peak_memory_mib > 0.9 * 24


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    broken = tiny_bundle(tmp_path / "a")
    broken.model_path.write_bytes(b"no model")
    with pytest.raises(
        WorkFailedError, match=r"model\.onnx: the process that measures its memory failed: .*onnxruntime"
    ):
        footprint(broken, height=32, width=32, threads=1)


def test_memory_is_lost_alone_when_its_process_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The child cannot import NumPy: only its memory figure is lost.
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("raise ImportError('shadowed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = measure({"only": tiny_bundle(tmp_path / "a")}, sizes={"only": (16, 16)}, threads=1, rounds=2)["only"]
    assert result.footprint is None
    assert result.failure is not None
    assert "shadowed" in result.failure
    assert len(result.samples.milliseconds) == 2


def test_a_folder_named_like_a_package_is_not_imported_by_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "a")
    (tmp_path / "export.py").write_text("raise RuntimeError('imported by mistake')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert footprint(bundle, height=16, width=16, threads=1).peak_memory_mib > 0
