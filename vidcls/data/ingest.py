"""A list of videos to a store of frames and a manifest, in worker processes that can be killed.

Each video is hashed, looked up in the store, and decoded only if it is not there: an interrupted ingest goes on where
it was. A video that hangs a decoder, crashes it or eats memory takes one worker with it, never the run.
"""

from __future__ import annotations

import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from pebble import ProcessExpired, ProcessFuture, ProcessPool
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from vidcls.data.decoding.frames import DECODERS
from vidcls.data.decoding.worker import ingest_one, start_worker, undecodable
from vidcls.data.options import DecodeLimits
from vidcls.data.store import Store
from vidcls.errors import UserError

MANIFEST_COLUMNS = ["path", "label", "split", "creator", "sha256", "status", "reason", "decoder", "seconds", "coverage"]


@dataclass(frozen=True)
class Cost:
    """What an ingest has cost.

    Attributes:
        seconds: from start to end.
        decoded: videos that were not in the store and are now.
    """

    seconds: float = 0.0
    decoded: int = 0


def ingest(videos: pd.DataFrame, store: Store, limits: DecodeLimits, hashes_path: Path) -> tuple[pd.DataFrame, Cost]:
    """Brings every video of a listing into the store; of several runs that want the same, one decodes.

    Args:
        videos: a listing with the columns path, file, label, split and creator, see `vidcls.data.sources`.
        store: where the frames go.
        limits: what one video may cost.
        hashes_path: an SQLite file that remembers the SHA-256 of files that have not changed since.

    Returns:
        The manifest (`MANIFEST_COLUMNS` and ``file``, one row per video, in the listing's order) and what it cost.
        ``status`` is ``ok``, ``partial`` (some frames damaged; used) or ``undecodable`` (none; ``reason`` says why).

    Raises:
        UserError: the disk is full. What was stored until then is kept.
    """
    started = time.monotonic()
    files = [Path(file) for file in videos["file"]]
    hashes = _Hashes(hashes_path)
    try:
        results = _stored(files, store, hashes)
        missing = [row for row, result in enumerate(results) if result is None]
        if missing:
            store.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(store.folder / ".ingest.lock"):
                found = _read([files[row] for row in missing], store, limits, hashes)
            for row, result in zip(missing, found, strict=True):
                results[row] = result
    finally:
        hashes.close()
    decoded = sum(bool(result.pop("decoded", False)) for result in results if result is not None)
    manifest = pd.concat([videos.reset_index(drop=True), pd.DataFrame(results, index=range(len(videos)))], axis=1)
    return manifest[[*MANIFEST_COLUMNS, "file"]], Cost(time.monotonic() - started, decoded)


def _stored(files: list[Path], store: Store, hashes: _Hashes) -> list[dict[str, Any] | None]:
    """What is known of the files whose content is hashed and stored: no process has to start for these."""
    known = [hashes.get(file) for file in files]
    with ThreadPoolExecutor() as pool:  # reading and checksums leave other threads alone
        readings = list(pool.map(lambda sha256: store.find(sha256) if sha256 else None, known))
    return [
        None if reading is None else {"sha256": sha256, **asdict(reading)}
        for sha256, reading in zip(known, readings, strict=True)
    ]


