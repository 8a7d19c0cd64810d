"""The Open Inference Protocol, version 2: tensors in and out, over HTTP and gRPC, as clients of Triton speak it.

Source: https://github.com/kserve/open-inference-protocol; the extensions (binary tensors, model repository, model
configuration, statistics) as Triton Inference Server documents them.
"""
