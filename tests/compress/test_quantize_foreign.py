"""`compress quantize MODEL.onnx`: a float model from elsewhere, brought into our form and quantized like ours."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.datasets import write_dataset
from support.foreign import (
    IMAGES,
    MEAN,
    STD,
    Above,
    Masked,
    Nhwc,
    NhwcLogits,
    Probabilities,
    Theirs,
    adopted_from,
    answers,
    normalised,
    write,
    written,
)
from support.recipes import TINY_SETTINGS
from torch import nn
from torch.nn import functional as F

from compress.cli.main import main
from compress.data.folder import open_dataset
from compress.quantize import analyze, quantize
from compress.quantize.foreign import read
from compress.quantize.workbench import inputs, opened
from compress.recipe import Recipe
from compress.settings.quantize import OnnxSettings
from compress.steps import read_record
from export.bundle import Bundle, verify
from export.errors import ModelError, UsageError
from export.runtime import OnnxModel
from export.to_onnx import with_outputs

SETTINGS = [*TINY_SETTINGS, "quantize.calibration=minmax", "quantize.max_drop=0.1"]


def normal(*settings: str) -> Recipe:
    """A recipe that declares `MEAN` and `STD`, with `settings` added."""
    declared = [f"quantize.onnx.mean={list(MEAN)}", f"quantize.onnx.std={list(STD)}"]
    return Recipe.load(None, [*SETTINGS, *declared, *settings])


NORMAL = normal()


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RGB images of two classes."""
    folder = tmp_path_factory.mktemp("rgb") / "data"
    return write_dataset(folder, counts={"train": 8, "val": 4, "test": 2}, size=(48, 64), channels=3)


@pytest.fixture(scope="module")
def taught(colours: Path) -> Theirs:
    """A network that learned to find discs outside this project."""
    torch.manual_seed(0)
    dataset = open_dataset(colours)
    images = normalised(np.stack([dataset.read_image(sample) for sample in dataset.train]))
    masks = torch.from_numpy(np.stack([dataset.read_mask(sample) for sample in dataset.train])).long()
    network = Theirs()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        loss = F.cross_entropy(network(images), masks, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network


@pytest.mark.parametrize("form", ["nchw", "nhwc", "nhwc out", "argmax", "softmax", "fixed"])
def test_it_gives_the_answers_that_it_gave(form: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = Theirs()
    wrapped: dict[str, Callable[[], Path]] = {
        "nchw": lambda: write(network, tmp_path / "m.onnx", (2, 3, 32, 40)),
        "nhwc": lambda: write(Nhwc(network), tmp_path / "m.onnx", (2, 32, 40, 3)),
        "nhwc out": lambda: write(NhwcLogits(network), tmp_path / "m.onnx", (2, 3, 32, 40)),
        "softmax": lambda: write(Probabilities(network), tmp_path / "m.onnx", (2, 32, 40, 3)),
        "argmax": lambda: write(Masked(network), tmp_path / "m.onnx", (2, 3, 32, 40)),
        "fixed": lambda: write(network, tmp_path / "m.onnx", (1, 3, 32, 40), free=False),
    }
    path, declared = wrapped[form](), OnnxSettings(mean=MEAN, std=STD)
    adopted = adopted_from(path, declared)
    with torch.inference_mode():
        expected = network(normalised(IMAGES)).numpy()
    np.testing.assert_allclose(answers(adopted, IMAGES), expected, rtol=1e-3, atol=1e-4)
    assert read(path, declared).size == ((32, 40) if form == "fixed" else None)
    assert adopted.size_multiple == (1 if form == "fixed" else 4)
    masks = OnnxModel(with_outputs(adopted.model, "mask").SerializeToString()).masks(IMAGES)
    np.testing.assert_array_equal(masks, expected.argmax(1))


def test_its_classes_may_be_others(tmp_path: Path) -> None:
    """In another order, and more of them than the dataset has."""
    torch.manual_seed(1)
    network = Theirs(logits=4)
    path = write(network, tmp_path / "m.onnx", (2, 3, 32, 40))
    declared = OnnxSettings(mean=MEAN, std=STD, classes=("tree", "background", "tree", "road"))
    adopted = adopted_from(path, declared, "background", "road", "tree")
    with torch.inference_mode():
        best = network(normalised(IMAGES)).argmax(1).numpy()
    expected = np.array([2, 0, 2, 1])[best]
    np.testing.assert_array_equal(OnnxModel(adopted.model.SerializeToString()).masks(IMAGES), expected)
    assert len(np.unique(expected)) == 3


def test_an_old_graph_is_raised(tmp_path: Path) -> None:
    """A graph of 2019, in which Softmax still treated all axes from its own on as one."""
    weight = np.random.default_rng(0).normal(size=(2, 3, 1, 1)).astype(np.float32)
    image, logits, shares = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", width, "h", "w"])
        for name, width in (("x", 3), ("l", 2), ("p", 2))
    )
    nodes = [
        onnx.helper.make_node("Conv", ["x", "weight"], ["l"]),
        onnx.helper.make_node("Softmax", ["l"], ["p"], axis=1),
    ]
    initializer = onnx.numpy_helper.from_array(weight, "weight")
    graph = onnx.helper.make_graph(nodes, "old", [image], [shares], [initializer], value_info=[logits])
    opset = onnx.helper.make_opsetid("", 11)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=6), str(tmp_path / "m.onnx"))
    adopted = adopted_from(tmp_path / "m.onnx", OnnxSettings(mean=MEAN, std=STD))
    with torch.inference_mode():
        expected = F.conv2d(normalised(IMAGES), torch.from_numpy(weight)).numpy()
    np.testing.assert_allclose(answers(adopted, IMAGES), expected, rtol=1e-3, atol=1e-4)
    assert adopted.size_multiple == 1


