"""How the C library keeps memory that a step has freed."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # that every glibc takes
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for the next step, where the C library is glibc.

    By default activations of some megabytes go back to the kernel after each step and come again
    zeroed, page by page: a tenth of the step of a small network on a CPU. The most that the process
    ever holds stays the same.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
