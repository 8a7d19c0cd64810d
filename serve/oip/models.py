"""What the protocol tells about models, over HTTP or gRPC: metadata, configuration, statistics, the index."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from export.machine import library_versions
from export.manifest import Manifest, TensorSignature
from export.runtime import MASK
from serve.service import Service
from serve.statistics import ModelStatistics, Spent

_OUTPUTS = (TensorSignature(name=MASK, dtype="uint8", shape=("batch", "height", "width")),)
"""The same for every model, whatever its graph gives: the server makes masks of logits, each of its image's size."""

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
PLATFORM = "onnxruntime_onnx"


class TensorMetadata(BaseModel):
    """One input or output, as the Open Inference Protocol describes it; -1 is a dynamic dimension."""

    name: str
    datatype: str
    shape: list[int]


class ModelParameters(BaseModel):
    """What this bundle is, beyond its tensors."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    digest: str
    """Digest of the bundle's manifest."""
    precision: str
    channels: int
    """Channels of the files to send: 1 and 3 take any, as grey or RGB; other numbers take as many bands or pages."""
    classes: list[str]
    """Names by index, which is the value in a mask."""
    colours: list[tuple[int, int, int]]
    """RGB of each class, for overlays."""
    size: tuple[int, int] | None
    """Images are resized to this (height, width) before the model; null: never."""
    size_multiple: int
    """Images are padded to multiples of this."""
    miou: float | None
    """Measured accuracy; null if the bundle has none."""


class ModelMetadata(BaseModel):
    """What the Open Inference Protocol tells about a model, and in `parameters` what an image client needs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: ModelParameters


class ServerMetadata(BaseModel):
    """Which server answers, and which extensions of the protocol it understands."""

    name: str
    version: str
    extensions: list[str]


class IndexEntry(BaseModel):
    """One version of one model."""

    name: str
    version: str
    state: str
    reason: str


class Duration(BaseModel):
    """How often something was done, and the nanoseconds it took in all."""

    count: int = 0
    ns: int = 0

    @classmethod
    def of(cls, spent: Spent) -> "Duration":
        return cls(count=spent.count, ns=round(1e9 * spent.seconds))


class InferenceStatistics(BaseModel):
    """In Triton's terms: compute_input is decoding and fitting images, compute_output restoring and encoding masks."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStats(BaseModel):
    """All versions of a model together; `version` is the one that was asked for, else the newest that is served."""

    name: str
    version: str
    last_inference: int
    """Milliseconds of Unix time; 0 when there was none."""
    inference_count: int
    """Images."""
    execution_count: int
    """Runs of the model."""
    inference_stats: InferenceStatistics


class AllStats(BaseModel):
    """Statistics of models."""

    model_stats: list[ModelStats]


def server_metadata() -> ServerMetadata:
    """The metadata of this server."""
    version = library_versions().get("segpress", "unknown")
    return ServerMetadata(name="segpress", version=version, extensions=list(EXTENSIONS))


def metadata(service: Service, name: str, version: str = "") -> ModelMetadata:
    """The metadata of a model. Raises ProblemError 404 if it is not served."""
    manifest = service.repository.predictor(name, version).manifest
    return ModelMetadata(
        name=manifest.name,
        versions=list(service.repository.versions(name)),
        platform=PLATFORM,
        inputs=[_tensor(signature) for signature in manifest.inputs],
        outputs=[_tensor(signature) for signature in _OUTPUTS],
        parameters=_parameters(manifest),
    )


def config(service: Service, name: str, version: str = "") -> dict[str, Any]:
    """Triton's model configuration, as far as it has a meaning here.

    Source: Triton Inference Server, model_config.proto.
    Raises ProblemError 404.
    """
    manifest = service.repository.predictor(name, version).manifest
    versions = service.repository.versions(name)
    return {
        "name": manifest.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        # Triton's versions are all numbers.
        "version_policy": {"specific": {"versions": sorted(int(v) for v in versions if v.isdecimal())}},
        # 0 says that the dimensions below begin with the batch.
        "max_batch_size": 0,
        "input": [_config_tensor(signature) for signature in manifest.inputs],
        "output": [_config_tensor(signature) for signature in _OUTPUTS],
        "instance_group": [{"name": manifest.name, "kind": "KIND_CPU", "count": service.settings.concurrency}],
        "parameters": {"digest": {"string_value": manifest.digest}},
    }


def statistics(service: Service, name: str = "", version: str = "") -> AllStats:
    """The statistics of one model, or of all that are served.

    Raises ProblemError 404.
    """
    repository = service.repository
    asked = [repository.predictor(name, version)] if name else list(repository.served.values())
    return AllStats(
        model_stats=[
            _stats(predictor.manifest, service.metrics.statistics.of(predictor.manifest.name)) for predictor in asked
        ]
    )


async def index(service: Service, *, ready_only: bool = False) -> list[IndexEntry]:
    """Every version that is in the repository or is served, with its state."""
    found, entries = await service.repository.index(), []
    up, phase = service.lifecycle.is_ready, service.lifecycle.phase.value
    for entry in found:
        ready = up and entry.is_served
        if ready or not ready_only:
            reason = phase if entry.is_served and not up else entry.reason
            state = "READY" if ready else "UNAVAILABLE"
            entries.append(IndexEntry(name=entry.name, version=entry.version, state=state, reason=reason))
    return entries


def _tensor(signature: TensorSignature) -> TensorMetadata:
    return TensorMetadata(name=signature.name, datatype=_datatype(signature), shape=_shape(signature))


def _config_tensor(signature: TensorSignature) -> dict[str, Any]:
    return {"name": signature.name, "data_type": f"TYPE_{_datatype(signature)}", "dims": _shape(signature)}


def _datatype(signature: TensorSignature) -> str:
    return {"float": "FP32", "float16": "FP16"}.get(signature.dtype, signature.dtype.upper())


def _shape(signature: TensorSignature) -> list[int]:
    return [dimension if isinstance(dimension, int) else -1 for dimension in signature.shape]


def _parameters(manifest: Manifest) -> ModelParameters:
    return ModelParameters(
        digest=manifest.digest,
        precision=manifest.precision,
        channels=manifest.channels,
        classes=list(manifest.classes),
        colours=list(manifest.colours),
        size=manifest.size,
        size_multiple=manifest.size_multiple,
        miou=manifest.accuracy.miou if manifest.accuracy else None,
    )


def _stats(manifest: Manifest, of: ModelStatistics) -> ModelStats:
    return ModelStats(
        name=manifest.name,
        version=manifest.version,
        last_inference=round(1000 * of.last_inference),
        inference_count=of.images,
        execution_count=of.executions,
        inference_stats=InferenceStatistics(
            success=Duration.of(of.success),
            fail=Duration.of(of.fail),
            queue=Duration.of(of.queue),
            compute_input=Duration.of(of.compute_input),
            compute_infer=Duration.of(of.compute_infer),
            compute_output=Duration.of(of.compute_output),
        ),
    )