@pytest.fixture(scope="module")
def theirs(taught: Theirs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(taught, tmp_path_factory.mktemp("theirs") / "theirs.onnx", (2, 3, 32, 40))


def test_weights_beside_the_file_are_part_of_what_it_is(theirs: Path, colours: Path, tmp_path: Path) -> None:
    """Other weights are another model, for the record of a step and for the manifest."""
    beside = tmp_path / "beside.onnx"
    onnx.save(onnx.load(str(theirs)), str(beside), save_as_external_data=True, location="beside.data")

    def known_as() -> tuple[dict[str, str], dict[str, str]]:
        source, dataset = opened(beside, colours, Recipe.load(None, [*SETTINGS, "quantize.onnx.layout=nchw"]))
        return inputs(source, dataset), dict(source.card.parents)

    before = known_as()
    assert before == known_as()
    weights = np.fromfile(tmp_path / "beside.data", np.float32)
    (weights / 2).tofile(tmp_path / "beside.data")
    assert all(one["onnx"] != other["onnx"] for one, other in zip(before, known_as(), strict=True))


def test_it_becomes_a_bundle(theirs: Path, taught: Theirs, colours: Path, tmp_path: Path) -> None:
    made = quantize(theirs, colours, tmp_path / "out", NORMAL)
    verify(made.path)
    result = (read_record(made.path) or {})["result"]
    assert result["miou_parent"] > 0.8
    assert result["drop"] < 0.1
    manifest = made.manifest
    assert (manifest.precision, manifest.channels, manifest.size, manifest.size_multiple) == ("int8", 3, None, 4)
    assert manifest.classes == open_dataset(colours).classes
    # Their weights, and our three scales and three shifts.
    assert manifest.params >= sum(parameter.numel() for parameter in taught.parameters())
    assert manifest.parents.keys() == {"onnx", "data"}
    assert manifest.float_layers == ()
    per_pixel = 3 + 9 * 3 * 16 + 9 * 16 * 16 / 16 + 32 * 2
    assert manifest.macs == 48 * 64 * per_pixel
    # Its masks are those of their network, but for rounding.
    dataset = open_dataset(colours)
    image = dataset.read_image(dataset.test[0])
    with torch.inference_mode():
        expected = taught(normalised(image[None])).argmax(1)[0].numpy()
    assert (made.segmenter().segment(image) == expected).mean() > 0.95


def test_it_may_give_logits_alone(theirs: Path, colours: Path, tmp_path: Path) -> None:
    """Rewritten into other forms, it keeps no ArgMax, which nothing would read."""
    made = quantize(theirs, colours, tmp_path / "out", normal("quantize.rewrites=true", "export.outputs=logits"))
    assert [output.name for output in made.manifest.outputs] == ["logits"]
    verify(made.path)


def test_one_that_takes_a_single_size_is_proven_at_that(taught: Theirs, colours: Path, tmp_path: Path) -> None:
    """And rewritten into other forms at that size."""
    path = write(taught, tmp_path / "fixed.onnx", (1, 3, 32, 48), free=False)
    made = quantize(path, colours, tmp_path / "out", normal("quantize.rewrites=true"))
    assert made.manifest.size == (32, 48)
    cases = json.loads((made.path / "parity.json").read_text())["cases"]
    assert {(case["height"], case["width"]) for case in cases} == {(32, 48)}
    assert (read_record(made.path) or {})["result"]["miou"] > 0.8
    verify(made.path)


def test_what_cannot_be_is_refused(theirs: Path, colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no network that could be trained; --mode qat is for checkpoints"):
        quantize(theirs, colours, tmp_path / "out", Recipe.load(None, [*SETTINGS, "quantize.mode=qat"]))
    mapped = [*SETTINGS, 'quantize.onnx.classes=["disc", "background"]', "export.outputs=both"]
    with pytest.raises(UsageError, match="with --class-map a bundle gives masks alone"):
        quantize(theirs, colours, tmp_path / "out", Recipe.load(None, mapped))
    assert not (tmp_path / "out").exists()


def test_grey_images_are_given_in_as_many_channels_as_it_takes(theirs: Path, discs: Path, tmp_path: Path) -> None:
    made = quantize(theirs, discs, tmp_path / "out", NORMAL)
    assert made.manifest.channels == 3
    assert open_dataset(discs).channels == 1


def test_its_layers_are_analysed(
    theirs: Path, colours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Trained it cannot be, but no analysis trains."""
    found = analyze(theirs, colours, tmp_path / "out", normal("quantize.mode=qat"))
    assert [effect.operator for effect in found.layers] == ["Conv", "Conv", "Conv", "Concat", "Conv"]
    assert {"first.0", "deep.1", "head"} < {effect.layer for effect in found.layers}
    assert found.miou_float > 0.8
    assert "warning: mIoU of" not in capfd.readouterr().err


def test_one_no_better_than_no_model_is_told(
    theirs: Path, colours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With its classes swapped, to answer background everywhere would be better."""
    swapped = normal('quantize.onnx.classes=["disc", "background"]')
    found = analyze(theirs, colours, tmp_path / "out", swapped)
    assert found.miou_float < 0.3
    warning = f"warning: mIoU of {theirs} is {found.miou_float:.4f} on the validation split, and answering background "
    assert warning in capfd.readouterr().err


@pytest.mark.parametrize(
    ("declared", "classes", "message"),
    [
        (OnnxSettings(layout="nhwc"), (), r"is \[any, 3, any, any\], which is not an image in nhwc"),
        (OnnxSettings(mean=(0.5, 0.5)), (), "--mean has 2 values; give one, or 3"),
        (OnnxSettings(std=(1e-60,)), (), "--mean and --std make no finite normalisation in float32; give those of"),
        (OnnxSettings(mean=(0.5, 1e60, 0.5)), (), "--mean and --std make no finite normalisation"),
        (OnnxSettings(output="nowhere"), (), "it has no tensor 'nowhere'; its outputs are "),
        (OnnxSettings(), ("a", "b", "c"), r"logits of shape \[2, 2, .*\].*without --class-map, classes.json names 3"),
        (
            OnnxSettings(classes=("disc", "background", "disc")),
            (),
            r"logits of shape \[2, 2, .*\].*--class-map names 3",
        ),
        (OnnxSettings(classes=("disc",)), (), "--class-map names a single class; name two or more"),
        (OnnxSettings(classes=("disc", "disk")), (), "--class-map names disk; the classes are background, disc"),
    ],
)
def test_what_does_not_fit_is_named(
    theirs: Path, declared: OnnxSettings, classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        adopted_from(theirs, declared, *classes)


def test_what_is_no_segmentation_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match="it is not an ONNX file"):
        adopted_from(tmp_path / "text.onnx", OnnxSettings())
    with pytest.raises(ModelError, match="no such file"):
        adopted_from(tmp_path / "none.onnx", OnnxSettings())
    smaller = nn.Sequential(nn.Conv2d(3, 2, 3, stride=2, padding=1))
    path = write(smaller, tmp_path / "small.onnx", (2, 3, 32, 40))
    with pytest.raises(ModelError, match=r"it gives masks of .* they must be equal"):
        adopted_from(path, OnnxSettings())
    above = write(nn.Sequential(nn.Conv2d(3, 1, 1), Above()), tmp_path / "above.onnx", (2, 3, 32, 40))
    with pytest.raises(
        ModelError, match=r"is bool, made by Greater, not float logits; .* with --output, such as (\w+)"
    ) as at:
        adopted_from(above, OnnxSettings())
    named = str(at.value).rpartition(" ")[2]
    assert adopted_from(above, OnnxSettings(output=named)).size_multiple == 1
    model = onnx.load(str(path))
    model.opset_import[0].version = 99
    onnx.save(model, str(tmp_path / "new.onnx"))
    with pytest.raises(ModelError, match="it has opset 99, but 21 is the newest here"):
        adopted_from(tmp_path / "new.onnx", OnnxSettings())
    del model.opset_import[:]
    onnx.save(model, str(tmp_path / "none.onnx"))
    with pytest.raises(ModelError, match=r"it does not say which opset it is written in \(opset_import\)"):
        adopted_from(tmp_path / "none.onnx", OnnxSettings())


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            """<float[2,3,1,1] weight = {1, 2, 3, 4, 5, 6}, float scale = {0.01}, uint8 zero = {0}> {
                y = QuantizeLinear(x, scale, zero)
                z = DequantizeLinear(y, scale, zero)
                l = Conv(z, weight)
            }""",
            r"it is quantized already \(DequantizeLinear, QuantizeLinear\); give the float model that it was made from",
        ),
        (
            """<float16[2,3,1,1] weight = {1, 2, 3, 4, 5, 6}> {
                y = Cast<to = 10>(x)
                z = Conv(y, weight)
                l = Cast<to = 1>(z)
            }""",
            "it has weights in float16; give the float32 model that it was converted from",
        ),
    ],
)
def test_what_is_no_float32_model_any_more_is_refused(graph: str, message: str, tmp_path: Path) -> None:
    """It would be compared with itself as its float parent."""
    head = '<ir_version: 9, opset_import: ["": 18]> m (float[n,3,h,w] x) => (float[n,2,h,w] l) '
    onnx.save(onnx.parser.parse_model(head + graph), str(tmp_path / "m.onnx"))
    with pytest.raises(ModelError, match=message):
        adopted_from(tmp_path / "m.onnx", OnnxSettings())


