"""What PyAV knows of a video: when its frames are shown, and the frames asked for, with damage marked.

FFmpeg conceals damage and complains on stderr only, so stderr can be captured here, for whichever decoder.
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

BROKEN = (av.FFmpegError, OSError, ValueError, IndexError)  # what PyAV raises for files that are


@dataclass(frozen=True)
class Track:
    """The video in a file, but for the time of each frame.

    Attributes:
        start_seconds: when the first frame appears.
        end_seconds: when the last one disappears.
        found: how many frames the file holds.
        declared: how many the container says it holds.
        frame_seconds: the step of a counted clock, where the packets carry none or a wrong one, else None.
    """

    start_seconds: float
    end_seconds: float
    found: int
    declared: int
    frame_seconds: float | None

    @property
    def seconds(self) -> float:
        """How long the video is."""
        return round(self.end_seconds - self.start_seconds, 6)


def read_track(path: Path) -> tuple[Track, Float[np.ndarray, " N"]]:
    """The video in the file at ``path`` and when each of its N frames appears, ascending; no frame is decoded."""
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

    Where that frame cannot be decoded, the nearest one before it (or else after it) stands in, marked as not intact.
    After damage every frame counts as damaged until the next intact key frame, for it may refer to it.

    Args:
        path: the video file.
        track: what `read_track` says of it.
        times: M of the instants that it gives, in seconds, ascending; one that is repeated is served again.
        resolution: R, the side of the squares.
        threads: with which to decode.

    Attributes:
        decoded: how many frames the decoder has given so far; each at most once.
    """

    def __init__(
        self, path: Path, track: Track, times: Float[np.ndarray, " M"], resolution: int, threads: int = 1
    ) -> None:
        self._path, self._clock, self._times, self._threads = path, track.frame_seconds, times, threads
        self._upright = _Upright(resolution)
        self.decoded = 0

    def __iter__(self) -> Iterator[tuple[UInt8[np.ndarray, "R R 3"], bool]]:
        times, upright = self._times, self._upright
        served, previous = 0, None
        for seconds, frame, whole in self._frames():
            while served < len(times) and times[served] < seconds - TIE_SECONDS:  # its own frame never came
                yield upright(frame if previous is None else previous), False
                served += 1
            while served < len(times) and times[served] <= seconds + TIE_SECONDS:
                yield upright(frame), whole
                served += 1
            previous = frame
            if served == len(times):
                return
        if previous is None:
            raise ValueError("not one frame could be decoded")
        for _ in times[served:]:
            yield upright(previous), False

    def _frames(self) -> Iterator[tuple[float, av.VideoFrame, bool]]:
        """Yields (seconds, frame, intact) in display order, going on after damaged packets."""
        with av.open(str(self._path)) as container:
            stream = _video_stream(container)
            stream.thread_type = "FRAME" if self._threads > 1 else "NONE"
            context = stream.codec_context
            context.thread_count = self._threads
            skippable = context.name in ("h264", "hevc") and self._clock is None  # a counted clock needs each frame
            whole = True
            for packet in container.demux(stream):
                if skippable:
                    # Of the frames that nobody wants FFmpeg leaves out those that no other frame refers to: a quarter
                    # of the work, with x264's usual B-frames. Not of every codec: dav1d would drop wanted ones too.
                    context.skip_frame = "DEFAULT" if self._wants(packet) else "NONREF"
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

    def _wants(self, packet: av.Packet) -> bool:
        if not packet.size or packet.pts is None:
            return True
        seconds = float(packet.pts * packet.time_base)
        nearest = np.searchsorted(self._times, seconds - TIE_SECONDS)
        return bool(nearest < len(self._times) and self._times[nearest] <= seconds + TIE_SECONDS)


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    # A cover picture in a sound file is a video stream to FFmpeg; it is no video.
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise ValueError("the file holds no video stream")
    return streams[0]


# What ffmpeg puts before its scaler for so many quarter turns anticlockwise; turned after it, colours would differ.
_TURNS = {1: (("transpose", "cclock"),), 2: (("hflip", None), ("vflip", None)), 3: (("transpose", "clock"),)}


class _Upright:
    """Scales frames to squares and turns them as the file's rotation metadata asks.

    One scaler serves all frames: to set one up takes longer than to scale. It gets one thread, for it waits for more.
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
    """Redirects file descriptor 2, on which FFmpeg complains, into a file; yields a function that reads its beginning.

    One at a time, or one within the other.
    """
    av.logging.set_libav_level(av.logging.ERROR)
    av.logging.restore_default_callback()  # straight to stderr
    with tempfile.TemporaryFile() as log:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            # Its beginning without moving the position, at which stderr goes on to write.
            yield lambda: os.pread(log.fileno(), 4096, 0).decode(errors="replace").strip()
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def first_line(message: str, path: Path) -> str:
    """The first line of a decoder's message, on one line, without the file's name and memory addresses."""
    line = next((line for line in message.splitlines() if line.strip()), "no message")
    line = line.rsplit("] ", 1)[-1] if line.startswith("[") else line
    return line.replace(str(path), path.name).strip()[:200]
