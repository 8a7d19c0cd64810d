"""A user's own augmentation, loss or schedule, found in the same way as a user's own network (`compress.own`).

Each is a function that the recipe names, called as it is; what it returns is checked at every call.

N batch, C channels, K classes, H height, W width.
"""

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from compress.own import OwnCode, is_own
from compress.settings.augment import AugmentSettings
from compress.settings.fit import FitSettings
from export.errors import RecipeError
from export.scoring import VOID

Augmentation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Shape = Callable[[int, int], float]


def augmentation(name: str, classes: int) -> Augmentation:
    """`function(images_NCHW, masks_NHW)` returns both, changed: floats of about -1 to 1, and uint8 with 255 for void.

    Its randomness has to come from torch's global generators, so that a resumed run draws the same. Its masks hold
    classes below `classes`. Raises RecipeError, here when there is no such function, later when it returns something
    else.
    """
    code = OwnCode(name, "an augmentation", RecipeError)
    function = code.guarded(code.found())

    def augmented(images_NCHW: Tensor, masks_NHW: Tensor) -> tuple[Tensor, Tensor]:
        given = function(images_NCHW, masks_NHW)
        wanted = f"images {list(images_NCHW.shape)} in float32 and masks {list(masks_NHW.shape)} in uint8"
        if not isinstance(given, tuple) or len(given) != 2 or not all(isinstance(one, Tensor) for one in given):
            raise code.wrong(f"it does not return a pair of tensors; it must return {wanted}")
        images, masks = given
        if images.shape != images_NCHW.shape or masks.shape != masks_NHW.shape:
            raise code.wrong(f"it returns {list(images.shape)} and {list(masks.shape)}; it must return {wanted}")
        if images.dtype != torch.float32 or masks.dtype != torch.uint8:
            raise code.wrong(f"it returns {images.dtype} and {masks.dtype}; it must return {wanted}")
        beyond = masks[(masks >= classes) & (masks != VOID)]
        if len(beyond):
            found = ", ".join(str(label) for label in beyond.unique().tolist())
            raise code.wrong(f"its masks hold {found}; classes are 0 to {classes - 1}, and {VOID} is void")
        return images, masks

    return augmented


def loss(name: str) -> Loss:
    """`function(logits_NKHW, target_NHW)` returns a scalar to minimise.

    Logits are in float32 and zero in void, classes in int64 with 255 for void, which it has to leave out. Raises
    RecipeError, here when there is no such function, later when it returns something else.
    """
    code = OwnCode(name, "a loss", RecipeError)
    function = code.guarded(code.found())

    def checked(logits_NKHW: Tensor, target_NHW: Tensor) -> Tensor:
        given = function(logits_NKHW, target_NHW)
        if not isinstance(given, Tensor) or given.ndim or not given.is_floating_point():
            form = f"a tensor {list(given.shape)}" if isinstance(given, Tensor) else f"of type {type(given).__name__}"
            raise code.wrong(f"what it returns is {form}; it must be a scalar tensor of floats")
        if logits_NKHW.requires_grad and not given.requires_grad:
            if given != 0:
                raise code.wrong(
                    "what it returns has no gradient, so there is nothing to minimise; compute it from the logits by "
                    "torch's operations, without detach, item, argmax and the like"
                )
            return (logits_NKHW * 0).sum()  # the batch holds nothing that it counts
        return given

    return checked


def schedule(name: str) -> Shape:
    """`function(step, steps)` returns the learning rate of step 0, 1, ... of `steps`, as a share of the peak.

    It must depend on nothing else: a resumed run calls it for the remaining steps only. Raises RecipeError, here when
    there is no such function, later when it returns something else.
    """
    code = OwnCode(name, "a schedule", RecipeError)
    function = code.guarded(code.found())

    def shape(step: int, steps: int) -> float:
        given = function(step, steps)
        if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= float(given) < math.inf:
            raise code.wrong(f"for step {step} of {steps} it returns {given!r}; it must return a number of at least 0")
        return float(given)

    return shape


def sources(settings: FitSettings, augment: AugmentSettings) -> dict[str, str]:
    """SHA-256 of the files that hold a user's own parts of a training, by part: an edit makes it another training.

    Raises RecipeError when there is no such file.
    """
    named = {"augment": augment.own, "loss": settings.loss.own, "schedule": settings.schedule.kind}
    return {
        f"own_{part}": OwnCode(name, f"a part ({part})", RecipeError).source_sha256()
        for part, name in named.items()
        if name is not None and is_own(name)
    }
