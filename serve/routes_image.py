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
from serve.dispatch import (
    DEADLINE_PARAMETER,
    deadline_of,
    dispatch,
    dispatch_all,
    refuse_if_full,
    unless_the_client_leaves,
)
from serve.limits import IMAGE_TYPES, MULTIPART, ContentType
from serve.looks import WINDOW_PATTERN, Found, Look
from serve.metrics import Stages
from serve.multipart import no_form, uploads
from serve.openapi import problems, schema_of
from serve.predictor import Predictor
from serve.problems import MEDIA_TYPE, Problem, ProblemError, problem_of, request_id_of
from serve.service import Service, service_of


class _QueryOnDemand(APIRoute):
    """A route whose query is looked at only when there is one.

    To find that three parameters are absent takes FastAPI a third of the time of the whole route (py-spy).
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
"""All that may stand behind the address."""

router = APIRouter(tags=["segmentation"], route_class=_QueryOnDemand)

SEVERAL = "images"
"""The field of a form whose files are answered by a list, also when there is only one."""

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
            "The mask, of the size of the image. Accept chooses its form; Server-Timing tells the stages. Of a form's "
            f"files called `{SEVERAL}`: a list with one item for each, in their order, which is a mask or the problem "
            "with that file alone; in JSON, or as the parts of a multipart body."
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
            400: "Empty, damaged, not one image, or something that the model cannot give",
            404: "No such model",
            406: "No form of answer in Accept that can be sent",
            408: "The upload took too long",
            413: "Too many bytes, pixels, windows, probabilities or images",
            415: "Not an image format that is taken, more than 8 bits a channel, or another number of channels",
            429: "Too much is waiting; Retry-After says when to come back",
            503: "Not ready yet, or shutting down",
            504: "The deadline passed in the queue and nothing was computed, or between two windows or images",
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
        """Of one image, in this form."""
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
    name: str,
    request: Request,
    picture: Annotated[
        bool, Query(alias="overlay", description="A PNG for people instead: the image under the colours of the classes")
    ] = False,
    probabilities: Annotated[
        bool,
        Query(
            description=(
                "A NumPy .npz file instead, of `mask` (uint8, height x width) and `probabilities` (float16, classes x "
                "height x width: the softmax of the logits). For one image, and a model that gives its logits"
            )
        ),
    ] = False,
    window: Annotated[
        str | None,
        Query(
            # Told to readers of the document alone: of what does not match it, a sentence says more than the pattern.
            json_schema_extra={"pattern": WINDOW_PATTERN},
            description=(
                "HEIGHTxWIDTH: look at the image in windows of this size that overlap by a quarter, and blend their "
                "probabilities; for images that are larger than the model, or one run of it, takes. For a model that "
                "gives its logits"
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
            # Not which: it is the client's text, and may be long.
            detail = "the query has a parameter that is not known here, and would not be heeded"
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
    # Whether there are several shows only in the body, and what can be refused is refused before.
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
    """The image files in a body, and whether a list is wanted of them.

    Raises ProblemError 400 or 413 for a form that is not taken.
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
    """A list; what is wrong with one file stands in its place, and the others are answered."""
    if asked.look.probabilities:
        raise ProblemError(400, "invalid", "probabilities are given of one image at a time; send it alone, as image")
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
