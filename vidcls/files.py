"""Atomic writes, files that only one process may create, locks and hashes."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import json
import os
import secrets
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from vidcls.errors import FULL_DISK, UserError

if TYPE_CHECKING:
    import pandas as pd

# What a file system says that has no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def replacing(path: Path) -> Iterator[BufferedWriter]:
    """A file to write to that replaces ``path`` atomically at the end, and is synced to disk.

    Raises:
        UserError: the disk is full; the partial file is removed.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:  # with the permissions of other new files, unlike tempfile
            yield file
            file.flush()
            os.fsync(file.fileno())
        _replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise UserError(
                f"room for {path.name} in {path.parent}",
                f"a full disk ({error.strerror})",
                "Free some space or set another folder, then run again: what is stored is kept.",
                "disk-full",
            ) from error
        raise


def _replace(part: Path, path: Path) -> None:
    """`os.replace`; tries for two seconds if ``path`` is open elsewhere, as SMB does not replace such a file."""
    for pause in (0.1, 0.4, 1.5):
        try:
            return os.replace(part, path)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ETXTBSY):
                raise
        time.sleep(pause)
    os.replace(part, path)


def write_atomically(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, content: object) -> None:
    """Writes JSON atomically; raises ValueError for NaN, which JSON does not have."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False).encode())


def csv_bytes(table: pd.DataFrame) -> bytes:
    """A table as CSV, with quotes if it holds a carriage return, which Python 3.11 would not quote."""
    text: str = table.to_csv(index=False)
    return (table.to_csv(index=False, quoting=csv.QUOTE_ALL) if "\r" in text else text).encode()


def csv_writer(file: BufferedWriter, columns: Sequence[str]) -> Callable[[Sequence[str]], None]:
    """Writes the header of a .csv, and returns a function that adds a row; for tables too large for `csv_bytes`."""
    text = TextIOWrapper(file, "utf-8", newline="", write_through=True)
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def write(row: Sequence[str]) -> None:
        (quoted if any("\r" in cell for cell in row) else plain).writerow(row)

    write(columns)
    return write


def claim_file(path: Path, text: str) -> bool:
    """Creates a file atomically; returns False if it exists already."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_atomically(part, text.encode())
    try:
        os.link(part, path)  # fails if the file exists
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return True


@contextmanager
def locked(path: Path, waiting_for: str) -> Iterator[None]:
    """Holds a lock between processes; prints what it is waiting for if that takes longer.

    Where the file system has no locks, nothing is locked, with a warning.
    """
    lock = FileLock(path, fallback_to_soft=False)  # whose marker would outlive a process that is killed
    try:
        try:
            lock.acquire(timeout=2)
        except Timeout:
            print(f"Waiting for {waiting_for}. If its machine has died, remove {path}", flush=True)
            lock.acquire()
    except OSError as error:
        warn_of_missing_locks(path.parent, error)
    try:
        yield
    finally:
        lock.release()


def warn_of_missing_locks(folder: Path, error: OSError) -> None:
    """Warns that nobody is kept out of ``folder``; raises any other ``error``."""
    if error.errno not in NO_LOCKS:
        raise error
    what = f"The file system of {folder} has no locks ({error.strerror})"
    warnings.warn(f"{what}: see that no other machine writes there at the same time.", stacklevel=3)


def lock_problem(folder: Path) -> str:
    """Why SQLite cannot lock files in ``folder``, for which it would wait; "" if it can, or nothing can be said."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return f"its file system has no locks: {error.strerror}" if error.errno in NO_LOCKS else ""
    return ""


class Owner:
    """Says in a file which process has last opened a folder, as locks may hold within one machine only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = path.read_text() if path.exists() else ""  # who has opened it and not released it
        self._name = f"process {os.getpid()} of {os.uname().nodename}, {secrets.token_hex(4)}"
        write_atomically(path, self._name.encode())

    def release(self) -> None:
        """Removes the file, unless another process has opened the folder since."""
        with suppress(OSError):
            if self.path.read_text() == self._name:
                self.path.unlink()

    def check(self) -> None:
        """Raises `UserError` if another process has opened the folder since."""
        found = self.path.read_text() if self.path.exists() else self._name
        if found != self._name:
            raise UserError(
                f"no other process to write into {self.path.parent}",
                f"{found}, which has begun to",
                "Let it finish, or start again when it has ended. Locks do not hold here between machines.",
                "other-process",
            )


def readable(path: str | bytes | Path) -> str:
    r"""A path as valid Unicode: bytes that are not UTF-8 appear as \xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def hash_file(file: Path | BufferedReader | FileIO) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    if isinstance(file, Path):
        with file.open("rb", buffering=0) as stream:
            return hash_file(stream)
    return hashlib.file_digest(file, "sha256").hexdigest()
