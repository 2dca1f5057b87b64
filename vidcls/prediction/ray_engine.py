"""engine=ray: the same results as `vidcls.prediction.pipeline`, computed on a cluster; see docs/scale.md.

This process lists, decides and writes the journal. It hands out shards, a few videos each, to readers (one CPU each),
which send batches of windows to networks (one per GPU) and return results. A reader that dies is replaced, and what it
had not finished is handed out again in smaller shards, at last one by one to a reader that reads nothing else. A video
that kills that one `MAX_DEATHS` times is not tried again. Networks are restarted by Ray, which repeats their calls.
"""

import asyncio
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidcls.data.hashing import FileState, HashCache, HashResult, hash_video
from vidcls.data.options import DecodeLimits
from vidcls.data.urls import is_url
from vidcls.errors import UserError
from vidcls.moderation.policy import Policy
from vidcls.prediction.catalogue import LONG_WINDOWS, Catalogue, Content
from vidcls.prediction.coarse_search import CoarseSearch
from vidcls.prediction.journal import Journal
from vidcls.prediction.options import EngineOptions, PredictOptions
from vidcls.prediction.ray_workers import LONG, Network, Reader, Reading
from vidcls.prediction.run import BaseRun
from vidcls.prediction.video_result import build_result

MAX_DEATHS = 2  # of readers that read one video alone, until it is not tried again
FEW = 4  # contents of a shard whose reader died, to be read one by one
MAX_LOST = 20  # readers in a row, without a single result
SHARD_BATCHES, SHARD_BYTES = 8, 2**28  # of a shard, at most; but one video at least
READS_AT_ONCE = 2  # shards of a reader: while it waits for the last batch of one, it decodes the next
START_ATTEMPTS = 3
QUARANTINED = f"the process that reads it died {MAX_DEATHS} times"


