"""Load, seal and verify a bundle: the folder that is deployed.

A bundle holds `model.onnx`, `manifest.json`, `golden/`, `parity.json` and `step.json`. Loading checks
all that can be checked without running the model; verifying also runs the golden examples.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from export.bands import lossless_format
from export.errors import BundleError, field_problems
from export.files import relative_files, sha256_file, write_atomic, write_json
from export.images import U8, decode, decode_indices, encode_image, encode_mask
from export.machine import instruction_set
from export.manifest import SCHEMA_VERSION, Golden, Manifest, TensorSignature, digest_of
from export.runtime import CPU, OnnxModel, Segmenter
from export.sessions import MemoryPool

MODEL = "model.onnx"
MANIFEST = "manifest.json"

_A_FILE = (
    f"a file; a bundle is the folder with {MODEL} and {MANIFEST} that `compress export` or `compress quantize` writes, "
    "so give that folder"
)


@dataclass(frozen=True)
class Bundle:
    """A folder whose manifest, hashes and signature agree."""

    path: Path
    manifest: Manifest
    providers: tuple[str, ...] = (CPU,)
    """ONNX Runtime's names; the first that takes an operator runs it."""

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def size_bytes(self) -> int:
        """Size of the model file alone."""
        return self.model_path.stat().st_size

    def model(
        self,
        *,
        threads: int | None = None,
        memory_pool: MemoryPool = "keep",
        usual_pixels: int = 0,
        runs_at_once: int = 1,
    ) -> OnnxModel:
        """The model on `providers`, in the precisions that the manifest allows; arguments as for `OnnxModel`."""
        return OnnxModel(
            self.model_path,
            threads=threads,
            providers=self.providers,
            memory_pool=memory_pool,
            usual_pixels=usual_pixels,
            runs_at_once=runs_at_once,
            integers=self.manifest.precision == "int8",
            half_floats=self.manifest.half_floats,
        )

    def segmenter(self, *, threads: int | None = None) -> Segmenter:
        return Segmenter.of(self.manifest, self.model(threads=threads))

    def golden(self) -> Iterable[tuple[str, U8, U8]]:
        """(name, image HWC, mask HW) of each golden example."""
        for name in self.manifest.golden.names:
            image, mask = _golden_paths(self.path, name, self.manifest.channels)
            yield name, decode(image, self.manifest.channels), decode_indices(mask)


@dataclass(frozen=True)
class Verification:
    """A bundle that passed, and what to know about it all the same."""

    bundle: Bundle
    model: OnnxModel
    """The one that gave the golden answers."""
    golden_differing: dict[str, float]
    """Share of pixels of each golden example that differ from the stored mask."""
    warnings: tuple[str, ...]


def is_bundle(path: Path) -> bool:
    """Whether `path` holds a manifest; False for a folder that may not be read, such as a volume's lost+found."""
    try:
        return (path / MANIFEST).is_file()
    except OSError:
        return False


def load(path: Path) -> Bundle:
    """Read a bundle and check schema, digest and the hash of every file.

    Raises BundleError with everything that is wrong.
    """
    manifest, problems = _read_manifest(path)
    if manifest is not None:
        problems += _file_problems(path, manifest)
    if manifest is None or problems:
        raise BundleError(path, problems)
    return Bundle(path, manifest)


def load_manifest(path: Path) -> Manifest:
    """Read and check a bundle's manifest alone, without looking at its other files.

    Raises BundleError with everything that is wrong with the manifest.
    """
    manifest, problems = _read_manifest(path)
    if manifest is None or problems:
        raise BundleError(path, problems)
    return manifest


def verify(
    path: Path, *, threads: int | None = None, open_model: Callable[[Bundle], OnnxModel] | None = None
) -> Verification:
    """Check everything: what `load` checks, the graph's signature, and the golden answers.

    The model that is checked comes from `open_model`: a caller that goes on to use the bundle opens it as it will be
    used, since another provider may give other answers. The default is the CPU with `threads` threads.

    Raises BundleError with everything that is wrong at once, golden answers included where the model still runs.
    """
    manifest, problems = _read_manifest(path)
    if manifest is None:
        raise BundleError(path, problems)
    problems += _file_problems(path, manifest)
    bundle = Bundle(path, manifest)
    differing: dict[str, float] = {}
    model: OnnxModel | None = None
    if bundle.model_path.is_file():
        try:
            model = open_model(bundle) if open_model else bundle.model(threads=threads)
        except BundleError as error:
            problems += error.problems
        else:
            problems += _signature_problems(manifest, model)
            differing, found = _golden_problems(bundle, model)
            problems += found
    if model is None or problems:
        raise BundleError(path, problems)
    return Verification(bundle, model, differing, tuple(_warnings(manifest, model)))


def seal(folder: Path, **fields: Any) -> Bundle:
    """Write `manifest.json` into a folder that holds all other files; `fields` are the manifest's, without `files`."""
    files = {name: sha256_file(folder / name) for name in _payload(folder)}
    manifest = Manifest.sealed(files=files, **fields)
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return Bundle(folder, manifest)


