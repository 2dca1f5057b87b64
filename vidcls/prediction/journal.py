"""journal.sqlite: what predict.py has found so far. One transaction per video, so that a killed run can continue.

settings   everything that results depend on
results    one per distinct content: its cells of predictions.csv, its details as JSON, and the limits of its decoding
videos     which result belongs to which path, as bytes, since names need not be UTF-8, and the version of the file then
"""

import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vidcls.errors import UserError
from vidcls.files import readable, write_atomically

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS settings (json TEXT)",
    "CREATE TABLE IF NOT EXISTS results "
    "(id INTEGER PRIMARY KEY, sha256 TEXT UNIQUE, cells TEXT, details TEXT, limits TEXT)",
    "CREATE TABLE IF NOT EXISTS videos (path BLOB PRIMARY KEY, result INTEGER REFERENCES results, version TEXT)",
)


@dataclass(frozen=True)
class VideoDetails:
    """The timeline of a video that could be decoded, as plain values."""

    start_seconds: list[float]  # of its W windows
    end_seconds: list[float]
    probabilities: list[list[float]]  # [W][K]
    segments: list[tuple[str, float, float, float, float]]  # class, and a `vidcls.moderation.timeline.Segment`
    peaks: list[tuple[str, float, float]]  # class, middle of the window, probability
    loops: list[tuple[float, list[str]]]  # of the windows with peaks: its middle, JPEGs in base64
    # The mean of its windows' clip vectors, in the components of the run's reference.
    vector: list[float] = field(default_factory=list)


