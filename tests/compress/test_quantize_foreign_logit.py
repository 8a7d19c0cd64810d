"""A model from elsewhere with a single logit: where it separates two classes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from support.foreign import IMAGES, MEAN, STD, Probabilities, Theirs, adopted_from, normalised, write, written

from compress.settings.quantize import OnnxSettings
from export.errors import ModelError
from export.runtime import OnnxModel


@pytest.mark.parametrize("form", ["logit", "probability"])
def test_one_logit_means_the_second_of_two_classes(form: str, tmp_path: Path) -> None:
    """Also after a Sigmoid, where all values are above zero."""
    torch.manual_seed(1)
    network = Theirs(logits=1)
    if form == "logit":
        path = write(network, tmp_path / "m.onnx", (2, 3, 32, 40))
    else:
        path = write(Probabilities(network), tmp_path / "m.onnx", (2, 32, 40, 3))
    adopted = adopted_from(path, OnnxSettings(mean=MEAN, std=STD))
    with torch.inference_mode():
        expected = network(normalised(IMAGES)).numpy()[:, 0] > 0
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(OnnxModel(adopted.model.SerializeToString()).masks(IMAGES), expected)


ONE = "float[1,3,1,1] w = {1.0, -0.4, -0.6}"
"""The weights of a layer with one logit."""


@pytest.mark.parametrize(
    "graph",
    [
        """<ONE, float[4] s = {1, 1, 2, 2}> {
            d = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
            c = Conv(d, w) p = Sigmoid(c) y = Resize <mode = "nearest"> (p, , s)
        }""",
        """<ONE, float[4] s = {1, 1, 2, 2}> {
            d = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
            c = Conv(d, w) p = Sigmoid(c) y = Resize <mode = "linear"> (p, , s)
        }""",
        """<ONE, float[4] s = {1, 1, 2, 2}> {
            d = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
            c = Conv(d, w) p = Sigmoid(c) r = Resize <mode = "linear"> (p, , s) y = Round(r)
        }""",
        "<ONE> { c = Conv(x, w) y = HardSigmoid(c) }",
        """<ONE, int64[2] a = {0, 0}, int64[2] b = {32, 40}, int64[2] axes = {2, 3}> {
            c = Conv(x, w) p = Sigmoid(c) y = Slice(p, a, b, axes)
        }""",
    ],
    ids=["nearest", "linear", "rounded", "hard", "cropped"],
)
def test_one_probability_has_its_middle_at_a_half(graph: str, tmp_path: Path) -> None:
    """A Sigmoid that is not the last operator stays, and all that it gives is above zero."""
    graph = graph.replace("ONE", ONE)
    path = written(f"(float[n, 3, h, w] x) => (float[n, 1, q, r] y) {graph}", tmp_path / "m.onnx")
    images = IMAGES.transpose(0, 3, 1, 2).astype(np.float32) / 255
    expected = ReferenceEvaluator(onnx.load(str(path))).run(None, {"x": images})[0][:, 0] > 0.5
    assert 0.2 < expected.mean() < 0.8
    adopted = adopted_from(path, OnnxSettings())
    np.testing.assert_array_equal(OnnxModel(adopted.model.SerializeToString()).masks(IMAGES), expected)


@pytest.mark.parametrize(
    ("graph", "made", "instead"),
    [
        (f"<{ONE}, float k = {{255}}> {{ c = Conv(x, w) p = Sigmoid(c) y = Mul(p, k) }}", "Sigmoid, changed by Mul", 1),
        (f"<{ONE}> {{ c = Conv(x, w) p = Sigmoid(c) y = Log(p) }}", "Sigmoid, changed by Log", 1),
        (
            f"""<{ONE}, int64[1] a = {{1}}, int64[1] b = {{2}}, float[1, 3, 1, 1] v = {{0.1, 0.2, 0.1}}> {{
                one = Conv(x, w) other = Conv(x, v) c = Concat <axis = 1> (other, one)
                p = Softmax <axis = 1> (c) y = Slice(p, a, b, a)
            }}""",
            "Softmax",
            2,
        ),
    ],
    ids=["scaled", "logarithm", "one of two"],
)
def test_one_probability_whose_middle_is_unclear_is_refused(
    graph: str, made: str, instead: int, tmp_path: Path
) -> None:
    """And what the message proposes is accepted."""
    path = written(f"(float[n, 3, h, w] x) => (float[n, 1, h, w] y) {graph}", tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=f"its only logit y is a probability, made by {made}, .* with --output c, or"):
        adopted_from(path, OnnxSettings())
    model = onnx.load(str(path))
    model.graph.output.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, None))
    images = IMAGES.transpose(0, 3, 1, 2).astype(np.float32) / 255
    logits = np.asarray(ReferenceEvaluator(model).run(["c"], {"x": images})[0])
    assert logits.shape[1] == instead
    expected = logits[:, 0] > 0 if instead == 1 else logits.argmax(1)
    adopted = adopted_from(path, OnnxSettings(output="c"))
    np.testing.assert_array_equal(OnnxModel(adopted.model.SerializeToString()).masks(IMAGES), expected)


def test_gates_inside_it_are_no_probabilities(tmp_path: Path) -> None:
    """A Sigmoid that a logit is multiplied with, or that a layer reads, does not move its middle."""
    path = written(
        f"(float[n, 3, h, w] x) => (float[n, 1, h, w] y) <{ONE}, float k = {{2}}, float[1, 1, 1, 1] v = {{1}}> "
        "{ a = Conv(x, w) g = Sigmoid(a) b = Mul(a, g) s = Sigmoid(b) d = Sub(s, g) c = Conv(d, v) y = Mul(c, k) }",
        tmp_path / "m.onnx",
    )
    images = IMAGES.transpose(0, 3, 1, 2).astype(np.float32) / 255
    expected = ReferenceEvaluator(onnx.load(str(path))).run(None, {"x": images})[0][:, 0] > 0
    assert 0 < expected.mean() < 1
    adopted = adopted_from(path, OnnxSettings())
    np.testing.assert_array_equal(OnnxModel(adopted.model.SerializeToString()).masks(IMAGES), expected)
