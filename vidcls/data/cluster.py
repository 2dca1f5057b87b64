"""Readers of videos on a Ray cluster. A reader that dies is replaced, and what it had not finished is requeued.

It is requeued in smaller shards, in the end one item at a time for a reader of suspects alone. A video that kills
that reader `MAX_DEATHS` times, on different machines where there are several, is given up. A machine that is lost, or
that cannot start decoding processes, is no fault of a video. What a reader does is defined by the subclasses for
prediction and ingest.
"""

import asyncio
import hashlib
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidcls.data.decoding.result import DecodeResult, is_doubtful
from vidcls.data.machines import (
    READS_AT_ONCE,
    Head,
    SickMachineError,
    UnreachableError,
    check_address,
    check_versions,
    naming_machine,
)
from vidcls.data.options import DecodeLimits, EngineOptions
from vidcls.data.package_versions import package_versions
from vidcls.errors import UserError, one_line
from vidcls.memory import num_cpus

MAX_DEATHS = 2  # of readers that read a video alone, after which it is given up
FEW = 4  # a shard of at most so many items is requeued one item at a time
MAX_LOST = 20  # readers in a row without a single result
SHARD_BYTES = 2**28  # of a shard with more than one video, at most
START_ATTEMPTS = 3
PAUSE_SECONDS = 0.5  # of a reader that leaves a shard to another machine
AVOID_SECONDS = 60.0  # for which it does
WAIT_SECONDS = 60.0  # for a first reader, after which the command says so
PING_SECONDS = 20.0  # between two questions to a reader whether it can be reached
UNREACHABLE_SECONDS = 120.0  # without an answer, after which it is replaced
LOW_MEMORY = "low on memory"  # of Ray, where it has killed a process
SUSPECTS = -1  # the number of the reader that reads suspects alone
QUARANTINED = f"the process that reads it died {MAX_DEATHS} times"


def start_ray(engine: EngineOptions, limits: DecodeLimits) -> None:
    """Joins the cluster at ``engine.address``, or starts Ray here, unless this process has done so.

    Raises:
        UserError: there is no such cluster, or it does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return
    check_address(engine.address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "critical"}
    if engine.address is None:
        options |= {"num_cpus": limits.workers or num_cpus(), "include_dashboard": False}
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(engine.address or "local", **options)
            break
        except Exception as error:  # the type that Ray raises if it has not started within 30 s, as on a busy machine
            ray.shutdown()
            if attempt + 1 == START_ATTEMPTS or isinstance(error, ConnectionError | ValueError):
                remedy = "Check engine.address, Ray on this machine (ray status) and its token, memory, disk and logs."
                got = f"{engine.address or 'none that starts here'} ({one_line(error)})"
                raise UserError("a Ray cluster", got, remedy, "engine.address") from error
    here = ray.get_runtime_context().get_node_id()
    if not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == here):
        got = "one that this machine has left: the head could not reach it for a while"
        remedy = "Start Ray here again: ray stop, then ray start --address=HEAD."
        raise UserError("a Ray cluster that this machine is in", got, remedy, "engine.address")


class BaseReader:
    """One process on any machine of the cluster.

    The names of its folders of fetched files begin with ``prefix``, which no other reader has at the same time, so that
    it can remove what a killed predecessor has left.
    """

    def __init__(self, prefix: str) -> None:
        # Ray's own program: the decoding process would run it again.
        vars(sys.modules["__main__"]).pop("__file__", None)
        self._prefix = prefix
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            self.remove(left)

    @naming_machine()
    def start(self, versions: Mapping[str, str]) -> tuple[str, str]:
        """The name of this machine and Ray's of it, once this process has started; see `check_versions`."""
        check_versions(versions)
        return platform.node(), ray.get_runtime_context().get_node_id()

    def make_folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=self._prefix))

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(eq=False)
class RunningReader:
    """A reader, and the machine that it runs on, which is known once it has started."""

    actor: Any
    machine: str = ""
    node: str = ""  # Ray's name of the machine


@dataclass(eq=False)
class Shard:
    """The unit of work of a reader; finished items are removed."""

    items: list[Any] = field(default_factory=list)
    avoid: str = ""  # a machine that is to leave it to others, by Ray's name
    avoid_until: float = 0.0  # as there may be no reader on another one


