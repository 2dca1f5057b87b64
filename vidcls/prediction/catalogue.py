"""Tracks which videos are still to be classified, each content once, and writes their results into the journal."""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vidcls.data.decoding.result import DecodeResult, undecodable
from vidcls.data.decoding.worker import CHANGED
from vidcls.data.file_hashes import FileState, HashResult, local_version
from vidcls.data.urls import is_url, redact
from vidcls.prediction.journal import Journal, VideoDetails

MAX_READS = 3  # of a file that changes while it is read
LONG_WINDOWS = 100  # a video of more is read after all others, so that very long ones do not hold them up
Result = tuple[dict[str, str], VideoDetails | None]  # as `vidcls.prediction.video_result.build_result` returns it


@dataclass(frozen=True)
class Content:
    """A content to classify: the first file that has it, and the file's state when it was hashed."""

    sha256: str
    file: Path
    state: FileState | None

    @property
    def changed(self) -> bool:
        """Whether the file may no longer have this content."""
        return self.state is None or FileState.of(self.file) != self.state


def location_version(location: str, remote_version: str | None) -> str:
    """A text that changes with a video: for a URL, a digest of it, a space and the remote version, "" if unknown."""
    if not is_url(location):
        return local_version(FileState.of(Path(location)))
    digest = hashlib.sha256(redact(location).encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{digest} {remote_version or ''}"


class Catalogue:
    """The videos that one command has to classify, and its journal.

    ``videos`` are paths or URLs by name; ``describe`` is `build_result` with the arguments that all videos share.
    """

    def __init__(self, videos: Mapping[str, str], journal: Journal, describe: Callable[..., Result]) -> None:
        self.videos, self._journal, self._describe = videos, journal, describe
        self._lock = threading.Lock()  # videos may come in one thread, and results in another
        self._versions: dict[str, str] = {}  # of the names in _copies
        self._copies: dict[str, list[str]] = {}  # the names with each content that is being classified
        self._changes: Counter[str] = Counter()
        self.num_done = 0  # videos with a result

    def assign(self, hashes: Mapping[str, HashResult], files: Mapping[str, Path] | None = None) -> list[Content]:
        """Records the content of each video; returns the new contents to classify.

        ``files`` are local copies of videos behind URLs, by name.
        """
        with self._lock:
            versions = {
                path: location_version(self.videos[path], hashed.version)
                if is_url(self.videos[path])
                else local_version(hashed.state)
                for path, hashed in hashes.items()
            }
            missing = self._journal.assign({path: hashed.sha256 for path, hashed in hashes.items()}, versions)
            new = []
            for path, hashed in hashes.items():
                if not hashed.sha256:
                    self._write_lost(path, undecodable(hashed.error))
                elif hashed.sha256 in missing | self._copies.keys():
                    if hashed.sha256 not in self._copies:
                        file = (files or {}).get(path) or Path(self.videos[path])
                        new.append(Content(hashed.sha256, file, hashed.state))
                    self._copies.setdefault(hashed.sha256, []).append(path)
                    self._versions[path] = versions[path]
                else:
                    self.num_done += 1
        return new

    def finish(self, content: Content, result: Result | None) -> list[str]:
        """Writes a result; returns the videos whose file has changed, to be hashed again: all of them for None.

        A file that keeps changing is marked for review.
        """
        with self._lock:
            versions = {path: self._versions.pop(path) for path in self._copies.pop(content.sha256)}
            changed = [path for path, version in versions.items() if result is None or self._has_changed(path, version)]
            if result is not None and len(changed) < len(versions):
                kept = {path: version for path, version in versions.items() if path not in changed}
                self._journal.write(kept, content.sha256, *result)
                self.num_done += len(kept)
            again = []
            for path in changed:
                self._changes[path] += 1
                if self._changes[path] < MAX_READS:
                    again.append(path)
                else:
                    self._write_lost(path, undecodable(CHANGED))
        return again

    def postpone(self, content: Content) -> list[str]:
        """Forgets a content; returns its videos, to be given to `assign` again later."""
        with self._lock:
            paths = self._copies.pop(content.sha256)
            for path in paths:
                del self._versions[path]
        return paths

    def _has_changed(self, path: str, version: str) -> bool:
        location = self.videos[path]
        return not is_url(location) and location_version(location, None) != version

    def lose(self, path: str, decoded: DecodeResult) -> None:
        """Writes the result of a video that has no hash."""
        with self._lock:
            self._write_lost(path, decoded)

    def give_up(self, content: Content, reason: str) -> None:
        """Writes that a content cannot be decoded, and why."""
        self.finish(content, self._describe(undecodable(reason), [], None))

    def _write_lost(self, path: str, decoded: DecodeResult) -> None:
        self._journal.write({path: ""}, "", *self._describe(decoded, [], None))
        self.num_done += 1
