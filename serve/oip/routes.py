"""The Open Inference Protocol over HTTP, with Triton's extensions for binary tensors, repository, configuration and
statistics. Health is in `serve.routes_service`: probes ask for it even if they know nothing of the protocol.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field, ValidationError

from export.images import U8
from serve.access import may_administer
from serve.dispatch import DEADLINE_PARAMETER, deadline_of, dispatch, refuse_if_full, unless_the_client_leaves
from serve.oip import models, wire
from serve.oip.inference import images_of, timeout_of
from serve.oip.wire import WireRequest
from serve.openapi import ModelName, problems, reference
from serve.pipeline import WholeWork
from serve.policy import choice_of
from serve.problems import ProblemError
from serve.service import Service, service_of

Asked = TypeVar("Asked", bound=BaseModel)

router = APIRouter(tags=["open inference protocol"])

_NOT_FOUND = problems({404: "No such model or version"})
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_JSON_BYTES_HEADER = {
    "name": wire.JSON_BYTES,
    "in": "header",
    "required": False,
    "description": "How many bytes of the body are JSON; binary tensors follow",
    "schema": {"type": "integer", "minimum": 0},
}
_VERSION = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "The version that must answer; without it, the one that is served does",
    "schema": {"type": "string"},
}
_INFER: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: {
            "description": "Masks [N, height, width], each of the size of its image",
            "content": {wire.JSON: reference(wire.InferResponse), wire.BINARY: _BINARY},
            "headers": {
                "Server-Timing": {"description": "Milliseconds in each stage", "schema": {"type": "string"}},
                wire.JSON_BYTES: {
                    "description": "How many bytes of the body are JSON, when a mask follows in binary",
                    "schema": {"type": "integer"},
                },
            },
        },
        **problems(
            {
                400: "Not a request of the protocol, or tensors that do not fit the model",
                404: "No such model or version",
                408: "The upload took too long",
                413: "Too many bytes, too much JSON, or too many pixels",
                415: "Files or an encoding that are not accepted",
                429: "Too much is waiting; Retry-After says when to come back",
                503: "Not ready yet, or shutting down",
                504: "The deadline passed in the queue; nothing was computed",
            }
        ),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": (
                "JSON with the tensor `image`, whose values are in it or follow it in binary. UINT8 [N, height, width, "
                "channels] is pixels; FP32 of that shape is pixels, too, as whole numbers from 0 to 255; BYTES [N], "
                "only in binary, is image files of one size."
            ),
            "content": {wire.JSON: reference(wire.InferRequest), wire.BINARY: _BINARY},
        },
        "parameters": [_JSON_BYTES_HEADER, DEADLINE_PARAMETER],
    },
}
_ADMINISTERS: dict[str, Any] = {
    "dependencies": [Depends(may_administer)],
    "response_class": Response,
    "responses": {
        200: {"description": "Done"},
        **problems({400: "Not a request of the protocol", 403: "Not allowed here", 404: "No such model or version"}),
    },
}


class IndexRequest(BaseModel):
    """Which entries are wanted."""

    ready: bool = False


class LoadRequest(BaseModel):
    """How a model is to be loaded."""

    parameters: dict[str, Any] = Field(default={}, description="`config`: JSON with a version_policy, as in Triton")


def _of_a_model(method: str, suffix: str, summary: str, **more: Any) -> Callable[[Callable[..., Any]], Any]:
    """Register a route for a model, and for one of its versions."""

    def register(endpoint: Callable[..., Any]) -> Callable[..., Any]:
        extra = more.pop("openapi_extra", {})
        versioned = {**extra, "parameters": [*extra.get("parameters", []), _VERSION]}
        for path, openapi_extra in (
            ("/v2/models/{name}", extra),
            ("/v2/models/{name}/versions/{version}", versioned),
        ):
            router.add_api_route(
                path + suffix, endpoint, methods=[method], summary=summary, openapi_extra=openapi_extra, **more
            )
        return endpoint

    return register


def _version(request: Request) -> str:
    return str(request.path_params.get("version", ""))


@router.get("/v2", summary="Which server this is")
async def server() -> models.ServerMetadata:
    """Name, version, and the extensions of the protocol that are understood."""
    return models.server_metadata()


@router.get("/v2/models/stats", summary="Statistics of all models")
async def all_statistics(request: Request) -> models.AllStats:
    """How many requests, images and runs since the start, and how long they took, in Triton's terms."""
    return models.statistics(service_of(request))


@_of_a_model("GET", "", "What a model takes and gives", responses=_NOT_FOUND)
async def metadata(name: ModelName, request: Request) -> models.ModelMetadata:
    """Tensors, classes, colours and versions of a model."""
    return models.metadata(service_of(request), name, _version(request))


@_of_a_model("GET", "/ready", "Is a model served?", response_class=Response, responses=_NOT_FOUND)
async def model_ready(name: ModelName, request: Request) -> Response:
    """200 while requests for the model are accepted."""
    service = service_of(request)
    service.repository.predictor(name, _version(request))
    if not service.lifecycle.is_ready:
        raise service.unavailable()
    return Response()


