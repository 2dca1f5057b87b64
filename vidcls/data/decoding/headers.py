"""The headers of video files, read in worker processes that can be killed. Imports no decoder."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.progress import track

from vidcls.data.decoding.pool import create_pool
from vidcls.data.decoding.receiver import WORKER_ERRORS
from vidcls.data.decoding.worker import VideoHeader, read_header
from vidcls.data.options import DecodeLimits
from vidcls.data.urls import is_url


def read_headers(locations: Sequence[str], limits: DecodeLimits) -> list[VideoHeader | None]:
    """The header of each file, for which only its first frame is decoded; None for URLs and unreadable files."""
    files = {index: Path(location) for index, location in enumerate(locations) if not is_url(location)}
    headers: list[VideoHeader | None] = [None] * len(locations)
    if files:
        with create_pool(limits, len(files)) as pool:
            tasks = [
                (index, pool.schedule(read_header, [file], timeout=limits.timeout_seconds))
                for index, file in files.items()
            ]
            for index, task in track(tasks, "Headers", transient=True, disable=len(tasks) < 100):
                with suppress(*WORKER_ERRORS):  # a lost worker
                    headers[index] = task.result()
    return headers
