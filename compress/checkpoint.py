"""A trained network as data: `weights.safetensors` and `model.json`. Nothing is unpickled, ever.

`model.json` names the factory, its arguments and the pruning plans that were applied, in their order; the
network is rebuilt from these and the weights are put in.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from compress import models
from compress.models.plan import PruningPlan
from compress.progress import say
from export.bundle import is_bundle
from export.errors import CheckpointError, ModelError, field_problems
from export.files import sha256_file, write_atomic
from export.images import U8, Geometry
from export.machine import compute_threads
from export.manifest import Channels, Side
from export.to_onnx import MEAN, STD

WEIGHTS = "weights.safetensors"
MODEL = "model.json"
_A_FILE = f"a file; a checkpoint is the folder with {MODEL} and {WEIGHTS}, so give that folder"
MOSTLY_FRESH = 0.5
"""Share of a network that may start fresh: fine-tuning beyond this is training from scratch by mistake."""


class Subject(BaseModel):
    """What a model is for, whatever made it: how images are prepared for it, and what its answers mean."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    channels: Channels
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    size: tuple[Side, Side] | None
    """Images are resized to this (height, width); None: never."""
    size_multiple: int = Field(ge=1)
    parents: dict[str, str]
    """SHA-256 by role: the dataset, the weights that this was made from."""
    recipe: dict[str, Any] = {}
    """The sections of the recipe that made it, each as it was used."""


class ModelCard(Subject):
    """model.json: all that is needed to rebuild the network and to use it."""

    schema_version: Literal[1] = 1
    factory: str
    factory_sha256: str | None = None
    """Of the file of a user's own factory as it was in training."""
    arguments: dict[str, Any]
    pruning: tuple[PruningPlan, ...] = ()
    """Plans in the order in which they were applied, the oldest first."""
    miou_val: float | None = None
    """On the validation split, in torch float32."""

    def build(self) -> nn.Module:
        """The network with fresh weights, pruned as its plans say."""
        network = models.build(self.factory, self.arguments)
        for plan in self.pruning:
            network = plan.apply(network, channels=self.channels)
        return network


@dataclass(frozen=True)
class Checkpoint:
    """A folder with weights and a card."""

    path: Path
    card: ModelCard

    @cached_property
    def weights_sha256(self) -> str:
        return sha256_file(self.path / WEIGHTS)

    @cached_property
    def card_sha256(self) -> str:
        return sha256_file(self.path / MODEL)

    def inputs(self, role: str) -> dict[str, str]:
        """The hashes that say what a step makes of this checkpoint, by role: its weights as `role`, its card, and the
        file of a user's own network as it is now (as it was in training where it is missing)."""
        factory = self.card.factory_sha256
        with suppress(ModelError):
            factory = factory and models.source_sha256(self.card.factory)
        return {role: self.weights_sha256, "card": self.card_sha256, **({"factory": factory} if factory else {})}

    def network(self) -> nn.Module:
        """The network with its weights, on the CPU, in eval mode. For a user's own network, their code is run.

        Raises CheckpointError when card and weights do not fit together.
        """
        try:
            network = self._rebuilt()
        except CheckpointError as error:
            raise CheckpointError(error.where, [*error.problems, *self._source_now()]) from error
        for line in self._source_now():
            _say_once(line)
        return network.eval()

    def _rebuilt(self) -> nn.Module:
        try:
            network = self.card.build()
        except ModelError as error:
            raise CheckpointError(
                self.path, [f"its network {error.where}: {text}" for text in error.problems]
            ) from error
        except Exception as error:
            raise CheckpointError(self.path, [f"{MODEL} describes no network that can be built: {error}"]) from error
        load_weights(network, self.path / WEIGHTS)
        return network

    def _source_now(self) -> list[str]:
        """A line where the file of a user's own factory is missing, or was edited since the training."""
        card = self.card
        if card.factory_sha256 is None:
            return []
        try:
            now = models.source_sha256(card.factory)
        except ModelError:
            return [
                f"a checkpoint holds weights, not code: put the file of {card.factory} there, run in the folder "
                f'where it was trained, or write its present path into "factory" in {MODEL}'
            ]
        edited = f"the file of {card.factory} was edited after {self.path} was trained with it"
        return [edited] if now != card.factory_sha256 else []

    def segmenter(self) -> Callable[[U8], U8]:
        """Image HWC to mask HW at the image's size, in torch float32."""
        return torch_segmenter(self.network(), self.card.size)


def is_checkpoint(path: Path) -> bool:
    return (path / MODEL).is_file()


