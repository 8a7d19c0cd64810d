"""A user's own network, named `package.module:factory` or `path/to/file.py:factory`.

The contract: `factory(channels=, classes=, **arguments)` gives an `nn.Module` from float images NCHW, normalised to
about -1..1, to logits NKHW of the same height and width. Where it has no attribute `size_multiple` (what height and
width must be multiples of), that is found by trial.

To make the network its code is run, also when a checkpoint names it.
"""

import difflib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from compress.models.contract import found_multiple, problems
from export.blame import told
from export.errors import ModelError
from export.files import sha256_file

FORMS = "package.module:factory or path/to/file.py:factory"

NOT_ANYBODYS = frozenset({*sys.stdlib_module_names, "torch"})
"""Modules without a network of a user's, but with what a foreign model.json could run, such as `torch.hub:load`."""


def is_own(factory: str) -> bool:
    """Whether `factory` names something of the user's; names of ours have no colon."""
    return ":" in factory


def build(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised network in eval mode, checked against the contract.

    Raises ModelError with everything that is wrong.
    """
    network = _called(factory, _found(factory), arguments)
    channels, classes = int(arguments["channels"]), int(arguments["classes"])
    if not hasattr(network, "size_multiple"):
        network.size_multiple = found_multiple(network, channels)  # type: ignore[assignment]
    wrong = problems(network, channels=channels, classes=classes)
    if wrong:
        raise ModelError(factory, wrong)
    return network


def source_sha256(factory: str) -> str:
    """SHA-256 of the file in which `factory` stands; what that file imports is not looked at.

    Raises ModelError when there is no such file.
    """
    target = _target(factory)
    return sha256_file(_file(factory, target) if target.endswith(".py") else Path(str(_module(factory).__file__)))


def _found(factory: str) -> Callable[..., Any]:
    module, name = _module(factory), factory.rpartition(":")[2]
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [known for known in vars(found) if not known.startswith("_") and callable(getattr(found, known))]
            near = difflib.get_close_matches(part, public, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(public) or 'nothing to call'}"
            raise ModelError(factory, [f"{module.__file__} has no {name!r}; {hint}"])
        found = getattr(found, part)
    if isinstance(found, nn.Module) or not callable(found):
        raise ModelError(factory, [f"{name} is {_kind(found)}; a function or a class that gives a network is wanted"])
    called: Callable[..., Any] = found
    return called


def _called(factory: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> nn.Module:
    try:
        inspect.signature(make).bind(**arguments)
    except (TypeError, ValueError) as error:  # ValueError: what is written in C has no signature
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ModelError(factory, [f"it cannot be called with {given}: {error}"]) from error
    try:
        network = make(**arguments)
    except Exception as error:
        raise ModelError(factory, [f"it failed: {told(error)}"]) from error
    if not isinstance(network, nn.Module):
        raise ModelError(factory, [f"it gives something {_kind(network)}; a torch.nn.Module is wanted"])
    return network


def _module(factory: str) -> ModuleType:
    target = _target(factory)
    try:
        if target.endswith(".py"):
            return _from_file(_file(factory, target))
        return _from_path(factory, target)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:  # a script without a guard may leave
        raise ModelError(factory, [f"{target} cannot be imported: {told(error)}"]) from error


def _target(factory: str) -> str:
    return factory.rpartition(":")[0]


def _file(factory: str, target: str) -> Path:
    path = Path(target).expanduser().absolute()
    if not path.is_file():
        raise ModelError(factory, [f"no such file: {path}; a relative path starts where the command is run"])
    return path


def _from_file(path: Path) -> ModuleType:
    """The module in `path`, from the very bytes that are hashed: no bytecode beside it can be older."""
    content = path.read_bytes()
    name = f"segpress_own_{path.stem}_{hashlib.sha256(str(path).encode() + content).hexdigest()}"
    if name not in sys.modules:
        _make_importable(path.parent)  # what lies beside it
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module
        try:
            exec(compile(content, str(path), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _from_path(factory: str, name: str) -> ModuleType:
    if "/" in name or "\\" in name:
        raise ModelError(factory, [f"{name} is no name of a module; a file is given with its .py"])
    if name.partition(".")[0] in NOT_ANYBODYS:
        raise ModelError(factory, [f"{name} holds no network of yours; call what it gives in a function of your own"])
    _make_importable(Path.cwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses another
        raise ModelError(
            factory,
            [f"no module {error.name!r}; looked in {Path.cwd()} and among what is installed in {sys.prefix}"],
        ) from error
    if module.__file__ is None:
        raise ModelError(factory, [f"{name} is a folder; name the module in it that has the factory"])
    return module


def _make_importable(folder: Path) -> None:
    """At the end of the search: a file of the user's called onnx.py must not take the place of the library."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _kind(found: object) -> str:
    return f"{'a network already, ' if isinstance(found, nn.Module) else ''}of type {type(found).__name__}"
