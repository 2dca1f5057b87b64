"""From listed videos to stored frames and a manifest: hash or fetch, de-duplicate, decode what the store lacks.

An interrupted ingest can be repeated. Imports no decoder: only the worker processes of the pool do.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rich.progress import track

from vidcls.data.file_hashes import HashCache, HashResult, hash_files
from vidcls.data.ingest_job import IngestJob
from vidcls.data.manifest import INGESTED, MANIFEST_COLUMNS
from vidcls.data.options import DecodeLimits, EngineOptions, FetchLimits
from vidcls.data.remote import remote_version
from vidcls.data.store import FrameStore
from vidcls.data.urls import is_url
from vidcls.errors import UserError
from vidcls.files import locked


@dataclass(frozen=True)
class IngestStats:
    seconds: float = 0.0
    decoded: int = 0  # videos that were not in the store and are now


def ingest(
    videos: pd.DataFrame,
    store: FrameStore,
    limits: DecodeLimits,
    hash_cache_path: Path,
    fetch_limits: FetchLimits | None = None,
    engine: EngineOptions | None = None,
) -> tuple[pd.DataFrame, IngestStats]:
    """Decodes every video of a `vidcls.data.sources.Listing` into the store; hashing has no time limit.

    A video behind a URL is fetched unless its version is that of a stored one; its copy is then removed. Returns the
    manifest (`MANIFEST_COLUMNS` and ``file``, in the listing's order).

    Raises:
        UserError: the store cannot be written, as when the disk is full. What was stored until then is kept.
    """
    started = time.monotonic()
    with closing(HashCache(hash_cache_path)) as cache:
        job = IngestJob(list(videos["file"]), store, cache, fetch_limits or FetchLimits())
        job.hashes = known_hashes(videos, cache, job.fetch_limits)
        job.find_stored()
        if job.missing():
            with _locked(store):
                job.find_stored()  # another run may have decoded them meanwhile
                if engine and engine.name == "ray":
                    from vidcls.data.ray_ingest import decode_on_ray

                    decode_on_ray(job, limits, engine)
                else:
                    job.decode(limits, store.folder / "fetched")
    rows = [{"sha256": sha256, **asdict(result)} for sha256, result in job.rows()]
    ingested = pd.DataFrame(rows, range(len(videos)), INGESTED)
    manifest = pd.concat([videos.reset_index(drop=True), ingested], axis=1).assign(label_source="folder", cluster="")
    return manifest[[*MANIFEST_COLUMNS, "file"]], IngestStats(time.monotonic() - started, len(job.decoded))


def known_hashes(videos: pd.DataFrame, cache: HashCache, limits: FetchLimits) -> list[HashResult | None]:
    """The hashes of listed videos, without fetching any: None for a remote video that would have to be fetched.

    A remote video that has changed since it was fetched has the hash "".
    """
    locations = list(videos["file"])
    local = [index for index, location in enumerate(locations) if not is_url(location)]
    hashes: list[HashResult | None] = [None] * len(locations)
    for index, hashed in zip(local, hash_files([Path(locations[index]) for index in local], cache), strict=True):
        hashes[index] = hashed
    known = {index: cache.get_remote(url) for index, url in enumerate(locations) if is_url(url)}
    known = {index: found for index, found in known.items() if found[0]}
    listed = list(videos["version"]) if "version" in videos else [""] * len(locations)
    with ThreadPoolExecutor(limits.workers) as pool:
        now = pool.map(lambda index: listed[index] or remote_version(locations[index], limits), known)
        found = track(now, "Checking URLs", len(known), transient=True, disable=len(known) < 100)
        for (index, (version, sha256)), current in zip(known.items(), found, strict=True):
            if current:
                hashes[index] = HashResult(sha256 if current == version else "")
    return hashes


@contextmanager
def _locked(store: FrameStore) -> Iterator[None]:
    """Holds the store's lock, so that of several runs that need the same videos only one decodes them."""
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
