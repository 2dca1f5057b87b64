"""Windows of a long video in one sequential pass: each frame is decoded at most once and memory does not grow.

A short video is left to `decode`, whole, so that it is read exactly as for training. A longer one is read with PyAV,
whatever the order of decoders. decord, read to the end, holds on to memory (72 MiB after 2 minutes of
640x360, 209 MiB after 60) and takes twice the time by then; it works ahead in a thread of its own, so that its
complaints cannot be tied to frames; and its clock is single precision, too coarse after an hour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from vidcls.data.decoding.frames import Reading, UndecodableError, decode, sum_up
from vidcls.data.decoding.memory import return_freed_blocks
from vidcls.data.decoding.pyav import BROKEN, ChosenFrames, Track, captured_stderr, first_line, read_track
from vidcls.data.sampling import SAMPLINGS, TIE_SECONDS, WHOLE, Clips, clip_starts, window_indices, window_starts
from vidcls.errors import check_choice, check_integer, check_number


@dataclass(frozen=True)
class WindowPlan:
    """How videos are cut into windows and what is read of each window.

    Attributes:
        num_frames: F.
        resolution: R, in pixels.
        sampling: see `vidcls.data.sampling.frame_indices`; applied within each window.
        window_seconds: see `vidcls.data.sampling.window_starts`.
        stride_seconds: likewise.
        whole_seconds: a video up to this long is one window, as is one that is no longer than ``window_seconds``.
        clips: what stands for such a video; a window of a longer one is one clip.
    """

    num_frames: int
    resolution: int
    sampling: str
    window_seconds: float
    stride_seconds: float
    whole_seconds: float
    clips: Clips = WHOLE

    def __post_init__(self) -> None:
        check_integer("data.num_frames", self.num_frames)
        check_integer("data.resolution", self.resolution)
        check_choice("data.sampling", self.sampling, SAMPLINGS)
        window_starts(0.0, self.window_seconds, self.stride_seconds)
        check_number("predict.whole_seconds", self.whole_seconds)


@dataclass(frozen=True)
class Window:
    """The frames of the half-open range of time [start, end).

    Attributes:
        start_seconds: from the appearance of the video's first frame.
        end_seconds: likewise.
        frames: as `vidcls.data.decoding.frames.decode` gives them: F, or M F where M clips stand for a video.
        coverage: the fraction of them that is intact, 0..1; stand-ins take the place of the others.
    """

    start_seconds: float
    end_seconds: float
    frames: UInt8[np.ndarray, "F R R 3"]
    coverage: float


def middle_clip(window: Window, plan: WindowPlan) -> Window:
    """The one clip that a window is; of M clips that stand for a video the middle one, as a window of its own."""
    count, seconds = len(window.frames) // plan.num_frames, plan.clips.seconds
    if count == 1 or seconds is None:
        return window
    middle = count // 2
    start = window.start_seconds + float(clip_starts(window.end_seconds - window.start_seconds, seconds, count)[middle])
    frames = window.frames[middle * plan.num_frames :][: plan.num_frames]
    return replace(window, start_seconds=start, end_seconds=min(start + seconds, window.end_seconds), frames=frames)


def stream_windows(path: Path, plan: WindowPlan, decoders: tuple[str, ...], threads: int = 1) -> WindowStream:
    """The windows of the video at ``path``, to be iterated over.

    Args:
        path: the video file.
        plan: how it is cut.
        decoders: which `decode` tries for a video that is read whole.
        threads: with which others are decoded.

    Raises:
        UndecodableError: there is no video, or a short one has no intact frame.
    """
    return_freed_blocks(64 * 1024)  # FFmpeg's index of an hour is built twice: first to read its timestamps
    with captured_stderr() as complaints:
        try:
            track, starts = read_track(path)
            complaint = complaints()
        except BROKEN as error:
            track, complaint = None, first_line(str(error), path)
    longest = max(plan.whole_seconds, plan.window_seconds) + TIE_SECONDS
    if track is None or track.seconds <= longest:
        frames, reading = decode(path, plan.num_frames, plan.resolution, plan.sampling, decoders, plan.clips)
        if track is None and reading.seconds > longest:
            raise UndecodableError(f"pyav: {complaint}")  # decord alone can read it, but not window by window
        return _Whole(frames, reading)
    return _Windows(path, plan, track, starts, complaint, threads)


class WindowStream:
    """Iterates over the windows of one video, in order of time; made by `stream_windows`.

    Each iteration decodes anew. It raises `UndecodableError` where not one of the frames asked for is intact, which may
    be known at the end only. Until it ends, or is closed, stderr (file descriptor 2) is captured, as in `decode`: so
    one at a time.

    Attributes:
        seconds: the video's duration.
        starts: when its W windows start, in seconds; ``len(stream)`` is W.
        reading: what became of the video as a whole; None until an iteration has run to its end. Its coverage is that
            of the distinct frames the windows ask for, times the fraction of the declared frames that are there.
        frames_decoded: how many frames the decoder has given in this iteration; 0 for a video that is read whole.
    """

    def __init__(self, seconds: float, starts: Float[np.ndarray, " W"]) -> None:
        self.seconds, self.starts = seconds, starts
        self.reading: Reading | None = None
        self.frames_decoded = 0

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Window]:
        raise NotImplementedError


class _Whole(WindowStream):
    """A video of one window, as `decode` gave it."""

    def __init__(self, frames: UInt8[np.ndarray, "F R R 3"], reading: Reading) -> None:
        super().__init__(reading.seconds, np.zeros(1))
        self._frames, self._reading = frames, reading

    def __iter__(self) -> Iterator[Window]:
        yield Window(0.0, self.seconds, self._frames, self._reading.coverage)
        self.reading = self._reading


class _Windows(WindowStream):
    """A video of several windows. Of its N frames nothing is kept but when the M wanted ones appear."""

    def __init__(
        self, path: Path, plan: WindowPlan, track: Track, starts: Float[np.ndarray, " N"], complaint: str, threads: int
    ) -> None:
        super().__init__(track.seconds, window_starts(track.seconds, plan.window_seconds, plan.stride_seconds))
        self._path, self._plan, self._track = path, plan, track
        self._complaint, self._threads = complaint, threads
        indices = np.empty((len(self.starts), plan.num_frames), np.int32)
        for window, start in enumerate(self.starts):
            bounds = track.start_seconds + start, track.start_seconds + self._end_of(start)
            indices[window] = window_indices(starts, *bounds, plan.num_frames, plan.sampling)
        chosen = np.zeros(len(starts), bool)  # not np.unique, which takes 10 MiB more than this array
        chosen[indices] = True
        wanted = np.flatnonzero(chosen)  # [M]
        self._times = starts[wanted]
        self._places = np.searchsorted(wanted, indices).astype(np.int32)  # [W, F] into M

    def _end_of(self, start: float) -> float:
        return min(start + self._plan.window_seconds, self.seconds)

    def __iter__(self) -> Iterator[Window]:
        self.reading, self.frames_decoded = None, 0
        chosen = ChosenFrames(self._path, self._track, self._times, self._plan.resolution, self._threads)
        frames = enumerate(chosen)
        kept: dict[int, tuple[UInt8[np.ndarray, "R R 3"], bool]] = {}  # what this window and later ones may use
        newest, good = -1, 0
        with captured_stderr() as complaints:
            try:
                for start, places in zip(self.starts.tolist(), self._places, strict=True):
                    kept = {place: frame for place, frame in kept.items() if place >= places[0]}
                    while newest < places[-1]:
                        newest, kept[newest] = next(frames)
                        good += kept[newest][1]
                    self.frames_decoded = chosen.decoded
                    window = np.empty((len(places), self._plan.resolution, self._plan.resolution, 3), np.uint8)
                    for index, place in enumerate(places):  # np.stack loses 200 bytes each time, in NumPy 2.4
                        window[index] = kept[place][0]
                    coverage = float(np.mean([kept[place][1] for place in places]))
                    yield Window(start, self._end_of(start), window, coverage)
                self.reading = sum_up(self._path, self._track, good, len(self._times), self._complaint or complaints())
            except BROKEN as error:
                raise UndecodableError(f"pyav: {first_line(str(error), self._path)}") from error
            except UndecodableError as error:
                raise UndecodableError(f"pyav: {error}") from error
