"""Other forms of operators between integers: the same integers to the last bit, at every size and batch."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support.handmade import blocks, with_a_smaller_inside
from support.networks import exported, random_unet

from compress.quantize.ptq import Quantizer, with_quantized_logits
from compress.quantize.rewrites import SubPixel, formed, integer_forms
from compress.quantize.rewrites.choose import Form, named
from compress.quantize.rewrites.dealt import Dealt
from compress.quantize.rewrites.folded import Folded
from compress.quantize.rewrites.matrix import AsMatrix
from compress.quantize.rewrites.repeated import Repeated
from compress.quantize.targets import scheme_of
from export.images import U8
from export.parity import batches, int8_parity
from export.profiling import optimised_graph
from export.runtime import OnnxModel
from export.to_onnx import with_outputs

MULTIPLE = 8
SIZES = ((8, 8), (24, 40), (5 * 8, 8))


def one_operator(
    node: onnx.NodeProto, channels: int, tensors: dict[str, NDArray[Any]], *, same_scale: bool = False
) -> onnx.ModelProto:
    """image uint8 [batch, h, w, channels] through `node` from x to y, between Q/DQ pairs, to uint8.

    All scales are powers of two, so that float arithmetic is exact and any order of its sums gives the same.
    """
    scale, zero = ("image_scale", "image_zero") if same_scale else ("y_scale", "y_zero")
    tensors = {
        "image_scale": np.array(2**-7, np.float32),
        "image_zero": np.array(128, np.uint8),
        "y_scale": np.array(2**-4, np.float32),
        "y_zero": np.array(3, np.uint8),
        **tensors,
    }
    stored = [key for key in ("w", "b") if f"{key}_quantized" in tensors]
    nodes = [
        helper.make_node("Transpose", ["image"], ["first"], perm=(0, 3, 1, 2)),
        helper.make_node("DequantizeLinear", ["first", "image_scale", "image_zero"], ["x"]),
        *(
            helper.make_node("DequantizeLinear", [f"{key}_quantized", f"{key}_scale", f"{key}_zero"], [key], axis=0)
            for key in stored
        ),
        node,
        helper.make_node("QuantizeLinear", ["y", scale, zero], ["result"]),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "h", "w", channels])],
        [helper.make_tensor_value_info("result", TensorProto.UINT8, [None] * 4)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def convolution(
    into: int, out: int, kernel: tuple[int, int], left: int, *, bias: bool = True, largest: int = 127, **attributes: Any
) -> onnx.ModelProto:
    """A convolution that keeps the width, padded by `left` columns on the left; each channel has its own scale."""
    rng = np.random.default_rng(into + 10 * out)
    shape = (out, into // attributes.get("group", 1), *kernel)
    tensors: dict[str, NDArray[Any]] = {
        "w_quantized": rng.integers(-largest, largest + 1, shape, dtype=np.int8),
        "w_scale": (2.0 ** -rng.integers(6, 9, out)).astype(np.float32),
        "w_zero": np.zeros(out, np.int8),
    }
    if bias:
        tensors |= {
            "b_quantized": rng.integers(-9000, 9000, out, dtype=np.int32),
            "b_scale": tensors["w_scale"] * np.float32(2**-7),
            "b_zero": np.zeros(out, np.int32),
        }
    top = kernel[0] // 2
    pads = [top, left, kernel[0] - 1 - top, kernel[1] - 1 - left]
    names = ["x", "w", "b"] if bias else ["x", "w"]
    node = helper.make_node("Conv", names, ["y"], **{"pads": pads, "kernel_shape": kernel, **attributes})
    return one_operator(node, into, tensors)


def upsampling(rows: float, columns: float, **attributes: Any) -> onnx.ModelProto:
    scales = {"scales": np.array([1, 1, rows, columns], np.float32)}
    given = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", **attributes}
    return one_operator(helper.make_node("Resize", ["x", "", "scales"], ["y"], **given), 3, scales, same_scale=True)


def dealing_out(block: int, out: int, *, same_scale: bool = True, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=block, **attributes)
    return one_operator(node, block * block * out, {}, same_scale=same_scale)


def image(batch: int, size: tuple[int, int], channels: int) -> U8:
    return np.random.default_rng(1).integers(0, 256, (batch, *size, channels), dtype=np.uint8)


def run(model: onnx.ModelProto, images: U8) -> U8:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]  # type: ignore[no-any-return]


def check_equal(form: Form, plain: onnx.ModelProto, batch: int, size: tuple[int, int]) -> onnx.ModelProto:
    """In ONNX's own evaluator and, unless this processor saturates, in the runtime; `plain` must stay unchanged."""
    before = plain.SerializeToString()
    places = form.places(plain)
    assert len(places) == 1
    other = form.apply(plain, places)
    assert plain.SerializeToString() == before
    onnx.checker.check_model(other, full_check=True)
    channels = plain.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    images = image(batch, size, channels)
    expected = ReferenceEvaluator(plain).run(None, {"image": images})[0]
    np.testing.assert_array_equal(ReferenceEvaluator(other).run(None, {"image": images})[0], expected)
    if fits_here(plain):
        np.testing.assert_array_equal(run(plain, images), expected)
        np.testing.assert_array_equal(run(other, images), expected)
    return other


