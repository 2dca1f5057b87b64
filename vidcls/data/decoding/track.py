"""The video track of a file: when its frames are shown, and whether players could show anything else.

Reads all packets and decodes at most one frame. Both decoders rely on this choice of a track and of timestamps.
"""

from __future__ import annotations

import os
import tempfile
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Float

from vidcls.data.decoding.crop_rectangle import boxes, shown_share
from vidcls.data.decoding.orientation import SEI, Orientation, first_orientation, says_orientation
from vidcls.data.decoding.result import UndecodableError
from vidcls.data.decoding.transport_stream import read_program_stream, read_transport_stream
from vidcls.errors import printable

# Formats that hold their own frames. Others refer to further files (HLS, DASH, SDP, ffconcat, image sequences), which
# FFmpeg would open, or hold a still picture.
FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf"
ENDLESS = ("mpegts", "mpeg", "mpegvideo")  # those that do not say where they end
UNREAD_STRETCH, UNREAD_TOTAL = 0.1, 0.5  # fractions of a file; headers and padding take less
UNREAD_BYTES = 4096  # or this
LEAST_SHOWN = 0.9  # of the picture; cameras crop a few lines
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
ASF_HEADER_BYTES = 2**16
FLV_FRAMES = 2  # by which the duration in a header may be too long
SHORTEST_FRAME_SECONDS = 1 / 240  # faster rates are taken for errors
_capturing = threading.RLock()


@dataclass(frozen=True)
class Track:
    """The video track of a file."""

    start_seconds: float  # when the first frame appears
    end_seconds: float  # when the last frame disappears
    frame_seconds: float | None  # the frame interval, if timestamps are missing or wrong and frames are counted
    reasons: tuple[str, ...]  # why a player may show something that is not among the frames
    coverage: float  # the fraction of its frames, as far as known, that are there and shown, 0..1
    decord: bool  # whether decord finds each of its frames, and rotates them as FFmpeg does
    endless: bool = False  # whether only its last frame can tell that the file has been cut off

    @property
    def seconds(self) -> float:
        return round(self.end_seconds - self.start_seconds, 6)


class Scan(NamedTuple):
    """The result of reading all packets of a file."""

    track: Track
    starts: Float[np.ndarray, " N"]  # when each frame appears, ascending, in seconds
    keys: Float[np.ndarray, " G"]  # the same of key frames, if all later frames can be decoded from them; else empty
    ffmpeg_errors: str


def scan(path: Path) -> Scan:
    """`read_track` with the errors that FFmpeg reports; raises `UndecodableError` if there is no video."""
    with decoding(path, "pyav") as ffmpeg_errors:
        return Scan(*read_track(path), ffmpeg_errors())