@_of_a_model("GET", "/config", "A model's configuration, as Triton has it", responses=_NOT_FOUND)
async def config(name: ModelName, request: Request) -> dict[str, Any]:
    """The fields of Triton's model configuration that have a meaning here."""
    return models.config(service_of(request), name, _version(request))


@_of_a_model("GET", "/stats", "Statistics of a model", responses=_NOT_FOUND)
async def model_statistics(name: ModelName, request: Request) -> models.AllStats:
    """How many requests, images and runs since the start, and how long they took, in Triton's terms."""
    return models.statistics(service_of(request), name, _version(request))


@_of_a_model("POST", "/infer", "Segment a tensor of images", **_INFER)
async def infer_route(name: ModelName, request: Request) -> Response:
    """Send images as a tensor, or as files in one, and get their masks as a tensor.

    The answer has numbers in JSON unless `binary_data` of the output, or `binary_data_output` of the request, asks for
    bytes. A body may be compressed with gzip or deflate.
    """
    service = service_of(request)
    with service.metrics.request(service.label(name)):
        return await _infer(service, name, request)


async def _infer(service: Service, name: str, request: Request) -> Response:
    if not service.lifecycle.takes_requests:
        await service.bodies.discard(request)
        raise service.unavailable()
    predictor = service.repository.predictor(name, _version(request))
    json_bytes, encoding = wire.json_bytes(request), wire.content_encoding(request)
    refuse_if_full(service)
    deadline_seconds = deadline_of(request.headers)
    stages, sizes = service.metrics.stages(name), service.sizes
    async with service.bodies.body(request) as body:
        asked: list[WireRequest] = []
        if encoding is None and wire.may_name_a_timeout(body, json_bytes):
            asked.append(WireRequest(body, json_bytes))
            deadline_seconds = min(deadline_seconds, timeout_of(asked[0].request.parameters))

        def read() -> Sequence[U8]:
            if not asked:
                content = wire.decompressed(body, encoding, max_bytes=service.settings.max_body_bytes)
                asked.append(WireRequest(content, json_bytes))
            if work.seconds_since_asked > timeout_of(asked[0].request.parameters):
                detail = "the timeout passed while the request waited for its turn; nothing was computed"
                raise ProblemError(504, "deadline", f"{detail}, send it again when the server is less busy")
            return images_of(asked[0].request, predictor.manifest, max_pixels=sizes.max_pixels)

        def finish(masks_NHW: U8) -> tuple[bytes, dict[str, str]]:
            return asked[0].answer(masks_NHW, predictor.manifest)

        work = WholeWork(predictor, stages, sizes, read, finish)
        content, headers = await unless_the_client_leaves(
            request, dispatch(service, work, deadline_seconds=deadline_seconds)
        )
    return Response(content, headers={**headers, "Server-Timing": stages.header()})


@router.get("/v2/repository/index", summary="Which models there are")
async def index(request: Request) -> list[models.IndexEntry]:
    """Every version of every model with its state, and why one is not served."""
    return await models.index(service_of(request))


@router.post(
    "/v2/repository/index",
    summary="Which models there are",
    responses=problems({400: "Not a request of the protocol"}),
    openapi_extra={"requestBody": {"content": {wire.JSON: reference(IndexRequest)}}},
)
async def index_of(request: Request) -> list[models.IndexEntry]:
    """The same for clients of the protocol, which may ask for only the versions that are served."""
    asked = await _asked(request, IndexRequest)
    return await models.index(service_of(request), ready_only=asked.ready)


@router.post(
    "/v2/repository/models/{name}/load",
    summary="Load a model, or switch to another version",
    openapi_extra={"requestBody": {"content": {wire.JSON: reference(LoadRequest)}}},
    **{
        **_ADMINISTERS,
        "responses": {**_ADMINISTERS["responses"], **problems({422: "The bundle must not serve; the old one stays"})},
    },
)
async def load(name: ModelName, request: Request) -> Response:
    """Verify and warm up the newest version in the model's folder, then serve it instead of the current one.

    `parameters.config` may name other versions: {"version_policy": {"specific": {"versions": ["1"]}}} rolls back.
    """
    asked = await _asked(request, LoadRequest)
    await service_of(request).load(name, choice_of(asked.parameters))
    return Response()


@router.post("/v2/repository/models/{name}/unload", summary="Stop serving a model", **_ADMINISTERS)
async def unload(name: ModelName, request: Request) -> Response:
    """Requests in progress are finished."""
    await service_of(request).bodies.discard(request)
    await service_of(request).unload(name)
    return Response()


async def _asked(request: Request, form: type[Asked]) -> Asked:
    """The body as `form`; an empty one asks for nothing in particular.

    Raises ProblemError 4xx.
    """
    content = await service_of(request).bodies.small(request)
    try:
        return form.model_validate_json(content or b"{}")
    except ValidationError as error:
        raise wire.malformed(error) from error
