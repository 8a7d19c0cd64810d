"""The check that two forms of one model agree: it passes where they do, and each of its conditions can fail."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from support.bundles import tiny_graph
from support.networks import exported, random_unet
from torch import Tensor, nn

from export.errors import ParityError
from export.images import PAD_VALUE, U8
from export.parity import BATCHES, Kernels, Parity, batches, float_parity, int8_parity, sizes_to_prove
from export.runtime import OnnxModel
from export.to_onnx import MEAN, STD, with_outputs

CLASSES = 3


def pictures(count: int, height: int, width: int, channels: int = 1) -> list[U8]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, channels), dtype=np.uint8) for _ in range(count)]


def bins(*, raised: float = 0.0) -> onnx.ModelProto:
    """The tiny graph of one channel, giving its scores too; `raised` is added to the score of class 0."""
    graph = tiny_graph(classes=CLASSES, channels=1, size_multiple=1)
    _change(graph, "bias", lambda bias: bias + np.array([raised, 0, 0], np.float32))
    graph.graph.node.append(helper.make_node("Identity", ["scores"], ["logits"]))
    shape = ["batch", CLASSES, "height", "width"]
    graph.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape))
    return graph


class Bins(nn.Module):
    """The same model in torch, from the normalised image."""

    def __init__(self) -> None:
        super().__init__()
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in bins().graph.initializer}
        self.weight, self.bias = (torch.from_numpy(constants[name].copy()) for name in ("weight", "bias"))
        self.shift = 0.0

    def forward(self, image_NCHW: Tensor) -> Tensor:
        return nn.functional.conv2d(image_NCHW * STD + MEAN, self.weight, self.bias) + self.shift


def _change(graph: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def model_of(graph: onnx.ModelProto) -> OnnxModel:
    return OnnxModel(graph.SerializeToString(), threads=1)


def proven(
    network: nn.Module,
    graph: onnx.ModelProto,
    *,
    multiple: int = 1,
    sizes: Sequence[tuple[int, int]] = ((30, 22), (12, 20)),
) -> Parity:
    inputs = batches(pictures(8, 30, 22), multiple, sizes)
    return float_parity(network, model_of(with_outputs(graph, "mask")), model_of(graph), inputs, images="noise")


def test_two_forms_of_one_model_agree() -> None:
    parity = proven(Bins(), bins())
    parity.require()
    assert parity.problems() == []
    assert [(case.batch, case.height, case.width) for case in parity.cases] == [
        (batch, *size) for size in ((30, 22), (12, 20)) for batch in BATCHES
    ]
    assert Parity.model_validate_json(parity.model_dump_json()) == parity


def test_other_logits_fail_though_the_masks_are_the_same() -> None:
    network = Bins()
    network.shift = 300.0
    parity = proven(network, bins())
    assert {case.differing_pixels for case in parity.cases} == {0.0}
    with pytest.raises(ParityError, match=r"12x20: logits differ by 3\.00e\+02(.|\n)*30x22: logits differ"):
        parity.require()


def test_other_masks_fail() -> None:
    parity = proven(Bins(), bins(raised=2000.0))
    assert [problem.split(":")[0] for problem in parity.problems()] == ["12x20"] * 2 + ["30x22"] * 2
    assert "of the pixels differ, at most 0.010% may" in parity.problems()[0]


def test_logits_that_are_no_numbers_fail_wherever_they_come() -> None:
    class Late(Bins):
        """Gives sound logits until the last batch."""

        calls = 0

        def forward(self, image_NCHW: Tensor) -> Tensor:
            self.calls += 1
            logits = super().forward(image_NCHW)
            if self.calls == len(BATCHES):
                logits[:, :, 0, 0] = torch.nan
            return logits

    problems = proven(Late(), bins(), sizes=[(30, 22)]).problems()
    assert any("logits differ by nan" in problem for problem in problems)


def test_a_model_that_looks_at_its_neighbours_in_the_batch_fails() -> None:
    class Relative(Bins):
        def forward(self, image_NCHW: Tensor) -> Tensor:
            logits = super().forward(image_NCHW)
            return logits - 0.5 * logits.mean(0, keepdim=True)

    graph = bins()
    inner = graph.graph
    nodes = [
        helper.make_node("ReduceMean", ["scores", "first"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "half"], ["shift"]),
        helper.make_node("Sub", ["scores", "shift"], ["relative"]),
    ]
    inner.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    inner.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    for node in inner.node:
        if node.op_type in ("ArgMax", "Identity"):
            node.input[0] = "relative"
    place = next(i for i, node in enumerate(inner.node) if node.op_type == "ArgMax")
    for node in reversed(nodes):
        inner.node.insert(place, node)

    problems = proven(Relative(), graph).problems()
    assert len(problems) == 2
    assert all("depend on the rest of the batch" in problem for problem in problems)


def by_a_hundredth(weight: np.ndarray) -> np.ndarray:
    return weight * 1.01


def one_channel(weight: np.ndarray) -> np.ndarray:
    return np.where(np.arange(weight.shape[0]) == 0, 0, weight.T).T.astype(np.float32)


@pytest.mark.parametrize("change", [None, by_a_hundredth, one_channel])
@pytest.mark.parametrize("layer", ["model.head.weight", "model.down.1.3.weight"])
def test_a_unet_with_one_damaged_layer_fails(layer: str, change: Callable[[np.ndarray], np.ndarray] | None) -> None:
    network = random_unet()
    graph = exported(network)
    if change is None:
        proven(network, graph, multiple=4, sizes=[(12, 20)]).require()
    else:
        _change(graph, layer, change)
        with pytest.raises(ParityError, match="logits differ"):
            proven(network, graph, multiple=4, sizes=[(12, 20)]).require()


def quantized_pair(raised: float, logit_step: float) -> Parity:
    """The graph that serves against the graph as written, whose class 0 scores `raised` less."""
    inputs = batches(pictures(8, 64, 64), 1, [(64, 64)])
    return int8_parity(model_of(bins(raised=raised)), model_of(bins()), inputs, logit_step=logit_step, images="noise")


def test_int8_that_rounds_alike_passes() -> None:
    parity = quantized_pair(0.0, 1.0)
    assert parity.problems() == []
    assert {case.differing_pixels + case.differing_ties for case in parity.cases} == {0.0}


def test_int8_may_differ_only_where_rounding_decides() -> None:
    # Scores of neighbouring classes lie 2 · 85.3 apart for each grey value: raising one by 100 moves one value of 256.
    differing = 1 / 256
    sure = quantized_pair(100.0, logit_step=1.0)
    assert len(sure.problems()) == 1
    assert "of the pixels differ, at most 0.100% may" in sure.problems()[0]
    assert sure.cases[-1].differing_pixels == pytest.approx(differing, rel=0.2)
    assert sure.cases[-1].differing_ties == 0

    unsure = quantized_pair(100.0, logit_step=60.0)
    assert unsure.problems() == []
    assert unsure.cases[-1].differing_pixels == 0
    assert unsure.cases[-1].differing_ties == pytest.approx(differing, rel=0.2)


@pytest.mark.parametrize(
    ("raised", "kernels", "problem"),
    [
        (100.0, Kernels(count=9, worst="relu", steps=1, differing_values=0.004), ""),
        (800.0, Kernels(count=9, worst="relu", steps=1, differing_values=0.004), "pixels differ, at most 1.000% may"),
        (0.0, Kernels(count=9, worst="relu", steps=2, differing_values=0.004), "kernel for relu is wrong: off by 2"),
        (
            0.0,
            Kernels(count=9, worst="relu", steps=1, differing_values=0.006),
            "0.600% of its values; 1",
        ),
    ],
)
def test_int8_may_differ_more_where_no_kernel_errs(raised: float, kernels: Kernels, problem: str) -> None:
    parity = quantized_pair(raised, logit_step=1.0)
    assert parity.masks_differ == (raised > 0)
    problems = parity.model_copy(update={"kernels": kernels}).problems()
    assert len(problems) == bool(problem)
    assert all(problem in one for one in problems)


def test_int8_may_not_differ_in_too_many_ties() -> None:
    problems = quantized_pair(4000.0, logit_step=4000.0).problems()
    assert len(problems) == 1
    assert "of the pixels differ in ties, at most 5.000% may" in problems[0]
    with pytest.raises(ParityError, match="optimised-unoptimised parity does not hold"):
        quantized_pair(4000.0, logit_step=4000.0).require()


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3),
    st.sampled_from([1, 4, 16]),
    st.integers(1, 9),
)
def test_batches_hold_real_images_at_every_size(sizes: list[tuple[int, int]], multiple: int, count: int) -> None:
    images = pictures(count, 20, 20)
    made = list(batches(images, multiple, sizes))
    assert [len(batch) for batch in made] == list(BATCHES) * len(sizes)
    for size, group in zip(sizes, [made[i : i + len(BATCHES)] for i in range(0, len(made), len(BATCHES))], strict=True):
        for batch in group:
            assert all(side % multiple == 0 for side in batch.shape[1:3])
            assert (batch[:, size[0] :] == PAD_VALUE).all()
            # Few images are repeated to fill the largest batch.
            np.testing.assert_array_equal(batch, [group[-1][i % min(count, 8)] for i in range(len(batch))])


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 2, 16, 32]))
def test_sizes_to_prove_are_none_that_was_traced(height: int, width: int, multiple: int) -> None:
    own, *others = sizes_to_prove((height, width), multiple)
    assert own == (height, width)
    assert len(set(others)) == 2
    assert (4 * multiple, 6 * multiple) not in others
    assert all(side % multiple == 0 for size in others for side in size)
