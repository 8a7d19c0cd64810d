"""The image endpoint: an image file in, its mask out; or several files in, a mask of each out."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute

from export.manifest import Manifest
from serve.answers import (
    ENCODERS,
    JSON,
    MIXED,
    NPZ,
    PNG,
    RAW,
    Answer,
    Segmentation,
    negotiate,
    to_list,
    to_mixed,
    to_npz,
    to_picture,
)
from serve.content_type import IMAGE_TYPES, MULTIPART, ContentType
from serve.dispatch import (
    DEADLINE_PARAMETER,
    deadline_of,
    dispatch,
    dispatch_all,
    refuse_if_full,
    unless_the_client_leaves,
)
from serve.looks import WINDOW_PATTERN, Found, Look
from serve.metrics import Stages
from serve.multipart import no_form, uploads
from serve.openapi import ModelName, problems, schema_of
from serve.predictor import Predictor
from serve.problems import MEDIA_TYPE, Problem, ProblemError, problem_of, request_id_of
from serve.service import Service, service_of


class _QueryOnDemand(APIRoute):
    """A route that validates its query only when there is one.

    FastAPI spends a third of the whole route's time on finding that three parameters are absent (py-spy).
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        checked = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.scope["query_string"]:
                return await checked(request)
            response: Response = await self.endpoint(request=request, **request.path_params)
            return response

        return handle


QUERY = ("overlay", "probabilities", "window")
"""All the query parameters that are known."""

router = APIRouter(tags=["segmentation"], route_class=_QueryOnDemand)

