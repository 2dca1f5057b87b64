"""One video file to a small stack of frames, honest about what could not be read. The only file that knows decord.

decord is fast but hides damage: FFmpeg conceals broken macroblocks and decord hands the patched frames on as good
ones. FFmpeg does complain on stderr, though, so stderr is captured around every decode; whatever decord refuses or
complains about is read again with PyAV, which knows frame by frame what is damaged. Runs in worker processes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import av.filter
import decord
import numpy as np
from jaxtyping import Float, UInt8

from vidcls.data.sampling import TIE_SECONDS, frame_indices

DECODERS = ("decord", "pyav")


@dataclass(frozen=True)
class Reading:
    """What a decoder made of one video, beside the frames.

    Attributes:
        status: ``ok``, or ``partial`` where some of the frames asked for are damaged or missing.
        reason: why it is partial, else "".
        decoder: ``decord`` or ``pyav``.
        seconds: the video's duration, from the first frame's appearance to the last one's end.
        coverage: the fraction of the frames asked for that is intact, 0..1.
    """

    status: str
    reason: str
    decoder: str
    seconds: float
    coverage: float


Frames = UInt8[np.ndarray, "F R R 3"]


class UndecodableError(Exception):
    """Neither decoder can give a single intact frame; the message says what each one said."""


def decode(
    path: Path, num_frames: int, resolution: int, sampling: str, decoders: tuple[str, ...]
) -> tuple[Frames, Reading]:
    """Reads ``num_frames`` = F frames of the video at ``path`` as squares of ``resolution`` = R pixels.

    The frames are RGB, upright, the whole picture squeezed to a square. They are scaled by
    FFmpeg's bilinear scaler (which averages when shrinking) and turned as the file's rotation metadata asks; the two
    decoders agree to within rounding.

    Args:
        path: the video file.
        num_frames: F.
        resolution: R, in pixels.
        sampling: see `vidcls.data.sampling.frame_indices`.
        decoders: which to try, in order, out of ``decord`` and ``pyav``.

    Raises:
        UndecodableError: no decoder gave an intact frame.
    """
    readers = {"decord": _decode_decord, "pyav": _decode_pyav}
    complaints = []
    for name in decoders:
        try:
            return readers[name](path, num_frames, resolution, sampling)
        except UndecodableError as error:
            complaints.append(f"{name}: {error}")
    raise UndecodableError("; ".join(complaints))


def _decode_decord(path: Path, num_frames: int, resolution: int, sampling: str) -> tuple[Frames, Reading]:
    decord.logging.set_level(decord.logging.ERROR)
    with _captured_stderr() as complaints:
        try:
            # It cannot copy frames of a few widths (8, 16, 24, 48, 72): PyAV then serves, at half the speed or less.
            # One thread each: the workers are the parallelism, and a decoder of its own threads starves the others.
            reader = decord.VideoReader(str(path), width=resolution, height=resolution, num_threads=1)
            shown = reader.get_frame_timestamp(range(len(reader)))  # [N, 2] start and end, seconds
            shown = shown.astype(np.float64)
            if not (np.diff(shown[:, 0]) > 0).all() or (np.abs(shown) > 1e9).any():
                raise ValueError("timestamps are missing or out of order")  # B-frames in AVI: it would repeat one frame
            if shown[0, 0] < 0:  # an edit list: decord counts frames that are not shown
                raise ValueError("the first frames are not to be shown")
            indices = frame_indices(shown[:, 0], float(shown[-1, 1]), num_frames, sampling)
            frames = reader.get_batch(indices).asnumpy()
        except Exception as error:  # decord raises DECORDError, RuntimeError, IndexError and more for broken files
            raise UndecodableError(_first_line(str(error), path)) from error
        noise = complaints()
    if noise:
        raise UndecodableError(_first_line(noise, path))
    return frames, Reading("ok", "", "decord", round(float(shown[-1, 1] - shown[0, 0]), 6), 1.0)


def _decode_pyav(path: Path, num_frames: int, resolution: int, sampling: str) -> tuple[Frames, Reading]:
    av.logging.set_libav_level(av.logging.ERROR)
    av.logging.restore_default_callback()  # FFmpeg's messages straight to stderr, where they are captured
    with _captured_stderr() as complaints:
        try:
            timeline = _timeline(path)
            indices = frame_indices(timeline.starts, timeline.end_seconds, num_frames, sampling)
            frames, intact = _frames_at(path, timeline.starts[indices], timeline.frame_seconds, resolution)
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            raise UndecodableError(_first_line(str(error), path)) from error
        noise = complaints()
    reasons = []
    if not intact.all():
        reasons.append(f"{int((~intact).sum())} of {num_frames} frames are damaged or missing")
    found = len(timeline.starts)
    if found < timeline.declared:
        reasons.append(f"the file ends early: {found} of {timeline.declared} frames are there")
    if noise:
        reasons.append(f"decoder says: {_first_line(noise, path)}")
    coverage = float(intact.mean()) * found / timeline.declared
    if not intact.any():
        raise UndecodableError("; ".join(reasons))
    seconds = round(timeline.end_seconds - float(timeline.starts[0]), 6)
    return frames, Reading("partial" if reasons else "ok", "; ".join(reasons), "pyav", seconds, coverage)


@dataclass(frozen=True)
class _Timeline:
    """When a file's frames are shown, read without decoding them.

    Attributes:
        starts: when each frame appears, ascending.
        end_seconds: when the last one disappears.
        declared: how many frames the container says it holds.
        frame_seconds: the step of a counted clock, where the packets carry none or a wrong one, else None.
    """

    starts: Float[np.ndarray, " N"]
    end_seconds: float
    declared: int
    frame_seconds: float | None


def _timeline(path: Path) -> _Timeline:
    with av.open(str(path)) as container:
        stream = _video_stream(container)
        step = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
        count, hidden, shown = 0, 0, []  # (start, duration) of each packet, in seconds
        for packet in container.demux(stream):
            if packet.is_discard:  # cut off by an edit list: decoded, not shown
                hidden += 1
                continue
            count += packet.size > 0  # the demuxer ends with an empty packet, which holds no frame
            if packet.size and packet.pts is not None:
                shown.append((float(packet.pts * packet.time_base), float((packet.duration or 0) * packet.time_base)))
        if not count:
            raise ValueError("the video stream holds no frames")
        declared = max(stream.frames - hidden, count)
        if len(shown) < count or container.format.name == "avi":  # whose B-frames come with shuffled timestamps
            return _Timeline(np.arange(count) * step, count * step, declared, step)
        last_start, last_duration = max(shown)
        return _Timeline(np.sort([start for start, _ in shown]), last_start + (last_duration or step), declared, None)


def _frames_at(
    path: Path, wanted: np.ndarray, frame_seconds: float | None, resolution: int
) -> tuple[Frames, np.ndarray]:
    """The frames shown at the instants ``wanted`` [F] (ascending, seconds), and whether each of them is intact.

    Where the frame for an instant cannot be decoded, the nearest one before it (or else after it) stands in, marked as
    not intact. After damage every frame counts as damaged until the next intact key frame, for it may refer to it.
    """
    frames = np.zeros((len(wanted), resolution, resolution, 3), np.uint8)
    intact = np.zeros(len(wanted), bool)
    served, previous = 0, None
    for seconds, frame, whole in _decoded_frames(path, frame_seconds):
        while served < len(wanted) and wanted[served] < seconds - TIE_SECONDS:  # its own frame never came
            frames[served] = _upright(frame if previous is None else previous, resolution)
            served += 1
        while served < len(wanted) and wanted[served] <= seconds + TIE_SECONDS:
            frames[served], intact[served] = _upright(frame, resolution), whole
            served += 1
        previous = frame
        if served == len(wanted):
            break
    if previous is None:
        raise ValueError("not one frame could be decoded")
    if served < len(wanted):
        frames[served:] = _upright(previous, resolution)
    return frames, intact


def _decoded_frames(path: Path, frame_seconds: float | None) -> Iterator[tuple[float, av.VideoFrame, bool]]:
    """Yields (seconds, frame, intact) in display order, going on after damaged packets."""
    with av.open(str(path)) as container:
        stream = _video_stream(container)
        stream.thread_type = "NONE"  # the workers are the parallelism
        whole, count = True, 0
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.MemoryError:
                raise
            except av.FFmpegError:
                whole = False
                continue
            for frame in decoded:
                whole = not frame.is_corrupt and (whole or bool(frame.key_frame))
                if frame_seconds is not None:
                    yield count * frame_seconds, frame, whole
                elif frame.time is not None:
                    yield frame.time, frame, whole
                count += 1


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    # A cover picture in a sound file is a video stream to FFmpeg; it is no video.
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise ValueError("the file holds no video stream")
    return streams[0]


# What ffmpeg puts before its scaler for so many quarter turns anticlockwise; turned after it, colours would differ.
_TURNS = {1: (("transpose", "cclock"),), 2: (("hflip", None), ("vflip", None)), 3: (("transpose", "clock"),)}


def _upright(frame: av.VideoFrame, resolution: int) -> UInt8[np.ndarray, "R R 3"]:
    turns = round(frame.rotation / 90) % 4
    if turns == 0:
        return frame.reformat(resolution, resolution, "rgb24", interpolation="BILINEAR").to_ndarray()
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    scale = graph.add("scale", f"{resolution}:{resolution}:flags=bilinear")
    filters = [graph.add(name, argument) for name, argument in _TURNS[turns]]
    graph.link_nodes(source, *filters, scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


@contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Redirects file descriptor 2, on which FFmpeg complains, into a file; yields a function that reads it so far."""
    with tempfile.TemporaryFile() as log:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)

        def read() -> str:
            log.seek(0)
            return log.read().decode(errors="replace").strip()

        try:
            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _first_line(message: str, path: Path) -> str:
    """The first line of a decoder's message, on one line, without the file's name and memory addresses."""
    line = next((line for line in message.splitlines() if line.strip()), "no message")
    line = line.rsplit("] ", 1)[-1] if line.startswith("[") else line
    return line.replace(str(path), path.name).strip()[:200]
