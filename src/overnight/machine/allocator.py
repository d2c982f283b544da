"""How the C library keeps memory. Only commands that train ask for it: it holds for a whole process."""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt, from its malloc.h


def keep_freed_memory() -> bool:
    """Lets memory that was freed be used again at once, instead of given back to the system and asked for anew, page
    by page, in every step. Of no consequence but speed; glibc only: False elsewhere."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 2**26)))
