"""Fails one file operation of a command; Python imports this file by itself when its folder is on PYTHONPATH.

The environment variable VIDCLS_TORTURE holds, separated by colons: the folder in which operations are counted, the file
that counts them over all processes of the command, the number of the operation that fails, and how it fails.
"""

import errno
import fcntl
import os
import signal
import sys
from typing import Any

OPERATIONS = (
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.truncate",
    "os.scandir",
    "os.listdir",
)


def install(root: str, counter_path: str, target: int, fault: str) -> None:
    """Counts each operation on a path below ``root``; the one whose number is ``target`` fails with ``fault``."""
    counter = os.open(counter_path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def count() -> None:
        fcntl.flock(counter, fcntl.LOCK_EX)
        os.write(counter, b".")
        number = os.fstat(counter).st_size
        fcntl.flock(counter, fcntl.LOCK_UN)
        if number == target and fault == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if number == target:
            code = getattr(errno, fault)
            raise OSError(code, os.strerror(code))

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        # A video that cannot be read has a status of its own, and is no disturbance.
        reads_video = event == "open" and path.endswith(".mp4") and not int(arguments[2]) & (os.O_WRONLY | os.O_RDWR)
        if path.startswith(root) and not reads_video:
            count()

    fsync = os.fsync

    def counted_fsync(file: int) -> None:
        count()
        fsync(file)

    os.fsync = counted_fsync  # type: ignore[assignment]
    sys.addaudithook(audit)


if "VIDCLS_TORTURE" in os.environ:
    folder, path, number, name = os.environ["VIDCLS_TORTURE"].split(":")
    install(folder, path, int(number), name)
