"""The import contracts of pyproject.toml, tried on modules yet to be written, and the imports they cannot see."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("compress", "benchmarks", "serve", "export")
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = {contract["name"]: contract for contract in SETTINGS["tool"]["importlinter"]["contracts"]}

DOWNWARDS = "An import only ever points downwards"
MAKERS = "What makes a bundle knows neither the server nor what stands above"
BASES = "Neither the server nor what all stand on knows how a bundle is made"
TORCH = "Torch, and what is built on it, is imported nowhere else"
WEB = "Only the server knows the web"
PLOTS = "Only reports are plotted"
TYPER = "Only the command line parses a command line"
SESSIONS = "One place opens ONNX Runtime sessions"

# (contract, importer, imported): an import that somebody may add, and the contract that must refuse it.
FORBIDDEN = [
    (DOWNWARDS, "compress.pipeline", "compress.cli.main"),
    (DOWNWARDS, "benchmarks.added", "compress.cli.common"),
    (DOWNWARDS, "benchmarks.report.added", "compress.pipeline"),
    (DOWNWARDS, "serve.added", "benchmarks.measure"),
    (DOWNWARDS, "export.added", "serve.settings"),
    (MAKERS, "compress.added", "compress.cli.common"),
    (MAKERS, "compress.data.added", "compress.pipeline"),
    (MAKERS, "compress.train.added", "benchmarks.measure"),
    (MAKERS, "compress.quantize.added", "serve.settings"),
    (MAKERS, "compress", "serve.app"),
    (BASES, "serve.other", "compress.recipe"),
    (BASES, "export.other", "compress.progress"),
    (TORCH, "compress.other", "torch"),
    (TORCH, "compress.data.other", "compress.checkpoint"),
    (TORCH, "compress.cli.added", "compress.train.train"),
    (TORCH, "benchmarks.other", "onnx"),
    (TORCH, "serve.third", "torch"),
    (TORCH, "export.third", "export.parity"),
    (TORCH, "serve.fourth", "export.to_onnx"),
    (TORCH, "serve.sixth", "export.latency.table"),
    (TORCH, "export.fifth", "export.latency.layers"),
    (WEB, "export.fourth", "fastapi"),
    (WEB, "compress.cli.other", "uvicorn"),
    (PLOTS, "compress.train.other", "matplotlib"),
    (TYPER, "benchmarks.third", "typer"),
    (SESSIONS, "serve.fifth", "onnxruntime"),
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What lint-imports prints for each contract, by name, with every forbidden import in place."""
    root = tmp_path_factory.mktemp("layers")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for _, importer, imported in FORBIDDEN:
        path = root.joinpath(*importer.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        with file.open("a") as module:
            module.write(f"\n\ndef late() -> None:\n    import {imported}\n")
    checked = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=root,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 1, checked.stdout + checked.stderr
    sections: dict[str, str] = {}
    lines = checked.stdout.partition("Broken contracts")[2].splitlines()
    name = ""
    for line in lines:
        name = line if line in CONTRACTS else name
        sections[name] = sections.get(name, "") + line + "\n"
    return sections


def test_every_contract_is_tried() -> None:
    assert {name for name, _, _ in FORBIDDEN} == set(CONTRACTS)


@pytest.mark.parametrize(("contract", "importer", "imported"), FORBIDDEN, ids=lambda name: name.partition(" ")[0])
def test_a_forbidden_import_breaks_its_contract(
    broken: dict[str, str], contract: str, importer: str, imported: str
) -> None:
    assert f"{importer} -> {imported} (l." in broken[contract], broken[contract]


def modules() -> list[str]:
    """Every module of the four packages, by its dotted name."""
    found = []
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if parts[:3] == ELSEWHERE:
                continue
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(found)


def is_in(module: str, packages: list[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


IMPORT_WITHOUT = """
import sys
from importlib import import_module
missing, names = (argument.split(",") for argument in sys.argv[1:])
sys.modules.update(dict.fromkeys(missing))
for name in names:
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        sys.exit(f"{name}: {error}")
"""

TRAIN = ["torch", "torch_pruning", "kornia", "onnx", "onnxscript", "safetensors"]
SERVE = CONTRACTS[WEB]["protected_modules"]
BENCH_AND_SAMPLES = ["matplotlib", "mpl_toolkits"]
IMPORT_IT_WHEN_CALLED = ["export.parity", "export.to_onnx"]
MADE_OF_TORCH = [name for name in CONTRACTS[TORCH]["allowed_importers"] if name not in IMPORT_IT_WHEN_CALLED]
ELSEWHERE = ("benchmarks", "peers", "apps")
"""Programs that run in the environments of other frameworks."""
MADE_OF_ONNX_ALONE = ["benchmarks.cut", "benchmarks.ops", "export.latency"]
MADE_OF_THE_SERVER = ["serve", "benchmarks.load", "benchmarks.peers"]


@pytest.mark.parametrize(
    ("absent", "users"),
    [
        pytest.param(TRAIN + BENCH_AND_SAMPLES, MADE_OF_TORCH, id="serve alone"),
        pytest.param(SERVE + BENCH_AND_SAMPLES, MADE_OF_THE_SERVER, id="train alone", marks=pytest.mark.slow),
        pytest.param(
            [name for name in TRAIN if name != "onnx"] + SERVE,
            [*MADE_OF_THE_SERVER, *(name for name in MADE_OF_TORCH if name not in MADE_OF_ONNX_ALONE)],
            id="bench alone",
        ),
    ],
)
def test_what_an_extra_is_not_for_can_be_imported_without_it(absent: list[str], users: list[str]) -> None:
    # The contracts cannot tell an import inside a function from one at the top of a module.
    names = [name for name in modules() if not is_in(name, users)]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT, ",".join(absent), ",".join(names)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
