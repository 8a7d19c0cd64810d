"""Find, call and hash code of the user's own, named `package.module:name` or `path/to/file.py:name`.

To use it is to run it, also when a checkpoint names it.
"""

import difflib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from export.blame import told
from export.errors import ModelError, RecipeError
from export.files import sha256_file

FORMS = "package.module:name or path/to/file.py:name"

NOT_ANYBODYS = frozenset({*sys.stdlib_module_names, "torch"})
"""Modules that hold nothing of a user's, but functions that a foreign model.json could run: `torch.hub:load`."""


def is_own(name: str) -> bool:
    """Whether `name` refers to the user's own code; built-in names have no colon."""
    return ":" in name


@dataclass(frozen=True)
class OwnCode:
    """The function or class called `name`, which should return `gives`; what is wrong with it is raised as `error`."""

    name: str
    gives: str
    error: type[ModelError | RecipeError]

    def found(self) -> Callable[..., Any]:
        """The function or class itself, not called."""
        module, name = self._module(), self.name.rpartition(":")[2]
        found: Any = module
        for part in name.split("."):
            if not hasattr(found, part):
                public = [known for known in vars(found) if known[0] != "_" and callable(getattr(found, known))]
                near = difflib.get_close_matches(part, public, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(public) or 'nothing to call'}"
                raise self.wrong(f"{module.__file__} has no {name!r}; {hint}")
            found = getattr(found, part)
        if not callable(found):
            raise self.is_none(f"of type {type(found).__name__}")
        called: Callable[..., Any] = found
        return called

    def called(self, arguments: Mapping[str, Any]) -> Any:
        """What it returns for these keyword arguments."""
        make = self.found()
        try:
            inspect.signature(make).bind(**arguments)
        except (TypeError, ValueError) as error:  # ValueError: C functions may have no signature
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise self.wrong(f"it cannot be called with {given}: {error}") from error
        return self.guarded(make)(**arguments)

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose exceptions are reported with the line of the user's code that they come from."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            try:
                return function(*arguments, **keywords)
            except Exception as error:
                raise self.wrong(f"it failed: {told(error)}") from error

        return call

    def source_sha256(self) -> str:
        """SHA-256 of the file that defines it, without the files that this one imports."""
        target = self._target
        return sha256_file(self._file() if target.endswith(".py") else Path(str(self._module().__file__)))

    def is_none(self, what: str) -> Exception:
        """The error for something that exists but, being `what`, is not a function or class to call."""
        name = self.name.rpartition(":")[2]
        return self.wrong(f"{name} is {what}; name a function or class that gives {self.gives}")

    def wrong(self, *problems: str) -> Exception:
        return self.error(self.name, list(problems))

    @property
    def _target(self) -> str:
        return self.name.rpartition(":")[0]

    def _module(self) -> ModuleType:
        target = self._target
        try:
            return _from_file(self._file()) if target.endswith(".py") else self._from_path()
        except self.error:
            raise
        except (Exception, SystemExit) as error:  # a script without a __main__ guard may exit
            raise self.wrong(f"{target} cannot be imported: {told(error)}") from error

    def _file(self) -> Path:
        path = Path(self._target).expanduser().absolute()
        if not path.is_file():
            raise self.wrong(f"no such file: {path}; a relative path starts where the command is run")
        return path

    def _from_path(self) -> ModuleType:
        name = self._target
        if "/" in name or "\\" in name:
            raise self.wrong(f"{name} is not the name of a module; give a file with its .py")
        if name.partition(".")[0] in NOT_ANYBODYS:
            noun = self.gives.partition(" ")[2]
            raise self.wrong(f"{name} holds no {noun} of yours; wrap what you need from it in a function of your own")
        _make_importable(Path.cwd())
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module exists, but one that it imports does not
            raise self.wrong(
                f"no module {error.name!r}; looked in {Path.cwd()} and among the packages installed in {sys.prefix}"
            ) from error
        if module.__file__ is None:
            raise self.wrong(f"{name} is a folder; name the module in it that holds the function or class")
        return module


def _from_file(path: Path) -> ModuleType:
    """The module in `path`, from the very bytes that are hashed: stale bytecode beside it is never used."""
    content = path.read_bytes()
    name = f"segpress_own_{path.stem}_{hashlib.sha256(str(path).encode() + content).hexdigest()}"
    if name not in sys.modules:
        _make_importable(path.parent)  # for imports of files beside it
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module
        try:
            exec(compile(content, str(path), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _make_importable(folder: Path) -> None:
    """Put `folder` at the end of the search path: a user's file called onnx.py must not hide the library."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