def _read(files: list[Path], store: Store, limits: DecodeLimits, hashes: _Hashes) -> list[dict[str, Any]]:
    """Hashes the files, and decodes those whose content is not stored, in processes that can be killed."""
    results: list[dict[str, Any]] = [{} for _ in files]
    pool = ProcessPool(
        # spawn: a forked child would inherit the threads' locks of the training process
        max_workers=min(limits.workers or os.cpu_count() or 1, len(files)),
        context=get_context("spawn"),
        initializer=start_worker,
        initargs=[limits.memory_gigabytes],
    )
    try:
        pending: list[tuple[int, Path, tuple[str, ...], ProcessFuture]] = []

        def submit(row: int, file: Path, decoders: tuple[str, ...]) -> None:
            arguments = [file, hashes.get(file), store, decoders]
            pending.append((row, file, decoders, pool.schedule(ingest_one, arguments, timeout=limits.timeout_seconds)))

        # Large files first: one that comes last would keep a single worker busy while the others are done.
        for row in sorted(range(len(files)), key=lambda row: -file_size(files[row])):
            submit(row, files[row], DECODERS)
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
        ) as progress:
            for row, file, decoders, future in progress.track(pending, len(pending), description="Decoding"):
                try:
                    results[row] = future.result()
                    hashes.put(file, results[row]["sha256"])
                except (FutureTimeoutError, ProcessExpired, MemoryError) as error:
                    reason = f"{decoders[0]}: {why_lost(error, limits)}"
                    if len(decoders) > 1:  # the decoder is gone with its worker: the next one gets its own chance
                        submit(row, file, decoders[1:])
                    earlier = results[row].get("reason")
                    results[row] = undecodable("", f"{earlier}; {reason}" if earlier else reason)
        pool.close()
    finally:
        pool.stop()
        pool.join()
    return results


def read_manifest(path: Path) -> pd.DataFrame:
    """A manifest.csv as it was written: a creator called 007 stays a text."""
    texts = dict.fromkeys(set(MANIFEST_COLUMNS) - {"seconds", "coverage"}, str)
    return pd.read_csv(path, keep_default_na=False, dtype=texts)


def report_bad(manifest: pd.DataFrame, console: Console, most: int = 20) -> None:
    """Prints the videos that are partial or undecodable, with their reasons."""
    bad = manifest[manifest["status"].isin(["partial", "undecodable"])]
    for row in bad.head(most).itertuples():
        console.print(Text(row.status, "yellow") + Text(f" {row.path}: {row.reason}"), highlight=False, soft_wrap=True)
    if len(bad) > most:
        console.print(f"... and {len(bad) - most} more: see the column status of manifest.csv")


def file_size(file: Path) -> int:
    """In bytes; 0 where it cannot be told."""
    try:
        return file.stat().st_size
    except OSError:  # its worker will say what is wrong with it
        return 0


def why_lost(error: BaseException, limits: DecodeLimits) -> str:
    """What became of a decoding process that gave no result, in words."""
    if isinstance(error, FutureTimeoutError):
        return f"timed out after {limits.timeout_seconds:g} s (data.decode.timeout_seconds)"
    if isinstance(error, MemoryError):
        return f"needs more than {limits.memory_gigabytes:g} GB (data.decode.memory_gigabytes)"
    return f"the decoding process died ({error})"


class _Rate(ProgressColumn):
    """Videos per second since the start."""

    def render(self, task: Task) -> Text:
        rate = task.completed / task.elapsed if task.elapsed else 0.0
        return Text(f"{rate:.1f} videos/s", style="progress.data.speed")


class _Hashes:
    """SHA-256 of files by path, size and modification time, so that terabytes are not read again for every run."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Each row is committed at once: a killed ingest keeps what it hashed, and other runs are not locked out.
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS hashes (key TEXT PRIMARY KEY, sha256 TEXT)")
        except sqlite3.DatabaseError as error:
            raise UserError("an SQLite file of known hashes", f"{path}: {error}", "Delete that file.") from error

    def get(self, file: Path) -> str | None:
        row = self._database.execute("SELECT sha256 FROM hashes WHERE key = ?", (self._key(file),)).fetchone()
        return row[0] if row else None

    def put(self, file: Path, sha256: str) -> None:
        if sha256:
            self._database.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?)", (self._key(file), sha256))

    def close(self) -> None:
        self._database.close()

    @staticmethod
    def _key(file: Path) -> str:
        try:
            status = file.stat()
        except OSError:
            return f"{file}|missing"
        return f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}"