def load(path: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises CheckpointError.
    """
    if not path.is_dir():
        raise CheckpointError(path, [_A_FILE if path.is_file() else "no such folder"])
    if not is_checkpoint(path):
        missing = f"{MODEL} is missing; `compress train` and `compress prune` make checkpoints"
        raise CheckpointError(
            path, ["it is a bundle; give the checkpoint that it was made from" if is_bundle(path) else missing]
        )
    if not (path / WEIGHTS).is_file():
        raise CheckpointError(path, [f"{WEIGHTS} is missing"])
    try:
        card = ModelCard.model_validate_json((path / MODEL).read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        problems = (
            [f"{MODEL}: {problem}" for problem in field_problems(error.errors())]
            if isinstance(error, ValidationError)
            else [f"{MODEL} is not UTF-8"]
        )
        raise CheckpointError(path, problems) from error
    return Checkpoint(path, card)


def save(folder: Path, network: nn.Module, card: ModelCard) -> None:
    """Write weights and card into `folder`."""
    save_weights(folder / WEIGHTS, network.state_dict())
    write_atomic(folder / MODEL, card.model_dump_json(indent=2) + "\n")


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all; channels_last tensors are stored in their logical order.

    Weights that a network uses in two places are stored under both names: the format does not allow shared memory.
    """
    logical = torch.contiguous_format
    copies = {name: tensor.detach().cpu().clone(memory_format=logical) for name, tensor in state.items()}
    write_atomic(path, to_safetensors(copies))


def load_weights(network: nn.Module, path: Path, *, skip_other_shapes: bool = False) -> list[str]:
    """Put the tensors of `path` (.safetensors, or .pt read with weights_only) into `network`.

    With `skip_other_shapes` (fine-tuning), tensors that are missing or have another shape keep their fresh values, and
    their names are returned; the weights of a bare classifier go to the network's encoder. Without it, any mismatch is
    an error.

    Raises CheckpointError, also when more than `MOSTLY_FRESH` of the network would keep its fresh values.
    """
    state: Mapping[str, Tensor] = _read_state(path)
    if skip_other_shapes:
        network, state = models.counterpart(network, state)
    own = network.state_dict()
    unfit = {name: t for name, t in own.items() if name not in state or state[name].shape != t.shape}
    strange = sorted(state.keys() - own.keys())
    fresh = sum(tensor.numel() for tensor in unfit.values()) / sum(tensor.numel() for tensor in own.values())
    if fresh > MOSTLY_FRESH or ((unfit or strange) and not skip_other_shapes):
        problems = [
            f"{name}: {_described(state.get(name))}, the network's is {list(t.shape)}" for name, t in unfit.items()
        ]
        problems += [f"{name}: not in the network" for name in strange]
        more = [f"... and {len(problems) - 10} more"] if len(problems) > 10 else []
        too_little = (
            f"{fresh:.0%} of the network would start fresh: these weights are for another one; give its settings, as "
            "--set model.NAME=VALUE"
        )
        raise CheckpointError(path, [*([too_little] if skip_other_shapes else []), *problems[:10], *more])
    network.load_state_dict({name: state[name] for name in own if name not in unfit}, strict=False)
    return sorted(unfit)


def torch_segmenter(network: nn.Module, size: tuple[int, int] | None) -> Callable[[U8], U8]:
    """Image HWC to mask HW at the image's size, through torch in float32."""
    logits_of = _logits(network, size)

    def segment(image_HWC: U8) -> U8:
        geometry, logits_KHW = logits_of(image_HWC)
        return geometry.restore(logits_KHW.argmax(0).to(torch.uint8).numpy())

    return segment


def torch_probabilities(network: nn.Module, size: tuple[int, int] | None) -> Callable[[U8], NDArray[np.float32]]:
    """Image HWC to the probabilities of each class KHW at the image's size, through torch in float32."""
    logits_of = _logits(network, size)

    def probabilities(image_HWC: U8) -> NDArray[np.float32]:
        geometry, logits_KHW = logits_of(image_HWC)
        return geometry.restore_figures(logits_KHW.softmax(0).numpy())

    return probabilities


def _logits(network: nn.Module, size: tuple[int, int] | None) -> Callable[[U8], tuple[Geometry, Tensor]]:
    """Image HWC to logits KHW at the size of the network's input, with the geometry that relates the two."""
    torch.set_num_threads(compute_threads())
    network = network.eval()
    multiple = models.size_multiple(network)

    @torch.inference_mode()
    def logits(image_HWC: U8) -> tuple[Geometry, Tensor]:
        geometry = Geometry.plan(*image_HWC.shape[:2], size=size, multiple=multiple)
        found: Tensor = network(normalised(torch.tensor(geometry.fit(image_HWC))[None].permute(0, 3, 1, 2)))
        return geometry, found[0].contiguous()

    return logits


def normalised(images_NCHW: Tensor) -> Tensor:
    """uint8 pixels to float32 (x - 128) / 128."""
    return (images_NCHW.float() - MEAN) / STD


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode that takes no gradients: a teacher, an average."""
    twin = copy.deepcopy(network).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return twin


@cache
def _say_once(text: str) -> None:
    """Log a line only once: a command may rebuild the same network several times."""
    say(text)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(path, ["no such file"]) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, [f"not a safetensors file: {error}"]) from error
    except Exception as error:  # torch.load: UnpicklingError, RuntimeError, EOFError ...
        raise CheckpointError(
            path, ["not a plain state dict that torch.load(weights_only=True) takes; save model.state_dict()"]
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(path, ["holds no state dict: a mapping from parameter names to tensors"])
    return state


def _described(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"has shape {list(tensor.shape)}"
