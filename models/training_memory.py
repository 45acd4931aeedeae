"""A training's memory: how it is kept from step to step, and how an error says that there is none left."""

from __future__ import annotations

import ctypes
import sys

# Of <malloc.h>; a limit of 2^31 - 1 bytes is the highest that mallopt takes.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def is_of_memory(error: Exception) -> bool:
    """Whether an error of torch's says that memory ran out: on a CPU it is a bare `RuntimeError`."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _MEMORY_WORDS)


def keep_freed_memory() -> None:
    """Lets this process keep the memory that a step frees, for the next one, where the C library is glibc.

    By default glibc returns large arrays to the kernel, which fills them with zeros again, page by page, when the next
    step asks for as many: a tenth of a small network's training on two cores, sometimes more
    (`tests/perf/training_memory.py`). It holds for the whole process, and so is for one whose purpose is the training.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
