"""What the numbers were measured on: cores that may be used, instruction set, versions."""

import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

InstructionSet = Literal["amx", "avx512_vnni", "avx_vnni", "avx512", "avx2", "arm_i8mm", "arm_dotprod", "generic"]

SATURATING: frozenset[InstructionSet] = frozenset({"avx512", "avx2", "generic"})
"""Without a four-way dot product, ONNX Runtime multiplies U8 by S8 with an instruction that adds two products in
16 bits and saturates (vpmaddubsw): weights then need 7 bits. Source: onnxruntime quantization documentation."""

_CPUINFO = Path("/proc/cpuinfo")
_CPU_KEYS = ("cpu family", "model", "stepping", "CPU implementer", "CPU variant", "CPU part", "CPU revision")
"""Keys of /proc/cpuinfo that tell processors of one name apart; the last four are Arm's."""
_LIBRARIES = ("segpress", "numpy", "onnx", "onnxruntime", "pillow", "torch", "torch-pruning")
_BUILDS = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino")}
"""Other distributions of a library, for when it is not installed under its own name."""


class Machine(BaseModel):
    """The machine and the versions that a number belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    cpu_model: str | None = None
    """Family, model and stepping: a virtual machine may call any processor "AMD EPYC". None: not known."""
    cores: int
    """Cores that this process may use: the affinity mask and the container's quota."""
    memory_gib: float
    instruction_set: InstructionSet
    system: str
    python: str
    libraries: dict[str, str]

    @classmethod
    def here(cls) -> "Machine":
        return cls(
            cpu=_cpu_name(),
            cpu_model=_cpu_model(),
            cores=usable_cores(),
            memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            instruction_set=instruction_set(),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
            libraries=library_versions(),
        )

    def is_like(self, other: "Machine") -> bool:
        """Whether times of one hold for the other: the same processor, as far as both are known, and as many cores."""
        known = {self.cpu_model, other.cpu_model} - {None}
        mine, theirs = ((each.cpu, each.instruction_set, each.cores) for each in (self, other))
        return mine == theirs and len(known) < 2


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may really use, at least 1.

    Both the affinity mask and the quota of the control group (`cpu.max`, version 2) limit them;
    the host may have more.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _quota(cgroup) or affinity))


def compute_threads() -> int:
    """Threads of one computation: OMP_NUM_THREADS, as in programs that use OpenMP; else `usable_cores`."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) else usable_cores()


def instruction_set() -> InstructionSet:
    """The best integer instructions of this processor, of those that ONNX Runtime's kernels tell apart."""
    flags = _cpu_flags()
    if platform.machine() in ("aarch64", "arm64"):
        if "i8mm" in flags:
            return "arm_i8mm"
        return "arm_dotprod" if "asimddp" in flags or sys.platform == "darwin" else "generic"
    by_flag: tuple[tuple[str, InstructionSet], ...] = (
        ("amx_int8", "amx"),
        ("avx512_vnni", "avx512_vnni"),
        ("avx_vnni", "avx_vnni"),
        ("avx512bw", "avx512"),
        ("avx2", "avx2"),
    )
    return next((name for flag, name in by_flag if flag in flags), "generic")


def has_bfloat16() -> bool:
    """Whether this processor has instructions that multiply bfloat16, of the kind that OpenVINO uses."""
    return not _cpu_flags().isdisjoint(("avx512_bf16", "amx_bf16"))


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a result; absent ones are left out."""
    versions = {}
    for name in _LIBRARIES:
        version = next(filter(None, map(_version, (name, *_BUILDS.get(name, ())))), None)
        if version is not None:
            versions[name] = version
    return versions


def peak_memory_mib() -> float:
    """The largest resident set of this process so far, in MiB."""
    # getrusage is no help on Linux: its figure outlives exec, so a child starts with its parent's.
    for line in _lines(Path("/proc/self/status")):
        key, _, value = line.partition(":")
        if key == "VmHWM":
            return int(value.split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _quota(cgroup: Path) -> int | None:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _cpu_flags() -> frozenset[str]:
    for line in _lines(_CPUINFO):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _cpu_name() -> str:
    for line in _lines(_CPUINFO):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _cpu_model() -> str | None:
    found: dict[str, str] = {}
    for line in _lines(_CPUINFO):
        key, _, value = line.partition(":")
        if key.strip() in _CPU_KEYS:
            found.setdefault(key.strip(), value.strip())
    return ", ".join(f"{key} {found[key]}" for key in _CPU_KEYS if key in found) or None


def _lines(path: Path) -> list[str]:
    """Lines of a file under /proc; none where there is no such file system."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
