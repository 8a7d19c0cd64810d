"""Usable cores, instruction sets, versions and memory; control groups and processor descriptions are fakes."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from export import machine
from export.machine import Machine, instruction_set, library_versions, peak_memory_mib, usable_cores


def cgroup(folder: Path, content: str) -> Path:
    (folder / "cpu.max").write_text(content)
    return folder


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ("max 100000\n", 16),
        ("400000 100000\n", 4),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("3200000 100000\n", 16),
        ("20000 10000\n", 2),
        ("", 16),
        ("many 100000\n", 16),
        ("100000 0\n", 16),
        ("100000\n", 16),
    ],
)
def test_the_quota_of_the_control_group_is_heeded(tmp_path: Path, content: str, cores: int) -> None:
    assert usable_cores(cgroup(tmp_path, content)) == cores


@pytest.mark.usefixtures("sixteen_cores")
def test_without_a_control_group_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "nothing here") == 16


def test_the_affinity_mask_is_heeded(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores(tmp_path) == 1
        assert usable_cores(cgroup(tmp_path, "800000 100000")) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("architecture", "flags", "expected"),
    [
        ("x86_64", "sse2 avx2 avx512bw avx512_vnni amx_int8", "amx"),
        ("x86_64", "sse2 avx2 avx512bw avx512_vnni", "avx512_vnni"),
        ("x86_64", "sse2 avx2 avx_vnni", "avx_vnni"),
        ("x86_64", "sse2 avx2 avx512bw", "avx512"),
        ("x86_64", "sse2 avx2", "avx2"),
        ("x86_64", "sse2", "generic"),
        ("aarch64", "fp asimd asimddp i8mm", "arm_i8mm"),
        ("aarch64", "fp asimd asimddp", "arm_dotprod"),
        ("aarch64", "fp asimd", "generic"),
    ],
)
def test_the_instruction_set_is_read_from_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, flags: str, expected: str
) -> None:
    key = "flags" if architecture == "x86_64" else "Features"
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: Abacus 9\n{key}\t\t: {flags}\nprocessor\t: 1\n")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: architecture)
    assert instruction_set() == expected
    assert Machine.here().cpu == "Abacus 9"


def test_processors_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as their descriptions tell; the number of cores counts, too."""

    def machine_of(description: str) -> Machine:
        (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC\n" + description)
        return Machine.here()

    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    milan = machine_of("cpu family\t: 25\nmodel\t\t: 1\nstepping\t: 1\nprocessor\t: 1\nmodel\t\t: 7\n")
    genoa = machine_of("cpu family\t: 25\nmodel\t\t: 17\nstepping\t: 1\n")
    silent = machine_of("")
    assert milan.cpu_model == "cpu family 25, model 1, stepping 1"
    arm = machine_of("CPU implementer\t: 0x41\nCPU part\t: 0xd40\n")
    assert arm.cpu_model == "CPU implementer 0x41, CPU part 0xd40"
    assert silent.cpu_model is None
    assert milan.is_like(milan)
    assert not milan.is_like(genoa)
    assert milan.is_like(silent)
    assert silent.is_like(genoa)
    assert not milan.is_like(milan.model_copy(update={"cores": milan.cores + 1}))
    old = milan.model_dump(mode="json", exclude={"cpu_model"})
    assert Machine.model_validate(old).is_like(milan)


def test_a_system_without_proc_is_described_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "no cpuinfo")
    here = Machine.here()
    assert here.instruction_set == "generic"
    assert here.cpu


def test_a_machine_survives_json() -> None:
    here = Machine.here()
    assert Machine.model_validate_json(here.model_dump_json()) == here
    assert here.cores == usable_cores()
    assert here.memory_gib > 0
    assert here.libraries["numpy"] == metadata.version("numpy")


def test_absent_libraries_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def without_torch(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", without_torch)
    versions = library_versions()
    assert "torch" not in versions
    assert versions["onnxruntime"] == real("onnxruntime")


@pytest.mark.parametrize("build", ["onnxruntime-gpu", "onnxruntime-openvino"])
def test_the_runtime_may_be_installed_under_another_name(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def only(name: str) -> str:
        if name == build:
            return "1.30.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", only)
    assert library_versions() == {"onnxruntime": "1.30.0"}


def test_peak_memory_is_that_of_this_process_alone() -> None:
    """A child starts without its parent's peak, and keeps its own after it has freed the memory."""
    script = (
        "from export.machine import peak_memory_mib\n"
        "before = peak_memory_mib(); block = bytearray(80 << 20); del block\n"
        "print(before, peak_memory_mib())"
    )
    ballast = bytearray(150 << 20)
    assert peak_memory_mib() > 150
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    del ballast
    before, after = map(float, out.split())
    assert before < 140
    assert 75 < after - before < 95
