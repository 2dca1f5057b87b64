"""Windows of a long video in one sequential pass: each frame is decoded at most once, in constant memory.

A video that is short enough is decoded whole, exactly as for training. A longer one is read with PyAV: decord's memory
grows (72 MiB after 2 minutes of 640x360, 209 MiB after 60), and it takes twice the time; it decodes ahead in another
thread, so that errors cannot be attributed to frames; and its timestamps are too coarse after an hour.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from vidcls.data.decoding.frames import decode, summarise_decode
from vidcls.data.decoding.plan import Window, WindowPlan
from vidcls.data.decoding.pyav import ChosenFrames
from vidcls.data.decoding.result import DecodeResult
from vidcls.data.decoding.track import Scan, decoding, scan
from vidcls.data.sampling import TIE_SECONDS, window_indices


def stream_windows(path: Path, plan: WindowPlan, decoders: tuple[str, ...], threads: int = 1) -> WindowStream:
    """The windows of the video at ``path``, to be iterated over; ``threads`` is for a video of several windows.

    Raises:
        UndecodableError: there is no video, or a short one has no intact frame.
    """
    found = scan(path)
    # A window that is longer than a clip shows more than the clips of a whole video.
    one_clip = min(plan.window_seconds, plan.spec.clip_seconds or math.inf)
    if found.track.seconds <= max(plan.max_whole_seconds, one_clip) + TIE_SECONDS:
        return _WholeVideo(*decode(path, plan.spec, decoders, found))
    return _Windows(path, plan, found, threads)


class WindowStream:
    """Iterates over the windows of one video, in order of time; made by `stream_windows`.

    Each iteration decodes again. It raises `UndecodableError` if no requested frame is intact, perhaps only at the end.
    Until it ends or is closed, stderr (file descriptor 2) is captured, so only one iteration may run at a time.

    Attributes:
        seconds: the video's duration.
        starts: the start times of its W windows, in seconds; ``len(stream)`` is W.
        result: of the video as a whole; None until an iteration has reached its end.
        frames_decoded: the number of frames decoded in this iteration; 0 for a video that is read whole.
    """

    def __init__(self, seconds: float, starts: Float[np.ndarray, " W"]) -> None:
        self.seconds, self.starts = seconds, starts
        self.result: DecodeResult | None = None
        self.frames_decoded = 0

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Generator[Window, None, None]:
        raise NotImplementedError


class _WholeVideo(WindowStream):
    def __init__(self, frames: UInt8[np.ndarray, "F R R 3"], result: DecodeResult) -> None:
        super().__init__(result.seconds, np.zeros(1))
        self._frames, self._result = frames, result

    def __iter__(self) -> Generator[Window, None, None]:
        yield Window(0.0, self.seconds, self._frames, self._result.coverage)
        self.result = self._result


class _Windows(WindowStream):
    """A video of several windows. Of its N frames only the times of the requested ones are kept."""

    def __init__(self, path: Path, plan: WindowPlan, found: Scan, threads: int) -> None:
        track, starts, keys, self._errors = found
        # Of a damaged file everything is decoded, to find all damage.
        self._keys = np.empty(0) if track.reasons or self._errors else keys
        window_starts, total = plan.choose_windows(starts - track.start_seconds, track.seconds)
        if total is not None:
            unread = f"{len(window_starts)} of {total} windows are read (predict.max_windows)"
            coverage = track.coverage * len(window_starts) / total
            track = replace(track, reasons=(*track.reasons, unread), coverage=coverage)
        super().__init__(track.seconds, window_starts)
        self._path, self._plan, self._track, self._threads = path, plan, track, threads
        indices = np.empty((len(self.starts), plan.spec.stored_frames), np.int32)
        for window, start in enumerate(self.starts):
            bounds = track.start_seconds + start, track.start_seconds + self._end_of(start)
            indices[window] = window_indices(starts, *bounds, plan.spec.stored_frames, plan.spec.sampling)
        chosen = np.zeros(len(starts), bool)  # not np.unique, which takes 10 MiB more than this array
        chosen[indices] = True
        requested = np.flatnonzero(chosen)
        self._times = starts[requested]
        self._places = np.searchsorted(requested, indices).astype(np.int32)  # [W, F] into the requested frames

    def _end_of(self, start: float) -> float:
        return min(start + self._plan.window_seconds, self.seconds)

    def __iter__(self) -> Generator[Window, None, None]:
        self.result, self.frames_decoded = None, 0
        side = self._plan.spec.stored_resolution
        chosen = ChosenFrames(self._path, self._track, self._times, side, self._threads, self._keys)
        frames = enumerate(chosen)
        kept: dict[int, tuple[UInt8[np.ndarray, "R R 3"], bool]] = {}  # frames of this window and of later ones
        newest, intact = -1, 0
        with decoding(self._path, "pyav") as ffmpeg_errors:
            for start, places in zip(self.starts.tolist(), self._places, strict=True):
                kept = {place: frame for place, frame in kept.items() if place >= places[0]}
                while newest < places[-1]:
                    newest, kept[newest] = next(frames)
                    intact += kept[newest][1]
                self.frames_decoded = chosen.decoded
                window = np.empty((len(places), side, side, 3), np.uint8)
                for index, place in enumerate(places):  # np.stack loses 200 bytes each time, in NumPy 2.4
                    window[index] = kept[place][0]
                coverage = float(np.mean([kept[place][1] for place in places]))
                yield Window(start, self._end_of(start), window, coverage)
            next(frames, None)  # decodes what follows the last frame, see `ChosenFrames`
            errors = self._errors or ffmpeg_errors()
            self.result = summarise_decode(self._path, self._track, intact, len(self._times), errors)
