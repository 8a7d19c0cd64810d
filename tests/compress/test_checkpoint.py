"""A checkpoint is data: weights and a card. It is rebuilt bit for bit, nothing is unpickled, damage is named."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bundles import tiny_bundle
from support.checkpoints import write_checkpoint
from support.networks import random_network, random_unet

from compress import checkpoint
from compress.checkpoint import Checkpoint, load, load_weights
from compress.models.plan import PruningPlan
from compress.prune.importance import scores_of
from export.errors import CheckpointError


def cut(network: torch.nn.Module, ratio: float) -> PruningPlan:
    return scores_of(network, channels=1).plan(ratio, 2)


@pytest.fixture
def pruned_twice(tmp_path: Path) -> Checkpoint:
    """Its card holds two plans, the second relative to what the first left."""
    network = random_unet(base=8)
    first = cut(network, 0.4)
    once = first.apply(network, channels=1)
    second = cut(once, 0.4)
    twice = second.apply(once, channels=1)
    assert sum(after for _, after in second.widths().values()) < sum(after for _, after in first.widths().values())
    return write_checkpoint(tmp_path / "twice", twice, base=8, pruning=(first, second))


def test_a_twice_pruned_network_is_rebuilt_bit_for_bit(pruned_twice: Checkpoint, tmp_path: Path) -> None:
    stored = load_file(pruned_twice.path / "weights.safetensors")
    rebuilt = load(pruned_twice.path).network()
    state = rebuilt.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name]) and state[name].dtype == stored[name].dtype for name in stored)
    again = write_checkpoint(tmp_path / "again", rebuilt, base=8, pruning=pruned_twice.card.pruning)
    assert again.weights_sha256 == pruned_twice.weights_sha256
    assert load(again.path).card == pruned_twice.card


def test_the_order_of_the_plans_counts(pruned_twice: Checkpoint) -> None:
    card = json.loads((pruned_twice.path / "model.json").read_text())
    card["pruning"].reverse()
    (pruned_twice.path / "model.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="describes no network that can be built"):
        load(pruned_twice.path).network()


def test_nothing_is_pickled_or_unpickled(pruned_twice: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    load(pruned_twice.path).network()
    assert {path.name for path in pruned_twice.path.iterdir()} == {"weights.safetensors", "model.json"}


def test_channels_last_weights_are_stored_in_their_logical_order(tmp_path: Path) -> None:
    network = random_unet()
    plain = write_checkpoint(tmp_path / "plain", network)
    last = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert write_checkpoint(tmp_path / "last", last).weights_sha256 == plain.weights_sha256


def test_a_segmenter_resizes_pads_and_restores(tmp_path: Path) -> None:
    network = random_unet()
    image = np.random.default_rng(0).integers(0, 256, (30, 21, 1), dtype=np.uint8)
    padded = np.full((32, 24, 1), 128, np.uint8)
    padded[:30, :21] = image
    with torch.inference_mode():
        logits = network((torch.from_numpy(padded).permute(2, 0, 1)[None].float() - 128) / 128)
    expected = logits[0].argmax(0)[:30, :21].numpy()
    np.testing.assert_array_equal(write_checkpoint(tmp_path / "a", network).segmenter()(image), expected)
    resized = write_checkpoint(tmp_path / "b", network, size=(16, 16))
    assert resized.segmenter()(image).shape == (30, 21)


CARDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an unknown factory": (lambda card: card.update(factory="resnet"), "no network is called 'resnet'; known: unet, "),
    "an unknown argument": (lambda card: card["arguments"].update(colour=1), "unexpected keyword argument 'colour'"),
    "a width of nought": (lambda card: card["arguments"].update(base=0), "at least 1"),
    "another width": (lambda card: card["arguments"].update(base=8), "stem.0.weight: has shape [16, 1, 3, 3]"),
    "another depth": (lambda card: card["arguments"].update(depth=3), "missing"),
    "other channels": (lambda card: card.update(channels=0), "model.json: channels: "),
    "no classes": (lambda card: card.pop("classes"), "model.json: classes: Field required"),
    "another schema": (lambda card: card.update(schema_version=9), "model.json: schema_version: "),
    "more than it may hold": (lambda card: card.update(code="import os"), "model.json: code: "),
    "a size of nought": (lambda card: card.update(size=[0, 0]), "model.json: size.0: "),
    "a plan that does not fit": (
        lambda card: card.update(pruning=[{"cuts": [{"layer": "stem.0", "width": 99, "remove": [1]}]}]),
        "stem.0: planned for 99 channels, has 16",
    ),
}


@pytest.mark.parametrize("what", CARDS)
def test_a_card_that_describes_no_network_is_refused(what: str, tmp_path: Path) -> None:
    change, expected = CARDS[what]
    path = write_checkpoint(tmp_path / "ckpt", random_unet()).path
    card = json.loads((path / "model.json").read_text())
    change(card)
    (path / "model.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError) as caught:
        load(path).network()
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_card_that_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ckpt", random_unet()).path
    (path / "model.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ckpt", random_unet()).path
    (path / "weights.safetensors").rename(tmp_path / "weights")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is missing"):
        load(path)
    (path / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.json is missing; `compress train`"):
        load(path)
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "nowhere")


def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it is a bundle; give the checkpoint that it was made from"):
        load(tiny_bundle(tmp_path / "bundle").path)
    path = write_checkpoint(tmp_path / "ckpt", random_unet()).path
    with pytest.raises(CheckpointError, match=r"a file; a checkpoint is the folder with model\.json"):
        load(path / "weights.safetensors")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ckpt", random_unet()).path
    weights = path / "weights.safetensors"
    content = weights.read_bytes()
    for damaged in (b"", content[:50], content[:-7], b"\xff" * 64):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            load(path).network()


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    network = random_unet()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["extra"] = torch.zeros(1)
    del state["head.bias"]
    state["head.weight"] = torch.zeros(5, 16, 1, 1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_weights(random_unet(1), tmp_path / "w.safetensors")
    assert caught.value.problems == [
        "head.weight: has shape [5, 16, 1, 1], the network's is [3, 16, 1, 1]",
        "head.bias: missing, the network's is [3]",
        "extra: not in the network",
    ]


def test_a_long_list_of_unfit_weights_is_cut(tmp_path: Path) -> None:
    save_file({f"layer{i}": torch.zeros(1) for i in range(30)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_weights(random_unet(), tmp_path / "w.safetensors")
    assert len(caught.value.problems) == 11
    assert caught.value.problems[-1].startswith("... and ")


def test_a_start_that_gives_too_little_says_how_little_and_what_to_set(tmp_path: Path) -> None:
    state = random_unet(base=16).state_dict()
    save_file({name: tensor for name, tensor in state.items() if name.startswith("stem")}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_weights(random_unet(base=16), tmp_path / "w.safetensors", skip_other_shapes=True)
    assert re.fullmatch(r"9\d% of the network would start fresh: .* --set model.NAME=VALUE", caught.value.problems[0])
    assert caught.value.problems[1].startswith("down.0.0.weight: missing")


def test_every_head_starts_fresh_where_the_classes_are_others(tmp_path: Path) -> None:
    trained = random_network("unetpp", classes=5)
    path = write_checkpoint(tmp_path / "five", trained, factory="unetpp", classes=5).path
    network = random_network("unetpp", 1, classes=3)
    fresh = load_weights(network, path / "weights.safetensors", skip_other_shapes=True)
    assert fresh == ["heads.1.bias", "heads.1.weight", "heads.2.bias", "heads.2.weight"]
    kept = {name: tensor for name, tensor in network.state_dict().items() if name not in fresh}
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in kept.items())


def test_a_frozen_copy_stands_alone() -> None:
    network = random_unet().train()
    twin = checkpoint.frozen_copy(network)
    assert not twin.training
    assert network.training
    assert not any(p.requires_grad for p in twin.parameters())
    assert all(p.requires_grad for p in network.parameters())
    with torch.no_grad():
        network.get_parameter("head.bias").add_(1)
    assert not torch.equal(twin.get_parameter("head.bias"), network.get_parameter("head.bias"))
