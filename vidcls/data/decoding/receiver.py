"""Receives results from the workers, and handles workers that hang or die."""

import math
import queue
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessFuture

from vidcls.data.decoding.plan import Window
from vidcls.data.decoding.result import DECODERS, DecodeResult, summarise, undecodable
from vidcls.data.decoding.worker import CHANGED
from vidcls.data.options import DecodeLimits

WORKER_ERRORS = (FutureTimeoutError, CancelledError, ProcessExpired, MemoryError)
# A video with W windows may take 1 + W / this many timeouts in all: no video keeps a worker for a timeout per window.
WINDOWS_PER_TIMEOUT = 20
DEFERRED = undecodable("it has too many windows to be read before other videos")


@dataclass(frozen=True)
class VideoStarted:
    """The video can be read. If its worker is killed, it starts again: its windows so far are void."""

    number: int
    seconds: float
    num_windows: int  # fewer follow if its worker is lost


@dataclass(frozen=True)
class WindowRead:
    """The next window of a video that has started."""

    number: int
    window: Window


@dataclass(frozen=True)
class VideoFinished:
    """Nothing more follows for this video, whether it has started or not."""

    number: int
    result: DecodeResult


@dataclass(frozen=True)
class Idle:
    """All videos so far are finished, and the next one is not ready yet."""


VideoEvent = VideoStarted | WindowRead | VideoFinished
Event = VideoEvent | Idle


def _describe_failure(error: BaseException, limits: DecodeLimits) -> str:
    """Why a worker returned no result, from one of `WORKER_ERRORS`."""
    if isinstance(error, FutureTimeoutError | CancelledError):
        return f"timed out after {limits.timeout_seconds:g} s (data.decode.timeout_seconds)"
    if isinstance(error, MemoryError):
        return f"needs more than {limits.memory_gigabytes:g} GB (data.decode.memory_gigabytes)"
    code = getattr(error, "exitcode", None) or 0
    return f"the decoding process died ({signal.Signals(-code).name if code < 0 else error})"