def fits_here(model: onnx.ModelProto) -> bool:
    """Whether this processor multiplies its weights exactly: without VNNI, sums of 8-bit products saturate."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return (
        "w_quantized" not in stored
        or scheme_of("auto").seven_bits == "no layer"
        or bool(np.abs(stored["w_quantized"]).max() < 64)
    )


@settings(max_examples=60)
@given(
    st.integers(1, 7),
    st.integers(1, 20),
    st.tuples(st.integers(1, 5), st.integers(2, 5)),
    st.data(),
    st.sampled_from([2, 4]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.sampled_from(SIZES),
)
def test_columns_taken_together_give_the_same_integers(
    into: int,
    out: int,
    kernel: tuple[int, int],
    data: st.DataObject,
    columns: int,
    inputs: bool,
    bias: bool,
    batch: int,
    size: tuple[int, int],
) -> None:
    left = data.draw(st.integers(0, kernel[1] - 1))
    plain = convolution(into, out, kernel, left, bias=bias, largest=data.draw(st.sampled_from([63, 127])))
    check_equal(Folded(columns, inputs, MULTIPLE), plain, batch, size)


@pytest.mark.parametrize("columns", [2, 4])
def test_so_do_those_of_a_1x1_convolution_and_the_views_cost_nothing(columns: int) -> None:
    other = check_equal(Folded(columns, True, MULTIPLE), convolution(16, 16, (1, 1), 0, largest=63), 3, (24, 40))
    ran = Counter(n.op_type for n in onnx.load_from_string(optimised_graph(other.SerializeToString())).graph.node)
    assert ran["QLinearConv"] == 1
    assert ran["Transpose"] <= 1  # of the result, which this graph gives with the channels first


@settings(max_examples=15)
@given(st.integers(1, 6), st.integers(128, 140), st.booleans(), st.sampled_from([1, 3]), st.sampled_from(SIZES))
def test_a_matrix_product_gives_the_same_integers(
    into: int, out: int, bias: bool, batch: int, size: tuple[int, int]
) -> None:
    check_equal(AsMatrix(), convolution(into, out, (3, 3), 1, bias=bias), batch, size)


@settings(max_examples=25)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(
        [("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")]
    ),
    st.sampled_from([1, 3]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_copies_of_pixels_and_rows_are_nearest_upsampling(
    rows: int, columns: int, way: tuple[str, str], batch: int, size: tuple[int, int]
) -> None:
    plain = upsampling(rows, columns, coordinate_transformation_mode=way[0], nearest_mode=way[1])
    check_equal(Repeated(), plain, batch, size)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 3]), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_move_of_pixels_deals_out(block: int, out: int, batch: int, size: tuple[int, int]) -> None:
    check_equal(Dealt(), dealing_out(block, out), batch, size)


def also_given(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    model.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [None] * 4))
    return model


def weights(model: onnx.ModelProto, name: str, array: NDArray[Any]) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


FOLDS = [Folded(columns, inputs, MULTIPLE) for columns in (2, 4) for inputs in (True, False)]
NARROW = 8, 16, (3, 3), 1


@pytest.mark.parametrize(
    ("forms", "model"),
    [
        (FOLDS, convolution(*NARROW, group=2)),
        (FOLDS, convolution(*NARROW, dilations=[2, 2])),
        (FOLDS, convolution(*NARROW, strides=[2, 2])),
        (FOLDS, convolution(*NARROW, strides=[1, 2])),
        (FOLDS, convolution(*NARROW, pads=[0, 0, 0, 0])),
        (FOLDS, convolution(8, 80, (3, 3), 1)),
        (FOLDS, also_given(convolution(*NARROW), "y")),
        ([Folded(4, True, 6), Folded(4, False, 6), Folded(2, True, 1)], convolution(*NARROW)),
        ([Folded(2, False, MULTIPLE)], convolution(8, 16, (1, 1), 0)),
        ([AsMatrix()], convolution(8, 64, (3, 3), 1)),
        ([AsMatrix()], convolution(4, 128, (3, 3), 1, group=2)),
        ([AsMatrix()], weights(convolution(1, 128, (1, 1), 0), "w_quantized", np.full((128, 1, 1, 1), 64, np.int8))),
        ([AsMatrix()], weights(convolution(1, 128, (1, 1), 0), "w_quantized", np.full((128, 1, 1, 1), -128, np.int8))),
        ([Repeated()], upsampling(2, 2, mode="linear")),
        ([Repeated()], upsampling(1.5, 2)),
        ([Repeated()], upsampling(0.5, 0.5)),
        ([Repeated()], upsampling(2, 2, coordinate_transformation_mode="align_corners")),
        ([Repeated()], upsampling(2, 2, nearest_mode="ceil")),
        ([Repeated()], also_given(upsampling(2, 2), "y")),
        ([Dealt()], dealing_out(2, 2, mode="CRD")),
        ([Dealt()], dealing_out(2, 2, same_scale=False)),
        ([Dealt()], also_given(dealing_out(2, 2), "y")),
    ],
)
def test_what_does_not_fit_is_left_alone(forms: list[Form], model: onnx.ModelProto) -> None:
    for form in forms:
        assert form.places(model) == {}
        node = next(node for node in model.graph.node if "y" in node.output)
        same = form.apply(model, [node.name, f"{node.op_type} y"])
        assert same.SerializeToString() == named(model).SerializeToString()


@pytest.mark.parametrize("size", [(16, 16), (18, 20), (46, 52), (30, 42)])
def test_columns_are_taken_together_only_where_they_come_in_whole_groups_at_all_sizes(size: tuple[int, int]) -> None:
    """A size that is computed in floats is no multiple of the image's, and shape inference does not know it."""
    made = Quantizer(with_a_smaller_inside(), iter(blocks(4)), target="auto").quantized("minmax").graph
    for form in (Folded(2, True, 1), Folded(2, False, 1)):
        assert not form.places(made)
    for form in (Folded(2, True, 2), Folded(2, False, 2)):
        places = form.places(made)
        assert not any("inner" in name for name in places)
        assert places
        images = image(1, size, 1)
        np.testing.assert_array_equal(run(form.apply(made, list(places)), images), run(made, images))


