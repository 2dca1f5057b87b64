"""A list of videos to a store of frames and a manifest: hash, de-duplicate, decode what the store lacks.

An interrupted ingest continues where it was. Imports no decoder: only the worker processes of the pool do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.text import Text

from vidcls.data.decoding.pool import decode_into_store
from vidcls.data.decoding.result import DecodeResult, undecodable
from vidcls.data.hashing import HashCache, hash_files
from vidcls.data.options import DecodeLimits
from vidcls.data.store import FrameStore
from vidcls.errors import UserError
from vidcls.files import locked

MANIFEST_COLUMNS = ["path", "label", "split", "creator", "sha256", "status", "reason", "decoder", "seconds", "coverage"]
MANIFEST_PATTERNS = {
    "split": "train|val|test|",
    "sha256": "[0-9a-f]{64}|",  # empty: of a file that could not be read
    "status": "ok|partial|undecodable|dropped",
    "seconds": r"\d+(\.\d+)?(e[+-]?\d+)?",
    "coverage": r"[01](\.\d+)?|\d\.\d+e-\d+",
}


@dataclass(frozen=True)
class IngestStats:
    """What an ingest has cost."""

    seconds: float = 0.0
    decoded: int = 0  # videos that were not in the store and are now


def ingest(
    videos: pd.DataFrame, store: FrameStore, limits: DecodeLimits, hash_cache_path: Path
) -> tuple[pd.DataFrame, IngestStats]:
    """Brings every video of a listing (see `vidcls.data.sources`) into the store; hashing has no time limit.

    Gives the manifest (`MANIFEST_COLUMNS` and ``file``, in the listing's order), with a status as in `DecodeResult`.

    Raises:
        UserError: the store cannot be written, as when the disk is full. What was stored until then is kept.
    """
    started = time.monotonic()
    files = [Path(file) for file in videos["file"]]
    with closing(HashCache(hash_cache_path)) as cache:
        hashes = hash_files(files, cache)
    unique = {hashed.sha256: (file, hashed) for file, hashed in zip(files, hashes, strict=True) if hashed.sha256}
    results = _stored(list(unique), store)
    decoded = 0
    missing = [sha256 for sha256 in unique if sha256 not in results]
    if missing:
        with _locked(store):
            results |= _stored(missing, store)  # another run may have decoded them meanwhile
            missing = [sha256 for sha256 in missing if sha256 not in results]
            pairs = [unique[sha256] for sha256 in missing]
            found = decode_into_store([file for file, _ in pairs], [hashed for _, hashed in pairs], store, limits)
        decoded = sum(result.status != "undecodable" for result in found)
        results |= dict(zip(missing, found, strict=True))
    rows = [
        {"sha256": one.sha256, **asdict(results[one.sha256] if one.sha256 else undecodable(one.error))}
        for one in hashes
    ]
    manifest = pd.concat(
        [videos.reset_index(drop=True), pd.DataFrame(rows, range(len(videos)), MANIFEST_COLUMNS[4:])], axis=1
    )
    return manifest[[*MANIFEST_COLUMNS, "file"]], IngestStats(time.monotonic() - started, decoded)


def _stored(sha256s: list[str], store: FrameStore) -> dict[str, DecodeResult]:
    with ThreadPoolExecutor() as pool:  # reading and checksums release the interpreter
        found = zip(sha256s, pool.map(store.find, sha256s), strict=True)
        return {sha256: result for sha256, result in found if result is not None}


@contextmanager
def _locked(store: FrameStore) -> Iterator[None]:
    """Holds the store's lock, so that of several runs that need the same videos one decodes."""
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        with locked(store.folder / ".ingest.lock", f"another run that decodes into {store.folder}"):
            yield
    except OSError as error:
        raise UserError(
            "cache_dir to be a folder that can be written",
            f"{store.folder}: {error.strerror or error}",
            "Check its permissions, or set another cache_dir.",
            "cache-unwritable",
        ) from error


def read_manifest(path: Path) -> pd.DataFrame:
    """A manifest.csv as it was written: a creator called 007 stays a text; raises `UserError` where it is damaged."""
    texts = dict.fromkeys(set(MANIFEST_COLUMNS) - {"seconds", "coverage"}, str)
    try:
        manifest = pd.read_csv(path, keep_default_na=False, dtype=texts)
        if not set(MANIFEST_COLUMNS) <= set(manifest.columns) or not path.read_bytes().endswith(b"\n"):
            raise ValueError("it has other columns, or an end that is missing")
        for name, pattern in MANIFEST_PATTERNS.items():
            if not (fits := manifest[name].astype(str).str.fullmatch(pattern)).all():
                raise ValueError(f"{name} is {manifest[name][~fits].iloc[0]!r}")
        if manifest["path"].duplicated().any():
            raise ValueError("a path is in it twice")
    except (OSError, ValueError) as error:
        got = f"{path}: {' '.join(str(error).split())[:200]}"
        raise UserError("the manifest.csv of a run", got, "Restore it, or start a new run.", "bad-manifest") from error
    return manifest


def report_bad(manifest: pd.DataFrame, console: Console, limit: int = 20) -> None:
    """Prints the videos that are partial or undecodable, with their reasons."""
    bad = manifest[manifest["status"].isin(["partial", "undecodable"])]
    for row in bad.head(limit).itertuples():
        console.print(Text(row.status, "yellow") + Text(f" {row.path}: {row.reason}"), highlight=False, soft_wrap=True)
    if len(bad) > limit:
        console.print(f"... and {len(bad) - limit} more: see the column status of manifest.csv")
