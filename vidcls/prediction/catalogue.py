"""Which videos are still to be classified, each content once, and what becomes of their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vidcls.data.decoding.result import undecodable
from vidcls.data.decoding.worker import CHANGED
from vidcls.data.hashing import FileState, HashResult
from vidcls.prediction.journal import Journal, VideoDetails

MAX_READS = 3  # of a file that changes meanwhile
LONG_WINDOWS = 100  # a video of more is read after all others: a few endless ones would hold them up
Result = tuple[dict[str, str], VideoDetails | None]
"""Cells and details of a video, as `vidcls.prediction.video_result.build_result` gives them."""


@dataclass(frozen=True)
class Content:
    """What is to be classified: the first file with a content, and its state when it was hashed."""

    sha256: str
    file: Path
    state: FileState | None

    @property
    def changed(self) -> bool:
        """Whether the file may no longer have this content."""
        return self.state is None or FileState.of(self.file) != self.state


class Catalogue:
    """The videos that one command has to classify, beside the journal that it writes.

    ``videos`` are files by name; ``describe`` is `build_result` with all that is the same for all videos.
    """

    def __init__(self, videos: Mapping[str, Path], journal: Journal, describe: Callable[..., Result]) -> None:
        self.videos, self._journal, self._describe = dict(videos), journal, describe
        self._copies: dict[str, list[str]] = {}  # the names with each content that is being classified
        self._changes: Counter[str] = Counter()
        self.num_done = 0  # videos with a result

    def assign(self, hashes: Mapping[str, HashResult]) -> list[Content]:
        """Records which content each video has; returns those that are to be classified and are not yet."""
        missing = self._journal.assign({path: hashed.sha256 for path, hashed in hashes.items()})
        new = []
        for path, hashed in hashes.items():
            if not hashed.sha256:
                self._write_undecodable(path, hashed.error)
            elif hashed.sha256 in self._copies:
                self._copies[hashed.sha256].append(path)
            elif hashed.sha256 in missing:
                self._copies[hashed.sha256] = [path]
                new.append(Content(hashed.sha256, self.videos[path], hashed.state))
            else:
                self.num_done += 1
        return new

    def finish(self, content: Content, result: Result | None) -> list[str]:
        """Writes a result; returns the videos to be hashed again, as there is none since their file has changed.

        A file that keeps changing is for review.
        """
        paths, again = self._copies.pop(content.sha256), []
        if result is not None:
            self._journal.write(paths, content.sha256, *result)
            self.num_done += len(paths)
            return []
        for path in paths:
            self._changes[path] += 1
            if self._changes[path] < MAX_READS:
                again.append(path)
            else:
                self._write_undecodable(path, CHANGED)
        return again

    def give_up(self, content: Content, reason: str) -> None:
        """Writes that a content cannot be decoded."""
        self.finish(content, self._describe(undecodable(reason), [], None))

    def _write_undecodable(self, path: str, reason: str) -> None:
        self._journal.write([path], "", *self._describe(undecodable(reason), [], None))
        self.num_done += 1
