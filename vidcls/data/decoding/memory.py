"""What glibc does with freed memory, for processes that work for hours."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3  # of malloc.h


def return_freed_blocks(from_bytes: int) -> None:
    """Has glibc give each block of ``from_bytes`` or more back when it is freed.

    By itself it soon stops to, keeps blocks of up to 32 MiB and reuses them badly: an hour of video in windows then
    takes 200 MiB more of the network's process than two minutes do, in some runs. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, from_bytes)
