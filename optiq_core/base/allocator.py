"""Keeps freed memory with the process on Linux.

MLX's CPU backend allocates a buffer for every result and frees it a moment later. glibc hands large ones back to the
kernel at once, and the next one is mapped anew, page by page: in a virtual machine up to 8 us for each 4 KB, several
times what computing their contents takes.
"""

from __future__ import annotations

import ctypes
import platform

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
# The largest that glibc takes.
_LARGEST_ON_HEAP = 32 << 20
# Freed bytes at the end of the heap that are kept.
_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Let malloc reuse freed memory instead of handing it back; tell whether this system's does."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Heaps of further arenas are unmapped as they become empty, whatever the threshold: one arena for all threads.
    settings = (_MMAP_THRESHOLD, _LARGEST_ON_HEAP), (_TRIM_THRESHOLD, _KEPT), (_ARENA_MAX, 1)
    return sum(mallopt(*setting) for setting in settings) == len(settings)
