"""What a decoding process does. Light to import, as every worker pays for it."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import threading
from dataclasses import asdict
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from vidcls.data.decode import Reading, UndecodableError, decode
from vidcls.data.store import Store


def ingest_one(file: Path, sha256: str | None, store: Store, decoders: tuple[str, ...]) -> dict[str, Any]:
    """Brings one video into the store; gives the manifest's columns from sha256 to coverage.

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
        reading = store.find(sha256)
        if reading is None:
            frames, reading = decode(file, store.num_frames, store.resolution, store.sampling, decoders)
            store.write(sha256, frames, reading)
        return {"sha256": sha256, **asdict(reading)}
    except UndecodableError as error:
        return undecodable(sha256 or "", str(error))
    except OSError as error:
        return undecodable(sha256 or "", f"the file cannot be read: {error.strerror or error}")


def hash_file(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def undecodable(sha256: str, reason: str) -> dict[str, Any]:
    """The same columns for a video that gave no frames."""
    return {"sha256": sha256, **asdict(Reading("undecodable", reason, decoder="", seconds=0.0, coverage=0.0))}


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
