"""Memory that the process no longer uses, given back between stages."""

from __future__ import annotations

import ctypes
import gc
import sys


def release_memory() -> None:
    """Free what nothing refers to, and let the allocator of C return to the system what it keeps for later.

    glibc keeps freed blocks of up to 32 MB: gigabytes, once several threads have run a detector. Elsewhere than on
    Linux, and with other C libraries, the allocator is left to itself.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None) if sys.platform == 'linux' else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