def test_what_compares_along_another_axis_than_the_classes_stays_or_is_named(tmp_path: Path) -> None:
    rows = nn.Sequential(Theirs(), nn.Softmax(2))
    path = write(rows, tmp_path / "rows.onnx", (2, 3, 32, 40))
    with pytest.raises(ModelError, match=r"along axis 2, and their classes lie along axis 1; name the tensor"):
        adopted_from(path, OnnxSettings())
    # Behind it is an ArgMax over the classes, whose order that changes.
    adopted = adopted_from(write(Masked(rows), tmp_path / "m.onnx", (2, 3, 32, 40)), OnnxSettings(mean=MEAN, std=STD))
    with torch.inference_mode():
        expected = rows(normalised(IMAGES)).argmax(1).numpy()
    found = OnnxModel(with_outputs(adopted.model, "mask").SerializeToString()).masks(IMAGES)
    assert np.mean(found == expected) > 0.99


def test_a_graph_may_choose_what_it_computes(tmp_path: Path) -> None:
    """The branches of an If read tensors that stand outside."""
    path = written(
        f"""(float[n,3,h,w] x) => (float[n,2,h,w] l) <{THREE}, int64 two = {{2}}, int64 wide = {{20}}> {{
            c = Conv(x, w)
            s = Shape(x)
            high = Gather(s, two)
            is_high = Greater(high, wide)
            l = If (is_high) <
                then_branch = yes () => (float[n,2,h,w] a) {{ a = Relu(c) }},
                else_branch = no () => (float[n,2,h,w] b) {{ b = Neg(c) }}
            >
        }}""",
        tmp_path / "m.onnx",
    )
    adopted = adopted_from(path, OnnxSettings())
    with torch.inference_mode():
        kernel = torch.arange(1.0, 7.0).reshape(2, 3, 1, 1)
        for images, last in ((IMAGES, torch.relu), (IMAGES[:, :8, :8], torch.neg)):
            expected = last(F.conv2d(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, kernel)).numpy()
            np.testing.assert_allclose(answers(adopted, images), expected, rtol=1e-3, atol=1e-4)


