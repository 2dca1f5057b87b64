"""Reading video files with PyAV: when each frame is shown, and chosen frames, with damaged ones marked.

FFmpeg conceals damage and reports it on stderr only, so stderr can be captured here, for either decoder.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import av.filter
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8

from vidcls.data.sampling import TIE_SECONDS

DECODE_ERRORS = (av.FFmpegError, OSError, ValueError, IndexError)  # what PyAV raises for damaged files


@dataclass(frozen=True)
class Track:
    """The video track of a file.

    Attributes:
        start_seconds: when the first frame appears.
        end_seconds: when the last frame disappears.
        found: how many frames the file holds.
        declared: how many the container says it holds.
        frame_seconds: the frame interval, where packets carry no or wrong timestamps and frames are counted; else None.
    """

    start_seconds: float
    end_seconds: float
    found: int
    declared: int
    frame_seconds: float | None

    @property
    def seconds(self) -> float:
        """The duration of the video."""
        return round(self.end_seconds - self.start_seconds, 6)


def read_track(path: Path) -> tuple[Track, Float[np.ndarray, " N"]]:
    """The video track of a file and when each of its N frames appears, ascending; decodes nothing."""
    with av.open(str(path)) as container:
        stream = _video_stream(container)
        step = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
        count, hidden, last_start, last_seconds = 0, 0, -np.inf, 0.0
        shown = array("d")  # 8 bytes a frame: a long video has hundreds of thousands
        for packet in container.demux(stream):
            if packet.is_discard:  # cut off by an edit list: decoded, not shown
                hidden += 1
                continue
            count += packet.size > 0  # the demuxer ends with an empty packet, which holds no frame
            if packet.size and packet.pts is not None:
                start, seconds = (float((ticks or 0) * packet.time_base) for ticks in (packet.pts, packet.duration))
                shown.append(start)
                last_start, last_seconds = max((last_start, last_seconds), (start, seconds))
        if not count:
            raise ValueError("the video stream holds no frames")
        declared = max(stream.frames - hidden, count)
        if len(shown) < count or container.format.name == "avi":  # whose B-frames come with shuffled timestamps
            return Track(0.0, count * step, count, declared, step), np.arange(count) * step
        starts = np.frombuffer(shown)
        starts.sort()  # in place
        return Track(float(starts[0]), last_start + (last_seconds or step), count, declared, None), starts


class ChosenFrames:
    """Yields (pixels, intact) for each instant of ``times``: the frame that appears then, upright and scaled.

    If that frame cannot be decoded, the nearest one before it (or else after it) takes its place, marked as not intact.
    After damage every frame counts as damaged until the next intact key frame, since it may refer to damaged ones.

    Args:
        path: the video file.
        track: from `read_track`.
        times: M of its frame times, in seconds, ascending; a repeated time gives its frame again.
        resolution: R, in pixels.
        threads: of the decoder.

    Attributes:
        decoded: how many frames the decoder has returned so far; each at most once.
    """

    def __init__(
        self, path: Path, track: Track, times: Float[np.ndarray, " M"], resolution: int, threads: int = 1
    ) -> None:
        self._path, self._clock, self._times, self._threads = path, track.frame_seconds, times, threads
        self._upright = _Upright(resolution)
        self.decoded = 0

    def __iter__(self) -> Iterator[tuple[UInt8[np.ndarray, "R R 3"], bool]]:
        times, upright = self._times, self._upright
        place, previous = 0, None
        for seconds, frame, whole in self._frames():
            while place < len(times) and times[place] < seconds - TIE_SECONDS:  # its own frame is missing
                yield upright(frame if previous is None else previous), False
                place += 1
            while place < len(times) and times[place] <= seconds + TIE_SECONDS:
                yield upright(frame), whole
                place += 1
            previous = frame
            if place == len(times):
                return
        if previous is None:
            raise ValueError("not one frame could be decoded")
        for _ in times[place:]:
            yield upright(previous), False

    def _frames(self) -> Iterator[tuple[float, av.VideoFrame, bool]]:
        """Yields (seconds, frame, intact) in display order; continues after damaged packets."""
        with av.open(str(self._path)) as container:
            stream = _video_stream(container)
            stream.thread_type = "FRAME" if self._threads > 1 else "NONE"
            context = stream.codec_context
            context.thread_count = self._threads
            skippable = context.name in ("h264", "hevc") and self._clock is None  # counting needs every frame
            whole = True
            for packet in container.demux(stream):
                if skippable:
                    # FFmpeg skips unwanted frames that no other frame refers to: a quarter of the work with x264's
                    # usual B-frames. Not for every codec: dav1d would drop wanted frames too.
                    context.skip_frame = "DEFAULT" if self._is_wanted(packet) else "NONREF"
                try:
                    frames = packet.decode()
                except av.MemoryError:
                    raise
                except av.FFmpegError:
                    whole = False
                    continue
                for frame in frames:
                    whole = not frame.is_corrupt and (whole or bool(frame.key_frame))
                    seconds = frame.time if self._clock is None else self.decoded * self._clock
                    self.decoded += 1
                    if seconds is not None:
                        yield seconds, frame, whole

    def _is_wanted(self, packet: av.Packet) -> bool:
        if not packet.size or packet.pts is None:
            return True
        seconds = float(packet.pts * packet.time_base)
        nearest = np.searchsorted(self._times, seconds - TIE_SECONDS)
        return bool(nearest < len(self._times) and self._times[nearest] <= seconds + TIE_SECONDS)


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    # The cover picture of a sound file is a video stream to FFmpeg.
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise ValueError("the file holds no video stream")
    if streams[0].codec_context is None:
        raise ValueError("the codec of the video stream is unknown")
    return streams[0]


# The filters that ffmpeg puts before its scaler, by quarter turns anticlockwise; after it, colours would differ.
_TURNS = {1: (("transpose", "cclock"),), 2: (("hflip", None), ("vflip", None)), 3: (("transpose", "clock"),)}


class _Upright:
    """Resizes frames to R x R and rotates them by the file's rotation metadata.

    One scaler for all frames: creating one takes longer than scaling. One thread, as more would be waited for.
    """

    def __init__(self, resolution: int) -> None:
        self._side, self._scaler = resolution, VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "R R 3"]:
        side, turns = self._side, round(frame.rotation / 90) % 4
        if turns == 0:
            scaled = self._scaler.reformat(frame, side, side, "rgb24", interpolation="BILINEAR", threads=1)
            return scaled.to_ndarray()
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        scale = graph.add("scale", f"{side}:{side}:flags=bilinear")
        filters = [graph.add(name, argument) for name, argument in _TURNS[turns]]
        graph.link_nodes(source, *filters, scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        graph.push(frame)
        return graph.pull().to_ndarray()


@contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Redirects file descriptor 2, where FFmpeg reports errors, to a file; yields a function that reads its beginning.

    Not for use in two threads at once; nesting is fine.
    """
    av.logging.set_libav_level(av.logging.ERROR)
    av.logging.restore_default_callback()  # straight to stderr
    with tempfile.TemporaryFile() as log:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            # Does not move the position at which stderr continues to write.
            yield lambda: os.pread(log.fileno(), 4096, 0).decode(errors="replace").strip()
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def first_line(message: str, path: Path) -> str:
    """The first line of a decoder's message, on one line, without the file's name and memory addresses."""
    line = next((line for line in message.splitlines() if line.strip()), "no message")
    line = line.rsplit("] ", 1)[-1] if line.startswith("[") else line
    return line.replace(str(path), path.name).strip()[:200]
