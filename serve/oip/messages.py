"""The messages of the protocol's gRPC form, made from its descriptors when this is imported.

They have their own pool: the default pool holds one message of a name, and a client's stubs in the same process, such
as tritonclient's, put theirs there. `proto/protocols.binpb` is compiled from the .proto files beside it; a test
compares them.

    python -m grpc_tools.protoc -Iserve/oip/proto --descriptor_set_out=serve/oip/proto/protocols.binpb \
        inference.proto health.proto
"""

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    compiled = (files("serve.oip") / "proto" / "protocols.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(compiled).file:
        pool.Add(file)
    return pool


_POOL = _pool()


def message(name: str) -> Any:
    """The class of a message, such as "inference.ModelInferResponse"."""
    return GetMessageClass(_POOL.FindMessageTypeByName(name))


def methods(service: str) -> dict[str, tuple[Any, Any]]:
    """The classes of request and response of each method of a service, by its name."""
    return {
        method.name: (GetMessageClass(method.input_type), GetMessageClass(method.output_type))
        for method in _POOL.FindServiceByName(service).methods
    }
