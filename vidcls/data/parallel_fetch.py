"""Fetches many files at once, by threads that share a limit on disk space."""

import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

from vidcls.data.options import FetchLimits

Item = TypeVar("Item")
Result = TypeVar("Result")

POLL_SECONDS = 0.01


class CancelledError(Exception):
    """All downloads were cancelled, or there is no disk space for this one."""


class FetchSpace:
    """The disk space for fetched files; `acquire` waits until there is enough, or raises `CancelledError`."""

    def __init__(self, gigabytes: float | int, waits: bool = True) -> None:
        self._waits = waits
        self._free, self._changed, self.cancelled = float(gigabytes) * 1e9, threading.Condition(), threading.Event()

    def acquire(self, size: float) -> None:
        with self._changed:
            if self._waits:
                self._changed.wait_for(lambda: self._free >= size or self.cancelled.is_set())
            if self.cancelled.is_set() or self._free < size:
                raise CancelledError
            self._free -= size

    def release(self, size: float) -> None:
        with self._changed:
            self._free += size
            self._changed.notify_all()

    def cancel(self) -> None:
        self.cancelled.set()
        self.release(0.0)  # wakes up who waits


def map_unordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result | None, None, None]:
    """Yields the results of ``function`` as they are ready, from ``workers`` threads; takes few items ahead.

    Yields None whenever no result is ready, so that the caller can do what the others wait for.
    """
    remaining, pool = iter(items), ThreadPoolExecutor(workers)
    waiting: dict[Future[Result], int] = {}
    order = count()

    def submit(most: int) -> None:
        for item in islice(remaining, most):
            waiting[pool.submit(function, item)] = next(order)

    try:
        submit(2 * workers)
        while waiting:
            done, _ = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            if not done:
                yield None
            for future in sorted(done, key=lambda one: waiting[one]):
                del waiting[future]
                yield future.result()
                submit(1)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def fetching(
    function: Callable[[Item, FetchSpace], Result], items: Iterable[Item], folder: Path, limits: FetchLimits
) -> Iterator[Iterator[Result | None]]:
    """`map_unordered` for a function that fetches into ``folder``, which is emptied at the start and at the end."""
    space = FetchSpace(limits.space_gigabytes)
    shutil.rmtree(folder, ignore_errors=True)
    found = map_unordered(lambda item: function(item, space), items, limits.workers)
    try:
        yield found
    finally:
        space.cancel()
        found.close()
        shutil.rmtree(folder, ignore_errors=True)
