"""Many videos decoded at once, in worker processes that can be killed: whole into the store, or window by window.

A video that hangs its decoder, crashes it or needs too much memory costs one worker, which is replaced; the next
decoder then gets its chance. Imports no decoder: only workers do.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessFuture, ProcessPool
from rich.progress import track

from vidcls.data.decoding.plan import Window, WindowPlan
from vidcls.data.decoding.result import DECODERS, DecodeResult, undecodable
from vidcls.data.decoding.sandbox import start_worker
from vidcls.data.decoding.worker import CHANGED, decode_to_store, send_windows
from vidcls.data.hashing import FileState, HashResult
from vidcls.data.options import DecodeLimits
from vidcls.data.store import FrameStore

MEBIBYTE = 2**20  # for what surrounds the frames in a file of the store, and for FFmpeg's messages
WORKER_ERRORS = (FutureTimeoutError, CancelledError, ProcessExpired, MemoryError)


@dataclass(frozen=True)
class VideoStarted:
    """The video ``files[number]`` can be read."""

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


Event = VideoStarted | WindowRead | VideoFinished


def decode_into_store(
    files: Sequence[Path], hashes: Sequence[HashResult], store: FrameStore, limits: DecodeLimits
) -> list[DecodeResult]:
    """Decodes videos and stores each under its hash; gives the results in the order of ``files``.

    Raises UserError or OSError where the store cannot be written; what was stored until then is kept.
    """
    results = [undecodable("")] * len(files)
    entry_bytes = 3 * store.spec.frames_per_video * store.spec.stored_resolution**2
    with create_pool(limits, len(files), entry_bytes) as pool:
        pending: list[tuple[int, tuple[str, ...], ProcessFuture]] = []

        def submit(number: int, decoders: tuple[str, ...]) -> None:
            arguments = [files[number], hashes[number], store, decoders]
            future = pool.schedule(decode_to_store, arguments, timeout=limits.timeout_seconds)
            pending.append((number, decoders, future))

        for number in _largest_first(files):
            submit(number, DECODERS)
        for number, decoders, future in track(pending, "Decoding", len(files)):
            try:
                result: DecodeResult = future.result()
            except WORKER_ERRORS as error:
                result = undecodable(f"{decoders[0]}: {_describe_failure(error, limits)}")
                if len(decoders) > 1:
                    submit(number, decoders[1:])
            reasons = [text for text in (results[number].reason, result.reason) if text]
            # A decoder that was lost is worth mentioning only if no other could read the video.
            results[number] = undecodable("; ".join(reasons)) if result.status == "undecodable" else result
    return results


def read_windows(
    files: Sequence[Path], states: Sequence[FileState | None], plan: WindowPlan, limits: DecodeLimits, ahead: int = 8
) -> Generator[Event, None, None]:
    """Reads videos window by window, in several processes at once.

    Each video gives one `VideoStarted` (not if it is undecodable), its windows in order of time and, whatever happens,
    one `VideoFinished`. Those of different videos are interleaved; large files come first. If the caller is slower than
    the decoders, they wait, with up to ``ahead`` events ready. Closing the generator ends all processes.
    ``limits.timeout_seconds`` is the time for one window, or for what comes before it. A file that is not in its state
    of ``states`` any more is undecodable.
    """
    threads = max(1, (os.cpu_count() or 1) // _num_workers(limits, len(files)))
    root = None if len(tempfile.gettempdir()) < 80 else "/tmp"  # the path of a socket has 107 characters at most
    with tempfile.TemporaryDirectory(prefix="vidcls-", dir=root) as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/socket")  # in a folder for this user alone
        server.listen(128)
        receiver = _Receiver(files, server, limits, ahead)
        with create_pool(limits, len(files)) as pool:

            def schedule(number: int, decoders: tuple[str, ...]) -> ProcessFuture:
                arguments = [f"{folder}/socket", number, files[number], states[number], plan, decoders, threads]
                return pool.schedule(send_windows, arguments)

            thread = threading.Thread(target=receiver.run, args=[schedule], daemon=True)
            thread.start()
            try:
                yield from receiver.events()
            finally:
                receiver.stopped.set()
        thread.join()


def _describe_failure(error: BaseException, limits: DecodeLimits) -> str:
    if isinstance(error, FutureTimeoutError | CancelledError):
        return f"timed out after {limits.timeout_seconds:g} s (data.decode.timeout_seconds)"
    if isinstance(error, MemoryError):
        return f"needs more than {limits.memory_gigabytes:g} GB (data.decode.memory_gigabytes)"
    code = getattr(error, "exitcode", None) or 0
    return f"the decoding process died ({signal.Signals(-code).name if code < 0 else error})"


@dataclass(eq=False)
class _Video:
    number: int
    decoders: tuple[str, ...]
    future: ProcessFuture
    connection: Connection | None = None
    last_message: float | None = None  # None until its worker has connected
    seconds: float = 0.0
    num_windows: int = 0  # 0 until it has started
    until_seconds: float = 0.0
    coverage: float = 0.0  # the sum over its windows
    reasons: list[str] = field(default_factory=list)

    def disconnect(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class _Receiver:
    """A thread that receives what the workers send, on one connection per video, and puts events into a short queue."""

    def __init__(self, files: Sequence[Path], server: socket.socket, limits: DecodeLimits, ahead: int) -> None:
        self._files, self._server, self._limits = files, server, limits
        self._queue: queue.Queue[Event | BaseException | None] = queue.Queue(ahead)
        self._videos: dict[int, _Video] = {}
        self.stopped = threading.Event()

    def events(self) -> Iterator[Event]:
        while (event := self._queue.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def run(self, schedule: Callable[[int, tuple[str, ...]], ProcessFuture]) -> None:
        self._schedule = schedule
        try:
            for number in _largest_first(self._files):
                self._videos[number] = _Video(number, DECODERS, schedule(number, DECODERS))
            while self._videos and not self.stopped.is_set():
                self._receive()
                self._check_workers()
            self._put(None)
        except BaseException as error:
            self._put(error)
        finally:
            for video in self._videos.values():
                video.disconnect()

    def _receive(self) -> None:
        connected = {video.connection: video for video in self._videos.values() if video.connection is not None}
        for ready in wait([self._server, *connected], timeout=0.1):
            if ready is self._server:
                self._accept()
                continue
            video = connected[ready]  # type: ignore[index]
            try:
                message = video.connection.recv()  # type: ignore[union-attr]
            except BlockingIOError:  # no more followed of a message within the time limit
                video.future.cancel()
                video.disconnect()
            except (EOFError, OSError):  # its worker has died: pebble will know why
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
        video.connection, video.last_message = connection, time.monotonic()

    def _take(self, video: _Video, message: Any) -> None:
        if isinstance(message, Window):
            video.until_seconds = message.end_seconds
            video.coverage += message.coverage
            self._put(WindowRead(video.number, message))
        elif isinstance(message, DecodeResult):
            self._finish(video, message)
        else:
            video.seconds, video.num_windows = message
            self._put(VideoStarted(video.number, video.seconds, video.num_windows))

    def _check_workers(self) -> None:
        ended = [video for video in self._videos.values() if video.connection is None and video.future.done()]
        while wait([self._server], timeout=0):  # one that has ended well has connected before: its messages wait
            self._accept()
        for video in ended:
            if video.connection is None:
                self._lose(video)
        now = time.monotonic()
        for video in self._videos.values():
            overdue = video.last_message is not None and now - video.last_message > self._limits.timeout_seconds
            if overdue and not (video.connection and video.connection.poll()):
                video.future.cancel()  # kills its worker
                video.disconnect()

    def _lose(self, video: _Video) -> None:
        """The worker of a video is gone: the next decoder gets its chance, unless windows have been read."""
        try:
            video.future.result()
            failure = "the decoding process ended without a result"
        except WORKER_ERRORS as error:
            failure = _describe_failure(error, self._limits)
        video.reasons.append(f"{'pyav' if video.num_windows else video.decoders[0]}: {failure}")
        if not video.num_windows and len(video.decoders) > 1:
            decoders = video.decoders[1:]
            again = _Video(video.number, decoders, self._schedule(video.number, decoders), reasons=video.reasons)
            self._videos[video.number] = again
            return
        self._finish(video, undecodable(""))

    def _finish(self, video: _Video, result: DecodeResult) -> None:
        del self._videos[video.number]
        video.disconnect()
        if result.status == "undecodable" and result.reason != CHANGED:
            reason = "; ".join(text for text in [*video.reasons, result.reason] if text)
            result = undecodable(reason)
            if video.coverage:  # windows with intact frames have been read
                reason = f"{reason}, at {video.until_seconds:g} s of {video.seconds:g} s"
                result = DecodeResult("partial", reason, "pyav", video.seconds, video.coverage / video.num_windows)
        self._put(VideoFinished(video.number, result))

    def _put(self, event: Event | BaseException | None) -> None:
        started = time.monotonic()
        while not self.stopped.is_set():
            with suppress(queue.Full):
                self._queue.put(event, timeout=0.2)
                break
        blocked = time.monotonic() - started
        for video in self._videos.values():  # the caller was slow, not they
            if video.last_message is not None:
                video.last_message += blocked


def _num_workers(limits: DecodeLimits, num_files: int) -> int:
    return max(1, min(limits.workers or os.cpu_count() or 1, num_files))


@contextmanager
def create_pool(limits: DecodeLimits, num_files: int, file_bytes: int = 0) -> Iterator[ProcessPool]:
    """Confined worker processes (`start_worker`), which may write files of ``file_bytes`` and a little more."""
    pool = ProcessPool(
        max_workers=_num_workers(limits, num_files),
        context=get_context("spawn"),  # a forked child would inherit the locks of this process' threads
        initializer=start_worker,
        initargs=[limits.memory_gigabytes, MEBIBYTE + file_bytes],
    )
    try:
        yield pool
    finally:
        pool.stop()
        pool.join()


def _largest_first(files: Sequence[Path]) -> list[int]:
    """A large file that comes last would keep one worker busy while the others are done."""
    sizes = dict.fromkeys(range(len(files)), 0)
    for number, file in enumerate(files):
        with suppress(OSError):  # its worker will report it
            sizes[number] = file.stat().st_size
    return sorted(sizes, key=sizes.__getitem__, reverse=True)
