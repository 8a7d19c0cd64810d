"""The wheel, installed with the server's extra alone in an environment of its own: what works there without torch."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.bundles import expected_mask, tiny_bundle
from support.datasets import write_dataset

from compress.anymodel import evaluate
from export.bundle import Bundle
from export.images import decode, decode_indices

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("compress", "benchmarks", "serve", "export")
CLASSES = ("class-0", "class-1", "class-2")
# Packages that only the other extras bring.
ABSENT = ("torch", "torch_pruning", "kornia", "safetensors", "onnx", "onnxscript", "matplotlib", "mpl_toolkits")


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it."""

    bin: Path
    cwd: Path
    """Far from the sources, so that only what is installed can be imported."""

    def command(self, *arguments: object) -> list[str]:
        return [str(self.bin / "compress"), *map(str, arguments)]

    def run(self, *arguments: object, program: str = "compress") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / program, *map(str, arguments)],
            cwd=self.cwd,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def succeed(self, *arguments: object) -> str:
        """Standard output of a command that must succeed."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of everything that could get into it, tests included."""
    source = tmp_path_factory.mktemp("source")
    for folder in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    out = tmp_path_factory.mktemp("wheel")
    command: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("server")
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True, env=clean_environment())
    server = Installed(home / "venv/bin", home)
    options = ("-qq", "--only-binary=:all:", "--no-compile", "-c", ROOT / "constraints.txt")
    done = server.run("install", *options, f"{wheel}[serve]", program="pip")
    assert done.returncode == 0, done.stderr
    return server


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", classes=len(CLASSES), channels=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes, neither a multiple of what the model requires."""
    folder = tmp_path_factory.mktemp("data") / "discs"
    return write_dataset(folder, size=[(50, 70), (64, 40)], classes=CLASSES)


def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.*")}
    expected = {
        name
        for name in files
        if name.endswith((".py", "py.typed", ".toml", ".css", ".html", ".js", ".svg", ".proto", ".binpb"))
    }
    assert held == expected
    assert {"compress/recipes/demo.toml", "serve/page/home.html", "benchmarks/report/page.css"} <= held


def test_only_pinned_packages_are_installed_and_no_other_extra(installed: Installed) -> None:
    listed = installed.run("list", "--format=freeze", "--exclude=pip", "--exclude=setuptools", program="pip").stdout
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in listed.split() if not line.startswith("segpress==") and line not in pins] == []
    assert installed.run("check", program="pip").returncode == 0
    found = f"from importlib.util import find_spec; print([name for name in {ABSENT} if find_spec(name)])"
    assert installed.run("-c", found, program="python").stdout == "[]\n"


def test_verify(installed: Installed, bundle: Bundle) -> None:
    assert f"{bundle.path}: sound" in installed.succeed("verify", bundle.path)


def test_verify_names_a_damage(installed: Installed, bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "damaged")
    with (tmp_path / "damaged" / "model.onnx").open("ab") as model:
        model.write(b"\0")
    done = installed.run("verify", tmp_path / "damaged")
    assert done.returncode == 2
    assert "model.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_check(installed: Installed, data: Path) -> None:
    assert json.loads(installed.succeed("data", "check", data, "--json"))["problems"] == []


def test_evaluate(installed: Installed, bundle: Bundle, data: Path) -> None:
    result = json.loads(installed.succeed("evaluate", bundle.path, "--data", data, "--split", "val", "--json"))
    score = evaluate(bundle.path, data, split="val")
    assert 0.5 < score.miou < 1
    assert result["miou"] == pytest.approx(score.miou, abs=1e-12)
    assert result["iou_per_class"] == pytest.approx(score.iou_per_class, abs=1e-12)


