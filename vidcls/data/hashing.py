"""SHA-256 of many files: in threads, with a progress bar, and remembered for files that have not changed since."""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from vidcls.files import hash_file

Key = tuple[str, int, int, int, int]


@dataclass(frozen=True)
class HashResult:
    """The SHA-256 of a file's content in hexadecimal, or "" and the reason why the file cannot be read."""

    sha256: str
    error: str = ""


class HashCache:
    """An SQLite file of known hashes, by path, size, inode, modification and change time.

    Any trouble with the file (locked, damaged, read-only) is a warning, after which nothing is remembered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Each row is committed at once: a killed run keeps what it hashed, and other runs are not locked out.
            database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            database.execute(
                "CREATE TABLE IF NOT EXISTS file_hashes "
                "(path TEXT PRIMARY KEY, size INT, inode INT, mtime_ns INT, ctime_ns INT, sha256 TEXT)"
            )
            self._database = database
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def get(self, key: Key) -> str | None:
        """The hash of a file that was in this state."""
        where = "path = ? AND size = ? AND inode = ? AND mtime_ns = ? AND ctime_ns = ?"
        rows = self._execute(f"SELECT sha256 FROM file_hashes WHERE {where}", key)
        return str(rows[0][0]) if rows else None

    def put(self, key: Key, sha256: str) -> None:
        self._execute("INSERT OR REPLACE INTO file_hashes VALUES (?, ?, ?, ?, ?, ?)", (*key, sha256))

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _execute(self, statement: str, values: Sequence[object]) -> list[tuple[str]]:
        if self._database is None:
            return []
        try:
            return self._database.execute(statement, values).fetchall()
        except (sqlite3.Error, UnicodeEncodeError) as error:
            self._give_up(error)
            return []

    def _give_up(self, error: Exception) -> None:
        warnings.warn(f"{self.path} cannot be used ({error}): every file is hashed again", stacklevel=2)
        self._database = None


def hash_files(files: Sequence[Path], cache: HashCache | None, console: Console | None = None) -> list[HashResult]:
    """The hashes of ``files``, in their order; one is remembered only if its file did not change while it was read."""
    results: list[HashResult | None] = [None] * len(files)
    pending = []
    for place, file in enumerate(files):
        key = _key_of(file) if cache is not None else None
        sha256 = cache.get(key) if cache is not None and key is not None else None
        if sha256 is None:
            pending.append(place)
        else:
            results[place] = HashResult(sha256)
    with ThreadPoolExecutor() as pool:  # hashing and reading release the interpreter
        hashed = pool.map(lambda place: _hash(files[place]), pending)
        found = track(hashed, "Hashing", len(pending), console=console, transient=True, disable=len(pending) < 100)
        for place, (result, key) in zip(pending, found, strict=True):
            results[place] = result
            if cache is not None and key is not None:
                cache.put(key, result.sha256)
    return [result for result in results if result is not None]


def _hash(file: Path) -> tuple[HashResult, Key | None]:
    """The result, and the state of the file for the cache where that did not change meanwhile."""
    if file.exists() and not file.is_file():  # reading a pipe would never end
        return HashResult("", "the file cannot be read: not a regular file"), None
    try:
        with file.open("rb", buffering=0) as stream:
            before = _key(file, os.fstat(stream.fileno()))
            sha256 = hash_file(stream)
            unchanged = before == _key(file, os.fstat(stream.fileno()))
    except OSError as error:
        return HashResult("", f"the file cannot be read: {error.strerror or error}"), None
    return HashResult(sha256), before if unchanged else None


def _key_of(file: Path) -> Key | None:
    try:
        return _key(file, file.stat())
    except OSError:
        return None


def _key(file: Path, status: os.stat_result) -> Key:
    return str(file.resolve()), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
