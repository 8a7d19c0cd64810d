"""Mosec: a front end in Rust, worker processes in Python."""

import os
import sys

from model import PORT, WORKERS, Model
from mosec import Server, Worker


class Segment(Worker):
    """Bytes in, bytes out."""

    resp_mime_type = "image/png"

    def __init__(self) -> None:
        self.model = Model()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        return self.model.segment(data)

    def serialize(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", os.environ[PORT], "--timeout", "30000"]
    server = Server()
    server.append_worker(Segment, num=int(os.environ[WORKERS]))
    server.run()
