"""Takes from a decoding process what it does not need, in case a video gains control of its decoder.

Imports nothing that starts threads: Linux lets only a process of one thread leave the network.
"""

import ctypes
import os
import resource
import signal
import sys
import threading
from multiprocessing import parent_process

# From <sched.h> and <linux/prctl.h>.
CLONE_NEWUSER, CLONE_NEWNET, PR_SET_NO_NEW_PRIVS = 0x10000000, 0x40000000, 38


def start_worker(memory_gigabytes: float | int, file_bytes: int) -> None:
    """Makes this process a worker: confined, deaf to Ctrl-C, ended with its parent.

    It writes no file larger than ``file_bytes`` and no core dump. On Linux it gains no rights by running another
    program, and it has no network if the system lets it leave. It can still read the user's files.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # Others than root need a namespace of users of their own for it; root would lose other users' files there.
        libc.unshare(CLONE_NEWNET | (CLONE_NEWUSER if os.getuid() else 0))
    # Nobody else would stop a worker that hangs when its parent is killed, and the others would continue to decode.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import vidcls.data.decoding.windows  # noqa: F401 (here, since the time limits of videos do not count it)

    limits = {
        resource.RLIMIT_AS: int(memory_gigabytes * 2**30),
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
