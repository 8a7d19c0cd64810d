"""What probes and scrapers ask for: health and metrics. Nothing here waits for a model."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from serve.metrics import MEDIA_TYPE as METRICS_TYPE
from serve.openapi import problems
from serve.service import service_of

router = APIRouter(tags=["service"])

_NOT_READY = problems({503: "Not ready yet, or shutting down"})
_NOT_STARTED = problems({503: "Still starting"})


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class Started(BaseModel):
    started: bool


@router.get("/v2/health/live", summary="Is the process alive?")
async def live() -> Live:
    """Answers as long as the process can answer at all, also while it shuts down."""
    return Live(live=True)


@router.get("/v2/health/ready", summary="Is the server ready for requests?", responses=_NOT_READY)
async def ready(request: Request) -> Ready:
    """Every bundle is verified and warm, and no shutdown has begun. Send traffic while this is 200."""
    service = service_of(request)
    if not service.lifecycle.is_ready:
        raise service.unavailable()
    return Ready(ready=True)


@router.get("/v2/health/startup", summary="Has the server started?", responses=_NOT_STARTED)
async def startup(request: Request) -> Started:
    """200 from the moment the server is first ready to the end of the process; until then a probe has to wait."""
    service = service_of(request)
    if not service.lifecycle.has_started:
        raise service.unavailable()
    return Started(started=True)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"description": "Prometheus text format", "content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Durations of requests and stages, queue, errors by reason, memory and CPU time."""
    return Response(service_of(request).metrics.render(), headers={"Content-Type": METRICS_TYPE})