SEVERAL = "images"
"""The field of a form whose files are answered with a list, even if there is only one."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "oneOf": [
            {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "string", "format": "binary"}},
                "additionalProperties": False,
            },
            {
                "type": "object",
                "required": [SEVERAL],
                "properties": {
                    SEVERAL: {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
                },
                "additionalProperties": False,
            },
        ]
    }
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": (
            "The mask, of the size of the image. Accept chooses its form; Server-Timing has the time of each stage. "
            f"For files in a form that are called `{SEVERAL}`: a list with one item for each, in order, which is its "
            "mask or the problem with that file alone; in JSON, or as the parts of a multipart body."
        ),
        "content": {
            PNG: _BINARY,
            JSON: {
                "schema": {
                    "anyOf": [
                        schema_of(Segmentation),
                        {"type": "array", "items": schema_of(Segmentation, Problem)},
                    ]
                }
            },
            RAW: _BINARY,
            NPZ: _BINARY,
            MIXED: _BINARY,
        },
        "headers": {
            "Server-Timing": {"description": "Milliseconds in each stage", "schema": {"type": "string"}},
            "X-Mask-Shape": {"description": "Of a raw mask: height,width", "schema": {"type": "string"}},
            "X-Mask-Dtype": {"description": "Of a raw mask: uint8", "schema": {"type": "string"}},
        },
    },
    **problems(
        {
            400: "Empty, damaged, not one image, or a request for something that the model cannot give",
            404: "No such model",
            406: "Accept has no form of answer that can be sent",
            408: "The upload took too long",
            413: "Too many bytes, pixels, windows, probabilities or images",
            415: "Not an accepted image format, more than 8 bits a channel, or another number of channels",
            429: "Too much is waiting; Retry-After says when to come back",
            503: "Not ready yet, or shutting down",
            504: "The deadline passed: in the queue, and nothing was computed, or between two windows or images",
        }
    ),
}


@dataclass(frozen=True)
class _Asked:
    """What a request wants, beside the model."""

    look: Look
    picture: bool
    accept: str

    @property
    def of_one(self) -> Sequence[str]:
        """Media types that one image can be answered in."""
        if self.look.probabilities:
            return [NPZ]
        return [PNG] if self.picture else list(ENCODERS)

    @property
    def of_several(self) -> Sequence[str]:
        return [MIXED] if self.picture else [MIXED, JSON]

    def answer(self, media_type: str, found: Found, manifest: Manifest) -> Answer:
        """The answer for one image, in this form."""
        if found.probabilities_KHW is not None:
            return to_npz(found.mask_HW, found.probabilities_KHW)
        if self.picture:
            return to_picture(found.image_HWC, found.mask_HW, manifest)
        return ENCODERS[media_type](found.mask_HW, manifest)


@router.post(
    "/v1/models/{name}/segment",
    summary="Segment an image",
    responses=_RESPONSES,
    response_class=Response,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": (
                "One image file, or a form with exactly one file field, or a form with several files that are all "
                f"called `{SEVERAL}`. A model of 1 or 3 channels takes any file, as grey or RGB. Other models take the "
                "bands as they are stored: grey with alpha for 2 channels, RGBA or CMYK for 4, or a TIFF with a grey "
                "page for each."
            ),
            "content": {**dict.fromkeys(IMAGE_TYPES, _BINARY), MULTIPART: _FORM},
        },
        "parameters": [DEADLINE_PARAMETER],
    },
)
async def segment_image(
    name: ModelName,
    request: Request,
    picture: Annotated[
        bool, Query(alias="overlay", description="Get a PNG for people: the image under the colours of the classes")
    ] = False,
    probabilities: Annotated[
        bool,
        Query(
            description=(
                "Get a NumPy .npz file of `mask` (uint8, height x width) and `probabilities` (float16, classes x "
                "height x width: the softmax of the logits). Only for a single image, and a model that gives logits"
            )
        ),
    ] = False,
    window: Annotated[
        str | None,
        Query(
            # For the document only: to refuse what does not match it, a sentence says more than the pattern.
            json_schema_extra={"pattern": WINDOW_PATTERN},
            description=(
                "HEIGHTxWIDTH: run the model on windows of this size that overlap by at least a quarter, and blend "
                "their probabilities; for images larger than the model, or one run of it, takes. Only for a model that "
                "gives logits"
            ),
            examples=["512x512"],
        ),
    ] = None,
) -> Response:
    """Send an image file as the body and get the class of each of its pixels.

    The mask comes as a PNG of class indices unless Accept asks for application/json (area and COCO run
    lengths of each class) or application/octet-stream (one byte a pixel, row by row). A form with files
    called images is answered with a list, one item for each: multipart/mixed, or JSON.
    """
    service = service_of(request)
    with service.metrics.request(service.label(name)):
        if not service.lifecycle.takes_requests:
            await service.bodies.discard(request)
            raise service.unavailable()
        unknown = set(request.query_params).difference(QUERY) if request.scope["query_string"] else ()
        if unknown:
            # Its name is not repeated: it is the client's text, and may be long.
            detail = "the query has a parameter that is not known here and would be ignored"
            raise ProblemError(400, "invalid", f"{detail}; known are {', '.join(QUERY)}")
        if picture and probabilities:
            raise ProblemError(400, "invalid", "overlay and probabilities are two answers; ask for one of them")
        predictor = service.repository.predictor(name)
        content_type = ContentType.of(request)
        look = Look.asked(predictor.manifest, probabilities=probabilities, window=window)
        asked = _Asked(look, picture, ", ".join(request.headers.getlist("accept")))
        answer, timing = await _segment(service, predictor, request, content_type, asked)
    return Response(
        answer.body, media_type=answer.media_type, headers={**answer.headers, "Server-Timing": timing, "Vary": "Accept"}
    )


async def _segment(
    service: Service, predictor: Predictor, request: Request, content_type: ContentType, asked: _Asked
) -> tuple[Answer, str]:
    # Whether there are several images shows only in the body; all that can be refused is refused before it is read.
    negotiate(asked.accept, among=[*asked.of_one, *(asked.of_several if content_type.boundary else ())])
    refuse_if_full(service)
    deadline_seconds = deadline_of(request.headers)
    request_id = request_id_of(request)
    async with service.bodies.body(request) as body:

        async def answered() -> tuple[Answer, str]:
            files, is_list = await _files(body, content_type.boundary, most=service.max_images)
            if is_list:
                return await _of_several(service, predictor, files, asked, deadline_seconds, request_id)
            return await _of_one(service, predictor, files[0], asked, deadline_seconds)

        return await unless_the_client_leaves(request, answered())


async def _files(body: bytes, boundary: bytes | None, *, most: int) -> tuple[list[bytes], bool]:
    """The image files in a body, and whether they are to be answered with a list.

    Raises ProblemError 400 or 413 for a form that is not accepted.
    """
    if boundary is None:
        return [body], False
    found = await asyncio.to_thread(uploads, body, boundary, most=most)
    files = [upload.content for upload in found]
    if all(upload.name == SEVERAL for upload in found):
        return files, True
    if len(files) > 1:
        raise no_form("there is more than one part")
    return files, False


async def _of_one(
    service: Service, predictor: Predictor, file: bytes, asked: _Asked, deadline_seconds: float
) -> tuple[Answer, str]:
    media_type = negotiate(asked.accept, among=asked.of_one)
    manifest = predictor.manifest
    stages = service.metrics.stages(manifest.name)
    work = asked.look.work(
        predictor, stages, service.sizes, file, lambda found: asked.answer(media_type, found, manifest)
    )
    return await dispatch(service, work, deadline_seconds=deadline_seconds), stages.header()


async def _of_several(
    service: Service,
    predictor: Predictor,
    files: Sequence[bytes],
    asked: _Asked,
    deadline_seconds: float,
    request_id: str,
) -> tuple[Answer, str]:
    """A list; a problem with one file takes its place there, and the others are answered."""
    if asked.look.probabilities:
        raise ProblemError(
            400, "invalid", "probabilities are given for one image at a time; send each in its own request"
        )
    media_type = negotiate(asked.accept, among=asked.of_several)
    form = JSON if media_type == JSON else PNG
    manifest = predictor.manifest

    def finish(found: Found) -> Answer:
        return asked.answer(form, found, manifest)

    stages = [service.metrics.stages(manifest.name) for _ in files]
    works = [
        asked.look.work(predictor, of_it, service.sizes, file, finish)
        for file, of_it in zip(files, stages, strict=True)
    ]
    answers = []
    for outcome in await dispatch_all(service, works, deadline_seconds=deadline_seconds):
        if isinstance(outcome, ProblemError):
            service.metrics.refused(manifest.name, outcome.reason)
            answers.append(Answer(MEDIA_TYPE, problem_of(outcome, request_id).model_dump_json().encode()))
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            answers.append(outcome)
    return (to_list if form == JSON else to_mixed)(answers), Stages().header(*stages)
