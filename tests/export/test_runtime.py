"""Sessions: what they accept, what they refuse, and that threads may share one."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import expected_mask, tiny_bundle, tiny_graph

from export.errors import BundleError, ShapeError, UsageError, WorkFailedError
from export.images import U8
from export.machine import usable_cores
from export.manifest import TensorSignature
from export.profiling import profiled
from export.runtime import OnnxModel, Segmenter, session_options

CLASSES = 4


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return OnnxModel(tiny_graph(classes=CLASSES, channels=3, size_multiple=8).SerializeToString(), threads=1)


def picture(height: int, width: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_graph_says_what_it_takes_and_gives(model: OnnxModel) -> None:
    assert model.inputs == (TensorSignature(name="image", dtype="uint8", shape=("batch", "height", "width", 3)),)
    assert model.outputs == (TensorSignature(name="mask", dtype="uint8", shape=("batch", "height", "width")),)
    assert model.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_masks_of_a_batch_are_those_of_its_images(model: OnnxModel, batch: int) -> None:
    images = np.stack([picture(16, 24, seed) for seed in range(batch)])
    masks = model.masks(images)
    assert masks.dtype == np.uint8
    np.testing.assert_array_equal(masks, [expected_mask(image, CLASSES) for image in images])


@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([None, (16, 8), (24, 40)]))
def test_a_segmenter_takes_any_size_and_gives_it_back(
    model: OnnxModel, height: int, width: int, size: tuple[int, int] | None
) -> None:
    image = picture(height, width)
    mask = Segmenter(model, size=size, multiple=8).segment(image)
    assert mask.shape == (height, width)
    if size is None:
        np.testing.assert_array_equal(mask, expected_mask(image, CLASSES))
    else:
        assert mask.max() < CLASSES


def test_threads_may_share_a_session(model: OnnxModel) -> None:
    images = [picture(64, 64, seed)[None] for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for image, mask in zip(images, pool.map(model.masks, images), strict=True):
            np.testing.assert_array_equal(mask[0], expected_mask(image[0], CLASSES))


def test_the_graph_as_written_gives_the_same_answers(model: OnnxModel) -> None:
    graph = tiny_graph(classes=CLASSES, channels=3, size_multiple=8).SerializeToString()
    image = picture(32, 32)[None]
    np.testing.assert_array_equal(OnnxModel(graph, threads=1, optimised=False).masks(image), model.masks(image))


WRONG_INPUTS: dict[str, Callable[[], np.ndarray]] = {
    "float": lambda: np.zeros((1, 16, 16, 3), np.float32),
    "no batch": lambda: np.zeros((16, 16, 3), np.uint8),
    "grey": lambda: np.zeros((1, 16, 16, 1), np.uint8),
    "channels first": lambda: np.zeros((1, 3, 16, 16), np.uint8),
    "no multiple": lambda: np.zeros((1, 17, 16, 3), np.uint8),
}


@pytest.mark.parametrize("what", WRONG_INPUTS)
def test_another_input_is_refused_with_both_shapes(
    model: OnnxModel, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    images = WRONG_INPUTS[what]()
    with pytest.raises(ShapeError, match=r"the graph takes uint8 \['batch', 'height', 'width', 3\]") as caught:
        model.masks(images)
    assert str(list(images.shape)) in str(caught.value)
    # The runtime's own log would repeat it, out of reach of whoever handles the error.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a\x12\x03abc"])
def test_a_file_that_is_no_model_is_a_bundle_error(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(BundleError, match="onnxruntime cannot load the graph"):
            OnnxModel(source)
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_cannot_be_initialised_says_nothing_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """By itself, onnxruntime would print that it tries another provider."""
    graph = tiny_graph(classes=2, channels=1, size_multiple=1)
    graph.graph.initializer[0].raw_data = graph.graph.initializer[0].raw_data[:-4]
    with pytest.raises(BundleError, match="cannot load"):
        OnnxModel(graph.SerializeToString())
    assert capfd.readouterr() == ("", "")


def test_a_provider_that_is_not_there_is_refused_by_name() -> None:
    graph = tiny_graph(classes=2, channels=1, size_multiple=1).SerializeToString()
    with pytest.raises(UsageError, match=r"AbacusExecutionProvider is not in this.*CPUExecutionProvider"):
        OnnxModel(graph, providers=["CPUExecutionProvider", "AbacusExecutionProvider"])


def test_threads_default_to_the_cores_and_do_not_spin(model: OnnxModel) -> None:
    graph = tiny_graph(classes=2, channels=1, size_multiple=1).SerializeToString()
    assert OnnxModel(graph).threads == usable_cores()
    assert model.threads == 1
    options = session_options(3)
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_logits_come_out_where_the_graph_has_them() -> None:
    graph = tiny_graph(classes=CLASSES, channels=3, size_multiple=1)
    image = picture(9, 7)[None]
    with pytest.raises(ShapeError, match="logits"):
        OnnxModel(graph.SerializeToString()).logits(image)
    graph.graph.node.append(onnx.helper.make_node("Identity", ["scores"], ["logits"]))
    graph.graph.output.append(
        onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", CLASSES, "height", "width"])
    )
    both = OnnxModel(graph.SerializeToString(), threads=1)
    logits = both.logits(image)
    assert logits.shape == (1, CLASSES, 9, 7)
    np.testing.assert_array_equal(logits.argmax(1), both.masks(image))


def test_a_bundles_segmenter_has_its_geometry(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", size=(48, 64))
    segmenter = bundle.segmenter(threads=1)
    assert (segmenter.size, segmenter.multiple, segmenter.model.threads) == ((48, 64), 16, 1)
    assert segmenter.segment(picture(30, 20)).shape == (30, 20)


def test_a_profile_has_every_operator_of_every_run_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    graph = tiny_graph(classes=CLASSES, channels=3, size_multiple=1).SerializeToString()
    runs = profiled(graph, {"image": picture(9, 7)[None]}, threads=1, runs=4)
    assert len(runs) == 4
    for run in runs:
        # In the graph's order; optimisation renames the convolution.
        assert [kernel.op for kernel in run if not kernel.op.startswith("Reorder")] == [
            *("Cast", "Transpose", "Conv", "ArgMax", "Cast")
        ]
        assert all(kernel.microseconds >= 0 for kernel in run)
        assert run[-1].shape == (1, 9, 7)
    assert len({kernel.name for kernel in runs[0]}) == len(runs[0])
    assert list(tmp_path.iterdir()) == []


def test_a_profile_of_what_does_not_run_says_so() -> None:
    graph = tiny_graph(classes=CLASSES, channels=3, size_multiple=1).SerializeToString()
    with pytest.raises(WorkFailedError, match="cannot run the graph that was to be timed"):
        profiled(graph, {"image": np.zeros((1, 9, 7, 3), np.float32)}, threads=1, runs=1)
    with pytest.raises(WorkFailedError, match="cannot run the graph that was to be timed"):
        profiled(b"not a model", {}, threads=1, runs=1)
