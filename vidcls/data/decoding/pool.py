"""Decodes many videos at once, in worker processes that can be killed: whole into the store, or window by window.

A worker whose decoder hangs, crashes or needs too much memory is replaced, and the next decoder tries the video.
Imports no decoder: only workers do.
"""

import math
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pebble import ProcessFuture, ProcessPool

from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.receiver import Event, Receiver, VideoFinished
from vidcls.data.decoding.result import DecodeResult
from vidcls.data.decoding.sandbox import WorkerContext, start_worker
from vidcls.data.decoding.worker import Source, send_windows, store_frames
from vidcls.data.file_hashes import HashResult
from vidcls.data.options import DecodeLimits
from vidcls.data.store import FrameStore
from vidcls.errors import UserError
from vidcls.memory import num_cpus

MEBIBYTE = 2**20  # for the header of a file of the store, and for FFmpeg's messages


def decode_into_store(
    videos: Iterable[tuple[Path, HashResult] | None],
    num_videos: int,
    store: FrameStore,
    limits: DecodeLimits,
    pool: ProcessPool | None = None,
) -> Generator[tuple[int, DecodeResult], None, None]:
    """Decodes up to ``num_videos`` videos, and stores each under its hash.

    Yields the number of each video in ``videos`` and its result, as they are ready. As of `read_windows`: ``videos``
    are taken in a thread, None means that the next one may take a while, and closing the generator ends all processes
    except for those of a given ``pool``, here of `create_store_pool`.
    Raises UserError or OSError if the store cannot be written; what was stored until then is kept.
    """
    workers = nullcontext(pool) if pool else create_store_pool(limits, num_videos, store)
    with closing(_receive(videos, num_videos, limits, workers, store_frames, [store])) as events:
        for event in events:
            if isinstance(event, VideoFinished):
                yield event.number, event.result


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
    threads = 1 if pool else max(1, num_cpus() // _num_workers(limits, num_videos))
    workers = nullcontext(pool) if pool else create_pool(limits, num_videos)
    return _receive(videos, num_videos, limits, workers, send_windows, [plan, threads], ahead, max_windows)


def _receive(
    videos: Iterable[Any],
    num_videos: int,
    limits: DecodeLimits,
    pool: AbstractContextManager[ProcessPool],
    task: Callable[..., None],
    options: Sequence[Any],
    ahead: int = 8,
    max_windows: float | int = math.inf,
) -> Generator[Event, None, None]:
    """The events of `read_windows`, for a ``task`` of `vidcls.data.decoding.worker` and its ``options``."""
    root = None if len(tempfile.gettempdir()) < 80 else "/tmp"  # the path of a socket has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="vidcls-", dir=root) as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/socket")  # in a folder that only this user can access
        server.listen(128)
        receiver = Receiver(videos, 2 * _num_workers(limits, num_videos), server, limits, ahead, max_windows)

        def schedule(number: int, video: Any, decoders: tuple[str, ...]) -> ProcessFuture:
            return workers.schedule(task, [f"{folder}/socket", number, video, decoders, *options])

        thread = threading.Thread(target=receiver.run, args=[schedule], daemon=True)
        try:
            with pool as workers:
                thread.start()
                try:
                    yield from receiver.events()
                finally:
                    receiver.stopped.set()
        finally:
            if thread.is_alive():
                thread.join()


def _num_workers(limits: DecodeLimits, num_files: int) -> int:
    return max(1, min(limits.workers or num_cpus(), num_files))


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
