"""The section `data`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compress.settings.common import Settings, Share, SizeHW
from export.manifest import Channels


class DataSettings(Settings):
    """The images, and the form in which the model sees them."""

    path: Path | None = None
    """Dataset folder. None: `compress run` creates the built-in sample set."""
    channels: Channels | Literal["auto"] = "auto"
    """Channels of the model's input. auto: 3 if any image has colour, else 1. Numbers other than 1 (grey) and 3 (RGB)
    read the bands of the files as they are stored."""
    size: SizeHW | None = None
    """Size (height, width) to which every image is resized; masks are resized by nearest neighbour. Predicted masks are
    scaled back to the size of the image."""
    crop: SizeHW | None = None
    """Size (height, width) of the random crop that training takes of each image; None: whole images."""
    rare_crops: Share = 0.0
    """Share of the crops that are placed around a pixel of one of the image's classes, each class equally likely."""
    rare_images: Share = 0.0
    """A class found in a smaller share of the training images than this is shown more often, by the factor sqrt(this /
    that share). 0: every image is shown once per epoch. Source: Gupta et al. 2019 (arXiv:1908.03195)."""
    cache_gb: Annotated[float, Field(ge=0)] = 4.0
    """Memory for decoded images, in GB, for training and for validation each. Images beyond it are read from disk each
    time."""

    @model_validator(mode="after")
    def _crops_where_there_are_some(self) -> Self:
        if self.rare_crops and self.crop is None:
            raise ValueError(
                "rare_crops needs crops, but training sees whole images: set crop, or leave rare_crops out"
            )
        return self
