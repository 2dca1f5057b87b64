"""Decodes many videos at once, in worker processes that can be killed: whole into the store, or window by window.

A worker whose decoder hangs, crashes or needs too much memory is replaced, and the next decoder tries the video.
Imports no decoder: only workers do.
"""

import math
import os
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from pebble import ProcessFuture, ProcessPool

from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.receiver import WORKER_ERRORS, Event, Receiver, Source, describe_failure
from vidcls.data.decoding.result import DECODERS, DecodeResult, undecodable
from vidcls.data.decoding.sandbox import WorkerContext, start_worker
from vidcls.data.decoding.worker import decode_to_store, send_windows
from vidcls.data.hashing import HashResult
from vidcls.data.options import DecodeLimits
from vidcls.data.store import FrameStore
from vidcls.errors import UserError

MEBIBYTE = 2**20  # for the header of a file of the store, and for FFmpeg's messages


def decode_into_store(
    videos: Iterable[tuple[Path, HashResult] | None],
    num_videos: int,
    store: FrameStore,
    limits: DecodeLimits,
    pool: ProcessPool | None = None,
) -> Iterator[tuple[int, DecodeResult]]:
    """Decodes up to ``num_videos`` videos, and stores each under its hash.

    Yields the number of each video in ``videos`` and its result, as they are ready. None among ``videos`` means that
    the next one may take a while. A ``pool`` of `create_store_pool` may be given.
    Raises UserError or OSError if the store cannot be written; what was stored until then is kept.
    """
    ahead = 4 * _num_workers(limits, num_videos)
    pending: deque[tuple[int, Path, HashResult, tuple[str, ...], list[str], ProcessFuture]] = deque()
    killed = set[int]()
    with nullcontext(pool) if pool else create_store_pool(limits, num_videos, store) as workers:

        def submit(number: int, file: Path, hashed: HashResult, decoders: tuple[str, ...], reasons: list[str]) -> None:
            arguments = [file, hashed, store, decoders]
            future = workers.schedule(decode_to_store, arguments, timeout=limits.timeout_seconds)
            pending.append((number, file, hashed, decoders, reasons, future))

        def settle() -> Iterator[tuple[int, DecodeResult]]:
            number, file, hashed, decoders, reasons, future = pending.popleft()
            try:
                result: DecodeResult = future.result()
            except WORKER_ERRORS as error:
                # No decoder kills itself with SIGKILL: a video whose worker was killed from outside is retried once.
                if getattr(error, "exitcode", None) == -signal.SIGKILL and number not in killed:
                    killed.add(number)
                    submit(number, file, hashed, decoders, reasons)
                    return
                result = undecodable(f"{decoders[0]}: {describe_failure(error, limits)}")
                if len(decoders) > 1:
                    submit(number, file, hashed, decoders[1:], [*reasons, result.reason])
                    return
            # The failure of a decoder is reported only if no other could read the video.
            texts = [text for text in (*reasons, result.reason) if text]
            yield number, undecodable("; ".join(texts)) if result.status == "undecodable" else result

        number = 0
        for video in videos:
            if video is not None:
                submit(number, *video, DECODERS, [])
                number += 1
            while pending and (len(pending) > ahead or pending[0][-1].done()):
                yield from settle()
        while pending:
            yield from settle()


def read_windows(
    videos: Iterable[Source | None],
    num_videos: int,
    plan: WindowPlan,
    limits: DecodeLimits,
    ahead: int = 8,
    pool: ProcessPool | None = None,
    max_windows: float | int = math.inf,
) -> Generator[Event, None, None]:
    """Reads up to ``num_videos`` videos window by window, in several processes at once.

    ``videos`` are taken, in a thread, as processes become free, and numbered in their order. None among them means that
    the next one may take a while, which yields `Idle` once the others are finished.
    Each video yields one `VideoStarted` (unless it is undecodable), its windows in order of time and in any case one
    `VideoFinished`. Events of different videos are interleaved. Decoders wait while ``ahead`` events are ready. Closing
    the generator ends all processes, except for those of a given ``pool`` of `create_pool`.
    ``limits.timeout_seconds`` is the time for one window, or for what comes before it; `WINDOWS_PER_TIMEOUT` limits the
    total. A file whose state has changed is undecodable. A video of more than ``max_windows`` windows is not read and
    finishes with the result `DEFERRED`.
    """
    num_workers = _num_workers(limits, num_videos)
    threads = 1 if pool else max(1, (os.cpu_count() or 1) // num_workers)
    root = None if len(tempfile.gettempdir()) < 80 else "/tmp"  # the path of a socket has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="vidcls-", dir=root) as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/socket")  # in a folder that only this user can access
        server.listen(128)
        receiver = Receiver(videos, 2 * num_workers, server, limits, ahead, max_windows)

        def schedule(number: int, video: Source, decoders: tuple[str, ...]) -> ProcessFuture:
            file, state, spans = video
            own = replace(plan, spans=spans)
            return workers.schedule(send_windows, [f"{folder}/socket", number, file, state, own, decoders, threads])

        thread = threading.Thread(target=receiver.run, args=[schedule], daemon=True)
        try:
            with nullcontext(pool) if pool else create_pool(limits, num_videos) as workers:
                thread.start()
                try:
                    yield from receiver.events()
                finally:
                    receiver.stopped.set()
        finally:
            if thread.is_alive():
                thread.join()


def _num_workers(limits: DecodeLimits, num_files: int) -> int:
    return max(1, min(limits.workers or os.cpu_count() or 1, num_files))


def create_store_pool(limits: DecodeLimits, num_files: int, store: FrameStore) -> AbstractContextManager[ProcessPool]:
    """`create_pool` of workers that may write an entry of ``store``."""
    return create_pool(limits, num_files, 3 * store.spec.frames_per_video * store.spec.stored_resolution**2)


@contextmanager
def create_pool(limits: DecodeLimits, num_files: int, file_bytes: int = 0) -> Iterator[ProcessPool]:
    """Sandboxed worker processes (`start_worker`), which may write files of ``file_bytes`` and a little more.

    Raises:
        UserError: they die at their start.
    """
    pool = ProcessPool(
        max_workers=_num_workers(limits, num_files),
        context=WorkerContext(),
        initializer=start_worker,
        initargs=[limits.memory_gigabytes, MEBIBYTE + file_bytes],
    )
    try:
        yield pool
    except RuntimeError as error:
        if pool.active and not isinstance(error, BrokenExecutor):
            raise
        raise UserError(
            "processes that decode videos to start",
            f"ones that died at their start ({error})",
            "Check the free memory, ulimit, and that the temporary folder can be written.",
            "workers-failed",
        ) from error
    finally:
        pool.stop()
        pool.join()
