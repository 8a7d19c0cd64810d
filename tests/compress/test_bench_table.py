"""`compress bench table`: from a float bundle to a table, without measuring the same layer twice."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bundles import tiny_bundle

from compress.cli.main import main
from export.bundle import Bundle
from export.latency.dense import dense_layers, measure_dense
from export.latency.table import LatencyTable

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Call the program in this process; returns its status, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", ["compress", "bench", "table", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            main()
        out, err = capfd.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, out, err

    return run


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_table_is_measured_and_gone_on_with(cli: Cli, bundle: Bundle, tmp_path: Path, precision: str) -> None:
    path = tmp_path / "table.json"
    words = (bundle.path, "--size", "40x64", "--precision", precision, "--threads", 1, "--out", path, "--json")
    status, out, err = cli(*words)
    assert status == 0, err
    result = json.loads(out)
    table = LatencyTable.load(path)
    assert result["entries"] == len(table) > 0
    assert result["reference_ms"] == table.reference_ms > 0
    assert (result["path"], result["precision"], result["threads"]) == (str(path), precision, 1)
    assert result["size"] == [48, 64]  # rounded up to what the model takes
    assert table.sizes == ((48, 64),)
    written = path.read_bytes()
    status, out, _ = cli(*words[:-1])
    assert status == 0
    assert f"{len(table)} layers in {precision}" in out
    assert path.read_bytes() == written


def test_what_is_measured_is_every_width_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    import onnx

    table = measure_dense(bundle, tmp_path / "t.json", size=(32, 32), precision="fp32", threads=1)
    layers, choices = dense_layers(onnx.load(str(bundle.model_path)), (32, 32))
    table.require(layers, choices, precision="fp32", size=(32, 32))


def test_a_quantized_bundle_is_refused(cli: Cli, tmp_path: Path) -> None:
    quantized = tiny_bundle(tmp_path / "int8", precision="int8")
    status, out, err = cli(quantized.path, "--size", "32x32", "--out", tmp_path / "t.json")
    assert (status, out) == (2, "")
    assert "is quantized" in err
    assert "give the float bundle" in err
    assert not (tmp_path / "t.json").exists()


def test_a_size_must_come_from_somewhere(cli: Cli, bundle: Bundle, tmp_path: Path) -> None:
    status, out, err = cli(bundle.path, "--out", tmp_path / "t.json")
    assert (status, out) == (2, "")
    assert "give --size HxW" in err
    fixed = tiny_bundle(tmp_path / "fixed", size=(32, 48))
    status, out, _ = cli(fixed.path, "--out", tmp_path / "t.json", "--json")
    assert status == 0
    assert json.loads(out)["size"] == [32, 48]


def test_a_file_that_is_no_table_is_left_alone(cli: Cli, bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text("hello")
    status, out, err = cli(bundle.path, "--size", "32x32", "--out", path)
    assert (status, out) == (2, "")
    assert f"{path} is not JSON" in err
    assert path.read_text() == "hello"


def test_without_onnx_the_extra_is_named(
    cli: Cli, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, out, err = cli(bundle.path, "--size", "32x32", "--out", tmp_path / "t.json")
    assert (status, out) == (2, "")
    assert "compress bench table needs onnx, which is not installed; run: pip install 'segpress[bench]'" in err
