"""What an ingest has found of each of its videos, and decoding those that the store lacks.

Imports no decoder: only the worker processes of the pool do.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from pebble import ProcessPool
from rich.progress import track

from vidcls.data.decoding.pool import decode_into_store
from vidcls.data.decoding.receiver import largest_first
from vidcls.data.decoding.result import USABLE, DecodeResult, undecodable, unfetchable
from vidcls.data.file_hashes import HashCache, HashResult
from vidcls.data.options import DecodeLimits, FetchLimits
from vidcls.data.parallel_fetch import FetchSpace, fetching
from vidcls.data.remote import FetchedFile, UnfetchableError, try_fetch
from vidcls.data.store import FrameStore
from vidcls.data.urls import is_url


class IngestJob:
    """The state of an ingest of the videos at ``locations``: paths or URLs."""

    def __init__(
        self, locations: list[str], store: FrameStore, cache: HashCache | None, fetch_limits: FetchLimits
    ) -> None:
        self.locations, self.store, self.cache, self.fetch_limits = locations, store, cache, fetch_limits
        self.hashes: list[HashResult | None] = [None] * len(locations)
        self.results: dict[str, DecodeResult] = {}  # by hash
        self.failures: dict[int, DecodeResult] = {}  # by index, of videos without a hash
        self.decoded: set[str] = set()  # hashes of usable contents that were not in the store

    def find_stored(self) -> None:
        wanted = {hashed.sha256 for hashed in self.hashes if hashed} - {"", *self.results}
        with ThreadPoolExecutor() as pool:  # reading and checksums release the interpreter
            found = zip(wanted, pool.map(self.store.find, wanted), strict=True)
            self.results |= {sha256: result for sha256, result in found if result is not None}

    def missing(self) -> list[int]:
        """The indices of videos whose content has no result."""
        return [
            index
            for index, (location, hashed) in enumerate(zip(self.locations, self.hashes, strict=True))
            if (hashed.sha256 not in self.results if hashed and hashed.sha256 else is_url(location))
        ]

    def decode(self, limits: DecodeLimits, folder: Path, pool: ProcessPool | None = None) -> None:
        """Decodes what is missing, in processes of ``pool`` if given; fetches into ``folder``."""
        missing, arrived = self.missing(), list[tuple[str, FetchedFile | None]]()
        if not missing:
            return
        urls = [index for index in missing if is_url(self.locations[index])]

        def fetch(index: int, space: FetchSpace) -> tuple[int, FetchedFile | UnfetchableError]:
            return index, try_fetch(self.locations[index], folder, self.fetch_limits, space)

        with fetching(fetch, urls, folder, self.fetch_limits) as found:
            arrivals = self._arrivals(missing, found, arrived)
            with closing(decode_into_store(arrivals, len(missing), self.store, limits, pool)) as results:
                for number, result in track(results, "Decoding", len(missing), disable=pool is not None):
                    sha256, fetched = arrived[number]
                    self.results[sha256] = result
                    if result.status in USABLE:
                        self.decoded.add(sha256)
                    if fetched is not None:
                        fetched.remove()

    def _arrivals(
        self,
        missing: list[int],
        fetched: Iterator[tuple[int, FetchedFile | UnfetchableError] | None],
        arrived: list[tuple[str, FetchedFile | None]],
    ) -> Iterator[tuple[Path, HashResult] | None]:
        """The files to decode, each content once; appends the hash of each, and the copy to remove, to ``arrived``."""
        local = {
            hashed.sha256: (Path(self.locations[index]), hashed)
            for index in missing
            if not is_url(self.locations[index]) and (hashed := self.hashes[index])
        }
        files = list(local.values())
        for number in largest_first([file for file, _ in files]):
            file, hashed = files[number]
            arrived.append((hashed.sha256, None))
            yield file, hashed
        seen = set(local)
        for one in fetched:
            if one is None:
                yield None
                continue
            index, found = one
            if isinstance(found, UnfetchableError):
                self.failures[index] = unfetchable(str(found))
                continue
            self.hashes[index] = hashed = found.hashed()
            self.remember(index)
            if found.sha256 not in seen and (result := self.store.find(found.sha256)):
                self.results[found.sha256] = result
            if found.sha256 in seen or found.sha256 in self.results:
                found.remove()
                continue
            seen.add(found.sha256)
            arrived.append((found.sha256, found))
            yield found.path, hashed

    def remember(self, index: int) -> None:
        """Caches the hash of a remote video for the next run."""
        if self.cache and (hashed := self.hashes[index]):
            self.cache.put_remote(self.locations[index], hashed.version or "", hashed.sha256)

    def rows(self) -> Iterator[tuple[str, DecodeResult]]:
        for index, hashed in enumerate(self.hashes):
            if index in self.failures:
                yield "", self.failures[index]
            elif hashed and hashed.sha256:
                yield hashed.sha256, self.results[hashed.sha256]
            else:
                yield "", undecodable(hashed.error if hashed else "")
