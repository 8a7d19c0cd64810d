"""LitServe: one API server, and a worker for each run at once."""

import os

import litserve as ls
from fastapi import Request, Response
from model import PORT, WORKERS, Model


class Segment(ls.LitAPI):
    """Its requests are JSON or forms; a file comes as a form."""

    def setup(self, _device: str) -> None:
        self.model = Model()

    def decode_request(self, request: Request) -> bytes:
        content: bytes = request["image"].file.read()
        return content

    def predict(self, file: bytes) -> bytes:
        return self.model.segment(file)

    def encode_response(self, mask: bytes) -> Response:
        return Response(mask, media_type="image/png")


if __name__ == "__main__":
    server = ls.LitServer(Segment(), accelerator="cpu", devices=1, workers_per_device=int(os.environ[WORKERS]))
    server.run(host="127.0.0.1", port=int(os.environ[PORT]), num_api_servers=1, generate_client_file=False)