THREE = "float[2, 3, 1, 1] w = {1, 2, 3, 4, 5, 6}"
"""The weights of a layer with two logits."""


@pytest.mark.parametrize(
    ("graph", "more", "message"),
    [
        (
            f"(float[n,3,h,w] x) => (float[n,2,h,w] y) <{THREE}> "
            '{ c = com.microsoft.FusedConv <activation = "Relu"> (x, w) y = com.microsoft.Gelu(c) }',
            ', "com.microsoft": 1',
            "- FusedConv of the domain com.microsoft is no standard ONNX operator\n"
            "  - Gelu of the domain com.microsoft is no standard ONNX operator; export the model as standard ONNX",
        ),
        (
            f"(float[1,3,32,32] x) => (float[1,2,32,32] y) <{THREE}, int64[4] s = {{1, 2, 32, 32}}> "
            "{ c = Conv(x, w) y = Reshape(c, s) }",
            "",
            "- it runs on one image of 32x32 and not on two: its batch is fixed inside; export it with a dynamic "
            "batch: [ONNXRuntimeError]",
        ),
        (
            f"(float[n,3,32,32] x) => (float[n,2,32,32] y) <{THREE}, int64[3] s = {{1, 2, 3}}> "
            "{ c = Conv(x, w) y = Reshape(c, s) }",
            "",
            "- it does not run on two images of 32x32: [ONNXRuntimeError]",
        ),
        (
            f"(float[n,3,h,w] x) => (float[n,2,h,w] y) <{THREE}> "
            "{ a = Cast <to = 10> (x) v = Cast <to = 10> (w) c = Conv(a, v) y = Cast <to = 1> (c) }",
            "",
            "- c is float16, made by Conv, not float32 logits; export the model in float32",
        ),
        (
            f"(float[n,3,h,w] x) => (int64[n,h,w] y) <{THREE}> {{ c = Conv(x, w) y = ArgMin <axis = 1> (c) }}",
            "",
            "- y is int64, made by ArgMin, not float logits; name the tensor that holds these with --output, such as c",
        ),
    ],
    ids=["domain", "batch", "shape", "half", "index"],
)
def test_what_an_exporter_did_wrong_is_said_without_the_runtimes_own_words(
    graph: str, more: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as refused:
        adopted_from(written(graph, tmp_path / "m.onnx", more=more), OnnxSettings())
    assert message in str(refused.value)
    assert "onnxruntime_src" not in str(refused.value)


def test_operators_of_another_domain_behind_the_logits_are_cut_off(tmp_path: Path) -> None:
    graph = f"(float[n,3,h,w] x) => (float[n,2,h,w] y) <{THREE}> {{ c = Conv(x, w) y = com.microsoft.Gelu(c) }}"
    path = written(graph, tmp_path / "m.onnx", more=', "com.microsoft": 1')
    assert adopted_from(path, OnnxSettings(output="c")).size_multiple == 1


def test_what_is_not_beside_it_or_is_no_model_from_elsewhere_is_named(
    theirs: Path, float_bundle: Bundle, colours: Path, tmp_path: Path
) -> None:
    beside = tmp_path / "beside.onnx"
    onnx.save(onnx.load(str(theirs)), str(beside), save_as_external_data=True, location="b.data", size_threshold=0)
    content = (tmp_path / "b.data").read_bytes()
    (tmp_path / "b.data").write_bytes(content[:8])
    with pytest.raises(ModelError, match="its weights cannot be read from the files beside it: "):
        read(beside, OnnxSettings())
    (tmp_path / "b.data").unlink()
    with pytest.raises(ModelError, match=r"1 problem\n  - its weights are in b.data, which is missing beside it"):
        read(beside, OnnxSettings())
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ModelError, match="it is a folder; give the ONNX file itself"):
        quantize(tmp_path / "folder.onnx", colours, tmp_path / "out", NORMAL)
    copy = shutil.copytree(float_bundle.path, tmp_path / "bundle.onnx")
    made_from = "; give the checkpoint or the ONNX file that it was made from"
    with pytest.raises(ModelError, match=f"it is a bundle{made_from}"):
        quantize(copy, colours, tmp_path / "out", NORMAL)
    with pytest.raises(ModelError, match=f"it is the graph of a bundle{made_from}"):
        quantize(float_bundle.path / "model.onnx", colours, tmp_path / "out", NORMAL)