def test_predict(installed: Installed, bundle: Bundle, data: Path, tmp_path: Path) -> None:
    images = sorted((data / "test/images").iterdir())
    installed.succeed("predict", bundle.path, "--images", data / "test/images", "--out", tmp_path)
    assert sorted(path.name for path in (tmp_path / "overlays").iterdir()) == [image.name for image in images]
    for image in images:
        mask = decode_indices((tmp_path / "masks" / image.name).read_bytes())
        np.testing.assert_array_equal(mask, expected_mask(decode(image.read_bytes(), 1), len(CLASSES)))


def test_serve(installed: Installed, bundle: Bundle, data: Path) -> None:
    image = next((data / "test/images").iterdir()).read_bytes()
    command = installed.command("serve", bundle.path, "--port", 0, "--log-format", "text")
    with subprocess.Popen(
        command, cwd=installed.cwd, env=clean_environment(), stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        log = ""
        try:
            while not (ready := re.search(r"ready on (\S+)", log)) and (line := server.stderr.readline()):
                log += line
            assert ready, log
            with httpx.Client(base_url=ready[1], timeout=30) as client:
                assert client.get("/v2/health/ready").status_code == 200
                answer = client.post("/v1/models/tiny/segment", content=image, headers={"Content-Type": "image/png"})
                assert client.get("/").status_code == 200
        finally:
            server.send_signal(signal.SIGTERM)
            log += server.stderr.read()
    assert server.returncode == 0, log
    assert "Traceback" not in log
    np.testing.assert_array_equal(decode_indices(answer.content), expected_mask(decode(image, 1), len(CLASSES)))


def test_bench_latency(installed: Installed, bundle: Bundle, data: Path, tmp_path: Path) -> None:
    options = ("--data", data, "--size", "48x64", "--rounds", 3, "--out", tmp_path)
    said = installed.succeed("bench", "latency", bundle.path, *options)
    report = json.loads((tmp_path / "report.json").read_text())
    (model,) = report["models"]
    assert model["miou"] == pytest.approx(evaluate(bundle.path, data).miou, abs=1e-12)
    assert 0 < model["latency_ms"]["p50"] <= model["latency_ms"]["p99"]
    # Without matplotlib there are no plots and no page, and a note names the extra that brings them.
    assert not (tmp_path / "report.html").exists()
    assert [note for note in report["notes"] if "pip install 'segpress[bench]'" in note]
    assert model["name"] in (tmp_path / "report.md").read_text()
    (path,) = re.findall(r"^report: (\S+)$", said, flags=re.MULTILINE)
    assert Path(path).is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["train", "--data", "d", "--out", "o"],
        ["prune", "c", "--data", "d", "--speedup", "2", "--out", "o"],
        ["quantize", "c", "--data", "d", "--out", "o"],
        ["export", "c", "--out", "o"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_trains_names_the_extra_that_it_needs(installed: Installed, arguments: list[str]) -> None:
    done = installed.run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"compress: compress {arguments[0]} needs torch, which is not installed; run: pip install 'segpress[train]'\n"
    )


def test_the_latency_table_names_the_extra_that_it_needs(installed: Installed, bundle: Bundle, tmp_path: Path) -> None:
    done = installed.run("bench", "table", bundle.path, "--size", "32x32", "--out", tmp_path / "table.json")
    assert done.returncode == 2
    assert done.stderr == (
        "compress: compress bench table needs onnx, which is not installed; run: pip install 'segpress[bench]'\n"
    )


def test_the_sample_set_names_the_extra_that_it_needs(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("data", "sample", tmp_path / "sample")
    assert done.returncode == 2
    assert "pip install 'segpress[samples]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_checkpoint_names_the_extra_that_it_needs(installed: Installed, data: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    done = installed.run("evaluate", tmp_path, "--data", data)
    assert done.returncode == 2
    assert "is a checkpoint" in done.stderr
    assert "pip install 'segpress[train]'" in done.stderr


def test_segpress_is_another_name_for_compress(installed: Installed) -> None:
    own, alias = (installed.run("--help", program=program).stdout for program in ("compress", "segpress"))
    assert "verify" in own
    assert alias.replace("Usage: segpress", "Usage: compress") == own
