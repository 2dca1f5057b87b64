"""The headers of video files, read in worker processes that can be killed. Imports no decoder."""

from collections.abc import Iterator, Sequence
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
            found = pool.map(read_header, files.values(), timeout=limits.timeout_seconds).result()
            shown = track(_each(found), "Headers", len(files), transient=True, disable=len(files) < 100)
            for index, header in zip(files, shown, strict=True):
                headers[index] = header
    return headers


def _each(results: Iterator[VideoHeader | None]) -> Iterator[VideoHeader | None]:
    """The results, with None for each lost worker."""
    while True:
        try:
            yield next(results)
        except StopIteration:
            return
        except WORKER_ERRORS:
            yield None