@dataclass(eq=False)
class _Video:
    number: int
    source: Any  # what its task is made of, such as a `vidcls.data.decoding.worker.Source`
    decoders: tuple[str, ...]
    future: ProcessFuture
    killed: bool = False  # its worker was killed from outside before
    connection: Connection | None = None
    # When its worker connected and when it last sent a message, both plus the time that the caller kept it waiting.
    connected: float = math.inf
    last_message: float = math.inf
    seconds: float = 0.0
    num_windows: int = 0  # 0 until it has started
    until_seconds: float = 0.0
    coverage: float = 0.0  # the sum over its windows
    reasons: list[str] = field(default_factory=list)

    def disconnect(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class Receiver:
    """Receives what the workers send, on one connection per video, and puts events into a short queue, in a thread."""

    def __init__(
        self,
        sources: Iterable[Any],
        at_once: int,
        server: socket.socket,
        limits: DecodeLimits,
        ahead: int,
        max_windows: float | int,
    ) -> None:
        self._sources, self._numbers = iter(sources), count()
        self._at_once, self._server, self._limits, self._max_windows = at_once, server, limits, max_windows
        self._queue: queue.Queue[Event | BaseException | None] = queue.Queue(ahead)
        self._videos: dict[int, _Video] = {}
        self.stopped = threading.Event()

    def events(self) -> Iterator[Event]:
        while (event := self._queue.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def run(self, schedule: Callable[[int, Any, tuple[str, ...]], ProcessFuture]) -> None:
        self._schedule = schedule
        try:
            more = True
            while not self.stopped.is_set():
                more = more and self._start_videos()
                if not self._videos:
                    if not more:
                        break
                    self._put(Idle())
                self._receive()
                self._check_workers()
            self._put(None)
        except BaseException as error:
            self._put(error)
        finally:
            for video in self._videos.values():
                video.disconnect()

    def _start_videos(self) -> bool:
        """Schedules videos; returns whether there may be more."""
        while len(self._videos) < self._at_once:
            try:
                source = next(self._sources)
            except StopIteration:
                return False
            if source is None:
                break
            number = next(self._numbers)
            self._videos[number] = _Video(number, source, DECODERS, self._schedule(number, source, DECODERS))
        return True

    def _receive(self) -> None:
        connected = {video.connection: video for video in self._videos.values() if video.connection is not None}
        for ready in wait([self._server, *connected], timeout=0.1):
            if ready is self._server:
                self._accept()
                continue
            video = connected[ready]  # type: ignore[index]
            try:
                message = video.connection.recv()  # type: ignore[union-attr]
            except BlockingIOError:  # the rest of the message did not arrive within the time limit
                video.future.cancel()
                video.disconnect()
            except (EOFError, OSError):  # its worker has died; its future knows why
                video.disconnect()
            else:
                video.last_message = time.monotonic()
                self._take(video, message)

    def _accept(self) -> None:
        client, _ = self._server.accept()
        seconds, fraction = divmod(self._limits.timeout_seconds, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), int(fraction * 1e6)))
        connection = Connection(client.detach())
        try:
            video = self._videos[connection.recv()]
        except (EOFError, OSError, KeyError):
            connection.close()
            return
        video.connection, video.connected = connection, time.monotonic()
        video.last_message = video.connected

    def _take(self, video: _Video, message: Any) -> None:
        if isinstance(message, Window):
            video.until_seconds = message.end_seconds
            video.coverage += message.coverage
            self._put(WindowRead(video.number, message))
        elif isinstance(message, DecodeResult):
            self._finish(video, message)
        elif message[1] > self._max_windows:
            self._finish(video, DEFERRED)  # its worker ends when it cannot send its first window
        else:
            video.seconds, video.num_windows = message
            self._put(VideoStarted(video.number, video.seconds, video.num_windows))

    def _check_workers(self) -> None:
        """Kills workers that have stopped responding or take too long, and handles those that have exited."""
        ended = [video for video in self._videos.values() if video.connection is None and video.future.done()]
        while wait([self._server], timeout=0):  # a worker that has ended well has connected, and its messages wait
            self._accept()
        for video in ended:
            if video.connection is None:
                self._lose(video)
        now, limit = time.monotonic(), self._limits.timeout_seconds
        for video in self._videos.values():
            silent = now - video.last_message > limit and not (video.connection and video.connection.poll())
            if silent or now - video.connected > limit * (1 + video.num_windows / WINDOWS_PER_TIMEOUT):
                video.future.cancel()  # kills its worker
                video.disconnect()

    def _lose(self, video: _Video) -> None:
        """Handles a lost worker: the next decoder tries the video, unless windows have been read.

        No decoder kills itself with SIGKILL: a video whose worker was killed from outside is retried once.
        """
        killed, decoders = False, () if video.num_windows else video.decoders[1:]
        try:
            video.future.result()
            failure = "the decoding process ended without a result"
        except WORKER_ERRORS as error:
            failure = _describe_failure(error, self._limits)
            killed = getattr(error, "exitcode", None) == -signal.SIGKILL
        if killed and not video.killed:
            decoders = video.decoders
        else:
            video.reasons.append(f"{'pyav' if video.num_windows else video.decoders[0]}: {failure}")
        if not decoders:
            self._finish(video, undecodable(""))
            return
        future, killed = self._schedule(video.number, video.source, decoders), killed or video.killed
        self._videos[video.number] = _Video(video.number, video.source, decoders, future, killed, reasons=video.reasons)

    def _finish(self, video: _Video, result: DecodeResult) -> None:
        del self._videos[video.number]
        video.disconnect()
        if result.status == "undecodable" and result.reason not in (CHANGED, DEFERRED.reason):
            reason = "; ".join(text for text in [*video.reasons, result.reason] if text)
            result = undecodable(reason)
            if video.coverage:  # windows with intact frames have been read
                reason = f"{reason}, at {video.until_seconds:g} s of {video.seconds:g} s"
                result = summarise([reason], "pyav", video.seconds, video.coverage / video.num_windows)
        self._put(VideoFinished(video.number, result))

    def _put(self, event: Event | BaseException | None) -> None:
        started = time.monotonic()
        while not self.stopped.is_set():
            with suppress(queue.Full):
                self._queue.put(event, timeout=0.2)
                break
        blocked = time.monotonic() - started
        for video in self._videos.values():
            video.connected += blocked
            video.last_message += blocked


def largest_first(files: Sequence[Path]) -> list[int]:
    """The order of files by size: a large one that comes last would keep one worker busy while the others are done."""
    sizes = dict.fromkeys(range(len(files)), 0)
    for number, file in enumerate(files):
        with suppress(OSError):  # its worker will report it
            sizes[number] = file.stat().st_size
    return sorted(sizes, key=sizes.__getitem__, reverse=True)
