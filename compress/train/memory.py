"""How a lack of memory is known, and what helps against it."""

import torch

WORDS = ("DefaultCPUAllocator", "out of memory", "_STATUS_ALLOC_FAILED", "bad_alloc")
"""Torch's allocator on a CPU; MPS, and CUDA outside of torch's allocator; cuBLAS and cuDNN; C++."""


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Torch's allocators on CUDA and XPU have an exception of their own; the others are known by their words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in WORDS)


def free(device: torch.device) -> None:
    """Give memory back that nothing uses; after a shortage its pieces may be too small for what comes."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
