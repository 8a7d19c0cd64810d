"""The files of a report: whole, replaced together, and fewer where matplotlib is missing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.reports import make_report

from benchmarks.report.strip import Row, Strip
from benchmarks.report.write import write

ROOT = Path(__file__).parent.parent.parent
EVERYTHING = {"report.json", "report.md", "report.html", "accuracy.png", "latency.png", "strip.png"}


@pytest.fixture
def strip() -> Strip:
    mask = np.zeros((40, 60), dtype=np.uint8)
    row = Row("a<b>.png", "why", np.zeros((40, 60, 1), dtype=np.uint8), mask, mask, mask + 1)
    return Strip((row,), ("ground", "<disc>"), ((0, 0, 0), (255, 0, 0)), "dense-fp32", "pruned-int8")


def test_all_files_are_written_the_figures_last(tmp_path: Path, strip: Strip) -> None:
    out = tmp_path / "new" / "report"
    write(make_report(tmp_path), out, strip)
    assert {path.name for path in out.iterdir()} == EVERYTHING
    assert max(out.iterdir(), key=lambda path: path.stat().st_mtime_ns) == out / "report.json"


def test_the_markdown_shows_pictures_that_are_there(tmp_path: Path, strip: Strip) -> None:
    write(make_report(tmp_path), tmp_path / "out", strip)
    text = (tmp_path / "out" / "report.md").read_text()
    for name in ("accuracy.png", "latency.png", "strip.png"):
        assert f"]({name})" in text
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 400
    assert "a\\<b\\>.png" in text
    assert "\\<disc\\> `#ff0000`" in text


def test_the_page_shows_each_picture_of_the_strip(tmp_path: Path, strip: Strip) -> None:
    write(make_report(tmp_path), tmp_path / "out", strip)
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count('src="data:image/png;base64,') == 5
    for column in strip.columns:
        assert f'alt="a&lt;b&gt;.png: {column}" width="60" height="40"' in html
    assert "100.00% of its pixels differ" in html


def test_what_a_new_report_has_not_does_not_stay(tmp_path: Path, strip: Strip) -> None:
    write(make_report(tmp_path), tmp_path / "out", strip)
    write(make_report(tmp_path, hits=None), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == EVERYTHING - {"strip.png", "accuracy.png"}


BLOCKED = """
import sys
from pathlib import Path

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from support.reports import make_report
from benchmarks.report.write import write
tmp_path = Path(sys.argv[1])
report = make_report(tmp_path)
write(report, tmp_path / "out")
assert not {"matplotlib", "torch"} & sys.modules.keys()
"""


def test_without_matplotlib_the_figures_are_written_and_the_page_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("of an earlier run")
    path = f"{ROOT}:{ROOT / 'tests'}"
    command = [sys.executable, "-P", "-c", BLOCKED, str(tmp_path)]
    child = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.md"}
    (note,) = [n for n in json.loads((tmp_path / "out" / "report.json").read_text())["notes"] if "matplotlib" in n]
    assert "pip install 'segpress[bench]'" in note
    assert "segpress\\[bench\\]" in (tmp_path / "out" / "report.md").read_text()


def test_nothing_here_imports_torch_or_matplotlib_on_its_own() -> None:
    code = "import sys, benchmarks.latency; print({'torch', 'matplotlib'} & sys.modules.keys())"
    command = [sys.executable, "-P", "-c", code]
    child = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "set()"