def test_the_command(
    theirs: Path,
    colours: Path,
    trained: Any,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # A narrower terminal would break the lines of a message.
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["compress", "quantize", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            main()
        return int(leaving.value.code or 0), *capfd.readouterr()

    small = (
        "--set",
        "quantize.calibration=minmax",
        "--set",
        "quantize.calibration_images=4",
        "--force",
        "--max-drop",
        0.1,
    )
    declared = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--layout", "nchw")
    status, out, _ = call(theirs, "--data", colours, "--out", tmp_path / "out", *declared, *small)
    assert status == 0
    assert " than its float parent, mIoU " in out
    status, _, err = call(theirs, "--data", colours, "--out", tmp_path / "x", "--mean", "grey")
    assert (status, "'grey' is not a list of numbers" in " ".join(err.split())) == (2, True)
    swapped = ("--class-map", "disc, background", "--max-drop", 1)
    status, out, err = call(
        theirs, "--data", colours, "--out", tmp_path / "swapped", *declared, *small, *swapped, "--json"
    )
    assert status == 0
    assert "warning: mIoU of" in err
    assert json.loads(out)["miou_parent"] < 0.2
    status, _, err = call(theirs, "--data", colours, "--out", tmp_path / "x", "--layout", "chwn")
    assert status == 2
    assert "quantize.onnx.layout = 'chwn'" in " ".join(err.split())
    for wrong in (
        "--std 0.2,0,1",
        "--std inf",
        "--mean nan",
        "--mean ",
        "--class-map ",
        "--class-map disc,,background",
    ):
        option, value = wrong.split(" ")
        status, _, err = call(theirs, "--data", colours, "--out", tmp_path / "x", option, value)
        assert status == 2
        assert f"Invalid value for {option}: {value!r} is not a list of " in err
    status, _, err = call(trained.path, "--data", discs, "--out", tmp_path / "x", "--mean", "0.5", "--class-map", "a,b")
    assert status == 2
    assert "is no file MODEL.onnx, which alone needs --mean and --class-map; leave that out" in " ".join(err.split())
