"""The image endpoint: an image file in, its mask out."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response

from serve.answers import JSON, PNG, RAW, Answer, Segmentation, negotiate
from serve.limits import IMAGE_TYPES, MULTIPART, ContentType
from serve.metrics import UNKNOWN_MODEL
from serve.openapi import problems, reference
from serve.pipeline import segment
from serve.problems import CLIENT_CLOSED_REQUEST, ProblemError
from serve.queue import DeadlineError, QueueFullError
from serve.service import Service, service_of

T = TypeVar("T")

router = APIRouter(tags=["segmentation"])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ONE_FILE = {
    "schema": {
        "type": "object",
        "required": ["image"],
        "properties": {"image": {"type": "string", "format": "binary"}},
    }
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The mask, of the size of the image. Accept chooses its form; Server-Timing tells the stages.",
        "content": {PNG: _BINARY, JSON: reference(Segmentation), RAW: _BINARY},
        "headers": {
            "Server-Timing": {"description": "Milliseconds in each stage", "schema": {"type": "string"}},
            "X-Mask-Shape": {"description": "Of a raw mask: height,width", "schema": {"type": "string"}},
            "X-Mask-Dtype": {"description": "Of a raw mask: uint8", "schema": {"type": "string"}},
        },
    },
    **problems(
        {
            400: "Empty, damaged, or not one image",
            404: "No such model",
            406: "No form of answer in Accept that can be sent",
            408: "The upload took too long",
            413: "Too many bytes, or too many pixels",
            415: "Not an image format that is taken, more than 8 bits a channel, or another number of channels",
            429: "Too much is waiting; Retry-After says when to come back",
            503: "Not ready yet, or shutting down",
            504: "The deadline passed in the queue; nothing was computed",
        }
    ),
}


@router.post(
    "/v1/models/{name}/segment",
    summary="Segment an image",
    responses=_RESPONSES,
    response_class=Response,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": (
                "One image file, or a form with exactly one file field. A model of 1 or 3 channels takes any file, as "
                "grey or RGB. Other models take the bands as they are stored: grey with alpha for 2 channels, RGBA or "
                "CMYK for 4, or a TIFF with a grey page for each."
            ),
            "content": {**dict.fromkeys(IMAGE_TYPES, _BINARY), MULTIPART: _ONE_FILE},
        }
    },
)
async def segment_image(name: str, request: Request) -> Response:
    """Send an image file as the body and get the class of each of its pixels.

    The mask comes as a PNG of class indices unless Accept asks for application/json (area and COCO run
    lengths of each class) or application/octet-stream (one byte a pixel, row by row).
    """
    service = service_of(request)
    with service.metrics.request(name if name in service.predictors else UNKNOWN_MODEL):
        answer, timing = await _segment(service, name, request)
    return Response(
        answer.body, media_type=answer.media_type, headers={**answer.headers, "Server-Timing": timing, "Vary": "Accept"}
    )


async def _segment(service: Service, name: str, request: Request) -> tuple[Answer, str]:
    if not service.lifecycle.takes_requests:
        await service.bodies.discard(request)
        raise service.unavailable()
    predictor = service.predictor(name)
    encode = negotiate(request.headers.get("accept", ""))
    content_type = ContentType.of(request)
    if service.queue.is_full:
        raise _overloaded(QueueFullError(service.queue.waiting, service.queue.retry_after_seconds))
    stages = service.metrics.stages(name)
    async with service.bodies.body(request) as body:
        begun = time.perf_counter()

        def work() -> Answer:
            stages.record("queue", time.perf_counter() - begun)
            return segment(body, content_type, predictor, encode, max_pixels=service.settings.max_pixels, stages=stages)

        queued = service.queue.run(work, deadline_seconds=service.settings.deadline_seconds)
        try:
            answer = await _unless_the_client_leaves(request, queued)
        except QueueFullError as error:
            raise _overloaded(error) from error
        except DeadlineError as error:
            stages.record("queue", time.perf_counter() - begun)
            detail = f"{error}; nothing was computed, send it again when the server is less busy"
            raise ProblemError(504, "deadline", detail) from error
    return answer, stages.header()


async def _unless_the_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client closes the connection before it is there."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ProblemError(CLIENT_CLOSED_REQUEST, "disconnected", "the client left before its answer")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _overloaded(error: QueueFullError) -> ProblemError:
    return ProblemError(429, "queue_full", str(error), headers={"Retry-After": str(error.retry_after_seconds)})
