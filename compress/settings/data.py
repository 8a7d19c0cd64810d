"""The section `data`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compress.settings.common import Settings, Share, SizeHW
from export.manifest import Channels


class DataSettings(Settings):
    """Which images, and in what form the model sees them."""

    path: Path | None = None
    """Dataset folder. None in `compress run`: the built-in sample set is made."""
    channels: Channels | Literal["auto"] = "auto"
    """Channels of the model's input; auto: 3 if any image has colour, else 1. Another number than 1 (grey) and 3 (RGB):
    the bands of the files as they are stored."""
    size: SizeHW | None = None
    """Every image is resized to this (height, width), masks nearest; answers are brought back."""
    crop: SizeHW | None = None
    """Random crop (height, width) that training sees; None: whole images."""
    rare_crops: Share = 0.0
    """Share of the crops that are taken around a pixel of one of the image's classes, each as likely as the others."""
    rare_images: Share = 0.0
    """A class that is in a smaller share of the training images than this is shown more often, by the square root of
    what it lacks; 0: every image once an epoch. Source: Gupta et al. 2019 (arXiv:1908.03195)."""
    cache_gb: Annotated[float, Field(ge=0)] = 4.0
    """Decoded images are kept in memory up to this, those of training and those of validation; the rest is read from
    disk each time."""

    @model_validator(mode="after")
    def _crops_where_there_are_some(self) -> Self:
        if self.rare_crops and self.crop is None:
            raise ValueError("rare_crops is for crops, and whole images are shown: set crop, or leave it out")
        return self
