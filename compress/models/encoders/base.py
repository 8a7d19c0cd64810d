"""What every encoder is: features at several strides, and a start from a classifier's weights."""

from collections.abc import Mapping

from torch import Tensor, nn


class Encoder(nn.Module):
    """A classifier's network without its head, from normalised images NCHW to features.

    Its parameters start fresh. Building one never needs a weights package, so that a checkpoint can be rebuilt
    anywhere; `load_pretrained` is a step of training.
    """

    widths: Mapping[int, int]
    """Channels by stride, the finest first, as built; the strides are powers of two."""

    @property
    def size_multiple(self) -> int:
        """What height and width must be multiples of."""
        return max(self.widths)

    @property
    def trunk(self) -> nn.Module:
        """The module whose children are the encoder's stages."""
        return self

    def forward(self, image_NCHW: Tensor) -> list[Tensor]:
        """Features of each stride, in the order of `widths`."""
        raise NotImplementedError

    def from_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert a classifier's state dict to this encoder's names, channels and normalisation."""
        raise NotImplementedError

    def load_pretrained(self) -> None:
        """Load ImageNet weights.

        Raises MissingExtraError or RecipeError when there are none, WorkFailedError when they cannot be fetched.
        """
        raise NotImplementedError
