"""engine=ray: the same results as `vidcls.prediction.pipeline`, computed on a cluster; see docs/scale.md.

This process lists videos and writes the journal. It distributes shards, a few videos each, to readers (one CPU each),
which fetch and decode them, send batches of windows to networks (one per GPU) and return results. Readers that die are
replaced by `vidcls.data.cluster`; networks are restarted by Ray, which repeats their calls.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console

from vidcls.data.cluster import (
    QUARANTINED,
    Driver,
    RunningReader,
    Shard,
    cut,
)
from vidcls.data.decoding.result import undecodable, unfetchable
from vidcls.data.decoding.worker import CHANGED
from vidcls.data.file_hashes import FileState, HashCache, HashResult, hash_video
from vidcls.data.machines import count_readers, fetch_share, not_shared, num_machines
from vidcls.data.options import DecodeLimits, EngineOptions, FetchLimits
from vidcls.data.remote import UnfetchableError
from vidcls.data.urls import is_url
from vidcls.moderation.policy import Policy
from vidcls.prediction.catalogue import LONG_WINDOWS, MAX_READS, Catalogue, Content
from vidcls.prediction.coarse_search import CoarseSearch
from vidcls.prediction.journal import Journal
from vidcls.prediction.options import PredictOptions
from vidcls.prediction.ray_workers import LONG, Found, Network, Reader, ReaderConfig
from vidcls.prediction.run import BaseRun
from vidcls.prediction.video_result import build_result

SHARD_BATCHES = 8  # per shard, at most


def predict_on_ray(
    videos: Mapping[str, str],
    run: BaseRun,
    accelerator: str | None,
    options: PredictOptions,
    policy: Policy | None,
    journal: Journal,
    limits: DecodeLimits,
    fetch_limits: FetchLimits,
    engine: EngineOptions,
    console: Console,
) -> None:
    """`vidcls.prediction.pipeline.predict_videos` on the cluster of `start_ray`, with the files at the same paths."""
    num_gpus = ray.cluster_resources().get("GPU", 0)
    on_gpu = (accelerator or str(run.config.trainer.accelerator)) != "cpu" and num_gpus >= 1
    max_networks = num_gpus if on_gpu else math.inf  # a network that waits for a GPU would block its batches
    num_networks = int(min(engine.networks or (num_gpus if on_gpu else num_machines()), max_networks))
    num_readers = count_readers(limits, len(videos))
    describe = partial(build_result, model=run.identity, classes=run.classes, policy=policy, options=options)
    plan, batch_size = options.plan(run.spec.store), run.spec.batch_size
    make_predictor = ray.put(ray.cloudpickle.dumps(partial(run.make_predictor, accelerator)))
    config = ReaderConfig(
        plan,
        limits,
        fetch_share(fetch_limits, num_readers),
        batch_size,
        run.classes,
        options.exit_threshold,
        describe,
        CoarseSearch(options, policy),
        [make_predictor],
        torch.get_num_threads(),
    )
    # A network requests no CPU from Ray: when its machine dies, it must be placed beside the readers of another one.
    network = ray.remote(Network).options(
        num_cpus=0, num_gpus=int(on_gpu), scheduling_strategy="SPREAD", max_restarts=-1, max_task_retries=20
    )
    networks: list[Any] = [network.remote() for _ in range(num_networks)]
    for one in networks:
        one.load.remote(config)  # while readers start

    def arguments(reader_number: int) -> tuple[list[Any], ReaderConfig]:
        first = reader_number % num_networks  # so that readers do not all send to the same network at the same time
        return [*networks[first:], *networks[:first]], config

    catalogue = Catalogue(videos, journal, describe)
    with closing(HashCache(journal.folder / "hashes.sqlite")) as cache:
        driver = _Driver(catalogue, cache, arguments, num_readers, batch_size, journal.folder)
        asyncio.run(driver.run(console))


@dataclass(eq=False)
class _Shard(Shard):
    """Videos to fetch or hash, and `Content`s to read; finished ones are removed."""

    paths: list[str] = field(default_factory=list)
    max_windows: float | int = LONG_WINDOWS  # of a video; those with more are read after all others
    fetched: Path | None = None  # a folder of its reader


class _Driver(Driver):
    reader, doing = Reader, "Predicting"

    def __init__(
        self,
        catalogue: Catalogue,
        cache: HashCache,
        arguments: Callable[[int], Sequence[Any]],
        num_readers: int,
        batch_size: int,
        folder: Path,
    ) -> None:
        super().__init__(arguments, num_readers, len(catalogue.videos), folder)
        self._catalogue, self._cache = catalogue, cache
        # What this machine found where a reader found another content, and how often one did, by file.
        self._differing: dict[Path, FileState | None] = {}
        self._changes: Counter[Path] = Counter()
        per_reader = math.ceil(len(catalogue.videos) / (4 * num_readers))  # so that all end at about the same time
        self._most = min(max(per_reader, batch_size), SHARD_BATCHES * batch_size)

    async def run(self, console: Console) -> None:
        self._plan(list(self._catalogue.videos))
        await super().run(console)

    def num_done(self) -> int:
        return self._catalogue.num_done

    def _plan(self, paths: Sequence[str]) -> None:
        """Queues videos, the largest first; those with a cached hash need not be hashed."""
        files = {path: Path(self._catalogue.videos[path]) for path in paths if not is_url(self._catalogue.videos[path])}
        states = {path: FileState.of(file) for path, file in files.items()}
        known = {path: self._cache.get(files[path], state) for path, state in states.items() if state}
        hashes = {path: HashResult(sha256, "", states[path]) for path, sha256 in known.items() if sha256}
        unknown = [(path, _size(states.get(path))) for path in paths if path not in hashes]
        contents = [(content, _size(content.state)) for content in self._catalogue.assign(hashes)]
        for shard in cut(unknown, self._most):
            self.put(_Shard(paths=shard))
        for shard in cut(contents, self._most):
            self.put(_Shard(shard))

    async def read(self, reader: RunningReader, shard: _Shard) -> None:
        if shard.paths:
            locations = [self._catalogue.videos[path] for path in shard.paths]
            found, shard.fetched = await reader.actor.obtain.remote(locations)
            await self._assign(shard, dict(zip(shard.paths, found, strict=True)), reader)
        contents: list[Content] = list(shard.items)
        if contents:
            async for reference in reader.actor.read.remote(contents, shard.max_windows):
                index, result = await reference
                content = contents[index]
                shard.items.remove(content)
                if isinstance(result, HashResult):
                    if not shard.fetched or not content.file.is_relative_to(shard.fetched):
                        await self._compare(content.file, result, reader)
                    self._plan(self._catalogue.finish(content, None))
                elif result == LONG:
                    self.put(self.make_shard(shard, [content], few=True))
                elif self.doubts(reader, content.sha256, result[0]):
                    self.leave_to_others(reader, self.make_shard(shard, [content], few=False))
                else:
                    self._plan(self._catalogue.finish(content, result[1]))
                self.progressed(reader)
        assert not shard.items
        if shard.fetched:
            await reader.actor.remove.remote(shard.fetched)

    async def _assign(self, shard: _Shard, found: Mapping[str, Found], reader: RunningReader) -> None:
        hashes, files = dict[str, HashResult](), dict[str, Path]()
        again, elsewhere = list[str](), list[str]()
        for path, one in found.items():
            location = self._catalogue.videos[path]
            if isinstance(one, UnfetchableError):
                if self.doubts(reader, path, unfetchable(str(one))):
                    elsewhere.append(path)
                else:
                    self._catalogue.lose(path, unfetchable(str(one)))
            elif one is None:
                again.append(path)
            elif is_url(location):
                files[path], hashes[path] = one
            elif same := await self._compare(Path(location), one[1], reader):
                hashes[path] = same
                if same.state:
                    self._cache.put(Path(location), same.state, same.sha256)
            elif self._changes[Path(location)] < MAX_READS:
                again.append(path)
            else:
                self._catalogue.lose(path, undecodable(CHANGED))
        shard.paths = []
        shard.items += self._catalogue.assign(hashes, files)
        if again:
            self.put(_Shard(paths=again, max_windows=shard.max_windows))
        if elsewhere:
            self.leave_to_others(reader, _Shard(paths=elsewhere, max_windows=shard.max_windows))

    async def _compare(self, file: Path, hashed: HashResult, reader: RunningReader) -> HashResult | None:
        """What this machine finds in a local file, if a reader has found the same; None if the file may be changing.

        Raises:
            UserError: it has not changed here, and a reader has found something else twice, or cannot read it.
        """
        if hashed.state and FileState.of(file) == hashed.state:
            return hashed
        here = await asyncio.to_thread(hash_video, file)
        if here.sha256 in ("", hashed.sha256):
            return here
        if not hashed.sha256 or (here.state and self._differing.get(file) == here.state):
            raise not_shared(file, hashed, reader.machine)
        self._differing[file] = here.state
        self._changes[file] += 1
        return None

    def requeue(self, shard: _Shard, alone: bool) -> None:
        if shard.paths:
            self.put(_Shard(paths=shard.paths, max_windows=shard.max_windows))
        super().requeue(shard, alone)

    def key(self, item: Content) -> str:
        return item.sha256

    def make_shard(self, shard: _Shard, items: list[Content], few: bool) -> _Shard:
        again = _Shard(max_windows=math.inf if few else shard.max_windows)
        for content in items:  # the next reader has to fetch remote ones again
            if shard.fetched and content.file.is_relative_to(shard.fetched):
                again.paths += self._catalogue.postpone(content)
            else:
                again.items.append(content)
        return again

    def give_up(self, item: Content) -> None:
        self._catalogue.give_up(item, QUARANTINED)


def _size(state: FileState | None) -> int:
    return state.size if state else 0
