"""The section `train.augment`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compress.settings.common import OwnName, Settings, Share


class AugmentSettings(Settings):
    """What training does to each batch; the mask follows exactly, void where nothing is."""

    flip_horizontal: Share = 0.5
    """Probability."""
    flip_vertical: Share = 0.0
    """Probability; for pictures without an up, such as microscopes or satellites."""
    quarter_turn: Share = 0.0
    """Probability of turning by 90 degrees, either way: nothing is resampled; what is not square is padded to it."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Rotation is drawn from ± this."""
    shear_degrees: Annotated[float, Field(ge=0, le=60)] = 0.0
    """Shear along rows, and along columns, is drawn from ± this."""
    scale: tuple[float, float] = (0.8, 1.25)
    """Zoom is drawn from this range; with `data.crop` before the crop is taken, so that it sees what is there."""
    brightness: Share = 0.15
    """Added to the normalised image, drawn from ± this."""
    contrast: Share = 0.15
    """The normalised image is multiplied by 1 ± this."""
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Pixels, from 0 to 1, are raised to a power of 1 ± this: exposure, where brightness shifts all alike."""
    saturation: Share = 0.0
    """That of an RGB image is multiplied by 1 ± this; other images have none."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The hue of an RGB image is turned by ± this share of the colour circle."""
    noise: Share = 0.0
    """Standard deviation of Gaussian noise, of pixels from -1 to 1, is drawn from 0 to this."""
    cutout: Share = 0.0
    """Probability of a hole in the image, grey and void."""
    cutout_side: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Its height and width over those of the image, at most; at least half of it."""
    cutmix: Share = 0.0
    """Probability that a rectangle is taken from another image of the batch, with its mask; not with batches of one."""
    cutmix_alpha: Annotated[float, Field(gt=0)] = 1.0
    """The share of the picture that stays is drawn from Beta(this, this); with 1 all are alike."""
    mixup: Share = 0.0
    """Probability that each image of a batch is blended with another one, and the loss with the loss of that mask; not
    with batches of one."""
    mixup_alpha: Annotated[float, Field(gt=0)] = 0.2
    """The share of the blend is drawn from Beta(this, this): with little of the other image mostly."""
    own: OwnName | None = None
    """An augmentation of your own, after ours: `file.py:function`, called with images NCHW of about -1 to 1 and masks
    NHW, 255 for void; it gives both again, of the same sizes and classes."""
    policy: Literal["none", "trivial", "rand"] = "none"
    """Operations of a list (`compress/data/change.py`) that each image draws for itself, beside the settings above.
    trivial: one, of any strength; rand: several, of one strength."""
    policy_operations: Annotated[int, Field(ge=1, le=4)] = 2
    """Of rand; those that are the same add up, and five could shear an image by a right angle."""
    policy_strength: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Over the widest change that the list has, which is mild: 15 degrees, a tenth of the side, brightness by 0.3."""

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} is not a range of positive numbers")
        return self
