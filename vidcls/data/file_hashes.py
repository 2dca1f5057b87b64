"""SHA-256 of many files: in threads, with a progress bar, and cached for files that have not changed."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from vidcls.data.urls import redact
from vidcls.files import hash_file, lock_problem, readable

CLOCK_SKEW_NS = 300 * 10**9  # of a file server's clock, at most


def local_version(state: FileState | None) -> str:
    """A text that changes with a local file; "" if it cannot be read, or may change without that it shows."""
    return " ".join(map(str, state)) if state and state.is_settled else ""


class FileState(NamedTuple):
    """What changes with a file's content, even if its size and modification time stay (rsync, tar)."""

    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, file: Path | int) -> FileState | None:
        """The state of a file, by its path or descriptor; None if it cannot be read."""
        try:
            status = os.stat(file)
            if not isinstance(file, int) and stat.S_ISREG(status.st_mode):
                with open(file, "rb", buffering=0) as opened:  # only so NFS asks its server instead of its cache
                    status = os.fstat(opened.fileno())
        except (OSError, ValueError):
            return None
        return cls(status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def is_settled(self) -> bool:
        """Whether every later change would show: where times are whole seconds, not another one in the same second."""
        coarse = self.mtime_ns % 10**9 == self.ctime_ns % 10**9 == 0
        return not coarse or abs(time.time_ns() - self.ctime_ns) > CLOCK_SKEW_NS


@dataclass(frozen=True)
class HashResult:
    """The SHA-256 of a file's content, or why the file cannot be read."""

    sha256: str  # in hexadecimal; "" if the file cannot be read
    error: str = ""
    state: FileState | None = None  # when it had this content; None if it changed while it was hashed
    version: str | None = None  # of the remote file of which this is a copy, see `vidcls.data.remote.version_of`


class HashCache:
    """An SQLite file of known hashes, by path, size, inode, modification and change time.

    If it cannot be used (locked, damaged, read-only), that is a warning, and nothing is cached.
    """

    def __init__(self, path: Path, timeout: float = 60.0) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if problem := lock_problem(path.parent):
                raise OSError(problem)
            # Each row is committed at once: a killed run keeps what it hashed, and other runs are not locked out.
            database = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
            database.execute(
                "CREATE TABLE IF NOT EXISTS file_hashes "
                "(path TEXT PRIMARY KEY, size INT, inode INT, mtime_ns INT, ctime_ns INT, sha256 TEXT)"
            )
            database.execute(
                "CREATE TABLE IF NOT EXISTS remote_hashes (url TEXT PRIMARY KEY, version TEXT, sha256 TEXT)"
            )
            self._database = database
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def get(self, file: Path, state: FileState) -> str | None:
        where = "path = ? AND size = ? AND inode = ? AND mtime_ns = ? AND ctime_ns = ?"
        rows = self._execute(f"SELECT sha256 FROM file_hashes WHERE {where}", (readable(file.resolve()), *state))
        return str(rows[0][0]) if rows else None

    def put(self, file: Path, state: FileState, sha256: str) -> None:
        values = (readable(file.resolve()), *state, sha256)
        self._execute("INSERT OR REPLACE INTO file_hashes VALUES (?, ?, ?, ?, ?, ?)", values)

    def get_remote(self, url: str) -> tuple[str, str]:
        """The `vidcls.data.remote.version_of` a remote file when it was fetched and its hash then; or "", ""."""
        rows = self._execute("SELECT version, sha256 FROM remote_hashes WHERE url = ?", (redact(url),))
        return (rows[0][0], rows[0][1]) if rows else ("", "")

    def put_remote(self, url: str, version: str, sha256: str) -> None:
        if version:
            self._execute("INSERT OR REPLACE INTO remote_hashes VALUES (?, ?, ?)", (redact(url), version, sha256))

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _execute(self, statement: str, values: Sequence[object]) -> list[tuple[str, ...]]:
        if self._database is None:
            return []
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self._give_up(error)
            return []

    def _give_up(self, error: Exception) -> None:
        remedy = "every file is hashed again. Remove it if it is damaged."
        warnings.warn(f"{self.path} cannot be used ({error}): {remedy}", stacklevel=2)
        self._database = None


def hash_files(files: Sequence[Path], cache: HashCache | None, console: Console | None = None) -> list[HashResult]:
    """The hashes of ``files``, in their order; cached unless a file changed while it was read."""
    with ThreadPoolExecutor() as pool:  # hashing, reading and waiting for a server release the interpreter
        states = list(pool.map(FileState.of, files))
        known = [cache.get(file, state) if cache and state else None for file, state in zip(files, states, strict=True)]
        results = [HashResult(sha256 or "", "", state) for sha256, state in zip(known, states, strict=True)]
        pending = [index for index, sha256 in enumerate(known) if not sha256]
        hashed = pool.map(lambda index: hash_video(files[index]), pending)
        found = track(hashed, "Hashing", len(pending), console=console, transient=True, disable=len(pending) < 100)
        for index, result in zip(pending, found, strict=True):
            results[index] = result
            if cache and result.state and result.state.is_settled:
                cache.put(files[index], result.state, result.sha256)
    return results


def hash_video(file: Path) -> HashResult:
    """The hash of one file, without a cache."""
    if file.exists() and not file.is_file():  # reading a pipe would never end
        return HashResult("", "the file cannot be read: not a regular file")
    try:
        with file.open("rb", buffering=0) as stream:
            before = FileState.of(stream.fileno())
            sha256 = hash_file(stream)
            return HashResult(sha256, "", before if before == FileState.of(stream.fileno()) else None)
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        return HashResult("", f"the file cannot be read: {getattr(error, 'strerror', None) or error}")
