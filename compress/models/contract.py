"""What every network does, built-in or a user's: normalised images NCHW to logits NKHW of the same height and width.

Height and width must be multiples of `size_multiple`; whoever receives an image pads it. A network has `all_logits` if
training uses more outputs than are served.

N batch, C channels, K classes, H height, W width.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from export.blame import told

LARGEST_MULTIPLE = 64


def size_multiple(network: nn.Module) -> int:
    """The number that height and width of the network's input must be multiples of."""
    return int(getattr(network, "size_multiple", 1))


def all_logits(network: nn.Module, images_NCHW: Tensor) -> list[Tensor]:
    """The logits that the training loss sees: those of every head if the network has several, the served ones last."""
    several: Callable[[Tensor], list[Tensor]] | None = getattr(network, "all_logits", None)
    return [network(images_NCHW)] if several is None else several(images_NCHW)


def found_multiple(network: nn.Module, channels: int) -> int:
    """The smallest power of two whose odd multiples, as height and width, are kept; else `LARGEST_MULTIPLE`."""
    network.eval()
    multiple = 1
    while multiple < LARGEST_MULTIPLE and not all(
        _keeps_size(network, images) for images in _trials(multiple, channels)
    ):
        multiple *= 2
    return multiple


def problems(network: nn.Module, *, channels: int, classes: int) -> list[str]:
    """Every way in which `network` breaks the contract, one line each. Leaves it in eval mode."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return list(dict.fromkeys(_problems(network.eval(), channels, classes)))


def _problems(network: nn.Module, channels: int, classes: int) -> Iterator[str]:
    if not any(True for _ in network.parameters()):
        yield "it has no parameters: there is nothing to train"
    multiple = getattr(network, "size_multiple", 1)
    if not isinstance(multiple, int) or multiple < 1:
        yield f"size_multiple is {multiple!r}; it must be a whole number of pixels, or absent"
        return
    small, large = _trials(multiple, channels)
    wrong = list(_in_eval(network, large, classes))
    yield from wrong or _in_eval(network, small, classes)
    strange = [name for name, value in network.state_dict().items() if not isinstance(value, Tensor)]
    if strange:
        yield f"its state_dict holds more than tensors, and the rest is not saved: {', '.join(strange)}"
    try:
        twin = copy.deepcopy(network).train()
    except Exception as error:
        yield f"it cannot be copied: {told(error)}"
        return
    with torch.enable_grad():
        in_training = list(_in_training(twin, large, classes))
    yield from (f"in training: {text}" for text in in_training if text not in wrong)


def _in_eval(network: nn.Module, images_NCHW: Tensor, classes: int) -> Iterator[str]:
    given = images_NCHW.clone()
    try:
        logits = network(given)
        wrong = list(_unlike_logits(logits, images_NCHW, classes))
        yield from wrong
        if not torch.equal(given, images_NCHW):
            yield "its forward changes its input images in place: use no inplace=True before the first layer"
        elif not wrong and len(images_NCHW) > 1:
            yield from _unsteady(network, images_NCHW, logits)
    except Exception as error:
        yield _does_not_run(images_NCHW, error)


def _in_training(network: nn.Module, images_NCHW: Tensor, classes: int) -> Iterator[str]:
    try:
        heads = all_logits(network, images_NCHW)
        if not isinstance(heads, list) or not heads:
            yield f"all_logits returns {type(heads).__name__}; it must return a list of logits, the served ones last"
            return
        for logits in heads:
            wrong = list(_unlike_logits(logits, images_NCHW, classes))
            yield from wrong
            if not wrong and not logits.requires_grad:
                yield "the logits have no gradient: look for detach() or no_grad() in its forward"
    except Exception as error:
        yield _does_not_run(images_NCHW, error)


def _unlike_logits(logits: object, images_NCHW: Tensor, classes: int) -> Iterator[str]:
    if not isinstance(logits, Tensor):
        yield (
            f"its forward returns {_described(logits)}; it must return the logits alone, as a tensor"
            f"{_where_inside(logits)}"
        )
        return
    batch, _, height, width = images_NCHW.shape
    if logits.ndim != 4:
        yield f"the logits have the shape {list(logits.shape)}; it must be [batch, classes, height, width]"
        return
    if logits.shape[0] != batch:
        yield f"for {batch} images it returns the logits of {logits.shape[0]}"
    if logits.shape[1] != classes:
        yield f"the logits are of {logits.shape[1]} classes instead of {classes}: use the keyword argument classes="
    if logits.shape[2:] != images_NCHW.shape[2:]:
        yield (
            f"images of {height}x{width} give logits of {logits.shape[2]}x{logits.shape[3]}: resize them to match the "
            "image, or set the attribute size_multiple to the number that height and width must be multiples of"
        )
    if logits.dtype != torch.float32:
        yield f"the logits are {logits.dtype} instead of torch.float32"
    elif not logits.isfinite().all():
        yield "with fresh weights the logits are not finite"


def _unsteady(network: nn.Module, images_NCHW: Tensor, logits_NKHW: Tensor) -> Iterator[str]:
    tolerance = 1e-3 * float(logits_NKHW.abs().max())
    if not torch.allclose(network(images_NCHW), logits_NKHW, rtol=0, atol=tolerance):
        yield (
            "in eval mode the same images give different logits each time: pass training=self.training to dropout, and "
            "keep counters and random numbers out of its forward"
        )
        return
    singles = torch.cat([network(image[None]) for image in images_NCHW])
    if not torch.allclose(singles, logits_NKHW, rtol=0, atol=tolerance):
        yield (
            "in eval mode the logits of an image depend on the rest of its batch: a BatchNorm without "
            "track_running_stats, or a mean over the batch?"
        )


def _keeps_size(network: nn.Module, images_NCHW: Tensor) -> bool:
    try:
        with torch.no_grad():
            logits = network(images_NCHW)
    except Exception:
        return False  # `problems` reports it
    return isinstance(logits, Tensor) and logits.shape[2:] == images_NCHW.shape[2:]


def _trials(multiple: int, channels: int) -> list[Tensor]:
    """The smallest possible image, and two of another shape; only odd multiples, so that no factor of two is hidden."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, channels, multiple, multiple), (2, channels, 3 * multiple, 5 * multiple)]
    return [torch.rand(shape, generator=generator) * 2 - 1 for shape in shapes]


def _does_not_run(images_NCHW: Tensor, error: Exception) -> str:
    return f"it does not run on float images of shape {list(images_NCHW.shape)}: {told(error)}"


def _described(logits: object) -> str:
    if isinstance(logits, dict):
        return f"a dict of {', '.join(map(repr, logits))}"
    if isinstance(logits, list | tuple):
        return f"a {type(logits).__name__} of {len(logits)}"
    return type(logits).__name__


def _where_inside(logits: object) -> str:
    if isinstance(logits, dict):
        return f"; wrap it in a module whose forward returns net(x)[{next(iter(logits), 'out')!r}]"
    if isinstance(logits, list | tuple):
        return (
            "; if training should see several, return the served one from forward, and all of them, as a list, from "
            "a method all_logits"
        )
    return ""
