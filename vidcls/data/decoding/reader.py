"""Many videos, window by window, from processes that decode ahead while the caller works on what they have read.

Each process has a thread here that talks to it, and all threads put what they get on one short queue: where the caller
is slower the queue is full, the threads wait, the pipes fill up and the decoders wait, too. A video that hangs a
decoder, crashes it or eats memory takes one process with it, never the run.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from typing import Any

from vidcls.data.decoding.frames import DECODERS, Reading
from vidcls.data.decoding.windows import Window, WindowPlan
from vidcls.data.decoding.worker import no_reading, serve_windows
from vidcls.data.ingest import DecodeLimits, file_size, why_lost

START_SECONDS = 120.0  # for a process to start: to import decoders takes a second, and more where all cores are busy
STARTS = 2


@dataclass(frozen=True)
class Started:
    """The video ``files[number]`` can be read.

    Attributes:
        number: which one.
        sha256: of the file's content.
        seconds: its duration.
        windows: how many windows it has; fewer come where its decoder is lost.
    """

    number: int
    sha256: str
    seconds: float
    windows: int


@dataclass(frozen=True)
class WindowRead:
    """The next window of a video that has started."""

    number: int
    window: Window


@dataclass(frozen=True)
class Finished:
    """Nothing more comes of this video, whether it has started or not.

    Attributes:
        number: which one.
        sha256: of the file's content; "" where that cannot be read.
        reading: its status is ``ok``, ``partial`` (some frames damaged, or not all windows read) or ``undecodable``.
    """

    number: int
    sha256: str
    reading: Reading


Event = Started | WindowRead | Finished


def read_videos(
    files: Sequence[Path],
    plan: WindowPlan,
    limits: DecodeLimits,
    wanted: Callable[[int, str], bool],
    ahead: int = 8,
) -> Generator[Event, None, None]:
    """Reads videos in several processes at once.

    Of each video comes one `Started` (not if it is undecodable), its windows in order of time and, whatever happens,
    one `Finished`. Those of different videos are mixed, large files come first. Closing the generator, or an exception,
    ends all its threads and processes.

    Args:
        files: the videos.
        plan: how they are cut into windows.
        limits: what one video may cost; its ``timeout_seconds`` are for one window, or whatever comes before the first.
        wanted: is given a video's number and SHA-256 before it is decoded. Where it says no, nothing comes of that
            video. It is called in threads of this process, one call at a time.
        ahead: how many events wait at most.

    Raises:
        RuntimeError: no decoding process can be started.
        Exception: whatever ``wanted`` raises.
    """
    crew = _Crew(files, plan, limits, wanted, ahead)
    try:
        yield from crew.events()
    finally:
        crew.stop()


class _Lost(Exception):
    """A decoding process that is gone."""


class _Stopped(Exception):
    """The caller wants no more."""


class _Process:
    """A decoding process and the pipe to it."""

    def __init__(self, plan: WindowPlan, threads: int, memory_gigabytes: float | int) -> None:
        context = get_context("spawn")  # a forked child would inherit the locks of the network's threads
        self._connection, theirs = context.Pipe()
        arguments = (theirs, plan, threads, memory_gigabytes)
        self._process = context.Process(target=serve_windows, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._hangs = False

    def send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise _Lost from error

    def receive(self, timeout_seconds: float | int) -> Any:
        # Killed from elsewhere, and not only waited for: it may hang with half of a message sent.
        watch = threading.Timer(timeout_seconds, self._kill_hanging)
        watch.daemon = True
        watch.start()
        try:
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            raise TimeoutError if self._hangs else _Lost from error
        finally:
            watch.cancel()
        if isinstance(message, MemoryError):
            raise message
        return message

    def _kill_hanging(self) -> None:
        self._hangs = True
        self.kill()

    def lives(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()

    def end(self, grace_seconds: float = 0.0) -> str:
        """Ends it, after ``grace_seconds`` to end by itself; says how it ended."""
        self._process.join(grace_seconds)
        self._process.kill()
        self._process.join()
        self._connection.close()
        code = self._process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _Crew:
    """The threads of `read_videos` and what they share."""

    def __init__(
        self,
        files: Sequence[Path],
        plan: WindowPlan,
        limits: DecodeLimits,
        wanted: Callable[[int, str], bool],
        ahead: int,
    ) -> None:
        cores = os.cpu_count() or 1
        workers = min(limits.workers or cores, len(files))
        self.files, self.limits, self.wanted = files, limits, wanted
        self.settings = (plan, max(1, cores // max(workers, 1)), limits.memory_gigabytes)
        # Large files first: one that comes last would keep a single process busy while the others are done.
        self.numbers = iter(sorted(range(len(files)), key=lambda number: -file_size(files[number])))
        self.queue: Queue[Event | BaseException | None] = Queue(ahead)
        self.asking = threading.Lock()  # held while ``wanted`` is called
        self.lock = threading.Lock()  # for all that follows and the numbers; processes are started and ended under it
        self.processes: set[_Process] = set()
        self.stopped = False
        self._threads = [threading.Thread(target=_Reader(self).work, daemon=True) for _ in range(workers)]

    def events(self) -> Generator[Event, None, None]:
        for thread in self._threads:
            thread.start()
        working = len(self._threads)
        while working:
            event = self.queue.get()
            if event is None:
                working -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield event

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.kill()
        for thread in self._threads:
            while thread.is_alive():
                while not self.queue.empty():  # the thread may wait for room
                    self.queue.get()
                thread.join(0.01)


@dataclass
class _Seen:
    """What has come of a video.

    Attributes:
        sha256: "" while it is not known.
        seconds: its duration.
        windows: how many it has; 0 before it has started.
        until: the end of the last window that has come.
        coverage: the sum over all windows that have come.
    """

    sha256: str = ""
    seconds: float = 0.0
    windows: int = 0
    until: float = 0.0
    coverage: float = 0.0


class _Reader:
    """What one thread does: it has a process read one video after the other."""

    def __init__(self, crew: _Crew) -> None:
        self._crew = crew
        self._process: _Process | None = None

    def work(self) -> None:
        try:
            while True:
                with self._crew.lock:
                    number = next(self._crew.numbers, None)
                if number is None:
                    return
                self._read(number)
        except _Stopped:
            pass
        except BaseException as error:
            self._crew.queue.put(error)
        finally:
            with self._crew.lock:
                self._end()
            self._crew.queue.put(None)

    def _read(self, number: int) -> None:
        seen, reasons, reading = _Seen(), [], None
        for tried, decoder in enumerate(DECODERS):
            try:
                reading = self._follow(number, seen, DECODERS[tried:])
                if reading is None:
                    return
                reasons.append(reading.reason)
                break
            except (_Lost, TimeoutError, MemoryError) as error:
                why = why_lost(self._give_up(error), self._crew.limits)
                reasons.append(f"{'pyav' if seen.windows else decoder}: {why}")
                if seen.windows:  # which PyAV alone reads; else the next decoder gets its own chance
                    break
        if reading is None or reading.status == "undecodable":
            reading = _what_is_left(seen, "; ".join(reasons))
        self._crew.queue.put(Finished(number, seen.sha256, reading))

    def _follow(self, number: int, seen: _Seen, decoders: tuple[str, ...]) -> Reading | None:
        """Passes on what comes of a video; None where it is not wanted."""
        crew, process = self._crew, self._living_process()
        process.send((crew.files[number], seen.sha256, decoders))
        while True:
            message = process.receive(crew.limits.timeout_seconds)
            if crew.stopped:
                raise _Stopped
            if isinstance(message, Reading):
                return message
            if isinstance(message, str):
                seen.sha256 = message
                with crew.asking:
                    wanted = crew.wanted(number, message)
                process.send(wanted)
                if not wanted:
                    return None
            elif isinstance(message, tuple):
                seen.seconds, seen.windows = message
                crew.queue.put(Started(number, seen.sha256, seen.seconds, seen.windows))
            elif isinstance(message, Window):
                crew.queue.put(WindowRead(number, message))
                seen.until = message.end_seconds
                seen.coverage += message.coverage

    def _living_process(self) -> _Process:
        crew, how = self._crew, ""
        for _ in range(STARTS):
            with crew.lock:
                if crew.stopped:
                    raise _Stopped
                if self._process is not None and self._process.lives():
                    return self._process
                self._end()
                self._process = _Process(*crew.settings)
                crew.processes.add(self._process)
            try:
                self._process.receive(START_SECONDS)
                return self._process
            except (_Lost, TimeoutError) as error:
                how = str(self._give_up(error)) or "it hangs"
        raise RuntimeError(f"no decoding process can be started: {how}")

    def _give_up(self, error: Exception) -> Exception:
        """Ends the process that is lost, hangs or has no memory; gives ``error``, which then says how it ended."""
        with self._crew.lock:
            if self._crew.stopped:
                raise _Stopped
            how = self._end(grace_seconds=2.0 if isinstance(error, _Lost) else 0.0)
        return _Lost(how) if isinstance(error, _Lost) else error

    def _end(self, grace_seconds: float = 0.0) -> str:
        """Ends the process, if there is one; the lock is held."""
        process, self._process = self._process, None
        if process is None:
            return ""
        self._crew.processes.discard(process)
        return process.end(grace_seconds)


def _what_is_left(seen: _Seen, reason: str) -> Reading:
    """What is said of a video whose decoder has failed: partial, where there are windows with intact frames."""
    if not seen.coverage:
        return no_reading(reason)
    reason = f"{reason}, at {seen.until:g} s of {seen.seconds:g} s"
    return Reading("partial", reason, "pyav", seen.seconds, seen.coverage / seen.windows)
