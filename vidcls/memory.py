"""How a process that runs networks on a CPU treats its memory, and the CPUs that it has."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def num_cpus() -> int:
    """The CPUs that this process may use: in a job of a cluster, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Has glibc keep freed blocks of up to 1 GiB, at most 2 GiB in all, for what is allocated next.

    A network on a CPU frees and allocates such blocks in each layer. If they were given back to the system, clearing
    the pages that it gives anew could take more time than the layers.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # which other C libraries do not have
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory() -> None:
    """Gives back to the system what is kept."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
