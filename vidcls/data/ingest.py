"""A list of videos to a store of frames and a manifest: hash, de-duplicate, decode what the store lacks.

An interrupted ingest continues where it was. Imports no decoder: only the worker processes of the pool do.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from vidcls.data.decoding.pool import decode_into_store
from vidcls.data.decoding.result import DecodeResult, undecodable
from vidcls.data.hashing import HashCache, hash_files
from vidcls.data.options import DecodeLimits
from vidcls.data.store import FrameStore
from vidcls.errors import UserError

MANIFEST_COLUMNS = ["path", "label", "split", "creator", "sha256", "status", "reason", "decoder", "seconds", "coverage"]


@dataclass(frozen=True)
class IngestStats:
    """What an ingest has cost.

    Attributes:
        seconds: from start to end.
        decoded: videos that were not in the store and are now.
    """

    seconds: float = 0.0
    decoded: int = 0


def ingest(
    videos: pd.DataFrame, store: FrameStore, limits: DecodeLimits, hash_cache_path: Path
) -> tuple[pd.DataFrame, IngestStats]:
    """Brings every video of a listing into the store; of several runs that need the same, one decodes.

    Args:
        videos: a listing with the columns path, file, label, split and creator, see `vidcls.data.sources`.
        store: where the frames go.
        limits: what one video may cost. Hashing has no limit.
        hash_cache_path: an SQLite file that remembers the SHA-256 of files that have not changed since.

    Returns:
        The manifest (`MANIFEST_COLUMNS` and ``file``, one row per video, in the listing's order) and what it cost.
        ``status`` is ``ok``, ``partial`` (some frames damaged; used) or ``undecodable`` (none; ``reason`` says why).

    Raises:
        UserError: the store cannot be written, as when the disk is full. What was stored until then is kept.
    """
    started = time.monotonic()
    files = [Path(file) for file in videos["file"]]
    cache = HashCache(hash_cache_path)
    try:
        hashes = hash_files(files, cache)
    finally:
        cache.close()
    unique = {found.sha256: file for found, file in zip(hashes, files, strict=True) if found.sha256}
    results = _stored(list(unique), store)
    decoded = 0
    missing = [sha256 for sha256 in unique if sha256 not in results]
    if missing:
        with _locked(store):
            results |= _stored(missing, store)  # another run may have decoded them meanwhile
            missing = [sha256 for sha256 in missing if sha256 not in results]
            found = _decode([unique[sha256] for sha256 in missing], missing, store, limits)
        decoded = sum(result.status != "undecodable" for result in found)
        results |= dict(zip(missing, found, strict=True))
    rows = [
        {"sha256": one.sha256, **asdict(results[one.sha256] if one.sha256 else undecodable(one.error))}
        for one in hashes
    ]
    manifest = pd.concat([videos.reset_index(drop=True), pd.DataFrame(rows, index=range(len(videos)))], axis=1)
    return manifest[[*MANIFEST_COLUMNS, "file"]], IngestStats(time.monotonic() - started, decoded)


def _stored(sha256s: list[str], store: FrameStore) -> dict[str, DecodeResult]:
    """The results of the videos that are stored: for these no process has to start."""
    with ThreadPoolExecutor() as pool:  # reading and checksums release the interpreter
        found = zip(sha256s, pool.map(store.find, sha256s), strict=True)
        return {sha256: result for sha256, result in found if result is not None}


def _locked(store: FrameStore) -> FileLock:
    """The store's lock, acquired; says so if another run holds it."""
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(store.folder / ".ingest.lock")
        try:
            lock.acquire(timeout=2)
        except Timeout:
            print(f"Waiting for another run that decodes into {store.folder}", flush=True)
            lock.acquire()
        return lock
    except OSError as error:
        raise _unwritable(store, error) from error


def _decode(files: list[Path], sha256s: list[str], store: FrameStore, limits: DecodeLimits) -> list[DecodeResult]:
    if not files:
        return []
    try:
        return decode_into_store(files, sha256s, store, limits)
    except OSError as error:
        raise _unwritable(store, error) from error


def _unwritable(store: FrameStore, error: OSError) -> UserError:
    return UserError(
        "cache_dir to be a folder that can be written",
        f"{store.folder}: {error.strerror or error}",
        "Check its permissions, or set another cache_dir.",
        "cache-unwritable",
    )


def read_manifest(path: Path) -> pd.DataFrame:
    """A manifest.csv as it was written: a creator called 007 stays a text."""
    texts = dict.fromkeys(set(MANIFEST_COLUMNS) - {"seconds", "coverage"}, str)
    return pd.read_csv(path, keep_default_na=False, dtype=texts)


def report_bad(manifest: pd.DataFrame, console: Console, limit: int = 20) -> None:
    """Prints the videos that are partial or undecodable, with their reasons."""
    bad = manifest[manifest["status"].isin(["partial", "undecodable"])]
    for row in bad.head(limit).itertuples():
        console.print(Text(row.status, "yellow") + Text(f" {row.path}: {row.reason}"), highlight=False, soft_wrap=True)
    if len(bad) > limit:
        console.print(f"... and {len(bad) - limit} more: see the column status of manifest.csv")
