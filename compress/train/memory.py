"""How a lack of memory is known, and what helps against it."""

import torch


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """CUDA has an exception of its own; on a CPU torch raises RuntimeError with its allocator's name."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def free(device: torch.device) -> None:
    """Give memory back that nothing uses; after a shortage its pieces may be too small for what comes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