def test_weights_that_two_layers_read_change_for_the_chosen_one_alone() -> None:
    model = convolution(*NARROW)
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    other = onnx.NodeProto()
    other.CopyFrom(node)
    other.name, other.output[0] = "second", "y2"
    quantize = helper.make_node("QuantizeLinear", ["y2", "y_scale", "y_zero"], ["result2"])
    model.graph.node.extend([other, quantize])
    model.graph.output.append(helper.make_tensor_value_info("result2", TensorProto.UINT8, [None] * 4))
    folded = Folded(2, True, MULTIPLE).apply(model, ["second"])
    images = image(1, (8, 16), 8)
    session = ort.InferenceSession(folded.SerializeToString(), providers=["CPUExecutionProvider"])
    first, second = session.run(None, {"image": images})
    np.testing.assert_array_equal(first, run(convolution(*NARROW), images))
    np.testing.assert_array_equal(second, first)


def pictures() -> Iterator[U8]:
    rng = np.random.default_rng(0)
    for _ in range(3):
        yield np.kron(rng.integers(0, 256, (4, 6), dtype=np.uint8), np.ones((8, 8), np.uint8))[..., None]


@pytest.fixture(scope="module")
def unets() -> list[onnx.ModelProto]:
    """A UNet in INT8: as it is, and with its upsampled parts computed on the small maps."""
    graph = with_outputs(exported(random_unet(base=32)), "mask")
    form = SubPixel()
    graphs = [graph, form.apply(graph, form.places(graph))]
    made = [Quantizer(one, pictures(), target="auto").quantized("minmax") for one in graphs]
    assert [one.float_layers for one in made] == [(), ()]
    return [one.graph for one in made]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("form", integer_forms(4), ids=lambda form: form.name)
def test_a_whole_network_gives_the_same_masks_and_stays_in_integers(
    unets: list[onnx.ModelProto], which: int, form: Form
) -> None:
    plain = unets[which]
    places = form.places(plain)
    other = formed(plain, dict.fromkeys(places, form.name), [form])
    before, after = (OnnxModel(model.SerializeToString()) for model in (plain, other))
    assert before.inputs == after.inputs
    assert before.outputs == after.outputs
    for batch in batches(list(pictures()), 4, [(32, 48), (20, 36), (44, 12)]):
        np.testing.assert_array_equal(after.masks(batch), before.masks(batch))
    ran = Counter(n.op_type for n in onnx.load_from_string(optimised_graph(other.SerializeToString())).graph.node)
    assert not {"Conv", "DequantizeLinear", "QuantizeLinear"} & ran.keys()
    if isinstance(form, Repeated):
        assert "Resize" not in ran
    as_written, step = with_quantized_logits(other)
    int8_parity(
        after,
        OnnxModel(as_written.SerializeToString(), optimised=False),
        batches(list(pictures()), 4, [(32, 48), (20, 36)]),
        logit_step=step,
        images="blocks",
    ).require()
