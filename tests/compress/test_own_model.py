"""A user's own network: found by name, checked against the contract before any long work, tracked afterwards."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path
from textwrap import dedent, indent

import pytest
import torch
from support.checkpoints import write_checkpoint
from support.datasets import write_dataset
from support.networks import randomised
from torch import nn

from compress import checkpoint
from compress.checkpoint import Checkpoint, ModelCard
from compress.export_fp32 import export
from compress.models import build, size_multiple, source_sha256
from compress.prune.importance import scores_of
from compress.recipe import Recipe
from compress.train import train
from compress.train.rehearsal import rehearse
from export import bundle
from export.errors import CheckpointError, ModelError, RecipeError, UsageError
from export.files import sha256_file

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_model.py"
ARGUMENTS = {"channels": 1, "classes": 2}

HEAD = """
import torch
import torch.nn.functional as F
from torch import nn

class Base(nn.Module):
    def __init__(self, channels, classes, width=8):
        super().__init__()
        self.a = nn.Conv2d(channels, width, 3, padding=1)
        self.b = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        return self.b(self.a(x).relu())
"""

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write `net.py` with a class Net of a given body into the working directory; returns its factory's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def written(body: str = "pass", *, after: str = "") -> str:
        Path("net.py").write_text(f"{HEAD}\n\nclass Net(Base):\n{indent(dedent(body), '    ')}\n\n{dedent(after)}\n")
        return "net.py:Net"

    return written


def forward(*lines: str) -> str:
    return "def forward(self, x):\n" + "\n".join(f"    {line}" for line in lines)


# How the network is found.


def test_a_file_and_a_module_give_the_same_network(write: Write, tmp_path: Path) -> None:
    write("pass", after="from beside import WIDTH\nclass Nested:\n    Net = Net")
    (tmp_path / "beside.py").write_text("WIDTH = 3\n")
    for factory in ("net.py:Net", str(tmp_path / "net.py:Net"), "net.py:Nested.Net", "net:Net"):
        network = build(factory, {**ARGUMENTS, "width": 5})
        assert [tuple(p.shape) for p in network.parameters()] == [(5, 1, 3, 3), (5,), (2, 5, 1, 1), (2,)]
        assert source_sha256(factory) == sha256_file(tmp_path / "net.py")
    sys.modules.pop("net")


def test_a_file_of_the_users_does_not_take_the_place_of_a_library(write: Write, tmp_path: Path) -> None:
    (tmp_path / "onnx.py").touch()
    (tmp_path / "beside.py").touch()
    build(write(), ARGUMENTS)
    found = [PathFinder.find_spec(name, sys.path) for name in ("beside", "onnx")]
    assert [str(spec.origin).startswith(str(tmp_path)) for spec in found if spec] == [True, False]


FINDS = {
    "nowhere.py:Net": "no such file: .*/nowhere.py; a relative path starts where the command is run",
    "nowhere:Net": "no module 'nowhere'; looked in .* and among the packages installed in ",
    "folder/net:Net": "folder/net is not the name of a module; give a file with its .py",
    "net.py:Ned": "net.py has no 'Ned'; did you mean 'Net'",
    "net.py:zzz": "net.py has no 'zzz'; it has Base, Net, made, fails",
    "net.py:made": "made is a network already, of type Net; name a function or class",
    "net.py:number": "number is of type int; name a function or class",
    "net.py:fails": r"it failed: ZeroDivisionError: division by zero \(net.py:\d+\)",
    "net.py:gives_none": "it returns something of type NoneType; it must return a torch.nn.Module",
    "net.py:wants_more": "cannot be called with channels=1, classes=2: missing a required argument: 'depth'",
    "misses.py:Net": r"misses.py cannot be imported: ModuleNotFoundError: No module named 'nonesuch' \(misses.py:1\)",
    "misses:Net": r"misses cannot be imported: ModuleNotFoundError: No module named 'nonesuch' \(misses.py:1\)",
    "garbled.py:Net": r"garbled.py cannot be imported: SyntaxError: .* \(garbled.py:2\)",
    "leaves.py:Net": "leaves.py cannot be imported: SystemExit: 3",
    "package:Net": "package is a folder; name the module in it",
    "os:system": "os holds no network of yours",
    "torch.hub:load": "torch.hub holds no network of yours",
}


@pytest.mark.parametrize("factory", FINDS)
def test_what_is_not_found_is_told(factory: str, write: Write, tmp_path: Path) -> None:
    write(
        after="""
        made = Net(1, 2)
        number = 3
        def fails(channels, classes): return 1 / 0
        def gives_none(channels, classes): pass
        def wants_more(depth, channels, classes): pass
        """
    )
    (tmp_path / "misses.py").write_text("import nonesuch\n")
    (tmp_path / "garbled.py").write_text("x = 1\ndef (:\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "package").mkdir()
    with pytest.raises(ModelError, match=FINDS[factory]) as caught:
        build(factory, ARGUMENTS)
    assert caught.value.exit_status == 2
    assert str(caught.value).startswith(f"model {factory}: 1 problem\n")
    sys.modules.pop("package", None)


def test_an_argument_of_none_is_left_to_the_factory_and_to_no_recipe() -> None:
    """TOML has no null, so `none` leaves the argument out."""
    settings = ["model.factory=net.py:f", "model.arguments.width=none", "model.arguments.block={deep=3}"]
    recipe = Recipe.load(None, [*settings, "model.arguments.block.wide=none"])
    assert recipe.model.keywords() == {"block": {"deep": 3}}
    assert tomllib.loads(recipe.to_toml())["model"]["arguments"] == {"block": {"deep": 3}}


def test_what_comes_from_the_dataset_is_no_argument() -> None:
    with pytest.raises(RecipeError, match="channels comes from the dataset; leave it out"):
        Recipe.load(None, ["model.factory=net.py:Net", "model.arguments.channels=3"])


# What the contract requires.

BREACHES = {
    "a dict": (forward("return {'out': self.b(self.a(x)), 'aux': x}"), r"a dict of 'out', 'aux'; .*net\(x\)\['out'\]"),
    "a pair": (forward("return self.b(self.a(x)), x"), "returns a tuple of 2; it must return the logits alone"),
    "a list in training": (
        forward("y = self.b(self.a(x))", "return [y, y] if self.training else y"),
        "in training: its forward returns a list of 2; .* a method all_logits",
    ),
    "half the size": (forward("return F.max_pool2d(self.b(self.a(x)), 2)"), "192x320 give logits of 96x160"),
    "a vector": (forward("return self.b(self.a(x)).mean((2, 3))"), r"shape \[2, 2\]; it must be \[batch, classes"),
    "one image": (forward("return self.b(self.a(x))[:1]"), "for 2 images it returns the logits of 1"),
    "other classes": (
        "def __init__(self, channels, classes): super().__init__(channels, 7)",
        "7 classes instead of 2",
    ),
    "double precision": (forward("return self.b(self.a(x)).double()"), "logits are torch.float64"),
    "no numbers": (forward("return self.b(self.a(x)).log() * float('nan')"), "logits are not finite"),
    "dropout by hand": (
        forward("return F.dropout(self.b(self.a(x)))"),
        "different logits each time: pass training=",
    ),
    "batch statistics": (
        forward("return self.b(F.batch_norm(self.a(x), None, None, training=True))"),
        "depend on the rest of its batch",
    ),
    "writes into its input": (forward("return self.b(self.a(x.clamp_(0, 1)))"), "changes its input images in place"),
    "an error": (forward("return self.b(self.c(x))"), r"it does not run on .*: AttributeError: .* 'c' \(net.py:\d+\)"),
    "no gradient": (forward("return self.b(self.a(x)).detach()"), "in training: the logits have no gradient"),
    "no parameters": (
        "def __init__(self, channels, classes): nn.Module.__init__(self)\n" + forward("return x.repeat(1, 2, 1, 1)"),
        "has no parameters",
    ),
    "a strange multiple": ("size_multiple = 'large'", "size_multiple is 'large'; it must be a whole number"),
    "a multiple that is too small": (
        "size_multiple = 2\n" + forward("return F.interpolate(F.max_pool2d(self.b(self.a(x)), 4), scale_factor=4)"),
        "images of 6x10 give logits of 4x8",
    ),
    "more than tensors": ("def get_extra_state(self): return 3", "state_dict holds more than tensors"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_what_breaks_the_contract_is_told(breach: str, write: Write) -> None:
    body, expected = BREACHES[breach]
    with pytest.raises(ModelError, match=expected):
        build(write(body), ARGUMENTS)


def test_everything_is_told_at_once(write: Write) -> None:
    body = "def __init__(self, channels, classes): super().__init__(channels, 7)\n"
    with pytest.raises(ModelError) as caught:
        build(write(body + forward("return self.b(self.a(x)).double()[..., ::2]")), ARGUMENTS)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("body", "multiple"),
    [
        pytest.param("pass", 1, id="convolutions alone"),
        pytest.param(forward("y = F.max_pool2d(self.a(x), 4)", "return self.b(F.interpolate(y, scale_factor=4))"), 4),
        # It takes every size that survives the pooling, so the smallest of these becomes the multiple.
        pytest.param(forward("y = F.max_pool2d(self.a(x), 8)", "return self.b(F.interpolate(y, size=x.shape[2:]))"), 8),
        pytest.param("size_multiple = 24", 24, id="its own word"),
    ],
)
def test_the_multiple_is_taken_from_the_network_or_found(body: str, multiple: int, write: Write) -> None:
    assert size_multiple(build(write(body), ARGUMENTS)) == multiple


# Later steps are tried before training.


def test_what_cannot_be_exported_is_not_trained(write: Write, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "discs", size=(16, 16))
    factory = write(forward("y = self.a(x)", "if y[0, 0, 0, 0] > 100:", "    y = y * 2", "return self.b(y)"))
    with pytest.raises(ModelError, match=r"branches on the values in a tensor; use torch.where(.|\n)*\(net.py:\d+\)"):
        train(data, tmp_path / "out", Recipe.load(None, [f"model.factory={factory}"]))
    assert not (tmp_path / "out").exists()


def test_a_fixed_batch_is_named(write: Write) -> None:
    factory = write(forward("return torch.cat([super(Net, self).forward(image[None]) for image in x])"))
    with pytest.raises(ModelError, match="its forward fixes batch"):
        rehearse(factory, build(factory, ARGUMENTS), channels=1)


def test_what_cannot_be_pruned_is_told_and_trained(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    factory = write(
        forward("y = self.a(x)", "n, _, h, w = y.shape", "return self.b(y.view(n, 8, -1).relu().view(n, 8, h, w))")
    )
    network = build(factory, ARGUMENTS)
    rehearse(factory, network, channels=1)
    told = capfd.readouterr().err
    assert "can be trained, quantized and served, but not pruned: Net does not run with fewer channels" in told
    assert "(net.py:" in told
    with pytest.raises(UsageError, match="take widths from the tensors"):
        scores_of(network, channels=1).plan(0.5, 1).apply(network, channels=1)


def test_a_network_without_channels_to_prune_is_told(write: Write) -> None:
    network = build(write(forward("return F.conv2d(self.a(x), self.b.weight)")), ARGUMENTS)
    with pytest.raises(UsageError, match="Net has no channels that can be removed"):
        scores_of(network, channels=1)


# Its checkpoint.


def saved(factory: str, path: Path) -> Checkpoint:
    network = randomised(build(factory, ARGUMENTS))
    card = ModelCard(
        factory=factory,
        factory_sha256=source_sha256(factory),
        arguments=ARGUMENTS,
        channels=1,
        classes=("a", "b"),
        colours=((0, 0, 0), (1, 1, 1)),
        size=None,
        size_multiple=size_multiple(network),
        parents={},
    )
    path.mkdir()
    checkpoint.save(path, network, card)
    return checkpoint.load(path)


def test_weights_that_two_layers_share_are_saved_and_loaded(write: Write, tmp_path: Path) -> None:
    body = """
        def __init__(self, channels, classes):
            super().__init__(channels, classes)
            self.c = nn.Conv2d(channels, 8, 3, padding=1)
            self.c.weight = self.a.weight
        """
    factory = write(dedent(body) + forward("return self.b(self.a(x) + self.c(x))"))
    made = saved(factory, tmp_path / "ckpt")
    network: nn.Module = made.network()
    assert network.get_parameter("a.weight") is network.get_parameter("c.weight")
    assert torch.isfinite(network(torch.ones(1, 1, 4, 4))).all()


def test_a_checkpoint_without_its_file_says_what_to_bring(write: Write, tmp_path: Path) -> None:
    made = saved(write(), tmp_path / "ckpt")
    (tmp_path / "net.py").rename(tmp_path / "moved.py")
    with pytest.raises(CheckpointError) as caught:
        made.network()
    assert "no such file" in str(caught.value)
    assert "put the file of net.py:Net there" in str(caught.value)
    card = json.loads((made.path / "model.json").read_text())
    (made.path / "model.json").write_text(json.dumps({**card, "factory": str(tmp_path / "moved.py:Net")}))
    checkpoint.load(made.path).network()


def test_a_file_that_was_edited_is_noticed(write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = saved(write(), tmp_path / "ckpt")
    made.network()
    assert "edited" not in capfd.readouterr().err
    (tmp_path / "net.py").write_text((tmp_path / "net.py").read_text() + "\n# harmless\n")
    for _ in range(2):
        made.network()
    edited = f"the file of net.py:Net was edited after {made.path} was trained with it"
    assert capfd.readouterr().err.count(edited) == 1
    (tmp_path / "net.py").write_text((tmp_path / "net.py").read_text().replace("width=8", "width=9"))
    with pytest.raises(CheckpointError) as caught:
        made.network()
    assert "a.weight: has shape [8, 1, 3, 3], the network's is [9, 1, 3, 3]" in str(caught.value)
    assert edited in str(caught.value)


def test_an_edited_file_is_trained_again(write: Write, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "discs", size=(16, 16))
    factory = write()
    recipe = Recipe.load(
        None, [f"model.factory={factory}", "model.arguments.width=4", "train.epochs=1", "train.precision=float32"]
    )
    first = train(data, tmp_path / "out", recipe)
    assert first.card.arguments == {"channels": 1, "classes": 2, "width": 4}
    assert first.card.factory_sha256 == source_sha256(factory)
    assert train(data, tmp_path / "out", recipe).weights_sha256 == first.weights_sha256
    write(forward("return self.b(self.a(x))"))
    assert train(data, tmp_path / "out", recipe).weights_sha256 != first.weights_sha256


def test_an_edited_file_is_exported_again(write: Write, tmp_path: Path) -> None:
    network = build(write(), {"channels": 1, "classes": 2})
    made = write_checkpoint(tmp_path / "ckpt", network, factory="net.py:Net", channels=1, classes=2)
    made = replace(made, card=made.card.model_copy(update={"factory_sha256": source_sha256("net.py:Net")}))
    (made.path / "model.json").write_text(made.card.model_dump_json())
    before = export(made.path, tmp_path / "out").manifest.digest
    assert export(made.path, tmp_path / "out").manifest.digest == before
    Path("net.py").unlink()  # a file that has gone has changed nothing that was made
    assert export(made.path, tmp_path / "out").manifest.digest == before
    write(forward("return -self.b(self.a(x).relu())"))
    # In a process of its own: torch.export knows the code that it has seen in this one.
    subprocess.run([Path(sys.executable).with_name("compress"), "export", "ckpt", "--out", "out"], check=True)
    after = bundle.load(tmp_path / "out").manifest
    assert after.digest != before
    assert after.parents["factory"] == source_sha256("net.py:Net")


# The worked example, with the commands that the documents name.


@pytest.mark.slow(first=True)
def test_the_example_goes_the_whole_way(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "discs", size=(32, 48))
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "own_model.py").write_bytes(EXAMPLE.read_bytes())

    def compress(line: str) -> str:
        command = [str(Path(sys.executable).with_name("compress")), *line.replace("DATA", str(data)).split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = "--set model.arguments.width=16 --set model.arguments.depth=2 --epochs 10 --set train.precision=float32"
    compress(f"train --data DATA --out dense --model nets.own_model:LinkNet --set train.learning_rate=0.01 {small}")
    cut = "--ratio 0.5 --set prune.channel_multiple=8 --set prune.finetune.epochs=2"
    pruned = json.loads(compress(f"prune dense --data DATA --out pruned --json {cut}"))
    assert pruned["miou"] > 0.6
    quickly = "--set quantize.calibration=minmax --set quantize.equalise=false --set quantize.bias_correction=false"
    compress(f"quantize pruned --data DATA --max-drop 0.5 --out int8 --set quantize.force=true {quickly}")
    compress("export pruned --data DATA --out fp32")
    scores = [
        json.loads(compress(f"evaluate {model} --data DATA --split val --json"))["miou"] for model in ("fp32", "int8")
    ]
    assert scores[0] == pytest.approx(pruned["miou"], abs=1e-3)
    assert scores[1] == pytest.approx(pruned["miou"], abs=0.1)
