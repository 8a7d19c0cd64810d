"""Any convolutional encoder of timm (pytorch-image-models), with the extra `timm`.

N batch, C channels, H height, W width.
"""

from collections.abc import Mapping
from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor, nn

from compress.models.encoders.base import Encoder
from compress.models.encoders.stem import Normalisation, fold
from export.errors import RecipeError, WorkFailedError, require

PREFIX = "timm:"
PLAIN = ("Conv2d", "Conv2dSame")


class TimmEncoder(Encoder):
    """`timm.create_model(name, features_only=True)`, whose features must halve in size from one to the next.

    Raises MissingExtraError without timm, RecipeError for a name that timm does not know or without such features.
    """

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.name = name
        self.channels = channels
        timm = self._timm()
        try:
            self.features = timm.create_model(name.removeprefix(PREFIX), features_only=True, in_chans=channels)
        except Exception as error:  # an unknown name, an unknown tag, a model without features: no common base
            raise RecipeError("model.encoder", [f"{name}: {error}; timm.list_models() lists all names"]) from error
        info = self.features.feature_info
        self.widths = dict(zip(info.reduction(), info.channels(), strict=True))
        self._require_pyramid()

    @property
    def trunk(self) -> nn.Module:
        features: nn.Module = self.features
        return features

    def forward(self, image_NCHW: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.features(image_NCHW)
        return features

    def from_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the state dict of this encoder as timm builds it for three colours.

        Raises RecipeError when its first convolution is not one into which mean and deviation can be folded.
        """
        config = self.features.pretrained_cfg
        mean, std = (tuple(255 * value for value in config[key]) for key in ("mean", "std"))
        named = {f"features.{name}": tensor for name, tensor in state.items()}
        return fold(named, Normalisation(mean, std), self.channels, **self._stem(str(config.get("first_conv"))))

    def load_pretrained(self) -> None:
        timm = self._timm()
        try:
            state = timm.create_model(self.name.removeprefix(PREFIX), features_only=True, pretrained=True).state_dict()
        except Exception as error:  # without a network, a file, or weights of this variant: no common base
            raise WorkFailedError(
                f"timm could not download the weights of {self.name}: {str(error).strip()}\n"
                "try again with a network connection, or set model.pretrained=false"
            ) from error
        self.load_state_dict(self.from_classifier(state))

    def _timm(self) -> ModuleType:
        return require("timm", extra="timm", purpose=f"the encoder {self.name}")

    def _require_pyramid(self) -> None:
        """Run the encoder to see: transformers give other layouts, or take one size of image."""
        strides, side = list(self.widths), 2 * self.size_multiple
        expected = [(1, width, side // stride, side // stride) for stride, width in self.widths.items()]
        try:
            with torch.no_grad():
                given = [tuple(x.shape) for x in self.eval()(torch.zeros(1, self.channels, side, side))]
        except Exception as error:
            raise self._refused(f"it does not take an image of {side}x{side}: {error}") from error
        if given != expected or strides != [strides[0] * 2**level for level in range(len(strides))]:
            raise self._refused(f"for an image of {side}x{side} it gives maps of the shapes {given}")
        self.train()

    def _stem(self, first: str) -> dict[str, str]:
        """The names of what `fold` changes. timm names the first convolution with dots where flattening has put _."""
        for (name, module), (following, norm) in pairwise(self.features.named_modules()):
            # Subclasses standardise their weights, which would undo the folding.
            if name.replace(".", "_") == first.replace(".", "_") and type(module).__name__ in PLAIN:
                if module.bias is not None:
                    return {"weight": f"features.{name}.weight", "constant": f"features.{name}.bias"}
                if isinstance(norm, nn.BatchNorm2d):
                    return {
                        "weight": f"features.{name}.weight",
                        "constant": f"features.{following}.running_mean",
                    }
        raise RecipeError(
            "model.pretrained",
            [
                f"{self.name}: found no first convolution with a bias or a BatchNorm after it, into which its mean and "
                "deviation could be folded; set model.pretrained=false, or choose another encoder"
            ],
        )

    def _refused(self, reason: str) -> RecipeError:
        return RecipeError(
            "model.encoder",
            [
                f"{self.name}: {reason}; a decoder needs maps NCHW for images of any size, each map half as large "
                "as the one before, as ResNets, EfficientNets, MobileNets and ConvNeXts give them"
            ],
        )
