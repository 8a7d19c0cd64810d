"""What probes, scrapers and curious clients ask: health, metadata, metrics. Nothing here waits for a model."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from export.manifest import Manifest, TensorSignature
from serve.metrics import MEDIA_TYPE as METRICS_TYPE
from serve.openapi import problems
from serve.service import service_of

router = APIRouter(tags=["service"])

_NOT_READY = problems({503: "Not ready yet, or shutting down"})
_NOT_STARTED = problems({503: "Still starting"})
_NOT_FOUND = problems({404: "No such model"})


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class Started(BaseModel):
    started: bool


class TensorMetadata(BaseModel):
    """One input or output, as the Open Inference Protocol describes it; -1 is a dynamic dimension."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What the Open Inference Protocol asks of a model, and in `parameters` what an image client needs."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: "ModelParameters"


class ModelParameters(BaseModel):
    """What this bundle is, beyond its tensors."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    digest: str
    """Of the bundle's manifest."""
    precision: str
    channels: int
    """Of the files to send: 1 and 3 take any, as grey or RGB; other numbers take files with so many bands or pages."""
    classes: list[str]
    """By index: the values of a mask."""
    colours: list[tuple[int, int, int]]
    """RGB of each class, for overlays."""
    size: tuple[int, int] | None
    """Images are resized to this (height, width) before the model; null: never."""
    size_multiple: int
    """Images are padded to multiples of this."""
    miou: float | None
    """Measured accuracy; null when the bundle carries none."""


class IndexEntry(BaseModel):
    name: str
    version: str
    state: str
    reason: str


@router.get("/v2/health/live", summary="Is the process alive?")
async def live() -> Live:
    """Answers as long as the process can answer at all, also while it shuts down."""
    return Live(live=True)


@router.get("/v2/health/ready", summary="Are requests taken?", responses=_NOT_READY)
async def ready(request: Request) -> Ready:
    """Every bundle is verified and warm, and no shutdown has begun. Send traffic while this is 200."""
    service = service_of(request)
    if not service.lifecycle.is_ready:
        raise service.unavailable()
    return Ready(ready=True)


@router.get("/v2/health/startup", summary="Has the start come to its end?", responses=_NOT_STARTED)
async def startup(request: Request) -> Started:
    """200 from the first moment of readiness to the end of the process; until then a probe has to be patient."""
    service = service_of(request)
    if not service.lifecycle.has_started:
        raise service.unavailable()
    return Started(started=True)


@router.get("/v2/models/{name}", summary="What a model takes and gives", responses=_NOT_FOUND)
async def metadata(name: str, request: Request) -> ModelMetadata:
    """Tensors, classes, colours and version of a model."""
    manifest = service_of(request).predictor(name).manifest
    return ModelMetadata(
        name=manifest.name,
        versions=[manifest.version],
        platform="onnxruntime_onnx",
        inputs=[_tensor(signature) for signature in manifest.inputs],
        outputs=[_tensor(signature) for signature in manifest.outputs],
        parameters=_parameters(manifest),
    )


@router.get("/v2/repository/index", summary="Which models are served")
async def index(request: Request) -> list[IndexEntry]:
    """Every model with its version and state."""
    service = service_of(request)
    state, reason = ("READY", "") if service.lifecycle.is_ready else ("UNAVAILABLE", service.lifecycle.phase.value)
    return [
        IndexEntry(name=name, version=predictor.manifest.version, state=state, reason=reason)
        for name, predictor in service.predictors.items()
    ]


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"description": "Prometheus text format", "content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Durations of requests and stages, queue, errors by reason, memory and CPU time."""
    return Response(service_of(request).metrics.render(), headers={"Content-Type": METRICS_TYPE})


def _tensor(signature: TensorSignature) -> TensorMetadata:
    datatype = {"float": "FP32", "float16": "FP16"}.get(signature.dtype, signature.dtype.upper())
    shape = [dimension if isinstance(dimension, int) else -1 for dimension in signature.shape]
    return TensorMetadata(name=signature.name, datatype=datatype, shape=shape)


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
