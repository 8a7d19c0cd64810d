"""An exported graph has free batch, height and width, and gives torch's answers at every size."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from support.networks import exported, random_unet, seeded
from torch import Tensor, nn

from export.errors import ShapeError, WorkFailedError
from export.images import U8
from export.parity import BATCHES, batches, float_parity
from export.runtime import OnnxModel
from export.to_onnx import MEAN, STD, Outputs, export_onnx, with_outputs

ARCHITECTURES = [
    pytest.param({"upsampling": "nearest", "skip": "concat"}, id="nearest-concat"),
    *(
        pytest.param({"upsampling": upsampling, "skip": skip}, id=f"{upsampling}-{skip}", marks=pytest.mark.slow)
        for upsampling, skip in (
            ("nearest", "add"),
            ("nearest", "none"),
            ("bilinear", "concat"),
            ("bilinear", "add"),
            ("transposed", "concat"),
            ("transposed", "none"),
        )
    ),
]
MULTIPLE = 4


def images(batch: int, height: int, width: int, channels: int = 1) -> U8:
    return np.random.default_rng(batch).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)


def torch_logits(network: nn.Module, images_NHWC: U8) -> np.ndarray:
    with torch.inference_mode():
        tensor = (torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() - MEAN) / STD
        logits: np.ndarray = network(tensor).numpy()
    return logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_the_answers_of_torch_at_any_size(architecture: dict[str, Any]) -> None:
    network = random_unet(**architecture)
    graph = exported(network)
    onnx.checker.check_model(graph, full_check=True)
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}
    model = OnnxModel(graph.SerializeToString(), threads=1)
    assert [signature.shape for signature in (*model.inputs, *model.outputs)] == [
        ("batch", "height", "width", 1),
        ("batch", "height", "width"),
        ("batch", 3, "height", "width"),
    ]

    # 16x24 with two images was traced; the smallest size, odd multiples and other batches were not.
    for height, width in ((4, 4), (20, 12), (36, 4), (28, 52)):
        for batch in BATCHES:
            image = images(batch, height, width)
            expected = torch_logits(network, image)
            logits = model.logits(image)
            np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
            np.testing.assert_array_equal(model.masks(image), logits.argmax(1))

    parity = float_parity(
        network,
        OnnxModel(with_outputs(graph, "mask").SerializeToString(), threads=1),
        model,
        batches(list(images(8, 30, 22)), MULTIPLE, [(30, 22), (12, 20)]),
        images="noise",
    )
    assert parity.problems() == []
    if architecture["skip"] != "none":  # without skips, no tensors meet whose sizes could differ
        with pytest.raises(ShapeError, match="the graph takes"):
            model.masks(images(1, 18, 16))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_reference_evaluator_agrees(architecture: dict[str, Any]) -> None:
    """ONNX's own definition of every operator, in numpy: the graph means what torch means, on any runtime."""
    network = random_unet(**architecture)
    image = images(2, 12, 20)
    mask, logits = ReferenceEvaluator(exported(network)).run(["mask", "logits"], {"image": image})
    expected = torch_logits(network, image)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    assert mask.dtype == np.uint8
    assert np.mean(mask != expected.argmax(1)) < 0.005


@pytest.mark.parametrize(
    ("outputs", "names"), [("mask", ["mask"]), ("logits", ["logits"]), ("both", ["mask", "logits"])]
)
def test_a_graph_gives_what_is_asked_for(outputs: Outputs, names: list[str]) -> None:
    graph = exported(random_unet())
    chosen = with_outputs(graph, outputs)
    model = OnnxModel(chosen.SerializeToString(), threads=1)
    assert [signature.name for signature in model.outputs] == names
    assert len(graph.graph.output) == 2
    image = images(1, 8, 8)
    both = OnnxModel(graph.SerializeToString(), threads=1)
    if "mask" in names:
        np.testing.assert_array_equal(model.masks(image), both.masks(image))
    if "logits" in names:
        np.testing.assert_array_equal(model.logits(image), both.logits(image))


def test_a_graph_is_one_file_and_carries_its_weights(tmp_path: Path) -> None:
    network = random_unet()
    graph = exported(network)
    onnx.save(graph, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    weights = sum(np.prod(tensor.dims) for tensor in graph.graph.initializer)
    kernels = sum(p.numel() for p in network.parameters() if p.ndim == 4)
    assert weights > kernels
    assert not any(tensor.external_data for tensor in graph.graph.initializer)


class Preactivated(nn.Module):
    """Its skip is what the activation has overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.size_multiple = 1
        self.stem, self.inner, self.head = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        x = self.stem(image_NCHW)
        logits: Tensor = self.head(self.inner(self.activation(x)) + x)
        return logits


def test_what_an_activation_overwrites_stays_overwritten() -> None:
    network = seeded(Preactivated)
    graph = exported(network)
    batch = images(2, 8, 12)
    found = OnnxModel(graph.SerializeToString(), threads=1).logits(batch)
    np.testing.assert_allclose(found, torch_logits(network, batch), atol=1e-4)
    assert network.get_submodule("activation").inplace


class NoTensorLeft(nn.Module):
    """Branches on a value, which a graph cannot express."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x) if x.sum() > 0 else -x


def test_a_network_that_cannot_be_exported_is_named_and_stays_as_it_is(tmp_path: Path) -> None:
    network = NoTensorLeft()
    with pytest.raises(WorkFailedError, match="cannot export NoTensorLeft"):
        export_onnx(network, tmp_path / "model.onnx", channels=1, size_multiple=1)
    assert network.activation.inplace
    assert not (tmp_path / "model.onnx").exists()
