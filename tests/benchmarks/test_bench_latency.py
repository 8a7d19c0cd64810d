"""`compress bench latency` without its command line: bundles and a dataset in, a report out."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.bundles import expected_mask, tiny_bundle
from support.datasets import write_dataset
from support.networks import TINY, exported, random_unet
from support.reports import Watched
from torch import nn

from benchmarks.latency import bench, report_on
from benchmarks.report.results import Report
from compress.data.folder import open_dataset
from compress.prune.importance import scores_of
from export.errors import BundleError, DatasetError, ShapeError, UsageError
from export.machine import Machine
from export.manifest import Latency
from export.scoring import ConfusionMatrix, Score, score
from export.sessions import Provider
from export.to_onnx import with_outputs

CLASSES = ("class-0", "class-1", "class-2")
FAST: dict[str, Any] = {"threads": 1, "rounds": 3, "command": "compress bench latency a b"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "discs"
    counts = {"train": 1, "val": 1, "test": 5}
    return write_dataset(path, counts=counts, size=[(40, 56), (40, 56), (64, 48)], classes=CLASSES, channels=3)


def test_bundles_are_scored_timed_and_reported(tmp_path: Path, data: Path) -> None:
    paths = [tiny_bundle(tmp_path / name, name=name).path for name in ("dense-fp32", "int8")]
    watched = Watched()
    report = bench(paths, data=data, out=tmp_path / "out", progress=watched, **FAST)

    dataset = open_dataset(data)
    matrix = ConfusionMatrix(3)
    for sample in dataset.test:
        matrix.update(dataset.read_mask(sample), expected_mask(dataset.read_image(sample), 3))
    assert [model.name for model in report.models] == ["dense-fp32", "int8"]
    assert {model.miou for model in report.models} == {matrix.miou}
    assert report.miou_drop == 0.0
    assert report.data is not None
    assert report.data.model_dump() == {
        "name": "discs",
        "fingerprint": dataset.fingerprint,
        "split": "test",
        "images": 5,
    }
    # Most images are 40x56, and the models take multiples of 16.
    assert (report.settings.height, report.settings.width) == (48, 64)
    assert report.settings.real_images
    assert Report.model_validate_json((tmp_path / "out" / "report.json").read_text()) == report
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.md", "report.html", "strip.png"}
    assert watched.steps["scoring dense-fp32"] == watched.steps["scoring int8"] == (5, 5)


def test_what_pruning_cut_is_shown_by_convolution(tmp_path: Path) -> None:
    """Of the last float bundle that was cut from the first, in however many steps, whatever learned from it."""
    whole = random_unet(base=16, upsampling="transposed")
    cut = scores_of(whole, channels=1).plan(0.4, 4).apply(whole, channels=1)
    networks = {"dense": whole, "cut": cut, "sparse": whole, "taught": whole}
    weights = "ab" * 32
    parents = {
        "dense": {"checkpoint": weights},
        "cut": {"checkpoint": "cd" * 32, "parent": "12" * 32, "ancestor": weights},
        "sparse": {"checkpoint": "34" * 32, "parent": weights},
        "taught": {"checkpoint": "ef" * 32, "teacher": weights},
    }
    paths = [
        tiny_bundle(
            tmp_path / name,
            name=name,
            channels=1,
            classes=TINY["classes"],
            size_multiple=4,
            graph=with_outputs(exported(network), "mask"),
            parents=parents[name],
        ).path
        for name, network in networks.items()
    ]
    report = bench(paths, size=(16, 16), out=tmp_path / "out", **FAST)
    assert report.widths_of == "cut"
    for which, network in (("width", whole), ("kept", cut)):
        convolutions = {
            name: module.out_channels
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        }
        assert {group.layer: getattr(group, which) for group in report.widths} == convolutions
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## What pruning cut, by convolution" in text
    assert "Convolutions of cut" in text
    assert "each convolution of cut" in text
    assert "importance lost" not in text


def test_a_provider_is_required_by_name(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "a").path
    with pytest.raises(UsageError, match=r"cuda is not in this onnxruntime .*onnxruntime-gpu"):
        bench([bundle], providers=[Provider.CPU, Provider.CUDA], out=tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()


def test_pictures_can_be_left_out(tmp_path: Path, data: Path) -> None:
    paths = [tiny_bundle(tmp_path / name, name=name).path for name in ("dense-fp32", "int8")]
    report = bench(paths, data=data, out=tmp_path / "out", pictures=False, **FAST)
    assert all(model.miou is not None for model in report.models)
    assert not (tmp_path / "out" / "strip.png").exists()
    assert "strip.png" not in (tmp_path / "out" / "report.md").read_text()


def test_without_data_the_manifests_size_is_timed_on_noise(tmp_path: Path) -> None:
    measured = Latency(milliseconds=1.0, height=33, width=80, threads=1, machine=Machine.here())
    path = tiny_bundle(tmp_path / "a", latency=measured).path
    report = bench([path], out=tmp_path / "out", **FAST)
    assert (report.settings.height, report.settings.width) == (48, 80)
    assert not report.settings.real_images
    assert report.data is None
    assert not (tmp_path / "out" / "strip.png").exists()


@pytest.mark.parametrize(
    ("fields", "asked", "timed"),
    [({"size": (32, 48)}, None, (32, 48)), ({}, None, (256, 256)), ({"size": (32, 48)}, (16, 20), (16, 32))],
)
def test_size_is_asked_for_or_the_models_own(
    tmp_path: Path, fields: dict[str, Any], asked: tuple[int, int] | None, timed: tuple[int, int]
) -> None:
    path = tiny_bundle(tmp_path / "a", **fields).path
    report = bench([path], size=asked, out=tmp_path / "out", **FAST)
    assert (report.settings.height, report.settings.width) == timed


def test_models_that_resize_are_each_timed_at_their_own_size(tmp_path: Path, data: Path) -> None:
    sizes: dict[str, tuple[int, int] | None] = {"small": (16, 32), "large": (160, 160), "any": None}
    paths = [tiny_bundle(tmp_path / name, name=name, size=size).path for name, size in sizes.items()]
    report = bench(paths, data=data, out=tmp_path / "own", **FAST)
    assert [model.timed_at for model in report.models] == [(16, 32), (160, 160), (48, 64)]
    small, large, _ = report.models
    assert large.latency_ms.p50 > small.latency_ms.p50
    assert any("small at 16x32, large at 160x160, any at 48x64" in note for note in report.notes)
    assert "batch 1, 16x32 or 48x64 or 160x160" in (tmp_path / "own" / "report.md").read_text()
    same = bench(paths, size=(32, 32), out=tmp_path / "same", **FAST)
    assert {model.timed_at for model in same.models} == {(32, 32)}


@pytest.mark.parametrize(
    ("classes", "fingerprint", "lost"), [(3, "a", 0.5), (3, "b", None), (2, "a", None), (2, "b", None)]
)
def test_scores_of_other_data_or_classes_are_not_subtracted(
    tmp_path: Path, classes: int, fingerprint: str, lost: float | None
) -> None:
    def made(name: str, classes: int, data: str, miou: float) -> Path:
        per_class = {f"class-{k}": miou for k in range(classes)}
        accuracy = {"split": "val", "miou": miou, "miou_interval": (0.3, 1.0), "iou_per_class": per_class, "images": 4}
        parents = {"data": data * 64}
        return tiny_bundle(tmp_path / name, name=name, classes=classes, accuracy=accuracy, parents=parents).path

    report = bench([made("a", 3, "a", 0.9), made("b", classes, fingerprint, 0.4)], out=tmp_path / "out", **FAST)
    assert report.miou_drop == (None if lost is None else pytest.approx(lost))
    assert any("different datasets or classes" in note for note in report.notes) is (lost is None)


@pytest.mark.parametrize(
    ("names", "folders", "shown"),
    [
        (("same", "same"), ("x", "y"), ["x", "y"]),
        (("same", "same"), ("one/x", "two/x"), ["same", "same-2"]),
        (("same", "same-2", "same"), ("one/x", "two/x", "three/x"), ["same", "same-2", "same-2-"]),
    ],
)
def test_every_model_has_a_name_of_its_own(
    tmp_path: Path, names: tuple[str, ...], folders: tuple[str, ...], shown: list[str]
) -> None:
    paths = [tiny_bundle(tmp_path / f, name=n).path for n, f in zip(names, folders, strict=True)]
    report = bench(paths, size=(16, 16), out=tmp_path / "out", **FAST)
    assert [model.name for model in report.models] == shown


def test_models_and_data_must_go_together(tmp_path: Path, data: Path) -> None:
    two = tiny_bundle(tmp_path / "two", classes=2, name="two").path
    with pytest.raises(UsageError, match=r"two knows the classes class-0, class-1; .* class-0, class-1, class-2"):
        bench([two], data=data, out=tmp_path / "out", **FAST)
    grey, colour = tiny_bundle(tmp_path / "grey", channels=1, name="grey"), tiny_bundle(tmp_path / "rgb", name="rgb")
    with pytest.raises(UsageError, match=r"different channels \(grey 1, rgb 3\)"):
        bench([grey.path, colour.path], data=data, out=tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()


def test_a_grey_model_reads_coloured_data_as_grey(tmp_path: Path, data: Path) -> None:
    path = tiny_bundle(tmp_path / "grey", channels=1).path
    report = bench([path], data=data, out=tmp_path / "out", **FAST)
    dataset = open_dataset(data, channels=1)
    expected = score(
        lambda image: expected_mask(image, 3),
        [(s.name, dataset.read_image(s), dataset.read_mask(s)) for s in dataset.test],
        CLASSES,
    )
    assert report.models[0].miou == expected.miou


def test_what_cannot_be_read_is_named(tmp_path: Path, data: Path) -> None:
    bundle = tiny_bundle(tmp_path / "a")
    with pytest.raises(UsageError, match="name at least one"):
        bench([], out=tmp_path / "out", **FAST)
    with pytest.raises(BundleError, match="no such folder"):
        bench([bundle.path, tmp_path / "missing"], out=tmp_path / "out", **FAST)
    with pytest.raises(DatasetError, match="choose one of train, val, test"):
        bench([bundle.path], data=data, split="valid", out=tmp_path / "out", **FAST)  # type: ignore[arg-type]
    empty = write_dataset(tmp_path / "empty", counts={"train": 2, "val": 1}, classes=CLASSES, channels=3)
    with pytest.raises(DatasetError, match="test"):
        bench([bundle.path], data=empty, out=tmp_path / "out", **FAST)
    bundle.model_path.write_bytes(b"changed")
    with pytest.raises(BundleError, match="does not match its hash"):
        bench([bundle.path], out=tmp_path / "out", **FAST)


def test_a_run_reports_on_bundles_that_it_has_scored_itself(tmp_path: Path, data: Path) -> None:
    names = ("dense-fp32", "pruned-int8")
    bundles = {name: tiny_bundle(tmp_path / name, name="segpress") for name in names}
    dataset = open_dataset(data)
    samples = [(s.name, dataset.read_image(s), dataset.read_mask(s)) for s in dataset.test]
    scores: dict[str, Score] = {
        name: score(bundle.segmenter(threads=1).segment, samples, CLASSES) for name, bundle in bundles.items()
    }
    report = report_on(
        bundles,
        scores,
        dataset=dataset,
        title="demo",
        command="compress run --out demo",
        threads=1,
        rounds=2,
        out=tmp_path / "out",
        lookup_table_miou=0.25,
        notes=("from the run",),
    )
    assert [model.name for model in report.models] == list(names)
    assert report.title == "demo"
    assert report.notes[0] == "from the run"
    assert report.lookup_table_miou == 0.25
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["command"] == "compress run --out demo"
    assert "pruned-int8" in (tmp_path / "out" / "report.html").read_text()


def test_images_whose_channels_the_model_does_not_take_are_refused(tmp_path: Path, data: Path) -> None:
    bundle = tiny_bundle(tmp_path / "grey", channels=1)
    with pytest.raises(ShapeError, match="takes images of 1 channels"):
        report_on(
            {"grey": bundle},
            {},
            dataset=open_dataset(data, channels=3),
            title="t",
            command="c",
            out=tmp_path / "out",
            rounds=1,
        )
