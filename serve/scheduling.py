"""How the kernel shares the cores between the threads of this process."""

import ctypes
import logging
import os
import platform
import struct
import sys
from typing import Final

logger = logging.getLogger(__name__)

_LONG_SECONDS: Final = 0.02
"""About one run of a model. Linux takes 0.1 to 100 ms; its default is 0.7 to 3 ms, by the number of cores."""

# The system call has no wrapper in the C library before glibc 2.41. Numbers: asm/unistd.h.
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
_KEEP_POLICY: Final = 0x08


def take_long_turns() -> None:
    """Ask the scheduler to let the calling thread, once it runs, go on for longer before others that compute take over.

    It gets no larger share of the core for it, and its priority stays. Threads that ask for shorter turns, as all do
    that ask for nothing, may interrupt it when they wake: the event loop, for one. Linux heeds this since 6.12; older
    kernels and other systems are left as they are. Source: sched_setattr(2); struct sched_attr in linux/sched/types.h,
    where `sched_runtime` of a normal thread is the length of a turn; kernel/sched/fair.c, PREEMPT_SHORT.
    """
    number = _SCHED_SETATTR.get(platform.machine()) if sys.platform == "linux" else None
    if number is None:
        return
    niceness = os.getpriority(os.PRIO_PROCESS, 0)  # which is that of the thread, and would be set to 0 otherwise
    attributes = struct.pack("=IIQiIQQQ", 48, 0, _KEEP_POLICY, niceness, 0, round(_LONG_SECONDS * 1e9), 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 0, attributes, 0):
        logger.debug("the kernel does not let threads ask for long turns: %s", os.strerror(ctypes.get_errno()))
