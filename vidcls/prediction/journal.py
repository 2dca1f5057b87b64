"""journal.sqlite: the results of predict.py so far. One transaction per video, so that a killed run can continue.

settings   everything that results depend on
results    one per distinct content: its cells of predictions.csv, its details as JSON, and its decode limits
videos     the result of each path (as bytes, since names need not be UTF-8), and the version of the file at that time
"""

import ctypes
import json
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vidcls.errors import UserError
from vidcls.files import Owner, lock_problem, readable, write_atomically

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS settings (json TEXT)",
    "CREATE TABLE IF NOT EXISTS results "
    "(id INTEGER PRIMARY KEY, sha256 TEXT UNIQUE, cells TEXT, details TEXT, limits TEXT)",
    "CREATE TABLE IF NOT EXISTS videos (path BLOB PRIMARY KEY, result INTEGER REFERENCES results, version TEXT)",
)


@dataclass(frozen=True)
class VideoDetails:
    """The timeline of a decoded video, as plain values."""

    start_seconds: list[float]  # of its W windows
    end_seconds: list[float]
    probabilities: list[list[float]]  # [W][K]
    segments: list[tuple[str, float, float, float, float]]  # class, and a `vidcls.moderation.timeline.Segment`
    peaks: list[tuple[str, float, float]]  # class, middle of the window, probability
    loops: list[tuple[float, list[str]]]  # of the windows with peaks: its middle, JPEGs in base64
    vector: list[float] = field(default_factory=list)  # the mean clip vector, in the run's reference components


