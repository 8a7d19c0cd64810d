"""MLServer: a custom runtime behind the Open Inference Protocol, images as base64 in its JSON."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from mlserver import MLModel
from mlserver.codecs import Base64Codec
from mlserver.types import InferenceRequest, InferenceResponse
from model import Model


class Segment(MLModel):
    """Named in the model-settings.json that the bench writes."""

    async def load(self) -> bool:
        self.model = Model()
        # A worker starts every request it gets at once: without this bound they would all compete for its core.
        self.one_run = ThreadPoolExecutor(1)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        [file] = Base64Codec.decode_input(payload.inputs[0])
        mask = await asyncio.get_running_loop().run_in_executor(self.one_run, self.model.segment, file)
        return InferenceResponse(model_name=self.name, outputs=[Base64Codec.encode_output("mask", [mask])])