def start_ray(engine: EngineOptions, num_readers: int) -> None:
    """Joins the cluster at ``engine.address``, or starts Ray here, unless this process has done so.

    Raises:
        UserError: there is no such cluster, or it does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if engine.address is None:
        options |= {"num_cpus": num_readers, "include_dashboard": False}
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(engine.address or "local", **options)
            return
        except Exception as error:  # the type that Ray raises if it has not started within 30 s, as on a busy machine
            ray.shutdown()
            if attempt + 1 == START_ATTEMPTS or isinstance(error, ConnectionError | ValueError):
                expected, remedy = "a Ray cluster", "Check engine.address, and the memory, disk and logs of Ray."
                got = f"{engine.address or 'none that starts here'} ({error})"
                raise UserError(expected, got, remedy, "engine.address") from error


def predict_on_ray(
    videos: Mapping[str, str],
    run: BaseRun,
    accelerator: str | None,
    options: PredictOptions,
    policy: Policy | None,
    journal: Journal,
    limits: DecodeLimits,
    engine: EngineOptions,
    console: Console,
) -> None:
    """As `vidcls.prediction.pipeline.predict_videos`, on a cluster whose machines find the files at the same paths."""
    if urls := sum(map(is_url, videos.values())):
        remedy = "Use engine=local, or copy the videos to where all machines find them."
        raise UserError("local files, for engine=ray", f"{urls} URLs", remedy, "engine")
    start_ray(engine, limits.workers or os.cpu_count() or 1)
    resources, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
    on_gpu = (accelerator or str(run.config.trainer.accelerator)) != "cpu" and resources.get("GPU", 0) >= 1
    most = resources["GPU"] if on_gpu else math.inf  # one that waits for a GPU would keep its batches
    num_networks = int(min(engine.networks or (most if on_gpu else len(nodes)), most))
    num_readers = min(limits.workers or math.inf, max(resources.get("CPU", 1), 1), max(len(videos), 1))
    describe = partial(build_result, model=run.identity, classes=run.classes, policy=policy, options=options)
    plan, batch_size = options.plan(run.spec.store), run.spec.batch_size
    make_predictor = ray.put(ray.cloudpickle.dumps(partial(run.make_predictor, accelerator)))
    reading = Reading(
        plan,
        limits,
        batch_size,
        run.classes,
        options.exit_threshold,
        describe,
        CoarseSearch(options, policy),
        [make_predictor],
        torch.get_num_threads(),
    )
    # A network takes no CPU in Ray's account: when its machine dies, it must find room beside the readers of another.
    network = ray.remote(Network).options(
        num_cpus=0, num_gpus=int(on_gpu), scheduling_strategy="SPREAD", max_restarts=-1, max_task_retries=20
    )
    networks = [network.remote() for _ in range(num_networks)]
    reader = ray.remote(Reader)

    def start_reader(number: int, num_cpus: int = 1) -> Any:
        turn = number % num_networks  # so that readers do not all send to the same network at the same time
        options = reader.options(num_cpus=num_cpus, max_concurrency=READS_AT_ONCE + 1)
        return options.remote([*networks[turn:], *networks[:turn]], reading)

    catalogue = Catalogue(videos, journal, describe)
    with closing(HashCache(journal.folder / "hashes.sqlite")) as cache:
        asyncio.run(_Driver(catalogue, cache, start_reader, int(num_readers), batch_size).run(console))


@dataclass(eq=False)
class _Shard:
    """Videos to be hashed, or contents to be read; what is finished is removed."""

    paths: list[str] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    max_windows: float | int = LONG_WINDOWS  # of a video; those that have more are read after all others


class _Lane:
    """One reader at a time, replaced when it dies."""

    def __init__(self, start_reader: Callable[[], Any], count_lost: Callable[[Exception], None]) -> None:
        self._start_reader, self._count_lost = start_reader, count_lost
        self._reader: Any = None

    async def reader(self) -> Any:
        """A reader that has started."""
        while True:
            reader = self._reader = self._reader or self._start_reader()
            try:
                await reader.hash.remote([])
                return reader
            except RayError as error:
                self.lose(reader, error)

    def lose(self, reader: Any, error: Exception) -> None:
        """The reader is dead, as several calls may find."""
        if self._reader is reader:
            self._reader = None
            self._count_lost(error)


class _Driver:
    """Hands out shards and writes what comes back, in one thread."""

    def __init__(
        self,
        catalogue: Catalogue,
        cache: HashCache,
        start_reader: Callable[..., Any],
        num_readers: int,
        batch_size: int,
    ) -> None:
        self._catalogue, self._cache = catalogue, cache
        per_reader = math.ceil(len(catalogue.videos) / (4 * num_readers))  # so that all end at about the same time
        self._most = min(max(per_reader, batch_size), SHARD_BATCHES * batch_size)
        self._shards: asyncio.Queue[_Shard] = asyncio.Queue()
        self._suspects: asyncio.Queue[_Shard] = asyncio.Queue()  # of one content each
        self._num_open, self._finished = 0, asyncio.Event()
        self._deaths: Counter[str] = Counter()  # of readers, by the content that they read alone
        self._num_lost = 0
        self._lanes = [_Lane(partial(start_reader, number), self._count_lost) for number in range(num_readers)]
        # The reader of suspects takes no CPU in Ray's account, as the others may have them all.
        self._lane_of_suspects = _Lane(partial(start_reader, 0, num_cpus=0), self._count_lost)

    async def run(self, console: Console) -> None:
        """Returns when all videos have results."""
        self._plan(list(self._catalogue.videos))
        serving = [self._serve(lane) for lane in self._lanes[: self._num_open] for _ in range(READS_AT_ONCE)]
        waiting = [self._wait(console), self._serve_suspects(), *serving]
        tasks = [asyncio.create_task(one) for one in waiting]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _wait(self, console: Console) -> None:
        columns = (TextColumn("Predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(self._catalogue.videos))
            while self._num_open:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._finished.wait(), timeout=0.5)
                progress.update(task, completed=self._catalogue.num_done)

    def _plan(self, paths: Sequence[str]) -> None:
        """Puts videos into the queue, the largest first; those whose content is known need not be hashed."""
        files = {path: Path(self._catalogue.videos[path]) for path in paths}
        states = {path: FileState.of(file) for path, file in files.items()}
        known = {path: self._cache.get(files[path], state) for path, state in states.items() if state}
        hashes = {path: HashResult(sha256, "", states[path]) for path, sha256 in known.items() if sha256}
        unknown = [(path, _size(states[path])) for path in paths if path not in hashes]
        contents = [(content, _size(content.state)) for content in self._catalogue.assign(hashes)]
        for shard in _cut(unknown, self._most):
            self._put(self._shards, _Shard(paths=shard))
        for shard in _cut(contents, self._most):
            self._put(self._shards, _Shard(contents=shard))

    def _put(self, queue: asyncio.Queue[_Shard], shard: _Shard) -> None:
        self._num_open += 1
        queue.put_nowait(shard)

    async def _serve(self, lane: _Lane) -> None:
        while True:
            await lane.reader()  # first: one that waits for room in the cluster must hold no shard
            await self._read(lane, await self._shards.get())

    async def _serve_suspects(self) -> None:
        while True:
            await self._read(self._lane_of_suspects, await self._suspects.get())

    async def _read(self, lane: _Lane, shard: _Shard) -> None:
        reader = await lane.reader()
        try:
            if shard.paths:
                hashes = await reader.hash.remote([Path(self._catalogue.videos[path]) for path in shard.paths])
                shard.contents, shard.paths = self._assign(dict(zip(shard.paths, hashes, strict=True))), []
            contents = list(shard.contents)
            if contents:
                async for reference in reader.read.remote(contents, shard.max_windows):
                    place, result = await reference
                    shard.contents.remove(contents[place])
                    if result == LONG:
                        self._put(self._shards, _Shard(contents=[contents[place]], max_windows=math.inf))
                    else:
                        self._plan(self._catalogue.finish(contents[place], result))
                    self._num_lost = 0
            assert not shard.contents
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            lane.lose(reader, error)
            self._hand_out_again(shard, alone=lane is self._lane_of_suspects)
        self._num_open -= 1
        if not self._num_open:
            self._finished.set()

    def _assign(self, hashes: Mapping[str, HashResult]) -> list[Content]:
        for path, hashed in hashes.items():
            file = Path(self._catalogue.videos[path])
            if hashed.state:
                self._cache.put(file, hashed.state, hashed.sha256)
            elif not hashed.sha256 and hash_video(file).sha256:
                expected = "the machines of the cluster to find videos at the same paths as this one"
                raise UserError(
                    expected, f"{file}: {hashed.error}", "Put them on a shared file system.", "shared-paths"
                )
        return self._catalogue.assign(hashes)

    def _hand_out_again(self, shard: _Shard, alone: bool) -> None:
        """What a lost reader has not finished; see the top of this file."""
        if shard.paths:
            self._put(self._shards, _Shard(paths=shard.paths))
        for content in shard.contents if alone else ():
            self._deaths[content.sha256] += 1
            if self._deaths[content.sha256] >= MAX_DEATHS:
                self._catalogue.give_up(content, QUARANTINED)
                self._num_lost, shard.contents = 0, []
        few = len(shard.contents) <= FEW
        step = 1 if few else math.ceil(len(shard.contents) / 4)
        for first in range(0, len(shard.contents), step):
            part = _Shard([], shard.contents[first : first + step], math.inf if few else shard.max_windows)
            self._put(self._suspects if few else self._shards, part)

    def _count_lost(self, error: Exception) -> None:
        self._num_lost += 1
        if self._num_lost > MAX_LOST:
            got = f"{MAX_LOST} in a row that died ({str(error).strip().splitlines()[-1].strip()})"
            remedy = "See the logs of Ray; vidcls must be installed on its machines, and files lie at the same paths."
            raise UserError("processes that read videos to live", got, remedy, "workers-failed") from error


def _size(state: FileState | None) -> int:
    return state.size if state else 0


def _cut(items: Sequence[tuple[Any, int]], most: int) -> Iterator[list[Any]]:
    """Cuts (item, bytes) into shards of at most ``most`` items and `SHARD_BYTES`, but one item at least."""
    shard: list[Any] = []
    total = 0
    for item, size in sorted(items, key=lambda one: -one[1]):
        if shard and (len(shard) == most or total + size > SHARD_BYTES):
            yield shard
            shard, total = [], 0
        shard.append(item)
        total += size
    if shard:
        yield shard