def open_video(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """The container, which must have one of `FORMATS`, and its video track, as players choose it."""
    # The prefix: FFmpeg would take a name such as concat:a|b for a protocol.
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    except av.ArgumentError as error:
        raise ValueError(f"not a video file of a known format ({FORMATS})") from error
    try:
        stream = container.streams.best("video")
        # The cover picture of a sound file is a video stream to FFmpeg.
        if not isinstance(stream, av.VideoStream) or stream.disposition & av.stream.Disposition.attached_pic:
            raise ValueError("the file holds no video stream")
        if stream.codec_context is None:
            raise ValueError("the codec of the video stream is unknown")
        return container, stream
    except BaseException:
        container.close()
        raise


def demux(container: av.container.InputContainer, *streams: av.stream.Stream) -> Iterator[av.Packet]:
    """The packets, with timestamps that continue where those of the first stream restart, as in joined files."""
    offset, last, step, video = 0, None, 1, streams[0].index
    with suppress(IndexError):  # raised by PyAV at the end if a track begins in mid-file
        for packet in container.demux(*streams):
            if packet.stream_index == video and packet.size and (dts := packet.dts) is not None:
                if last is not None and dts + offset < last:
                    offset = last + step - dts
                elif last is not None:
                    step = packet.duration or max(dts + offset - last, 1)
                last = dts + offset
                if offset:
                    packet.dts = last
                    packet.pts = None if packet.pts is None else packet.pts + offset
            yield packet


def read_track(path: Path) -> tuple[Track, Float[np.ndarray, " N"], Float[np.ndarray, " G"]]:
    """The video track of a file, and when its frames and its key frames appear, as in `Scan`."""
    container, stream = open_video(path)
    with container:
        counted = container.format.name == "avi"  # whose B-frames come with shuffled timestamps
        count = hidden = corrupt = keyless = repeats = 0
        last_seconds, flv, endless = 0.0, container.format.name == "flv", container.format.name in ENDLESS
        key_found = leading = False
        keys, avcc, idr = array("q"), stream.codec_context.extradata or b"", stream.codec_context.name == "h264"
        ticks, durations = array("q"), array("q")  # 16 bytes a frame: a long video has hundreds of thousands
        offsets, sizes = array("q"), array("q")  # of the packets of all tracks in the file
        # decord seeks to key frames and counts from there. Without an index it lands elsewhere, it miscounts where
        # frames shown before a key frame are stored after it (open GOP), and it reports no damage of other codecs.
        mp4 = container.format.name.startswith("mov")
        indexed = (mp4 or container.format.name.startswith("matroska")) and stream.codec_context.name == "h264"
        shown: Orientation | None = None
        turns = False  # whether key frames themselves hold a rotation, which decord ignores
        others = [other for other in container.streams if other.index != stream.index]
        for packet in demux(container, stream, *others):
            if packet.pos is not None and packet.size:
                offsets.append(packet.pos)
                sizes.append(packet.size)
            if flv and packet.pts is not None:
                last_seconds = max(last_seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index or not packet.size:  # the demuxer ends with empty packets
                continue
            corrupt += packet.is_corrupt
            if indexed and not key_found and packet.is_keyframe:
                shown = first_orientation(packet)
            key_found = key_found or packet.is_keyframe
            if packet.is_discard:  # cut off by an edit list: decoded, not shown
                hidden += 1
                continue
            keyless += not key_found
            count += 1
            if counted and packet.dts is not None:
                repeats = max(packet.dts + 1 - count - hidden, 0)  # chunks of AVI without bytes: the last frame stays
            counted = counted or packet.pts is None
            if packet.pts is not None:
                if packet.is_keyframe:
                    keys.append(packet.pts)
                    if indexed:
                        starts_anew, turned = _read_key_frame(memoryview(packet), avcc)
                        idr, turns = idr and starts_anew, turns or turned
                leading = leading or (len(keys) > 0 and packet.pts < keys[-1])
                ticks.append(packet.pts)
                durations.append(packet.duration or 0)
        if not count:
            raise ValueError("the video stream holds no frames")
        step = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
        flv_seconds = (container.duration or 0) / av.time_base if flv else 0.0  # by its header, from zero
        declared = max(stream.frames - repeats, count + hidden)
        visible = [other for other in others if other.type == "video"]
        covers = sum(bool(other.disposition & av.stream.Disposition.attached_pic) for other in visible)
        gaps, videos = _read_mpeg(container, path, stream.id)
        late = len(videos - {other.id for other in container.streams})
        missing = _count_missing_bytes(path) if container.format.name == "asf" else 0
        visible_share = shown_share(path) if mp4 or container.format.name.startswith("matroska") else 1.0
        found = {
            f"the file ends early: {count} of {declared} frames are there": count < declared and not hidden,
            f"the file ends early: {missing} bytes are missing": missing,
            f"the file ends early: {last_seconds:.2f} of {flv_seconds:.2f} s are there": (
                last_seconds < flv_seconds - FLV_FRAMES * step
            ),
            f"an edit list hides {declared - count} of {declared} frames": hidden,
            f"the first {keyless} frames come before any key frame": keyless and key_found,
            f"{corrupt} of {declared} packets are damaged": corrupt,
            f"{len(visible) - covers + 1} video tracks, of which one is read": len(visible) > covers,
            f"video tracks that begin late and are not read: {late}": late,
            f"players show {visible_share:.0%} of the picture, by a crop rectangle": visible_share < LEAST_SHOWN,
            "the attached picture is not read": covers,
            "several movies in one file, of which one is read": _count_movies(path) > 1,
            f"{gaps} gap{'s' * (gaps > 1)} in the transport stream: lost packets, joined files or a cut end": gaps,
            "a part of the file belongs to no track that is read": _has_unread_part(container, path, offsets, sizes),
        }
    reasons = tuple(reason for reason, holds in found.items() if holds)
    base = stream.time_base or Fraction(1)
    order = np.argsort(ticks, kind="stable")
    starts = np.array(ticks, np.float64)[order] * base.numerator / base.denominator
    # Of frames with equal timestamps all but the first would be missed, as would most of too fast ones.
    if counted or (np.diff(starts) <= 0).any() or starts[-1] - starts[0] < (count - 1) * SHORTEST_FRAME_SECONDS:
        step = min(max(step, SHORTEST_FRAME_SECONDS), 1.0)
        track = Track(0.0, count * step, step, reasons, count / declared, False, endless)
        return track, np.arange(count) * step, np.empty(0)
    end = float(starts[-1]) + (float(durations[order[-1]] * base) or step)
    seekable = indexed and not leading
    key_starts = np.array(keys if seekable and idr else (), np.float64) * base.numerator / base.denominator
    # decord never mirrors, and rotates only what is in an mp4.
    upright = shown is not None and not shown.mirrored and (mp4 or not shown.degrees) and not turns
    track = Track(float(starts[0]), end, None, reasons, count / declared, seekable and upright, endless)
    return track, starts, key_starts


def _read_key_frame(key_frame: memoryview, avcc: bytes) -> tuple[bool, bool]:
    """Whether a key frame of H.264 in mp4 or Matroska (ISO/IEC 14496-15) is an IDR picture, and may hold a rotation.

    Other pictures are flagged as key frames too, such as recovery points of a stream with gradual refresh.
    """
    if len(avcc) < 5 or avcc[0] != 1:
        return False, True
    prefix, offset, turns = (avcc[4] & 3) + 1, 0, False
    while offset + prefix < len(key_frame):
        kind, start = key_frame[offset + prefix] & 31, offset + prefix
        offset = start + int.from_bytes(key_frame[offset:start])
        if 1 <= kind <= 5:  # a slice
            return kind == 5, turns
        turns = turns or (kind == SEI and says_orientation(bytes(key_frame[start + 1 : offset])))
    return False, turns


def _has_unread_part(
    container: av.container.InputContainer, path: Path, offsets: array[int], sizes: array[int]
) -> bool:
    """Whether a large part of the file lies between packets or behind them."""
    if container.format.name.startswith("mov") or not offsets:  # its index may be large, and lie anywhere
        return False
    order = np.argsort(offsets)
    begins = np.append(np.array(offsets)[order], path.stat().st_size)
    ends = np.maximum.accumulate(np.array(offsets)[order] + np.array(sizes)[order])
    gaps = np.maximum(begins[1:] - ends, 0)
    size = float(begins[-1])
    return bool(
        gaps.max() > max(UNREAD_BYTES, UNREAD_STRETCH * size)
        or gaps.sum() > max(64 * UNREAD_BYTES, UNREAD_TOTAL * size)
    )


def _read_mpeg(container: av.container.InputContainer, path: Path, stream: int) -> tuple[int, set[int]]:
    """The gaps in the track ``stream``, and all video tracks, of formats without a header that lists them."""
    if container.format.name == "mpegts":
        return read_transport_stream(path, stream)
    return 0, read_program_stream(path) if container.format.name == "mpeg" else set()


def _count_missing_bytes(path: Path) -> int:
    """How many bytes of an ASF or WMV file are missing, by its header; 0 for live recordings, which do not know."""
    with path.open("rb") as file:
        properties = file.read(ASF_HEADER_BYTES).partition(ASF_FILE_PROPERTIES)[2]
    if len(properties) < 73 or properties[72] & 1:  # a live recording
        return 0
    return max(int.from_bytes(properties[24:32], "little") - path.stat().st_size, 0)


def _count_movies(path: Path) -> int:
    """The number of ``moov`` boxes of an mp4, of which FFmpeg reads the first; 0 for other formats."""
    with path.open("rb") as file:
        return sum(kind == b"moov" for kind, *_ in boxes(file, 0, path.stat().st_size))


@contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Redirects stderr (file descriptor 2), where FFmpeg reports errors; yields a function that reads the first ones.

    One thread at a time, as there is one stderr; others wait. May be nested.
    """
    av.logging.set_libav_level(av.logging.ERROR)
    av.logging.restore_default_callback()  # straight to stderr
    # In memory if the system supports it: a full or read-only disk must not look like a damaged video.
    in_memory = hasattr(os, "memfd_create")
    with _capturing, open(os.memfd_create("ffmpeg"), "w+b") if in_memory else tempfile.TemporaryFile() as log:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            # pread does not move the position at which stderr is written.
            yield lambda: os.pread(log.fileno(), 4096, 0).decode(errors="replace").strip()
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def decoding(path: Path, decoder: str) -> Iterator[Callable[[], str]]:
    """Captures stderr, and converts what ``decoder`` raises into `UndecodableError`."""
    with captured_stderr() as ffmpeg_errors:
        try:
            yield ffmpeg_errors
        except MemoryError:  # the limit of the worker
            raise
        except Exception as error:  # decord and PyAV raise errors of many kinds for damaged files
            raise UndecodableError(f"{decoder}: {first_line(str(error), path)}") from error


def first_line(message: str, path: Path) -> str:
    """The first line of a decoder's message, without memory addresses and the file's folder."""
    for shown in (f"file:{path}", str(path)):
        message = message.replace(repr(shown)[1:-1], "\0").replace(shown, "\0")  # PyAV shows it as repr does
    line = next((line for line in message.splitlines() if line.strip()), "no message")
    line = line.rsplit("] ", 1)[-1] if line.startswith("[") else line
    return line.replace("\0", printable(path.name)).strip()[:200]