class Journal:
    """The journal of a new or existing output folder, for one process at a time.

    ``settings`` are all that results depend on, as plain values, also written to predict.json. ``limits`` are the
    decode limits of a video: if they change, results that are not ok are computed again.

    Raises:
        UserError: the folder cannot be written, holds something else, is in use, or was made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], limits: Mapping[str, Any] | None = None) -> None:
        self.folder, self._limits = folder, json.dumps(limits)
        self._lost: UserError | None = None
        check_output(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if problem := lock_problem(folder):
                expected, remedy = "output= to be a folder with file locks", "Choose an output=DIR on a local disk."
                raise UserError(expected, f"{folder}: {problem}", remedy, "output-locks")
            self._open(json.dumps(settings, indent=2))
            self._owner = Owner(folder / ".owner")
            if self._owner.before and os.uname().nodename not in self._owner.before:
                self._database.close()
                time.sleep(2)  # should that process still run, and locks not hold between machines: it ends now
                self._open(json.dumps(settings, indent=2))
        except (OSError, sqlite3.Error, TypeError, ValueError) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                expected, code = "an output folder that no other process writes to", "output-in-use"
                remedy = "Wait for it, or choose another output=DIR. If its machine died, NFS frees it in two minutes."
                raise UserError(expected, str(folder), remedy, code) from None
            raise _unusable(folder, error) from error

    def _open(self, text: str) -> None:
        with ExitStack() as stack:
            self._database = sqlite3.connect(self.folder / "journal.sqlite", timeout=1, check_same_thread=False)
            stack.callback(self._database.close)
            self._prepare(text)
            stack.pop_all()  # keeps it open

    def _prepare(self, text: str) -> None:
        # The kernel releases this lock with the process. With it WAL needs no shared memory, which network file systems
        # lack.
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
            self._database.execute(f"PRAGMA {pragma}")
        with self._database as database:
            database.execute("BEGIN EXCLUSIVE")
            for statement in SCHEMA:
                database.execute(statement)
            database.execute("INSERT INTO settings SELECT ? WHERE NOT EXISTS (SELECT 1 FROM settings)", (text,))
            (found,) = database.execute("SELECT json FROM settings").fetchone()
        before, now = json.loads(found), json.loads(text)
        if differing := [name for name in now if before.get(name) != now[name]]:
            raise UserError(
                f"an output folder made with the same {', '.join(differing)}",
                f"{self.folder}, made with {', '.join(f'{name}={before.get(name)}' for name in differing)}",
                "Choose another output=DIR, or use the same settings to continue that one.",
                "other-settings",
            )
        write_atomically(self.folder / "predict.json", text.encode())

    def close(self) -> None:
        with suppress(UserError):
            self._check_owner()
            self._database.close()
            self._owner.release()

    def _check_owner(self) -> None:
        """Raises `UserError` if another process has opened the journal since, where locks could not prevent it."""
        try:
            if self._lost is None:
                self._owner.check()
        except UserError as error:
            self._lost = error
            # It must never be closed, not even at exit: that would write into what is now the other's.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database))
        if self._lost is not None:
            raise self._lost

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._check_owner()
        try:
            with self._database as database:
                yield database
        except sqlite3.OperationalError as error:
            remedy = "Free some space, or check the disk, and rerun the same command; finished videos are kept."
            raise UserError(f"room for the results in {self.folder}", str(error), remedy, "output-full") from error
        except sqlite3.DatabaseError as error:
            raise _unusable(self.folder, f"a damaged journal.sqlite ({error})") from error

    def _select(self, query: str, values: Sequence[object] = ()) -> Iterator[Any]:
        try:
            yield from self._database.execute(query, values)
        except sqlite3.DatabaseError as error:
            raise _unusable(self.folder, f"a damaged journal.sqlite ({error})") from error

    def pending(self, versions: Mapping[str, str]) -> list[str]:
        """The names of the videos without a final result for their current version.

        For ``""`` no result is final; for a version that ends with a space, one for any version that begins with it.
        Results that are not ok are not final under other limits, and those of unfetchable videos never.
        """
        paths = {os.fsencode(path): path for path in versions}
        query = (
            "SELECT path, version FROM videos JOIN results ON result = id WHERE "
            f"path IN ({', '.join('?' * len(paths))}) AND cells ->> 'status' != 'unfetchable' "
            "AND (cells ->> 'status' = 'ok' OR limits = ?)"
        )
        found = dict(self._select(query, [*paths, self._limits]))

        def is_final(known: str, version: str) -> bool:
            return known.startswith(version) if version.endswith(" ") else known == version != ""

        return [name for path, name in paths.items() if not is_final(found.get(path, ""), versions[name])]

    def assign(self, hashes: Mapping[str, str], versions: Mapping[str, str]) -> set[str]:
        """Records the content (SHA-256) of each path; returns the contents to classify.

        Those are new ones, and ones with a result that is not ok under other limits, which is kept until replaced.
        """
        with self._transaction() as database:
            database.executemany("DELETE FROM videos WHERE path = ?", ([os.fsencode(path)] for path in hashes))
            query = "INSERT INTO videos SELECT ?, id, ? FROM results WHERE sha256 = ?"
            rows = ((os.fsencode(path), versions[path], sha256) for path, sha256 in hashes.items())
            database.executemany(query, rows)
        query = "SELECT 1 FROM results WHERE sha256 = ? AND (cells ->> 'status' = 'ok' OR limits = ?)"
        return {sha256 for sha256 in set(hashes.values()) if not list(self._select(query, [sha256, self._limits]))}

    def write(
        self, versions: Mapping[str, str], sha256: str, cells: Mapping[str, str], details: VideoDetails | None
    ) -> None:
        """Adds the result of a content, whose hash is "" if unknown, for the paths in ``versions``.

        ``cells`` are the columns of predictions.csv except path and sha256; ``details`` is None if there are no frames.
        """
        texts = json.dumps(cells), None if details is None else json.dumps(asdict(details)), self._limits
        replace = (
            "ON CONFLICT DO UPDATE SET cells = excluded.cells, details = excluded.details, limits = excluded.limits"
        )
        with self._transaction() as database:
            inserted = f"INSERT INTO results VALUES (NULL, ?, ?, ?, ?) {replace} RETURNING id"
            ((number,),) = database.execute(inserted, (sha256 or None, *texts)).fetchall()
            rows = ((os.fsencode(path), number, version) for path, version in versions.items())
            database.executemany("REPLACE INTO videos VALUES (?, ?, ?)", rows)

    def rows(self) -> Iterator[dict[str, str]]:
        """The rows of predictions.csv, sorted by path."""
        query = "SELECT path, sha256, cells FROM videos JOIN results ON result = id ORDER BY path"
        return (_row(*found) for found in self._select(query))

    def rows_and_details(self) -> Iterator[tuple[dict[str, str], VideoDetails | None]]:
        self._check_owner()
        query = "SELECT path, sha256, cells, details FROM videos JOIN results ON result = id ORDER BY path"
        return ((_row(*found), _details(text)) for *found, text in self._select(query))

    def contents(
        self, paths: Collection[str] | None = None, single_window: bool = False
    ) -> Iterator[tuple[dict[str, str], list[float]]]:
        """The row of each decoded content, with one of ``paths`` if given, and its clip vector.

        Ordered by hash, so that the first ones are a random sample. Those with NaN from the network are left out.
        """
        # A cross join makes SQLite use this order of tables, so that first rows come at once and no details are sorted.
        query = (
            "SELECT path, sha256, cells, details ->> 'vector' FROM results CROSS JOIN videos ON result = id "
            "WHERE json_valid(details) AND sha256 IS NOT NULL AND (NOT ? OR cells ->> 'windows' = '1') "
            "ORDER BY sha256, path"
        )
        before = ""
        for path, sha256, cells, vector in self._select(query, [single_window]):
            if sha256 != before and (paths is None or readable(path) in paths):
                before = sha256
                yield _row(path, sha256, cells), json.loads(vector or "[]")

    def copies(self, sha256s: Collection[str]) -> dict[str, list[str]]:
        """The sorted paths of each of these contents."""
        found: dict[str, list[str]] = {sha256: [] for sha256 in sha256s}
        query = "SELECT path, sha256 FROM videos JOIN results ON result = id ORDER BY path"
        for path, sha256 in self._select(query):
            if sha256 in found:
                found[sha256].append(readable(path))
        return found

    def num_missing(self, paths: Iterable[str]) -> int:
        """The number of these videos without any result."""
        query = "SELECT 1 FROM videos WHERE path = ?"
        return sum(not list(self._select(query, [os.fsencode(path)])) for path in paths)

    def counts(self) -> dict[tuple[str, str], int]:
        """The number of videos by status and decision."""
        values = "cells ->> 'status', cells ->> 'decision'"
        query = f"SELECT {values}, count(*) FROM videos JOIN results ON result = id GROUP BY {values}"
        return {(status, decision): count for status, decision, count in self._select(query)}

    def details(self, sha256: str) -> VideoDetails | None:
        """The details of a content; None if it could not be decoded."""
        found = list(self._select("SELECT details FROM results WHERE sha256 = ?", [sha256]))
        return _details(found[0][0]) if found else None


def _row(path: bytes, sha256: str | None, cells: str) -> dict[str, str]:
    return {"path": readable(path), "sha256": sha256 or "", **json.loads(cells)}


def _details(text: str | None) -> VideoDetails | None:
    if not text:
        return None
    values = json.loads(text)
    return VideoDetails(
        **values | {name: [tuple(one) for one in values[name]] for name in ("segments", "peaks", "loops")}
    )


def check_output(folder: Path) -> None:
    """Raises `UserError` for an output folder that predict.py cannot use; changes nothing."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise _unusable(folder, f"{existing} is not a writable folder")
    found = os.listdir(folder) if folder.exists() else []  # at once: another process may be creating the journal
    if found and "journal.sqlite" not in found:
        raise UserError(
            "output= to be a new or empty folder, or one with a journal.sqlite of predict.py",
            f"{folder}, which holds {min(found)}",
            "Choose another output=DIR.",
            "foreign-output",
        )


def _unusable(folder: Path, why: object) -> UserError:
    return UserError("output= to be a writable folder", f"{folder}: {why}", "Choose another output=DIR.", "output")
