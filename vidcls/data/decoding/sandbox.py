"""Drops the privileges that a decoding process does not need, in case a video exploits its decoder.

Imports nothing that starts threads: on Linux only a process with a single thread can leave the network.
"""

import ctypes
import os
import resource
import signal
import sys
import threading
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any

# From <sched.h> and <linux/prctl.h>.
CLONE_NEWUSER, CLONE_NEWNET, PR_SET_NO_NEW_PRIVS = 0x10000000, 0x40000000, 38


def start_worker(memory_gigabytes: float | int, file_bytes: int) -> None:
    """Makes this process a worker: sandboxed, without Ctrl-C, ended with its parent.

    It writes no file larger than ``file_bytes`` and no core dump. On Linux it gains no privileges by running another
    program, and has no network if the system allows it to leave. It can still read the user's files.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # Users other than root need a user namespace for it, in which root would lose access to other users' files.
        libc.unshare(CLONE_NEWNET | (CLONE_NEWUSER if os.getuid() else 0))
    # When the parent is killed, workers would continue to decode, or hang.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import vidcls.data.decoding.windows  # noqa: F401 (now, so that it does not count towards a video's time limit)

    limits = {
        resource.RLIMIT_AS: int(memory_gigabytes * 2**30),
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


class WorkerProcess(SpawnProcess):
    """A new Python that does not import the program of this one.

    Without ``if __name__ == "__main__"``, a program would decode again in each of its workers, and wait for itself.
    """

    @staticmethod
    def _Popen(process: Any) -> Any:
        program, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process)
        finally:
            sys.modules["__main__"] = program


class WorkerContext(SpawnContext):
    """Starts `WorkerProcess`: a forked one would inherit the locks of this process' threads."""

    Process = WorkerProcess


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
