"""Videos that a pool of decoding processes reads, and what it says of them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import psutil

from vidcls.data.decoding.plan import Window, WindowPlan
from vidcls.data.decoding.pool import decode_into_store, read_windows
from vidcls.data.decoding.receiver import Event, VideoFinished, VideoStarted, WindowRead
from vidcls.data.decoding.result import DecodeResult
from vidcls.data.decoding.worker import Source
from vidcls.data.file_hashes import FileState, HashResult
from vidcls.data.options import DecodeLimits
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FrameStore

FRAMES, SIDE = 8, 64
SPEC = StoreSpec(FRAMES, SIDE)
PLAN = WindowPlan(SPEC, window_seconds=1.0, stride_seconds=0.5, max_whole_seconds=2.0)
LONG_WINDOWS = 79  # of 40 s
TWO = DecodeLimits(workers=2)
ONE = DecodeLimits(workers=1)


def start(
    *files: Path,
    limits: DecodeLimits = TWO,
    ahead: int = 8,
    plan: WindowPlan = PLAN,
) -> Generator[Event, None, None]:
    return read_windows([Source(file, FileState.of(file)) for file in files], len(files), plan, limits, ahead)


def store_all(
    files: list[Path], hashes: list[HashResult], store: FrameStore, limits: DecodeLimits
) -> list[DecodeResult]:
    """What becomes of each file."""
    found = dict(decode_into_store(iter(zip(files, hashes, strict=True)), len(files), store, limits))
    return [found[number] for number in range(len(files))]


def sort(events: Iterator[Event]) -> dict[int, tuple[VideoStarted | None, list[Window], VideoFinished]]:
    """Each video's events, which must come in order."""
    started: dict[int, VideoStarted] = {}
    windows: dict[int, list[Window]] = {}
    finished: dict[int, VideoFinished] = {}
    for event in events:
        assert event.number not in finished
        if isinstance(event, VideoStarted):
            assert event.number not in started
            started[event.number] = event
        elif isinstance(event, WindowRead):
            windows.setdefault(event.number, []).append(event.window)
            assert len(windows[event.number]) <= started[event.number].num_windows
        else:
            finished[event.number] = event
    assert set(started) | set(windows) <= set(finished)
    return {number: (started.get(number), windows.get(number, []), end) for number, end in finished.items()}


def results(events: Iterator[Event]) -> dict[int, DecodeResult]:
    return {number: end.result for number, (_, _, end) in sort(events).items()}


def same(one: list[Window], other: list[Window]) -> bool:
    return len(one) == len(other) and all(
        (a.start_seconds, a.end_seconds, a.coverage) == (b.start_seconds, b.end_seconds, b.coverage)
        and np.array_equal(a.frames, b.frames)
        for a, b in zip(one, other, strict=True)
    )


def processes(parent: int | None = None) -> list[psutil.Process]:
    """The decoding processes below a process, by default this one."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.Error, AttributeError):  # gone meanwhile
            command, starter = (" ".join(one.cmdline()) for one in (child, child.parent()))
            # Forked here, see decode_workers, but spawned where a test starts a program or says so.
            if ("spawn_main" in command or "forkserver" in starter) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found
