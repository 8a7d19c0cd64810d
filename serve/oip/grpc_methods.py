"""The methods of the Open Inference Protocol over gRPC, and of grpc.health.v1.

N batch, H height, W width.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import ParseDict
from pydantic import BaseModel

from export.images import U8
from export.runtime import MASK
from serve.dispatch import deadline_of, dispatch, refuse_if_full
from serve.metrics import UNKNOWN_MODEL
from serve.oip import models
from serve.oip.call import Call
from serve.oip.inference import InferenceRequest, InputTensor, RequestedOutput, images_of, timeout_of
from serve.oip.messages import INFERENCE, message
from serve.pipeline import WholeWork
from serve.policy import choice_of
from serve.problems import CLIENT_CLOSED_REQUEST, ProblemError
from serve.service import Service

_CONTENTS = {"UINT8": "uint_contents", "FP32": "fp32_contents", "BYTES": "bytes_contents"}


class Health:
    """grpc.health.v1: of the server as a whole, or of one model by its name."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._response = message("grpc.health.v1.HealthCheckResponse")

    async def Check(self, call: Call) -> Any:
        request = await call.small()
        name = request.service
        if name and name != INFERENCE and not self._service.repository.versions(name):
            # Not what is served instead: this needs no key.
            raise ProblemError(404, "unknown_model", f"no model {name!r} is served here")
        return self._response(status="SERVING" if self._service.lifecycle.is_ready else "NOT_SERVING")


class Inference:
    """The protocol's methods, each from its request to its response."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ServerLive(self, call: Call) -> Any:
        await call.small()
        return message("inference.ServerLiveResponse")(live=True)

    async def ServerReady(self, call: Call) -> Any:
        await call.small()
        return message("inference.ServerReadyResponse")(ready=self._service.lifecycle.is_ready)

    async def ModelReady(self, call: Call) -> Any:
        request = await call.small()
        versions = self._service.repository.versions(request.name)
        served = request.version in versions if request.version else bool(versions)
        return message("inference.ModelReadyResponse")(ready=served and self._service.lifecycle.is_ready)

    async def ServerMetadata(self, call: Call) -> Any:
        await call.small()
        return _filled("inference.ServerMetadataResponse", models.server_metadata())

    async def ModelMetadata(self, call: Call) -> Any:
        request = await call.small()
        found = models.metadata(self._service, request.name, request.version)
        return _filled("inference.ModelMetadataResponse", found)

    async def ModelConfig(self, call: Call) -> Any:
        request = await call.small()
        found = models.config(self._service, request.name, request.version)
        return ParseDict({"config": found}, message("inference.ModelConfigResponse")())

    async def ModelStatistics(self, call: Call) -> Any:
        request = await call.small()
        found = models.statistics(self._service, request.name, request.version)
        return _filled("inference.ModelStatisticsResponse", found)

    async def RepositoryIndex(self, call: Call) -> Any:
        request = await call.small()
        found = await models.index(self._service, ready_only=request.ready)
        return ParseDict(
            {"models": [entry.model_dump() for entry in found]}, message("inference.RepositoryIndexResponse")()
        )

    async def RepositoryModelLoad(self, call: Call) -> Any:
        request = await call.small()
        await self._service.load(request.model_name, choice_of(_values(request.parameters)))
        return message("inference.RepositoryModelLoadResponse")()

    async def RepositoryModelUnload(self, call: Call) -> Any:
        request = await call.small()
        await self._service.unload(request.model_name)
        return message("inference.RepositoryModelUnloadResponse")()

    async def ModelInfer(self, call: Call) -> Any:
        service = self._service
        with service.metrics.request(UNKNOWN_MODEL) as counted:
            try:
                if not service.lifecycle.takes_requests:
                    raise service.unavailable()
                refuse_if_full(service)
                deadline_seconds = deadline_of(call.headers)
                async with call.body() as request:
                    counted.model = service.label(request.model_name)
                    deadline_seconds = min(deadline_seconds, call.seconds_left, timeout_of(_values(request.parameters)))
                    return await self._infer(request, deadline_seconds)
            except asyncio.CancelledError:
                if service.lifecycle.is_ending:
                    raise
                raise ProblemError(CLIENT_CLOSED_REQUEST, "disconnected", "the client left before its answer") from None

    async def _infer(self, request: Any, deadline_seconds: float) -> Any:
        service = self._service
        predictor = service.repository.predictor(request.model_name, request.model_version)
        stages, sizes = service.metrics.stages(request.model_name), service.sizes

        def read() -> Sequence[U8]:
            return images_of(_asked(request), predictor.manifest, max_pixels=sizes.max_pixels)

        def finish(masks_NHW: U8) -> Any:
            response = message("inference.ModelInferResponse")(
                model_name=predictor.manifest.name,
                model_version=predictor.manifest.version,
                id=request.id,
                raw_output_contents=[masks_NHW.tobytes()],
            )
            response.outputs.add(name=MASK, datatype="UINT8", shape=masks_NHW.shape)
            return response

        work = WholeWork(predictor, stages, sizes, read, finish)
        return await dispatch(service, work, deadline_seconds=deadline_seconds)


def _asked(request: Any) -> InferenceRequest:
    """Raises ProblemError 400 for tensors without values, or with two sets of them."""
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise ProblemError(400, "malformed", f"{len(request.inputs)} inputs, and {len(raw)} raw_input_contents")
    tensors = []
    for index, given in enumerate(request.inputs):
        contents = raw[index] if raw else list(getattr(given.contents, _CONTENTS.get(given.datatype, "bytes_contents")))
        if raw and given.HasField("contents"):
            raise ProblemError(400, "malformed", "values are given both as contents and as raw_input_contents")
        tensors.append(InputTensor(given.name, given.datatype, tuple(given.shape), contents, _values(given.parameters)))
    return InferenceRequest(
        inputs=tensors,
        outputs=[RequestedOutput(output.name, _values(output.parameters)) for output in request.outputs],
        id=request.id,
        parameters=_values(request.parameters),
    )


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    choices = {name: parameter.WhichOneof("parameter_choice") for name, parameter in parameters.items()}
    return {name: getattr(parameters[name], choice) for name, choice in choices.items() if choice}


def _filled(name: str, found: BaseModel) -> Any:
    """The message of this name, with the fields of `found` that it has."""
    return ParseDict(found.model_dump(), message(name)(), ignore_unknown_fields=True)