class Journal:
    """The journal of an output folder, new or to be continued; one process at a time holds it.

    ``settings`` are all that results depend on, as plain values; predict.json gets them too. ``limits`` are what one
    video may cost: a result that is not ok is computed again under others.

    Raises:
        UserError: the folder cannot be written, holds something else, is in use, or was made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], limits: Mapping[str, Any] | None = None) -> None:
        self.folder, self._limits = folder, json.dumps(limits)
        check_output(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                self._database = sqlite3.connect(folder / "journal.sqlite", timeout=1, check_same_thread=False)
                stack.callback(self.close)
                self._open(json.dumps(settings, indent=2))
                stack.pop_all()  # it stays open
        except (OSError, sqlite3.Error, TypeError, ValueError) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                expected, code = "an output folder that no other process writes to", "output-in-use"
                raise UserError(expected, str(folder), "Wait for it, or choose another output=DIR.", code) from None
            raise _unusable(folder, error) from error

    def _open(self, text: str) -> None:
        # A lock that the kernel releases with the process. With it WAL needs no shared memory, which network file
        # systems lack.
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
            self._database.execute(f"PRAGMA {pragma}")
        with self._database as database:
            database.execute("BEGIN EXCLUSIVE")
            for statement in SCHEMA:
                database.execute(statement)
            # Fails in the journal of an earlier version.
            database.execute("SELECT limits, version FROM results, videos LIMIT 0")
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
        """Releases the folder."""
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database as database:
                yield database
        except sqlite3.OperationalError as error:
            remedy = "Free some disk space and rerun the same command; finished videos are kept."
            raise UserError(f"room for the results in {self.folder}", str(error), remedy, "output-full") from error
        except sqlite3.DatabaseError as error:
            raise _unusable(self.folder, f"a damaged journal.sqlite ({error})") from error

    def _select(self, query: str, values: Sequence[object] = ()) -> Iterator[Any]:
        try:
            yield from self._database.execute(query, values)
        except sqlite3.DatabaseError as error:
            raise _unusable(self.folder, f"a damaged journal.sqlite ({error})") from error

    def pending(self, versions: Mapping[str, str | None]) -> list[str]:
        """The names of those videos that have no final result, or another version than when they got it.

        None as a version says that it is not known, and that any result is final; ``""`` that none is. What is not ok
        is tried again under other limits, and what could not be fetched always.
        """
        paths = {os.fsencode(path): path for path in versions}
        query = (
            "SELECT path, version FROM videos JOIN results ON result = id WHERE "
            f"path IN ({', '.join('?' * len(paths))}) AND cells ->> 'status' != 'unfetchable' "
            "AND (cells ->> 'status' = 'ok' OR limits = ?)"
        )
        found = dict(self._select(query, [*paths, self._limits]))
        return [
            name
            for path, name in paths.items()
            if path not in found or versions[name] not in (None, found[path] or None)
        ]

    def assign(self, hashes: Mapping[str, str], versions: Mapping[str, str]) -> set[str]:
        """Records which content (SHA-256) each path has now; returns the contents that are to be classified.

        Those are the new ones, and those with a result that is not ok and had other limits; it is kept until then.
        """
        with self._transaction() as database:
            database.executemany("DELETE FROM videos WHERE path = ?", ([os.fsencode(path)] for path in hashes))
            query = "INSERT INTO videos SELECT ?, id, ? FROM results WHERE sha256 = ?"
            rows = ((os.fsencode(path), versions[path], sha256) for path, sha256 in hashes.items())
            database.executemany(query, rows)
        query = "SELECT 1 FROM results WHERE sha256 = ? AND (cells ->> 'status' = 'ok' OR limits = ?)"
        return {sha256 for sha256 in hashes.values() if not list(self._select(query, [sha256, self._limits]))}

    def write(
        self, versions: Mapping[str, str], sha256: str, cells: Mapping[str, str], details: VideoDetails | None
    ) -> None:
        """Adds the result of videos with one content, whose hash is "" where it is not known.

        ``versions`` are those of the videos by path; ``cells`` are the columns of predictions.csv but for path and
        sha256; ``details`` is None if there are no frames.
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
        """`rows`, and the details of each."""
        query = "SELECT path, sha256, cells, details FROM videos JOIN results ON result = id ORDER BY path"
        return ((_row(*found), _details(text)) for *found, text in self._select(query))

    def contents(
        self, paths: Collection[str] | None = None, single_window: bool = False
    ) -> Iterator[tuple[dict[str, str], list[float]]]:
        """The row of each decoded content, of one of ``paths`` if given, and its clip vector.

        By hash, so that the first are a random choice. Those of which the network has returned NaN are left out.
        """
        # A cross join keeps SQLite to this order of tables: first rows come at once, and no details are sorted.
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
        """The paths with each of these contents, sorted."""
        found: dict[str, list[str]] = {sha256: [] for sha256 in sha256s}
        query = "SELECT path, sha256 FROM videos JOIN results ON result = id ORDER BY path"
        for path, sha256 in self._select(query):
            if sha256 in found:
                found[sha256].append(readable(path))
        return found

    def num_missing(self, paths: Iterable[str]) -> int:
        """How many of these videos have no result at all."""
        query = "SELECT 1 FROM videos WHERE path = ?"
        return sum(not list(self._select(query, [os.fsencode(path)])) for path in paths)

    def counts(self) -> dict[tuple[str, str], int]:
        """How many videos have which status and decision."""
        values = "cells ->> 'status', cells ->> 'decision'"
        query = f"SELECT {values}, count(*) FROM videos JOIN results ON result = id GROUP BY {values}"
        return {(status, decision): count for status, decision, count in self._select(query)}

    def details(self, sha256: str) -> VideoDetails | None:
        """The details of a content; None where it could not be decoded."""
        found = list(self._select("SELECT details FROM results WHERE sha256 = ?", [sha256]))
        return _details(found[0][0]) if found else None


def _row(path: bytes, sha256: str | None, cells: str) -> dict[str, str]:
    return {"path": readable(path), "sha256": sha256 or "", **json.loads(cells)}


def _details(text: str | None) -> VideoDetails | None:
    if not text:
        return None
    values = json.loads(text)
    if "loops" not in values:  # earlier versions have kept a single frame with each peak
        values["loops"] = list({seconds: [jpeg] for _, seconds, _, jpeg in values["peaks"]}.items())
        values["peaks"] = [peak[:3] for peak in values["peaks"]]
    return VideoDetails(
        **values | {name: [tuple(one) for one in values[name]] for name in ("segments", "peaks", "loops")}
    )


def check_output(folder: Path) -> None:
    """Refuses an output folder that predict.py could not use, without changing anything."""
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
