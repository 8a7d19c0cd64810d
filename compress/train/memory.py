"""Recognise a lack of memory, and free what can be freed."""

import torch

WORDS = ("DefaultCPUAllocator", "out of memory", "_STATUS_ALLOC_FAILED", "bad_alloc")
"""Torch's allocator on a CPU; MPS, and CUDA outside of torch's allocator; cuBLAS and cuDNN; C++."""


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether `error` is a lack of memory. Torch's allocators on CUDA and XPU raise their own exception; the others are
    recognised by their words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in WORDS)


def free(device: torch.device) -> None:
    """Return unused memory to the device; after a shortage its fragments may be too small for what comes next."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
