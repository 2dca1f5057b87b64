"""Makes a command run on one of two machines; Python imports this file by itself when its folder is on PYTHONPATH.

The environment variable VIDCLS_MACHINE holds, separated by colons: the mount of this machine, the folder at which its
commands see it, and the machine's name. Needs root.
"""

import ctypes
import os
import socket
import sys

CLONE_NEWNS, CLONE_NEWUTS, MS_BIND, MS_PRIVATE_RECURSIVE = 0x20000, 0x4000000, 4096, 16384 | 1 << 18


def enter(mount: str, seen_at: str, name: str) -> None:
    """Moves this process into a mount namespace of its own, in which ``mount`` is also at ``seen_at``."""
    libc = ctypes.CDLL(None, use_errno=True)
    for failed in (
        libc.unshare(CLONE_NEWNS | CLONE_NEWUTS),
        libc.mount(b"none", b"/", None, MS_PRIVATE_RECURSIVE, None),
        libc.mount(os.fsencode(mount), os.fsencode(seen_at), None, MS_BIND, None),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    socket.sethostname(name)
    if "vidcls.data.decoding.pool" in sys.modules:  # forked: decoders that are forked elsewhere see no shared folder
        from vidcls.data.decoding import pool, sandbox

        setattr(pool, "WorkerContext", sandbox.WorkerContext)  # noqa: B010


if "VIDCLS_MACHINE" in os.environ:
    enter(*os.environ.pop("VIDCLS_MACHINE").split(":"))
