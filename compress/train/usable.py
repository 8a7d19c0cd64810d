"""What a fit would refuse only once it begins, which may be after hours of other work."""

from collections.abc import Sequence

import numpy as np

from compress.own import is_own
from compress.settings.fit import FitSettings
from compress.train import own
from compress.train.losses import class_weights


def require_usable(settings: FitSettings, classes: Sequence[str]) -> None:
    """Check that the user's own loss and schedule exist, and that class weights are those of the classes.

    Raises RecipeError, ModelError.
    """
    if settings.loss.own is not None:
        own.loss(settings.loss.own)
    if is_own(settings.schedule.kind):
        own.schedule(settings.schedule.kind)
    class_weights(settings.loss, np.ones(len(classes), dtype=np.int64), settings.SECTION)
