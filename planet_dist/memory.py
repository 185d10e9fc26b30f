"""Memory that a process on a CPU keeps for its next step.

A step takes hundreds of megabytes and gives them back. By itself glibc returns large blocks to the system at once,
which clears each page anew when the next step touches it: a sixth of a step's time. Kept, they are cleared once.
"""

from __future__ import annotations

import ctypes

# <malloc.h>. They take an int.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_GREATEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets malloc keep what is freed, in this process, from now on.

    Returns:
        Whether it does; False where another libc than glibc has its own ways.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # All blocks lie in the heap, none in a mapping of its own; up to 2 GiB stay free at its end, and it grows in leaps.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _GREATEST), (_TOP_PAD, 64 * 2**20))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)
