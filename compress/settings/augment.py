"""The section `train.augment`."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compress.settings.common import OwnName, Settings, Share


class AugmentSettings(Settings):
    """Augmentation of each training batch. The mask follows the image exactly; what lies outside the image is void."""

    NEEDS: ClassVar = {
        "cutout_side": ("cutout", None),
        "cutmix_alpha": ("cutmix", None),
        "mixup_alpha": ("mixup", None),
        "policy_operations": ("policy", "rand"),
        "policy_strength": ("policy", None),
    }

    flip_horizontal: Share = 0.5
    """Probability of mirroring left to right."""
    flip_vertical: Share = 0.0
    """Probability of mirroring top to bottom; for images that have no up, such as those of microscopes or
    satellites."""
    quarter_turn: Share = 0.0
    """Probability of a turn by 90 degrees, either way. Nothing is resampled; images that are not square are padded to
    squares."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    """The angle of rotation is drawn from ± this."""
    shear_degrees: Annotated[float, Field(ge=0, le=60)] = 0.0
    """The angles of shear along rows and along columns are each drawn from ± this."""
    scale: tuple[float, float] = (0.8, 1.25)
    """The zoom factor is drawn from this range. With `data.crop`, zoom comes before the crop is taken, so that zooming
    out shows more of the image."""
    brightness: Share = 0.15
    """An offset drawn from ± this is added to the normalised image."""
    contrast: Share = 0.15
    """The normalised image is multiplied by a factor drawn from 1 ± this."""
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Pixels, scaled to 0 to 1, are raised to a power drawn from 1 ± this. This imitates exposure, whereas brightness
    shifts all pixels alike."""
    saturation: Share = 0.0
    """The saturation of an RGB image is multiplied by a factor drawn from 1 ± this. Other images have no saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The hue of an RGB image is shifted by a share of the colour circle drawn from ± this."""
    noise: Share = 0.0
    """Gaussian noise is added to pixels scaled to -1 to 1; its standard deviation is drawn from 0 to this."""
    cutout: Share = 0.0
    """Probability of erasing a rectangle: grey in the image, void in the mask."""
    cutout_side: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Largest height and width of that rectangle, as shares of the image's; the smallest are half of this."""
    cutmix: Share = 0.0
    """Probability that a rectangle of an image and its mask is replaced by that of another image in the batch. Not with
    batches of one."""
    cutmix_alpha: Annotated[float, Field(gt=0)] = 1.0
    """The share of the image that stays is drawn from Beta(this, this); with 1, all shares are equally likely."""
    mixup: Share = 0.0
    """Probability that the images of a batch are each blended with another one, and the loss with the loss against that
    one's mask. Not with batches of one."""
    mixup_alpha: Annotated[float, Field(gt=0)] = 0.2
    """The blending weight is drawn from Beta(this, this). Small values mostly blend in little of the other image."""
    own: OwnName | None = None
    """An augmentation of your own, applied after the built-in ones: `file.py:function`. It is called with images NCHW,
    of about -1 to 1, and masks NHW, 255 for void, and returns both in the same sizes and with the same classes."""
    policy: Literal["none", "trivial", "rand"] = "none"
    """Random operations from a built-in list (`compress/data/change.py`), drawn for each image, in addition to the
    settings above. trivial: one operation of any strength; rand: several of the same strength."""
    policy_operations: Annotated[int, Field(ge=1, le=4)] = 2
    """Number of operations with rand. Equal operations add up: with `shear_degrees`, five could shear by a right
    angle."""
    policy_strength: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Multiple of the list's widest changes, which are mild: 15 degrees, a tenth of the side, brightness by 0.3."""

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} is not a range of positive numbers; write [lowest, highest]")
        return self