def write_golden(folder: Path, segmenter: Segmenter, images: Iterable[tuple[str, U8]]) -> Golden:
    """Store (name, image HWC) with the masks that `segmenter` gives."""
    (folder / "golden").mkdir(exist_ok=True)
    names = []
    for name, image in images:
        image_path, mask_path = _golden_paths(folder, name, image.shape[2])
        write_atomic(image_path, encode_image(image))
        write_atomic(mask_path, encode_mask(segmenter.segment(image)))
        names.append(name)
    return Golden(names=tuple(names))


def _payload(folder: Path) -> list[str]:
    return [name for name in relative_files(folder) if name != MANIFEST]


def _golden_paths(folder: Path, name: str, channels: int) -> tuple[Path, Path]:
    suffix = lossless_format(channels).lower()
    return folder / "golden" / f"{name}.image.{suffix}", folder / "golden" / f"{name}.mask.png"


def _read_manifest(path: Path) -> tuple[Manifest | None, list[str]]:
    if not path.is_dir():
        return None, [_A_FILE if path.is_file() else "no such folder"]
    try:
        content = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None, [f"{MANIFEST} is missing; a bundle comes from `compress export` or `compress quantize`"]
    except (OSError, ValueError, RecursionError) as error:
        return None, [f"{MANIFEST} is not JSON: {error}"]
    if not isinstance(content, dict):
        return None, [f"{MANIFEST} is not a JSON object"]
    problems = []
    if content.get("schema_version") != SCHEMA_VERSION:
        problems.append(
            f"{MANIFEST}: schema_version is {content.get('schema_version')!r}, this segpress reads {SCHEMA_VERSION}; "
            "install the segpress that wrote it, or export again"
        )
    if content.get("digest") != _digest(content):
        problems.append(f"{MANIFEST}: its digest does not match its content; it was changed after it was written")
    try:
        return Manifest.model_validate_json(json.dumps(content)), problems
    except ValidationError as error:
        return None, [*problems, *(f"{MANIFEST}: {problem}" for problem in field_problems(error.errors()))]


def _digest(content: dict[str, Any]) -> str | None:
    """None for what canonical JSON cannot hold: NaN, infinity, half of a surrogate pair."""
    try:
        return digest_of(content)
    except ValueError:
        return None


def _file_problems(path: Path, manifest: Manifest) -> list[str]:
    present = set(_payload(path))
    problems = [f"{name} is missing" for name in sorted(manifest.files.keys() - present)]
    problems += [f"{name} is not in the manifest" for name in sorted(present - manifest.files.keys())]
    if MODEL not in manifest.files:
        problems.append(f"{MANIFEST}: {MODEL} is not among its files")
    for name in sorted(manifest.files.keys() & present):
        if sha256_file(path / name) != manifest.files[name]:
            problems.append(f"{name} does not match its hash: it was changed or damaged; export it again")
    return problems


def _signature_problems(manifest: Manifest, model: OnnxModel) -> list[str]:
    def spelt(signatures: tuple[TensorSignature, ...]) -> list[str]:
        return [f"{s.name}: {s.dtype} {list(s.shape)}" for s in signatures]

    problems = []
    for side, declared, found in (
        ("inputs", manifest.inputs, model.inputs),
        ("outputs", manifest.outputs, model.outputs),
    ):
        if declared != found:
            problems.append(f"{MODEL}: its {side} are {spelt(found)}, the manifest says {spelt(declared)}")
    return problems


def _golden_problems(bundle: Bundle, model: OnnxModel) -> tuple[dict[str, float], list[str]]:
    manifest = bundle.manifest
    same = manifest.instruction_set == instruction_set() and model.providers[0] == CPU
    golden = manifest.golden
    tolerance = golden.tolerance_same_instructions if same else golden.tolerance_other_instructions
    in_half = manifest.half_floats and model.providers[0] != CPU
    advice = "; it may compute float layers in 16 bits, which quantize.half_floats=false forbids" if in_half else ""
    segmenter = Segmenter.of(manifest, model)
    differing: dict[str, float] = {}
    problems = []
    for name in golden.names:
        image, mask = _golden_paths(bundle.path, name, manifest.channels)
        try:
            expected = decode_indices(mask)
            answer = segmenter.segment(decode(image, manifest.channels))
        except Exception as error:  # what a damaged graph or an impossible geometry raises has no common base
            problems.append(f"golden example {name}: {error}")
            continue
        share = float(np.mean(answer != expected)) if answer.shape == expected.shape else 1.0
        differing[name] = share
        if share > tolerance:
            problems.append(
                f"golden example {name}: {share:.2%} of its pixels differ, at most {tolerance:.2%} may; "
                f"this runtime ({model.providers[0]}) does not give the answers that were proven{advice}"
            )
    return differing, problems


def _warnings(manifest: Manifest, model: OnnxModel) -> Iterable[str]:
    here, provider = instruction_set(), model.providers[0]
    if provider != CPU:
        yield (
            f"proven on {CPU}, {provider} serves: accuracy holds within the golden tolerance, latency does not carry "
            "over"
        )
    if manifest.instruction_set != here:
        yield (
            f"measured on {manifest.instruction_set}, this machine has {here}: accuracy holds within the golden "
            "tolerance, latency does not carry over"
        )
