"""What a decoding process does. Light to import, as every worker pays for it."""

from __future__ import annotations

import os
import resource
import signal
import threading
from dataclasses import asdict
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vidcls.data.decoding.frames import Reading, UndecodableError, decode
from vidcls.data.decoding.windows import WindowPlan, stream_windows
from vidcls.data.store import Store
from vidcls.files import hash_file


def ingest_one(file: Path, sha256: str | None, store: Store, decoders: tuple[str, ...]) -> dict[str, Any]:
    """Brings one video into the store; gives the manifest's columns from sha256 to coverage, and ``decoded``.

    Args:
        file: the video.
        sha256: its content's hash where it is known, else None.
        store: where the frames go, unless they are there.
        decoders: which to try, in order.

    Raises:
        UserError: the disk is full.
    """
    try:
        sha256 = sha256 or hash_file(file)
        found = store.find(sha256)
        if found is not None:
            reading = found
        else:
            frames, reading = decode(file, store.num_frames, store.resolution, store.sampling, decoders, store.clips)
            store.write(sha256, frames, reading)
        return {"sha256": sha256, **asdict(reading), "decoded": found is None}
    except UndecodableError as error:
        return undecodable(sha256 or "", str(error))
    except OSError as error:
        return undecodable(sha256 or "", _unreadable(error))


def undecodable(sha256: str, reason: str) -> dict[str, Any]:
    """The same columns for a video that gave no frames."""
    return {"sha256": sha256, **asdict(no_reading(reason))}


def no_reading(reason: str) -> Reading:
    """What is said of a video that gave no frames."""
    return Reading("undecodable", reason, decoder="", seconds=0.0, coverage=0.0)


def _unreadable(error: OSError) -> str:
    return f"the file cannot be read: {error.strerror or error}"


def serve_windows(connection: Connection, plan: WindowPlan, threads: int, memory_gigabytes: float | int) -> None:
    """Reads videos window by window for `vidcls.data.decoding.reader`, until it is killed.

    Sends None when it is ready. Then it gets (file, sha256, decoders), one video after the other, and sends

    - unless ``sha256`` is known: None each MiB that it hashes, then the SHA-256. It gets True, or False: not wanted.
    - (seconds, number of windows) of the video, then each `Window`;
    - last the `Reading`, or a MemoryError.
    """
    start_worker(memory_gigabytes)
    try:
        connection.send(None)
        while True:
            _serve_video(connection, plan, threads, *connection.recv())
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the reader is gone
        return


def _serve_video(
    connection: Connection, plan: WindowPlan, threads: int, file: Path, sha256: str, decoders: tuple[str, ...]
) -> None:
    try:
        if not sha256:
            connection.send(hash_file(file, alive=lambda: connection.send(None)))
            if not connection.recv():
                return
        video = stream_windows(file, plan, decoders, threads)
        connection.send((video.seconds, len(video)))
        for window in video:
            connection.send(window)
        connection.send(video.reading)
    except UndecodableError as error:
        connection.send(no_reading(str(error)))
    except MemoryError:
        connection.send(MemoryError())
    except OSError as error:
        connection.send(no_reading(_unreadable(error)))


def start_worker(memory_gigabytes: float | int) -> None:
    """Makes a process a worker: limited in memory, deaf to Ctrl-C, gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # A killed ingest takes its workers along: nobody else would stop one that hangs, and the rest would go on decoding.
    threading.Thread(target=_follow_parent, daemon=True).start()
    limit = int(memory_gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _follow_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