class Driver(ABC):
    """Distributes shards to readers and collects results, in one thread.

    ``arguments`` returns the constructor arguments of a reader by its number, without the last one: the prefix of its
    folders, which is the same when the command that writes into ``folder`` is repeated.
    """

    reader: type[BaseReader]
    doing: str

    def __init__(
        self, arguments: Callable[[int], Sequence[Any]], num_readers: int, num_videos: int, folder: Path
    ) -> None:
        self._num_videos = num_videos
        self._reader, self._arguments = ray.remote(self.reader), arguments
        self._command = hashlib.sha256(f"{platform.node()} {folder.resolve()}".encode()).hexdigest()[:12]
        self._shards: asyncio.Queue[Any] = asyncio.Queue()
        self._suspects: asyncio.Queue[Any] = asyncio.Queue()  # of one item each
        self._num_open, self._finished = 0, asyncio.Event()
        self._doubted: set[Hashable] = set()
        self._deaths: Counter[Hashable] = Counter()  # of readers, by the item that they read alone
        self._num_readers, self._num_lost = num_readers, 0
        self._losses: Counter[str] = Counter()  # of readers since the last result, by Ray's name of their machine
        self._readers: dict[int, RunningReader] = {}  # those that live, by number
        self._head = Head()

    @abstractmethod
    async def read(self, reader: RunningReader, shard: Any) -> None:
        """Has a reader read a shard, and removes finished items from it."""

    @abstractmethod
    def num_done(self) -> int:
        """The number of videos with a result."""

    def key(self, item: Any) -> Hashable:
        """Identifies an item."""
        return item

    def make_shard(self, shard: Any, items: list[Any], few: bool) -> Any:
        """A new shard of some ``items`` of a shard whose reader has died; ``few`` if they are read one at a time."""
        return Shard(items)

    @abstractmethod
    def give_up(self, item: Any) -> None:
        """Records `QUARANTINED` as the result of an item."""

    async def run(self, console: Console) -> None:
        """Returns when all shards that were `put` are finished."""
        numbers = range(min(self._num_readers, self._num_open))
        serving = [self._serve(number) for number in numbers for _ in range(READS_AT_ONCE)]
        coroutines = [self._wait(console), self._serve_suspects(), *serving]
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        with closing(self._head):
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # or asyncio prints the traceback of a second failure
        for task in done:
            task.result()

    async def _wait(self, console: Console) -> None:
        columns = (TextColumn(self.doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task, note_at = progress.add_task("", total=self._num_videos), time.monotonic() + WAIT_SECONDS
            while self._num_open:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._finished.wait(), timeout=0.5)
                progress.update(task, completed=self.num_done())
                self._head.check()
                if time.monotonic() > note_at and not any(reader.node for reader in self._readers.values()):
                    console.print(f"Waiting for a free CPU of the cluster, for {WAIT_SECONDS:g} s now (see ray status)")
                    note_at = math.inf

    def put(self, shard: Any, suspect: bool = False) -> None:
        """Queues a shard, for the reader of suspects if it is ``suspect``."""
        self._num_open += 1
        (self._suspects if suspect else self._shards).put_nowait(shard)

    def progressed(self, reader: RunningReader | None = None) -> None:
        """To be called for each result, with the reader that has found it: readers are alive."""
        self._num_lost = 0
        if reader:
            self._losses[reader.node] = self._losses[""] = 0  # "" is that of readers that have not started

    async def _living_reader(self, number: int) -> RunningReader:
        """The reader with this number, which is started if there is none; several calls may wait for the same one."""
        while True:
            if number not in self._readers:
                self._readers[number] = RunningReader(self._start(number))
            reader = self._readers[number]
            try:
                reader.machine, reader.node = await reader.actor.start.remote(package_versions())
                return reader
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                self._lose(number, reader, error)

    def _start(self, number: int) -> Any:
        options: dict[str, Any] = {"num_cpus": 1}
        if number == SUSPECTS:  # it requests no CPU from Ray, as the others may hold them all
            options = {"num_cpus": 0}
            if self._head.machines:
                healthiest = min(self._head.machines, key=self._losses.__getitem__)
                options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(healthiest, soft=True)
        prefix = f"vidcls-{self._command}-{number}-"
        actor = self._reader.options(max_concurrency=READS_AT_ONCE + 1, **options)
        return actor.remote(*self._arguments(number), prefix)

    def _lose(self, number: int, reader: RunningReader, error: Exception) -> None:
        """Forgets a dead reader; several calls may report the same one."""
        if self._readers.get(number) is not reader:
            return
        del self._readers[number]
        self._num_lost += 1
        self._losses[reader.node] += 1
        if max(self._num_lost, self._losses[reader.node]) > MAX_LOST:
            why = one_line(str(error).strip().rpartition("\n")[2])
            address = re.search(r"\bip: ([\w.:]+)", str(error), re.IGNORECASE)  # of one that has never started
            machine = reader.machine or (address[1] if address else "unknown")
            got = f"{MAX_LOST} in a row that died, the last one on machine {machine} ({why})"
            remedy = "See the logs of Ray; vidcls must be installed on its machines, and files lie at the same paths."
            raise UserError("processes that read videos to stay alive", got, remedy, "workers-failed") from error

    async def _serve(self, number: int) -> None:
        while True:
            reader = await self._living_reader(number)  # first: while it waits for a free CPU it must be given no shard
            shard = await self._shards.get()
            if shard.avoid == reader.node and time.monotonic() < shard.avoid_until:
                self._shards.put_nowait(shard)
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                await self._read(number, shard)

    def doubts(self, reader: RunningReader, key: Hashable, decoded: DecodeResult) -> bool:
        """Whether a video is to be read again on another machine, once, by `leave_to_others`."""
        if not is_doubtful(decoded) or key in self._doubted or len(self._head.machines) < 2:
            return False
        self._doubted.add(key)
        return True

    def leave_to_others(self, reader: RunningReader, shard: Any) -> None:
        """Queues a shard for readers on other machines."""
        shard.avoid, shard.avoid_until = reader.node, time.monotonic() + AVOID_SECONDS
        self.put(shard)

    async def _serve_suspects(self) -> None:
        while True:
            await self._read(SUSPECTS, await self._suspects.get())

    async def _read(self, number: int, shard: Any) -> None:
        reader = await self._living_reader(number)
        try:
            await self._read_while_it_answers(reader, shard)
        except RayError as error:
            sick = isinstance(error, RayTaskError) and isinstance(error.cause, SickMachineError)
            if isinstance(error, RayTaskError) and not sick:
                raise error.cause from None
            if sick:
                ray.kill(reader.actor)
            self._lose(number, reader, error)
            self.requeue(shard, alone=number == SUSPECTS and not sick and await self._has_crashed(error, reader))
        self._num_open -= 1
        if not self._num_open:
            self._finished.set()

    async def _read_while_it_answers(self, reader: RunningReader, shard: Any) -> None:
        # Ray waits for ever for a process that is frozen, and for a machine that can reach its head, but not this one.
        reading = asyncio.ensure_future(self.read(reader, shard))
        try:
            while not (await asyncio.wait({reading}, timeout=PING_SECONDS))[0]:
                await asyncio.wait_for(reader.actor.start.remote(package_versions()), UNREACHABLE_SECONDS)
            reading.result()
        except TimeoutError:
            ray.kill(reader.actor)
            raise UnreachableError(f"no answer for {UNREACHABLE_SECONDS:g} s") from None
        finally:
            reading.cancel()

    async def _has_crashed(self, error: RayError, reader: RunningReader) -> bool:
        """Whether a reader has died on a machine that is alive and has memory left."""
        if not isinstance(error, ActorDiedError) or LOW_MEMORY in str(error):
            return False
        return reader.node in await self._head.ask()

    def requeue(self, shard: Any, alone: bool) -> None:
        """Queues what a lost reader has not finished; see the top of this file."""
        for item in shard.items if alone else ():
            self._deaths[self.key(item)] += 1
            if self._deaths[self.key(item)] >= MAX_DEATHS:
                self.give_up(item)
                self.progressed()
                shard.items = []
        few = len(shard.items) <= FEW
        step = 1 if few else math.ceil(len(shard.items) / 4)
        for first in range(0, len(shard.items), step):
            self.put(self.make_shard(shard, shard.items[first : first + step], few), suspect=few)


def cut(items: Sequence[tuple[Any, int]], most: int) -> Iterator[list[Any]]:
    """Cuts (item, bytes) pairs, the largest first, into shards of at most ``most`` items and `SHARD_BYTES`."""
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
