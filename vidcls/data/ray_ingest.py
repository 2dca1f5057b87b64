"""engine=ray for `vidcls.data.ingest`: readers on a cluster decode into a store that its machines share."""

import asyncio
import math
import secrets
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from pathlib import Path

import ray
from rich.console import Console

from vidcls.data.cluster import (
    QUARANTINED,
    BaseReader,
    Driver,
    RunningReader,
    Shard,
    cut,
    start_ray,
)
from vidcls.data.decoding.pool import create_store_pool
from vidcls.data.decoding.result import USABLE, DecodeResult, undecodable
from vidcls.data.decoding.worker import CHANGED
from vidcls.data.file_hashes import HashResult, hash_video
from vidcls.data.ingest_job import IngestJob
from vidcls.data.machines import SickMachineError, count_readers, fetch_share, naming_machine, not_shared, seen_here
from vidcls.data.options import DecodeLimits, EngineOptions, FetchLimits
from vidcls.data.store import FrameStore
from vidcls.data.urls import is_url
from vidcls.errors import UserError

MAX_SHARD = 32  # videos


def decode_on_ray(job: IngestJob, limits: DecodeLimits, engine: EngineOptions) -> None:
    """`IngestJob.decode` on a cluster whose machines find videos and store at the same paths."""
    if not job.missing():
        return
    started = not ray.is_initialized()
    start_ray(engine, limits)
    store = copy(job.store)
    store.folder = store.folder.resolve()
    proof = store.folder / f".shared-{secrets.token_hex(4)}"
    proof.touch()
    try:
        asyncio.run(_Driver(job, store, proof, limits).run(Console()))
    finally:
        proof.unlink()
    if started:  # not after an error: it would wait for a head that is lost
        ray.shutdown()  # what comes next may want the memory


class StoreReader(BaseReader):
    """Fetches videos, and decodes them into a store in a confined process."""

    def __init__(
        self, store: FrameStore, proof: Path, limits: DecodeLimits, fetch_limits: FetchLimits, prefix: str
    ) -> None:
        super().__init__(prefix)
        self._store, self._proof = store, proof
        self._limits, self._fetch_limits = replace(limits, workers=1), fetch_limits
        self._stack = ExitStack()
        self._pool = self._stack.enter_context(create_store_pool(self._limits, 1, store))

    @naming_machine()
    def decode(self, locations: list[str], hashes: Sequence[HashResult | None]) -> IngestJob:
        """Decodes these videos, unless the store has them; a file that has another content here loses its hash.

        Raises:
            UserError: the store is not shared with the driver, or cannot be written.
        """
        if not self._proof.exists():
            got = f"{self._store.folder}, which is another folder on one of them"
            remedy = "Set cache_dir to a folder on a shared file system."
            raise UserError("the machines of the cluster to share cache_dir", got, remedy, "shared-paths")
        job = IngestJob(locations, self._store, None, self._fetch_limits)
        job.hashes = [_seen_here(*video) for video in zip(locations, hashes, strict=True)]
        job.find_stored()  # decoded by a reader that died, or under another name
        folder = self.make_folder()
        try:
            job.decode(self._limits, folder / "fetched", self._pool)
        except (BrokenExecutor, RuntimeError) as error:
            raise SickMachineError(f"no decoding process can be started: {error}") from None
        finally:
            self.remove(folder)
        for index, hashed in enumerate(job.hashes):
            result = job.results.get(hashed.sha256) if hashed else None
            if hashed and result and result.status != "ok" and not is_url(locations[index]):
                here = hash_video(Path(locations[index]))  # perhaps it cannot be read any more
                job.hashes[index] = hashed if here.sha256 == hashed.sha256 else HashResult("", here.error)
        return job


def _seen_here(location: str, hashed: HashResult | None) -> HashResult | None:
    """A hash with the file's state on this machine, or why it is not that of the file here."""
    if hashed is None or is_url(location):
        return hashed
    here = seen_here(Path(location), hashed)
    return here if here.sha256 == hashed.sha256 else HashResult("", here.error)


class _Driver(Driver):  # its items are indices of videos in ``job``
    reader, doing = StoreReader, "Decoding"

    def __init__(self, job: IngestJob, store: FrameStore, proof: Path, limits: DecodeLimits) -> None:
        self._job, self._num_done = job, 0
        indices = dict[str | int, int]()  # of files each content once
        for index in job.missing():
            hashed = job.hashes[index]
            indices[hashed.sha256 if hashed and not is_url(job.locations[index]) else index] = index
        num_readers = count_readers(limits, len(indices))
        arguments = store, proof, limits, fetch_share(job.fetch_limits, num_readers)
        super().__init__(lambda _: arguments, num_readers, len(indices), store.folder)
        most = min(math.ceil(len(indices) / (4 * num_readers)), MAX_SHARD)  # so that all end at about the same time
        for shard in cut([(index, self._size(index)) for index in indices.values()], most):
            self.put(Shard(shard))

    def _size(self, index: int) -> int:
        hashed = self._job.hashes[index]
        return hashed.state.size if hashed and hashed.state else 0

    def num_done(self) -> int:
        return self._num_done

    async def read(self, reader: RunningReader, shard: Shard) -> None:
        job, indices = self._job, list(shard.items)
        again = Shard()
        if indices:
            arguments = [job.locations[index] for index in indices], [job.hashes[index] for index in indices]
            done: IngestJob = await reader.actor.decode.remote(*arguments)
            doubted = {sha256 for sha256, result in done.results.items() if self.doubts(reader, sha256, result)}
            for number, index in enumerate(indices):
                hashed, failure = done.hashes[number], done.failures.get(number)
                if (hashed and hashed.sha256 in doubted) or (failure and self.doubts(reader, index, failure)):
                    again.items.append(index)
                else:
                    self._take(index, hashed, failure, reader)
            for sha256, result in done.results.items():
                if sha256 in doubted:
                    continue
                if result.status in USABLE:  # though another file with this content was damaged meanwhile
                    job.results[sha256] = result
                job.results.setdefault(sha256, result)
            job.decoded |= done.decoded  # two readers may have fetched the same content
            self.progressed(reader)
        shard.items = []
        self._num_done += len(indices) - len(again.items)
        if again.items:
            self.leave_to_others(reader, again)

    def _take(self, index: int, hashed: HashResult | None, failure: DecodeResult | None, reader: RunningReader) -> None:
        location, known = self._job.locations[index], self._job.hashes[index]
        if failure:
            self._job.failures[index] = failure
        elif is_url(location):
            self._job.hashes[index] = hashed
            self._job.remember(index)
        elif hashed and known and not hashed.sha256:
            if hash_video(Path(location)).sha256 == known.sha256:
                raise not_shared(Path(location), hashed, reader.machine)
            self._job.results.setdefault(known.sha256, undecodable(CHANGED))

    def give_up(self, item: int) -> None:
        hashed = self._job.hashes[item]
        if hashed and hashed.sha256:
            self._job.results.setdefault(hashed.sha256, undecodable(QUARANTINED))
        else:
            self._job.failures[item] = undecodable(QUARANTINED)
        self._num_done += 1
