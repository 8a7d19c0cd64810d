"""The image endpoint: an image file in, its mask out."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from export.images import U8
from serve.answers import ENCODERS, JSON, PNG, RAW, Answer, Segmentation, negotiate, to_picture
from serve.dispatch import DEADLINE_PARAMETER, deadline_of, dispatch, refuse_if_full, unless_the_client_leaves
from serve.limits import IMAGE_TYPES, MULTIPART, ContentType
from serve.openapi import problems, reference
from serve.pipeline import Work, decoded
from serve.service import Service, service_of

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
        },
        "parameters": [DEADLINE_PARAMETER],
    },
)
async def segment_image(
    name: str,
    request: Request,
    picture: Annotated[
        bool, Query(alias="overlay", description="A PNG for people instead: the image under the colours of the classes")
    ] = False,
) -> Response:
    """Send an image file as the body and get the class of each of its pixels.

    The mask comes as a PNG of class indices unless Accept asks for application/json (area and COCO run
    lengths of each class) or application/octet-stream (one byte a pixel, row by row).
    """
    service = service_of(request)
    with service.metrics.request(service.label(name)):
        answer, timing = await _segment(service, name, request, picture=picture)
    return Response(
        answer.body, media_type=answer.media_type, headers={**answer.headers, "Server-Timing": timing, "Vary": "Accept"}
    )


async def _segment(service: Service, name: str, request: Request, *, picture: bool) -> tuple[Answer, str]:
    if not service.lifecycle.takes_requests:
        await service.bodies.discard(request)
        raise service.unavailable()
    predictor = service.repository.predictor(name)
    encode = negotiate(request.headers.get("accept", ""), among=[PNG] if picture else list(ENCODERS))
    content_type = ContentType.of(request)
    refuse_if_full(service)
    deadline_seconds = deadline_of(request)
    stages = service.metrics.stages(name)
    async with service.bodies.body(request) as body:
        images: list[U8] = []

        def read() -> Sequence[U8]:
            images.append(decoded(content_type.image(body), predictor.manifest, max_pixels=service.sizes.max_pixels))
            return images

        def finish(masks_NHW: U8) -> Answer:
            if picture:
                return to_picture(images[0], masks_NHW[0], predictor.manifest)
            return encode(masks_NHW[0], predictor.manifest)

        work = Work(predictor, stages, service.sizes, read, finish)
        answer = await unless_the_client_leaves(request, dispatch(service, work, deadline_seconds=deadline_seconds))
    return answer, stages.header()
