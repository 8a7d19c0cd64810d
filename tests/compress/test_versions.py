"""Versions of a model, from the command that makes them to the server that switches between them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from compress.checkpoint import Checkpoint
from compress.recipe import Recipe
from export.bundle import Bundle, load
from export.errors import RecipeError
from export.images import encode_image

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def compress(*words: object) -> list[str]:
    return [sys.executable, "-m", "compress.cli.main", *map(str, words)]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """`compress serve` of a folder of models; gives the base URL."""
    words = compress("serve", folder, "--port", 0, "--allow-load", "--grace", 0, "--log-format", "text")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr is not None
        try:
            log = ""
            while not (found := re.search(r"ready on (\S+)", log)):
                line = process.stderr.readline()
                assert line, log
                log += line
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


@pytest.mark.slow(first=True)
def test_two_versions_are_made_served_and_rolled_back_by_commands(
    trained: Checkpoint, discs: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    of_the_model = ("--name", "coast", "--version")
    for words in (
        ("export", trained.path, "--out", models / "coast" / "1", *of_the_model, "1"),
        ("quantize", trained.path, "--data", discs, "--force", "--out", models / "coast" / "2", *of_the_model, "2"),
    ):
        subprocess.run(compress(*words), env=ENVIRONMENT, check=True, capture_output=True)
    image = encode_image(np.zeros((48, 64, 1), np.uint8))

    with served(models) as url, httpx.Client(base_url=url, timeout=60) as client:

        def serves() -> tuple[str, str]:
            found = client.get("/v2/models/coast").raise_for_status().json()
            answer = client.post("/v1/models/coast/segment", content=image, headers={"Content-Type": "image/png"})
            assert answer.status_code == 200
            return found["versions"][0], found["parameters"]["precision"]

        assert serves() == ("2", "int8")
        back = {"parameters": {"config": '{"version_policy": {"specific": {"versions": [1]}}}'}}
        assert client.post("/v2/repository/models/coast/load", json=back).status_code == 200
        assert serves() == ("1", "fp32")
        assert client.post("/v2/repository/models/coast/load").status_code == 200
        assert serves() == ("2", "int8")


@pytest.mark.parametrize("written", ["2", '"2"', "2024.11-rc_1"])
def test_a_version_is_a_word_or_a_number(written: str) -> None:
    assert Recipe.load(None, [f"export.version={written}"]).export.version == written.strip('"')


@pytest.mark.parametrize("written", ['""', "..", "a/b", "-1", "true", ".hidden", "two words"])
def test_a_version_names_a_folder_and_stands_in_a_url(written: str) -> None:
    with pytest.raises(RecipeError, match=r"export\.version = "):
        Recipe.load(None, [f"export.version={written}"])


def test_a_bundle_is_of_version_1_unless_told(float_bundle: Bundle) -> None:
    assert load(float_bundle.path).manifest.version == "1"
